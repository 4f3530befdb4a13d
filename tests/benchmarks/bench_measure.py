"""The whole measure stage beside a plain decode of the same files, and beside imagededup's encoding.

Ours is `pipeline.stages.measure.run_partition` as it stands: tars read, sha256 checked, decoded, every feature, Parquet
and the STORE cache written and nothing known beforehand. The plain decode is cv2.imdecode at full size of the same
bytes, which lie in its memory before the clock starts. Both are two processes of one thread, which start, import and do
a warm-up turn before anything is timed; a turn is begun by a line on their stdin and lasts until both have answered.

imagededup is PHash().encode_images with two workers, as its users call it, over a part of the same files on the disk.
It starts a pool at each call: its rate is that between a large and a small call.

The files: crops of real photos, half of them with a stamp pasted in, 512 pixels at the longer side, JPEG quality 75 to
92, one in five with EXIF; distinct, made by a seed, kept in the temporary folder for the next run (1.6 GB, --quick a
tenth).
"""

from __future__ import annotations

import io
import pickle
import random
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import (
    Side,
    at_least,
    interleaved,
    peer,
    photos,
    program,
    quick,
    report,
    stamps,
    told,
    work_on_command,
)

SIDE, PROCESSES = 512, 2


def main() -> int:
    small = quick(__doc__)
    count, encoded, few, rounds = (2_000, 600, 100, 3) if small else (20_000, 2_000, 200, 5)
    folder, python = prepared(count, {"many": encoded, "few": few}), peer("python")
    kinds = ["measuring", "decoding", *(["many", "few"] if python else [])]
    sides = {kind: Processes(kind, folder, python) for kind in kinds}
    seconds = dict(zip(kinds, interleaved(*(side.turn for side in sides.values()), rounds=rounds), strict=True))
    for side in sides.values():
        side.end()
    shutil.rmtree(folder / "rounds")
    rates = {name: count / seconds[name] for name in ("measuring", "decoding")}
    figures = {"measure_to_plain_decode": at_least(rates["measuring"] / rates["decoding"], 1.0)}
    if python:
        rates["imagededup"] = (encoded - few) / (seconds["many"] - seconds["few"])
        figures["measure_to_imagededup"] = at_least(rates["measuring"] / rates["imagededup"], 5.0)
    told(", ".join(f"{k} {v:,.0f} images/s" for k, v in rates.items()) + f" on {count:,} files")
    return report(figures)


class Processes:
    """Processes of this file that do one side's work, each its share, whenever `turn` is called."""

    def __init__(self, kind: str, folder: Path, python: Path | None) -> None:
        of_peer = kind in ("many", "few")
        own = python if of_peer and python else sys.executable
        words = ["bench_measure", "--serve", kind, folder]
        self._sides = [Side(program(*words, rank, python=own)) for rank in range(1 if of_peer else PROCESSES)]
        for side in self._sides:
            side.answer()  # it is ready

    def turn(self) -> None:
        for side in self._sides:
            side.begin()
        for side in self._sides:
            side.answer()

    def end(self) -> None:
        for side in self._sides:
            side.end()


def serve(kind: str, folder: Path, rank: int) -> None:
    """A process of a side: says when it is ready, then works on command."""
    work = {"measuring": measuring, "decoding": decoding}.get(kind, encoding)(folder / kind, rank)
    next(work)
    print("{}", flush=True)
    work_on_command(lambda: next(work))


def measuring(folder: Path, rank: int) -> Iterator[None]:
    from pipeline.stages import measure
    from pipeline.store.store import Store

    build = pickle.loads((folder.parent / "build.pickle").read_bytes())  # noqa: S301 - written by this file
    mine = measure.partitions(build)[rank::PROCESSES]
    while True:
        yield
        fresh = uuid.uuid4().hex
        fingerprints = {**build.fingerprints, "measure": fresh * 2}
        turn = replace(build, store=Store(str(folder.parent / "rounds" / fresh)), fingerprints=fingerprints)
        for partition in mine:
            measure.run_partition(turn, partition)


def decoding(folder: Path, rank: int) -> Iterator[None]:
    import cv2
    import numpy as np

    from pipeline.stages import measure
    from pipeline.store.images import partition_images

    cv2.setNumThreads(1)
    build = pickle.loads((folder.parent / "build.pickle").read_bytes())  # noqa: S301 - written by this file
    mine = measure.partitions(build)[rank::PROCESSES]
    files = [image.data for partition in mine for image in partition_images(build, partition)]
    while True:
        yield
        for data in files:
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def encoding(folder: Path, rank: int) -> Iterator[None]:
    from imagededup.methods import PHash

    encoder = PHash(verbose=False)
    while True:
        yield
        encoder.encode_images(image_dir=str(folder), num_enc_workers=PROCESSES)


def prepared(count: int, loose: dict[str, int]) -> Path:
    """The folder with the fetched build, and folders of so many loose files, made where it is not there yet."""
    folder = Path(tempfile.gettempdir()) / f"wenlan-bench-measure-{count}"
    if (folder / "build.pickle").exists():
        return folder
    told(f"making {count:,} files in {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    from tests.fetched import Got, make

    with ProcessPoolExecutor(PROCESSES) as pool:
        step = -(-count // (4 * PROCESSES))
        parts = pool.map(pictures, range(0, count, step), [min(step, count - n) for n in range(0, count, step)])
        files = [data for part in parts for data in part]
    assert len(set(files)) == count, "the files are not distinct"
    for name, many in loose.items():
        (folder / name).mkdir(parents=True)
        for number, data in enumerate(files[:many]):
            (folder / name / f"{number:06d}.jpg").write_bytes(data)
    images = [Got(f"http://img.test/{number}.jpg", data) for number, data in enumerate(files)]
    build = make(folder, images, max(PROCESSES, count // 2_500))
    (folder / "build.pickle").write_bytes(pickle.dumps(build))
    return folder


def pictures(first: int, count: int) -> list[bytes]:
    """JPEG files number `first` and on. Each is a function of its number alone."""
    import cv2

    shown, pasted = ([cv2.imread(str(path)) for path in paths] for paths in (photos(), stamps()[:200]))
    return [picture(number, shown, pasted) for number in range(first, first + count)]


def picture(number: int, shown: list[Any], pasted: list[Any]) -> bytes:
    import cv2
    from PIL import Image

    chance = random.Random(number)
    photo = shown[number % len(shown)]
    height, width = photo.shape[:2]
    share = chance.uniform(0.7, 1)
    h, w = int(height * share), int(width * share)
    y, x = chance.randint(0, height - h), chance.randint(0, width - w)
    scale = SIDE / max(h, w)
    picture = cv2.resize(
        photo[y : y + h, x : x + w], (round(w * scale), round(h * scale)), interpolation=cv2.INTER_AREA
    )
    if pasted and number % 2:
        side = chance.randint(60, 160)
        stamp = cv2.resize(chance.choice(pasted)[..., :3], (side, side), interpolation=cv2.INTER_AREA)
        y, x = chance.randint(0, picture.shape[0] - side), chance.randint(0, picture.shape[1] - side)
        picture[y : y + side, x : x + side] = stamp
    exif = Image.Exif()
    if number % 5 == 0:
        exif[0x0112], exif[0x010F], exif[0x0132] = 1, "wenlan", "2026:01:01 00:00:00"
    out = io.BytesIO()
    image = Image.fromarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    image.save(out, "JPEG", quality=chance.randint(75, 92), **({"exif": exif} if number % 5 == 0 else {}))
    return out.getvalue()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        raise SystemExit(main())
