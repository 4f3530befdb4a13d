"""Resume: how long until the first batch after 10%, 50% and 90%, and whether what follows is what would have come.

    seconds_WORKERS     longest time from opening the data to the first batch, over the three positions and world sizes
    same_ids            share of (position, world size, workers) at which the next 1,000 sample ids, all ranks joined in
                        rank order, are those of an undisturbed run at world size 1 without workers

World sizes 1, 2 and 3, workers 0, 2 and 4, each in a fresh process, with the index in the cache.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_loader import make_shards
from tests.benchmarks.harness import answer_of, at_least, at_most, quick, report, told

BATCH, IDS = 96, 1000

RANKS = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
import torch
import torchvision.io, torchvision.transforms.v2.functional, simplejpeg  # a start of python, not of a run
from training.resolve import resolve
from training.data.loader import Loader, Share
from training.data.index import open_dataset
from training.data.tokenizer import load_tokenizer

torch.set_num_threads(1)
folder, position, world, workers, batch, wanted = Path(sys.argv[1]), *map(int, sys.argv[2:])
config = replace(resolve("tiny").data, num_workers=workers, image_size=64)
steps = -(-wanted // batch)
began, first, ranks = time.perf_counter(), [], []
for rank in range(world):
    began = time.perf_counter()
    data = open_dataset([str(folder / "manifest.json")], "train", cache=folder / "cache")
    loader = Loader(data, config, load_tokenizer("gb2312"), Share(batch, rank, world), seed=5, train=True)
    batches = loader.batches(position, position + steps * batch)
    mine = [next(batches).sample_ids_B.tolist()]
    first.append(time.perf_counter() - began)
    ranks.append(mine + [b.sample_ids_B.tolist() for b in batches])
ids = [i for step in zip(*ranks) for part in step for i in part]
print(json.dumps({"seconds": max(first), "ids": ids[:wanted]}))
"""


def main() -> int:
    short = quick(__doc__)
    worlds, workers = ((1, 2), (0, 2)) if short else ((1, 2, 3), (0, 2, 4))
    with tempfile.TemporaryDirectory(prefix="wenlan-resume-") as name:
        folder, samples = Path(name), 2048 if short else 8192
        make_shards(folder, samples)
        # of two epochs; at a multiple of the batch, as a checkpoint is
        positions = [int(2 * samples * share) // BATCH * BATCH for share in (0.1, 0.5, 0.9)]
        figures, good, tried = {}, 0, 0
        expected = {position: begin(folder, position, 1, 0)["ids"] for position in positions}
        for count in workers:
            slowest = 0.0
            for position in positions:
                for world in worlds:
                    found = begin(folder, position, world, count)
                    tried += 1
                    good += found["ids"] == expected[position]
                    slowest = max(slowest, found["seconds"])
                    told(f"position {position}, {world} rank(s), {count} workers: {found['seconds']:.2f} s")
            figures[f"seconds_{count}"] = at_most(slowest, 1.0, "s")
        undisturbed = begin(folder, positions[0], 1, 0, positions[1] - positions[0] + IDS)["ids"]
        good += undisturbed[-IDS:] == expected[positions[1]]
        figures["same_ids"] = at_least(good / (tried + 1), 1.0, "share")
    return report(figures)


def begin(folder: Path, position: int, world: int, workers: int, wanted: int = IDS) -> dict[str, Any]:
    words = [sys.executable, "-c", RANKS, str(folder), *map(str, (position, world, workers, BATCH, wanted))]
    return answer_of(words)


if __name__ == "__main__":
    sys.exit(main())
