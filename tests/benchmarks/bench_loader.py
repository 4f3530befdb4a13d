"""The loader on 256 px JPEG shards, 2 workers, square resize, no colour changes; its memory; opening many samples.

    against_webdataset   samples/s of ours / of webdataset as open_clip builds it (PIL, float32 handed over). Ours is
                         free in the decoder and hands over uint8; `pixel_difference` says what that changes
    of_bare_decode       samples/s of ours / of our own decode and transform in 2 bare processes
    pixel_difference     mean over samples of |ours - Pillow's| in grey levels of 256, square resize both
    memory_growth        of one loader worker: largest departure of its own memory from the median, after a first tenth
                         of 200,000 samples
    open_warm, open_cold seconds to open 1,000,000 samples in 100 shards, with the index in the cache and without

The sides read in turn, each in a process of its own (loader_sides.py); webdataset's runs in the peers' environment.
"""

from __future__ import annotations

import hashlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.harness import (
    Figure,
    Side,
    answer_of,
    at_least,
    at_most,
    interleaved,
    peer,
    program,
    quick,
    report,
    told,
)
from tests.training import conftest

SIDE, SIZE, WORKERS = 256, 224, 2


def main() -> int:
    short = quick(__doc__)
    with tempfile.TemporaryDirectory(prefix="wenlan-loader-") as name:
        folder = Path(name)
        make_shards(folder, 4096 if short else 8192)
        figures = speed(folder, 2 if short else 5)
        figures["pixel_difference"] = at_most(pixel_difference(folder), 2.0, "levels")
        figures |= opening(folder / "large", 100_000 if short else 1_000_000)
        figures |= memory(folder, 8_000 if short else 200_000)
    return report(figures)


def photo(number: int) -> bytes:
    """A JPEG with structure at all scales, of about 20 KB, as a photograph of this size has."""
    from PIL import Image

    rng = np.random.default_rng(number)
    pixels = np.zeros((SIDE, SIDE, 3))
    for cells in (4, 16, 64, SIDE):
        layer = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        weight = (4 / cells) ** 0.6
        pixels += weight * np.asarray(layer.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=float)
    pixels = 255 * (pixels - pixels.min()) / (pixels.max() - pixels.min())
    data = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(data, "JPEG", quality=90)
    return data.getvalue()


def make_shards(folder: Path, count: int, shard: int = 256) -> None:
    pictures = [photo(n) for n in range(256)]  # bytes repeat, samples do not
    told(f"{count} samples, {statistics.mean(map(len, pictures)) / 1000:.1f} KB an image")
    shards = []
    for number in range(count // shard):
        numbers = range(number * shard, (number + 1) * shard)
        images = [pictures[n % len(pictures)] for n in numbers]
        samples = [
            replace(conftest.sample(n, "train"), width=SIDE, height=SIDE, sha256=hashlib.sha256(image).hexdigest())
            for n, image in zip(numbers, images, strict=True)
        ]
        shards.append(conftest.write_shard(folder, "train", number, samples, images, None))
    conftest.write_manifest(folder, shards)


def rates(folder: Path, python_of: Mapping[str, Path | str], rounds: int, size: int = SIZE) -> dict[str, float]:
    """Samples a second of sides that read in turn, by name; each is run by its Python."""
    sides = [Side(program("loader_sides", name, folder, size, WORKERS, python=own)) for name, own in python_of.items()]

    def rate(side: Side) -> float:
        answer = side.ask()
        return float(answer["samples"] / answer["seconds"])

    found = interleaved(*(partial(rate, side) for side in sides), rounds=rounds)
    for side in sides:
        side.end()
    told(", ".join(f"{name} {own:.0f} samples/s" for name, own in zip(python_of, found, strict=True)))
    return dict(zip(python_of, found, strict=True))


def speed(folder: Path, rounds: int) -> dict[str, Figure]:
    pythons: dict[str, Path | str] = {"ours": sys.executable, "decode": sys.executable}
    if python := peer("python"):
        pythons["webdataset"] = python
    found = rates(folder, pythons, rounds)
    figures = {"of_bare_decode": at_least(found["ours"] / found["decode"], 0.8)}
    if python:
        figures["against_webdataset"] = at_least(found["ours"] / found["webdataset"], 1.3)
    return figures


def pixel_difference(folder: Path) -> float:
    from PIL import Image

    from training.data.index import open_dataset
    from training.data.transforms import decode, resize_square

    dataset = open_dataset([str(folder / "manifest.json")], "train", cache=folder / "cache")
    differences = []
    for number in range(64):
        data = dataset.image(dataset.row(number))
        mine = resize_square(decode(data), SIZE).permute(1, 2, 0).numpy().astype(float)
        with Image.open(io.BytesIO(data)) as image:
            theirs = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR), dtype=float)
        differences.append(np.abs(mine - theirs).mean())
    return float(np.mean(differences))


def opening(folder: Path, count: int) -> dict[str, Figure]:
    """A manifest of 100 shards, whose tars have their size and nothing in them: opening reads no pixel."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data_specs.shard import SHARD_SCHEMA, FileDigest, ShardFiles
    from training.data.index import open_dataset

    folder.mkdir()
    rows, shards = count // 100, []
    for number in range(100):
        ids = [hashlib.sha256(f"{number} {n}".encode()).hexdigest() for n in range(rows)]
        texts = [[{"kind": "alt", "text": "红色的小船停在山下的湖边", "text_leader": i}] for i in ids]
        columns: dict[str, Any] = {name: [None] * rows for name in SHARD_SCHEMA.names}
        columns |= {"key": [i[:32] for i in ids], "candidate_id": ids, "sha256": ids, "image_leader": ids}
        columns |= {"source_kind": ["news"] * rows, "width": [SIDE] * rows, "height": [SIDE] * rows, "texts": texts}
        columns |= {"image_offset": list(range(0, rows * 512, 512)), "image_size": [512] * rows}
        path = folder / f"train-{number:06d}.parquet"
        pq.write_table(pa.table(columns, schema=SHARD_SCHEMA), path)
        tar = path.with_suffix(".tar")
        with tar.open("wb") as file:
            file.truncate(rows * 512)
        digest = FileDigest(path=tar.name, bytes=rows * 512, sha256="0" * 64)
        shards.append(
            ShardFiles(split="train", samples=rows, tar=digest, parquet=conftest.file_digest(folder, path), regions={})
        )
    manifest = str(conftest.write_manifest(folder, shards))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        dataset = open_dataset([manifest], "train", cache=folder / "cache")
        dataset.row(len(dataset) - 1)
        seconds.append(time.perf_counter() - start)
    told(f"{count} samples: opened in {', '.join(f'{s:.2f}' for s in seconds)} s")
    return {
        "open_warm": at_most(statistics.median(seconds[1:]), 3.0, "s"),
        "open_cold": at_most(seconds[0], 3.0, "s"),
    }


MEMORY = """
import json, multiprocessing, sys
from dataclasses import replace
from pathlib import Path
from training.resolve import resolve
from training.data.loader import Loader, Share
from training.data.index import open_dataset
from training.data.tokenizer import load_tokenizer
folder, count = Path(sys.argv[1]), int(sys.argv[2])
config = replace(resolve("tiny").data, image_size=64, num_workers=1, color_jitter_p=0.0, grayscale_p=0.0)
dataset = open_dataset([str(folder / "manifest.json")], "train", cache=folder / "cache")
loader = Loader(dataset, config, load_tokenizer("gb2312"), Share(64), seed=0, train=True)
held, position = [], 0
for batch in loader.batches(0, count):
    position += 64
    if position % 1024 == 0:
        child = multiprocessing.active_children()[0].pid
        anonymous = Path(f"/proc/{child}/smaps_rollup").read_text()
        held.append(sum(int(l.split()[1]) for l in anonymous.splitlines() if l.startswith("Anonymous")))
print(json.dumps({"held": held}))
"""


def memory(folder: Path, count: int) -> dict[str, Figure]:
    """Of what the worker holds itself: pages of mapped files belong to the kernel, which takes them back."""
    held = answer_of([sys.executable, "-c", MEMORY, str(folder), str(count)])["held"]
    after = held[len(held) // 10 :]
    middle = statistics.median(after)
    told(f"worker: {held[0] / 1024:.0f} MiB at first, then {min(after) / 1024:.0f} to {max(after) / 1024:.0f}")
    worst = max(max(after) / middle - 1, 1 - min(after) / middle)
    return {"memory_growth": at_most(worst, 0.05, "of median")}


if __name__ == "__main__":
    sys.exit(main())
