"""Curation: density filters, concept balance and QR codes, by themselves; what models cost is in other benchmarks.

    density      captions a second through text_density, one process
    balance      both passes over a million captions, one process: entries counted, threshold, every pair judged; peak
                 memory of the process, the captions themselves left out
    qr           milliseconds per picture of 512 pixels, one thread
    qr_and_faces the same of image_qr and image_faces together
    score_cached pairs a second through stage `score` on one core, whose features (512 numbers each) are in STORE
    score_ratio  the rate of stage `score` from JPEGs and texts, over that of its two towers alone under onnxruntime, on
                 tensors that are ready, in the same batches (Chinese-CLIP's ViT-B/16 with random weights, 1 thread)

Seconds are those of the processor, so that other work on the machine counts little. --quick: a tenth of the captions,
and a ViT-S/16.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import cv2
import numpy as np
from captions import captions
from harness import Figure, at_least, at_most, quick, report
from scored_pairs import cached_rate, tower_ratio

from data_specs.build import Balance
from data_specs.shard import Text
from pipeline.curate.balance import draw, threshold_of
from pipeline.filters import PixelFilter
from pipeline.filters.image_faces import ImageFaces
from pipeline.filters.image_qr import ImageQr
from pipeline.filters.text_density import TextDensity
from pipeline.store.concept_counts import Probabilities
from pipeline.texts.concepts import concepts


def density(texts: list[str]) -> float:
    """Captions a second."""
    dense = TextDensity(min_entropy=6e-4)
    given = [Text("alt", text) for text in texts]
    dense.check(given[0])  # reads the dictionary
    start = time.process_time()
    for text in given:
        dense.check(text)
    return len(given) / (time.process_time() - start)


def balance(texts: list[str]) -> tuple[float, float, int]:
    """(seconds of both passes, peak memory beside the captions in GB, captions kept)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far was that of making the captions
    before = _memory("VmRSS")
    options = Balance()
    start = time.process_time()
    known = concepts(options, "")
    counts = np.zeros(len(known.entries), np.int64)
    for text in texts:
        counts[known.find(text)] += 1
    threshold = threshold_of(counts, options)
    probabilities = Probabilities(threshold, {int(e): int(counts[e]) for e in np.flatnonzero(counts > threshold)})
    kept, after = 0, Counter[int]()
    for number, text in enumerate(texts):
        entries = known.find(text)
        if not entries or draw(f"{number:064x}", 0) < probabilities.of(entries):
            kept += 1
            after.update(entries)
    seconds = time.process_time() - start
    return seconds, (_memory("VmHWM") - before) / 2**20, kept


def _memory(name: str) -> int:
    """A figure of this process from /proc, in KiB: VmRSS is what it has in memory, VmHWM the most since the reset."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def looking(pictures: int, *plugins: PixelFilter) -> float:
    """Milliseconds per picture of some filters of pixels together."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(1)
    shown = [
        cv2.GaussianBlur(cv2.resize(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8), (512, 384)), (0, 0), 1.5)
        for _ in range(pictures)
    ]
    loaded = [(plugin, plugin.load()) for plugin in plugins]
    for plugin, state in loaded:
        plugin.score(state, shown[:2])
    start = time.process_time()
    for plugin, state in loaded:
        plugin.score(state, shown)
    return 1_000 * (time.process_time() - start) / len(shown)


def main() -> int:
    short = quick(__doc__ or "")
    count = 100_000 if short else 1_000_000
    print(f"making {count:,} captions", file=sys.stderr)
    texts = captions(count, seed=7)
    seconds, memory, kept = balance(texts)
    print(f"balance keeps {kept:,} of {count:,}", file=sys.stderr)
    figures: dict[str, Figure] = {
        "density": at_least(density(texts[:100_000]), 20_000, "captions/s"),
        "balance_seconds": at_most(seconds * 1_000_000 / count, 60, "s of 1M"),
        "balance_memory": at_most(memory, 2, "GB"),
        "qr": at_most(looking(100, ImageQr()), 15, "ms"),
        "qr_and_faces": at_most(looking(100, ImageQr(), ImageFaces()), 15, "ms"),
        "score_cached": at_least(cached_rate(10_000 if short else 40_000), 20_000, "pairs/s"),
        "score_ratio": at_least(tower_ratio(short), 0.9),
    }
    return report(figures)


if __name__ == "__main__":
    sys.exit(main())
