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
import os
import pickle
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT.parent / "shared" / "corpus" / "howtocook-site" / "images"
STAMPS = ROOT / "demo" / "corpus" / "stamps"
PEER = ROOT / ".bench" / "bin" / "python"
SIDE, PROCESSES = 512, 2


def main() -> int:
    from harness import at_least, quick, report

    small = quick(__doc__ or "")
    count, encoded, few, rounds = (2_000, 600, 100, 3) if small else (20_000, 2_000, 200, 5)
    if not PHOTOS.is_dir() or not PEER.exists():
        missing = PHOTOS if not PHOTOS.is_dir() else PEER
        print(f"bench_measure needs {missing}; `make bench-venv` makes the peers' environment", file=sys.stderr)
        return 1
    folder = prepared(count, {"many": encoded, "few": few})
    with (
        Side("measuring", folder, PROCESSES) as ours,
        Side("decoding", folder, PROCESSES) as plain,
        Side("many", folder, 1) as many_files,
        Side("few", folder, 1) as few_files,
    ):
        mine, theirs, many, less = in_turns([ours, plain, many_files, few_files], rounds)
    shutil.rmtree(folder / "rounds")
    rates = {"measure": count / mine, "cv2.imdecode": count / theirs, "imagededup": (encoded - few) / (many - less)}
    print(", ".join(f"{k} {v:,.0f} images/s" for k, v in rates.items()), f"on {count:,} files", file=sys.stderr)
    return report(
        {
            "measure_to_plain_decode": at_least(rates["measure"] / rates["cv2.imdecode"], 1.0),
            "measure_to_imagededup": at_least(rates["measure"] / rates["imagededup"], 5.0),
        }
    )


def in_turns(sides: list[Side], rounds: int) -> list[float]:
    """Median seconds of each side over `rounds` turns, taken one after the other, after one that does not count."""
    times: list[list[float]] = [[] for _ in sides]
    for turn in range(rounds + 1):
        for side, spent in zip(sides, times, strict=True):
            start = time.perf_counter()
            side.turn()
            if turn:
                spent.append(time.perf_counter() - start)
        print(f"round {turn} of {rounds}", file=sys.stderr)
    return [statistics.median(spent) for spent in times]


class Side:
    """Processes of this file that do one side's work, each its share, whenever `turn` is called."""

    def __init__(self, kind: str, folder: Path, processes: int) -> None:
        python = PEER if kind in ("many", "few") else sys.executable
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._processes = [
            subprocess.Popen(
                [python, __file__, "--serve", kind, str(folder), str(rank)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **one_thread, "PYTHONPATH": str(ROOT)},
            )
            for rank in range(processes)
        ]
        self._answers()

    def turn(self) -> None:
        for process in self._processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        self._answers()

    def _answers(self) -> None:
        for process in self._processes:
            assert process.stdout
            while (line := process.stdout.readline()) != "done\n":
                if not line:
                    raise SystemExit("a process of the benchmark has died; its words are above")

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def serve(kind: str, folder: Path, rank: int) -> None:
    """A process of a Side: say "done" when ready, and again after the work that each line on stdin asks for."""
    work = {"measuring": measuring, "decoding": decoding}.get(kind, encoding)(folder / kind, rank)
    next(work)
    print("done", flush=True)
    for _ in sys.stdin:
        next(work)
        print("done", flush=True)


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
    print(f"making {count:,} files in {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    sys.path.insert(0, str(ROOT))
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

    photos = [cv2.imread(str(path)) for path in sorted(PHOTOS.rglob("*.jp*g"))]
    stamps = [cv2.imread(str(path)) for path in sorted(STAMPS.rglob("*.png"))[:200]]
    photos = [photo for photo in photos if photo is not None]
    return [picture(number, photos, stamps) for number in range(first, first + count)]


def picture(number: int, photos: list[Any], stamps: list[Any]) -> bytes:
    import cv2
    from PIL import Image

    chance = random.Random(number)
    photo = photos[number % len(photos)]
    height, width = photo.shape[:2]
    share = chance.uniform(0.7, 1)
    h, w = int(height * share), int(width * share)
    y, x = chance.randint(0, height - h), chance.randint(0, width - w)
    scale = SIDE / max(h, w)
    picture = cv2.resize(
        photo[y : y + h, x : x + w], (round(w * scale), round(h * scale)), interpolation=cv2.INTER_AREA
    )
    if stamps and number % 2:
        side = chance.randint(60, 160)
        stamp = cv2.resize(chance.choice(stamps)[..., :3], (side, side), interpolation=cv2.INTER_AREA)
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
