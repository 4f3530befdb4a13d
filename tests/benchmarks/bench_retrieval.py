"""Retrieval figures over 30,000 images and 150,000 captions of 2,048 dimensions, AIC-ICC's validation set in size.

Random features, five captions per image that are somewhat like it; ranks both ways, all figures and their intervals.
Time is that of the process's CPUs divided by the threads, since a benchmark's machine is often shared; it is compared
with the one product of matrices that cannot be saved, in tiles that fit a cache. Memory is the peak of the process,
features included.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import numpy as np

from tests.benchmarks.harness import at_most, quick, report, told
from training.evaluation.hits import Captions, Features
from training.evaluation.retrieval import figures, rank

EACH, ROWS, TILE = 5, 1_000, 1_024


def features(images: int, width: int) -> tuple[Features, Features]:
    """Unit rows of images and of their captions, made in place: they are most of the memory that is measured."""
    rng = np.random.default_rng(0)
    image_ND = np.empty((images, width), np.float32)
    text_MD = np.empty((images * EACH, width), np.float32)
    for start in range(0, images, ROWS):
        image = rng.standard_normal((min(ROWS, images - start), width), np.float32)
        text = np.repeat(image, EACH, axis=0) + 12 * rng.standard_normal((len(image) * EACH, width), np.float32)
        image_ND[start : start + len(image)] = image / np.linalg.norm(image, axis=1, keepdims=True)
        text_MD[EACH * start : EACH * (start + len(image))] = text / np.linalg.norm(text, axis=1, keepdims=True)
    return image_ND, text_MD


def product(image_ND: Features, text_MD: Features) -> None:
    import torch

    images, texts = torch.from_numpy(image_ND), torch.from_numpy(text_MD)
    for rows in images.split(TILE):
        for columns in texts.split(TILE):
            rows @ columns.T


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """(CPU seconds per thread, seconds) of a call."""
    import torch

    began, cpu = time.perf_counter(), time.process_time()
    work()
    return (time.process_time() - cpu) / torch.get_num_threads(), time.perf_counter() - began


def main() -> int:
    small = quick(__doc__)

    import torch

    images, width = (1_500, 512) if small else (30_000, 2_048)
    image_ND, text_MD = features(images, width)
    hits = Captions(images, images * EACH, np.repeat(np.arange(images), EACH), np.arange(images * EACH))

    def ours() -> None:
        found = figures(rank(image_ND, text_MD, hits), intervals=True)
        told(f"R@1 {found.image_to_text.recall[1]:.3f}, {found.text_to_image.recall[1]:.3f}")

    mine, waited = spent(ours)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    plain, _ = spent(lambda: product(image_ND, text_MD))
    threads = torch.get_num_threads()
    told(f"{mine:.1f} s on {threads} threads ({waited:.1f} s waited), product alone {plain:.1f} s")
    bars = {
        "retrieval_seconds": at_most(mine, 180, "s"),
        "retrieval_memory": at_most(peak, 2, "GB"),
        "retrieval_over_product": at_most(mine / plain, 3 if small else 1.5),
    }
    return report(bars)


if __name__ == "__main__":
    sys.exit(main())
