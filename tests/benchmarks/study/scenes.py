"""Data of the second question: photos with their dish, and scenes of two to four stamps of which the caption names one.

Both are folders of pictures with a table of captions, and both become datasets by the command that users have,
`wenlan-data build`, with the boxes of a grid and of the detector `proposals`. So the boxes are those that a training
would read, and the splits hold copies of one picture apart.

    howtocook   ../shared/corpus beside the checkout, where there is one: photo -> name of the dish
    scenes      KINDS of Tux Paint's stamps as the demo's corpus has them, drawn on soft grounds; boxes.json beside
                the pictures has the true boxes of what each shows

Pictures are held apart, what they show is not: another photo of the same dish, other scenes with the same stamp may be
trained on. From two hundred photos nothing can be learnt of dishes that are not among them.

Limits: scenes are composites, and `proposals` learnt on composites, though of other things.
"""

from __future__ import annotations

import csv
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.demo.corpus import prepare
from tests.demo.packages import DemoError
from training.errors import InputError, RunError, first_line

if TYPE_CHECKING:
    from PIL import Image

LOG = logging.getLogger("wenlan.study")

SIDE = 256
"""Pixels per side of a scene."""

KINDS = 100
"""Stamps of which scenes are made. With all 555, each was named in three scenes to train on, and every arm, that of the
true boxes too, stayed at chance."""

CORPUS = Path("../shared/corpus")
DEMO = Path("demo/corpus")
_TRUTH = "howtocook-site.truth.jsonl"
_BOXES = "boxes.json"

_LEFT_OUT = ("symbols/", "people/body_parts", "town/flags")
"""Categories of stamps that are signs, or parts."""

_SPEC = """\
name: {name}
description: The study's pictures.
licence: for trying wenlan out
contact: https://example.org/study
sources:
  - {{kind: folder, name: pictures, source_kind: library, path: pictures, captions: captions.csv}}
filters: []
admit: {{max_candidates_per_image: 100}}
dedup: {{max_pairs_per_text: 1000}}
regions:
  detectors:
    - {{name: grid, n: 3}}
    - {{name: proposals}}
  max_boxes: 9
shards: {{dev_share: 0.15, val_share: 0.2, apart: images}}
report: {{pictures: 0}}
"""


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset of the second question. `skipped` says why there is none, else it is empty."""

    name: str
    manifest: Path
    skipped: str = ""
    true_boxes: Path | None = None
    """JSON file: name of a picture -> the boxes of the things that it shows, as shares of its sides; else None."""

    def boxes_of(self, split: str, keys: Sequence[str]) -> list[list[list[float]]]:
        """True boxes of the samples with these keys. Raises InputError."""
        import pyarrow.parquet as pq

        tables = [
            pq.read_table(path, columns=["key", "image_url"])
            for path in self.manifest.parent.glob(f"{split}-*.parquet")
        ]
        files = {row["key"]: row["image_url"].rpartition("/")[2] for table in tables for row in table.to_pylist()}
        known = self._true_boxes()
        return [known[files[key]] for key in keys]

    def facts(self) -> dict[str, Any]:
        """The dataset's digest; with true boxes also the R@1 of one who sees all things of a scene and guesses which of
        them is named (`ceiling`). Raises InputError."""
        digest = json.loads(self.manifest.read_text(encoding="utf-8"))["content_digest"]
        guess = fmean(1 / len(boxes) for boxes in self._true_boxes().values()) if self.true_boxes else None
        return {"content_digest": digest} if guess is None else {"content_digest": digest, "ceiling": round(guess, 5)}

    def _true_boxes(self) -> dict[str, list[list[float]]]:
        assert self.true_boxes is not None, "the caller has asked for what is there"
        try:
            boxes: dict[str, list[list[float]]] = json.loads(self.true_boxes.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise InputError(str(self.true_boxes), f"cannot be read ({first_line(e)})") from None
        return boxes


def sources(out: Path, *, photos: bool, scenes: int) -> list[Source]:
    """Both datasets below `out`, made or not, or why one is skipped; `scenes` 0 leaves the scenes out."""
    truth = CORPUS / _TRUTH
    no_photos = "" if truth.is_file() else f"{truth} is not beside this checkout"
    no_photos = no_photos if photos else "this form of the study leaves it out"
    no_scenes = "" if scenes else "this form of the study leaves it out"
    return [
        Source(
            "howtocook",
            _manifest(out / "howtocook"),
            no_photos,
        ),
        Source(
            "scenes",
            _manifest(_scenes(out, scenes)),
            no_scenes,
            _scenes(out, scenes) / _BOXES if scenes else None,
        ),
    ]


def make(source: Source, scenes: int) -> None:
    """Make a dataset that is not skipped, unless it is there. Raises RunError with the last line of what failed."""
    if source.manifest.is_file() or source.skipped:
        return
    out = source.manifest.parents[2]
    if source.name == "howtocook":
        _build(source, _photos(_fresh(out / "pictures")))
        return
    if not (DEMO / "corpus.json").is_file():
        try:
            prepare(DEMO, LOG.info)
        except DemoError as e:
            raise InputError(str(DEMO), str(e)) from None
    stamps = read_stamps(DEMO)
    if len(stamps) < 8:
        raise InputError(
            str(DEMO), "holds too few stamps with Chinese captions; make it anew: remove it and start again"
        )
    kinds = np.sort(np.random.default_rng(1).permutation(len(stamps))[:KINDS])
    drawn = draw([stamps[kind] for kind in kinds], _fresh(out / "pictures"), scenes)
    boxes = {scene.file: scene.boxes for scene in drawn}
    (out / _BOXES).write_text(json.dumps(boxes), encoding="utf-8")
    _build(source, [(scene.file, scene.caption) for scene in drawn])


def _scenes(out: Path, number: int) -> Path:
    return out / f"scenes-{number}-{KINDS}"


def _manifest(out: Path) -> Path:
    return out / "build" / "shards" / "manifest.json"


def _photos(folder: Path) -> list[tuple[str, str]]:
    """Copy the photos that may be taken into a folder; returns file name and dish of each."""
    captions = []
    for line in (CORPUS / _TRUTH).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["allowed"]:
            name = Path(row["image"]).name
            shutil.copyfile(CORPUS / "howtocook-site" / row["image"], folder / name)
            captions.append((name, row["title"].removesuffix("的做法")))
    return captions


def read_stamps(corpus: Path) -> list[tuple[Path, str]]:
    """Picture and caption of each stamp that shows a thing, one per caption, in the order of the table."""
    with (corpus / "stamps.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found: dict[str, Path] = {}
    for row in rows:
        caption = row["zh_cn"].strip(" 。！.!")
        path = corpus / "stamps" / row["image_url"].split("/", 3)[3]
        if 2 <= len(caption) <= 12 and not row["category"].startswith(_LEFT_OUT) and path.is_file():
            found.setdefault(caption, path)
    return [(path, caption) for caption, path in found.items()]


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture that was drawn: its file, the stamp that its caption names, and x1 y1 x2 y2 of every stamp as shares
    of the sides, the named one first."""

    file: str
    caption: str
    boxes: tuple[tuple[float, float, float, float], ...]


def draw(stamps: Sequence[tuple[Path, str]], folder: Path, number: int, seed: int = 0) -> list[Scene]:
    """Draw scenes into a folder. The same seed draws the same pictures."""
    from PIL import Image

    rng, scenes = np.random.default_rng(seed), []
    for i in range(number):
        shown = rng.choice(len(stamps), int(rng.integers(2, 5)), replace=False)
        scene, boxes = _ground(rng), []
        # Quarters of the picture in random order, so that no stamp covers another.
        for quarter, stamp in zip(rng.permutation(4), shown, strict=False):
            with Image.open(stamps[stamp][0]) as image:
                thing = image.convert("RGBA")
            side = int(rng.integers(SIDE // 4, SIDE // 2))
            thing.thumbnail((side, side))
            spare = SIDE // 2 - thing.width, SIDE // 2 - thing.height
            x, y = (int(rng.integers(0, max(s, 0) + 1)) for s in spare)
            left, top = int(quarter % 2 * SIDE // 2 + x), int(quarter // 2 * SIDE // 2 + y)
            scene.alpha_composite(thing, (left, top))
            boxes.append((left / SIDE, top / SIDE, (left + thing.width) / SIDE, (top + thing.height) / SIDE))
        name = f"{i:05d}.png"
        scene.convert("RGB").save(folder / name)
        scenes.append(Scene(name, stamps[shown[0]][1], tuple(boxes)))
    return scenes


def _ground(rng: np.random.Generator) -> Image.Image:
    """A ground that runs from one light colour to another."""
    from PIL import Image

    corners = rng.integers(150, 256, (2, 2, 3)).astype(np.uint8)
    return Image.fromarray(corners).resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert("RGBA")


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _build(source: Source, captions: Sequence[tuple[str, str]]) -> None:
    """Build the dataset of the folder `pictures`. Raises RunError with the build's last line."""
    out = source.manifest.parents[2]
    with (out / "pictures" / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "caption"))
        table.writerows(captions)
    (out / "spec.yaml").write_text(_SPEC.format(name=source.name), encoding="utf-8")
    program = Path(sys.executable).with_name("wenlan-data")
    if not program.is_file():
        raise InputError(str(program), "is not there; install this checkout with: make setup")
    build = ["build", str(out / "spec.yaml"), "--out", str(out / "build"), "--store", str(out / "store"), "--replace"]
    _run([str(program), *build])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        last = ([line for line in done.stderr.splitlines() if line.strip()] or ["no output"])[-1]
        raise RunError(" ".join(command[:3]), last)
