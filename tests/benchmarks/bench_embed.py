"""Embedding 10,000 images of shards on disk into an index, beside what its cores can give.

    of_the_machine   images/s of `embed --index` / 1 / (1/towers + 1/decoding), since towers and decoding share the
                     cores here: the rates of the same towers, in this process, on batches of the same size that lie in
                     memory, and of decoding alone in two processes. End to end: the dataset is opened, JPEGs (256 px,
                     20 KB) are read and decoded, both towers run, parts and the search's files are written
    of_the_towers    the same over the towers' rate, without a bar
    memory_growth    of the process that embeds: its largest memory in the second half of the run over that in the first
    repeated         pictures that the same command embeds again once the index is there

The towers are those of recipe `demo` (MobileNetV2 at 192 px, two text layers) with random weights: the lightest that
anybody would use, so that decoding, which shares the cores with them here, weighs most. Both sides run in turns.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_loader import make_shards
from tests.benchmarks.bench_loader import rates as rates_of
from tests.benchmarks.bench_serve import checkpoint_of
from tests.benchmarks.harness import Figure, at_least, at_most, quick, report, shown, told

READY = 12
"""Batches that lie ready: more than any cache of a processor holds."""


def main() -> int:
    short = quick(__doc__)
    count, rounds = (768, 1) if short else (9984, 3)
    with tempfile.TemporaryDirectory(prefix="wenlan-embed-") as name:
        folder = Path(name)
        (folder / "shards").mkdir()
        make_shards(folder / "shards", count)
        figures, rates = measured(folder, checkpoint_of("starter", folder / "run", boxes="grid"), count, rounds)
    return report(figures, images=count, **rates)


def measured(folder: Path, run: Path, count: int, rounds: int) -> tuple[dict[str, Figure], dict[str, Any]]:
    from training.use.dataset_source import DatasetSource
    from training.use.embedding import _rows_at_once
    from training.use.indexing import Inputs, embed_index
    from training.weights.load import load

    loaded = load(run, "cpu")
    inputs = Inputs(data=(str(folder / "shards"),), cache=str(folder / "cache"))
    source = DatasetSource(inputs.data, cache=folder / "cache")
    size = _rows_at_once(loaded, source)
    batches = ready(loaded, source, size)
    towers, whole, growth = list[float](), list[float](), list[float]()
    for turn in range(rounds + 1):
        towers.append(towers_alone(loaded, batches, count if turn else 4 * size))
        shutil.rmtree(folder / "index", ignore_errors=True)
        began = time.perf_counter()
        with watched_memory() as seen:
            written = embed_index(run, inputs, folder / "index", device="cpu")
        whole.append(count / (time.perf_counter() - began))
        assert written["rows"] == count
        half = len(seen) // 2
        growth.append(max(seen[half:]) / max(seen[:half]))
        said = f"towers {towers[-1]:.1f} images/s, end to end {whole[-1]:.1f}, in batches of {size}"
        told(f"round {turn} of {rounds}: {said}" + ("" if turn else " (warm-up)"))
    again = embed_index(run, inputs, folder / "index", device="cpu")
    decoding = rates_of(folder / "shards", {"decode": sys.executable}, rounds, loaded.config.data.image_size)["decode"]
    rates = {"towers": statistics.median(towers[1:]), "decode": decoding, "end_to_end": statistics.median(whole[1:])}
    figures = {
        "of_the_machine": at_least(rates["end_to_end"] * (1 / rates["towers"] + 1 / rates["decode"]), 0.9),
        "of_the_towers": shown(rates["end_to_end"] / rates["towers"]),
        "memory_growth": at_most(max(growth[1:]), 1.2),
        "repeated": at_most(again["embedded"], 0, "images"),
    }
    return figures, {name: round(rate, 1) for name, rate in rates.items()}


def ready(loaded: Any, source: Any, size: int) -> list[Any]:
    """Batches of the dataset as the loop gets them."""
    from training.use.embedding import _BatchRequest, _RowReader

    reader = _RowReader(loaded, source, None)
    return [reader[_BatchRequest(range(start, start + size), 0)].batch for start in range(0, READY * size, size)]


def towers_alone(loaded: Any, batches: list[Any], count: int) -> float:
    """Images per second of both towers on batches in memory."""
    import torch

    turns = -(-count // len(batches[0]))
    began = time.perf_counter()
    with torch.inference_mode():
        for batch in islice(cycle(batches), turns):
            loaded.model.encode_image(batch).float().numpy()
            loaded.model.encode_text(batch).float().numpy()
    return turns * len(batches[0]) / (time.perf_counter() - began)


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """Bytes of this process's own memory, looked at twice a second."""
    seen, done = [own_memory()], threading.Event()

    def look() -> None:
        while not done.wait(0.5):
            seen.append(own_memory())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
        seen.append(own_memory())


def own_memory() -> int:
    """Resident bytes that belong to no file."""
    fields = Path("/proc/self/status").read_text(encoding="utf-8").split()
    return int(fields[fields.index("RssAnon:") + 1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
