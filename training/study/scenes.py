"""Data of the second question: photos with their dish, and scenes of two to four stamps of which the caption names one.

Both are folders of pictures with a table of captions, and both become datasets by the command that users have,
`wenlan-data build`, with the boxes of a grid and of the detector `proposals`. So the boxes are those that a training
would read, and the splits hold copies of one picture apart.

    howtocook   ../shared/corpus beside the checkout, where there is one: photo -> name of the dish
    scenes      Tux Paint's stamps as the demo's corpus has them, drawn on soft grounds

Pictures are held apart, what they show is not: another photo of the same dish, other scenes with the same stamp may be
trained on. From two hundred photos nothing can be learnt of dishes that are not among them.

Limits: `proposals` learnt on composites of these very stamps (pipeline/detectors/README.md), so on the scenes it is a
detector of its own domain; on the photos it is not.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.errors import InputError, RunError

if TYPE_CHECKING:
    from PIL import Image

SIDE = 256
"""Pixels per side of a scene."""

CORPUS = Path("../shared/corpus")
DEMO = Path("demo/corpus")
_TRUTH = "howtocook-site.truth.jsonl"

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
    title: str
    note: str
    manifest: Path
    skipped: str = ""


def sources(out: Path, *, photos: bool, scenes: int) -> list[Source]:
    """Both datasets below `out`, made or not, or why one is skipped; `scenes` 0 leaves the scenes out."""
    truth = CORPUS / _TRUTH
    no_photos = "" if truth.is_file() else f"{truth} is not beside this checkout"
    no_photos = no_photos if photos else "this form of the study leaves it out"
    no_scenes = "" if scenes else "this form of the study leaves it out"
    return [
        Source("howtocook", "HowToCook", "photo and name of the dish", _manifest(out / "howtocook"), no_photos),
        Source(
            "scenes",
            "Scenes of stamps",
            "two to four stamps a picture, the caption names one",
            _manifest(out / f"scenes-{scenes}"),
            no_scenes,
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
        _run([sys.executable, "-m", "pipeline.demo", "corpus"])
    stamps = read_stamps(DEMO)
    if len(stamps) < 8:
        raise InputError(
            str(DEMO), "holds too few stamps with Chinese captions; make it anew: remove it and start again"
        )
    _build(source, draw(stamps, _fresh(out / "pictures"), scenes))


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


def draw(stamps: Sequence[tuple[Path, str]], folder: Path, number: int, seed: int = 0) -> list[tuple[str, str]]:
    """Draw scenes into a folder; returns file name and caption of each. The same seed draws the same pictures."""
    from PIL import Image

    rng, captions = np.random.default_rng(seed), []
    for i in range(number):
        shown = rng.choice(len(stamps), int(rng.integers(2, 5)), replace=False)
        scene = _ground(rng)
        # Quarters of the picture in random order, so that no stamp covers another.
        for quarter, stamp in zip(rng.permutation(4), shown, strict=False):
            with Image.open(stamps[stamp][0]) as image:
                thing = image.convert("RGBA")
            side = int(rng.integers(SIDE // 4, SIDE // 2))
            thing.thumbnail((side, side))
            spare = SIDE // 2 - thing.width, SIDE // 2 - thing.height
            x, y = (int(rng.integers(0, max(s, 0) + 1)) for s in spare)
            scene.alpha_composite(thing, (quarter % 2 * SIDE // 2 + x, quarter // 2 * SIDE // 2 + y))
        name = f"{i:05d}.png"
        scene.convert("RGB").save(folder / name)
        captions.append((name, stamps[shown[0]][1]))
    return captions


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
