"""Recall of the detector `proposals` beside the grid and proposals of classical segmentation, on photos it never saw.

What is to be found: boxes of YOLOX-Nano with a score of at least 0.4, on the HowToCook photos and on scikit-image's
photos. What is asked: average recall as COCO defines it, the share of all those boxes that one of a picture's first 36
boxes meets with an IoU of 0.5; each side's boxes go through `data_specs.pictures.boxes.cleaned`, as in a build. The
mean over pictures, and both with the whole picture added, which no build stores and a training appends, are told on
stderr.

Sides: `proposals`; the grid of 6 x 6 (36 boxes) and of 3 x 3 (the demo's); selective search of OpenCV (fast mode, in
its own order); segments of scikit-image's felzenszwalb at five scales, the largest first. The last two run in the
environment of the peers, at 400 pixels. A control: the 36 boxes most often right in the training's own composites,
whatever the picture shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
CORPUS = ROOT.parent / "shared" / "corpus"
MODEL = CORPUS / "models" / "yolox_nano.onnx"
PEER, CONTRIB = ROOT / ".bench" / "bin" / "python", ROOT / ".bench" / "contrib"
CUTOUTS = ROOT / "demo" / "proposals"
MOST, IOU, SIDE = 36, 0.5, 400

PHOTOS = ("astronaut.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png", "horse.png",
          "moon.png", "motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg")  # fmt: skip
"""scikit-image's pictures of things, as far as they lie in its wheel; the rest are textures, pages and micrographs."""


def main() -> int:
    from harness import at_least, quick, report

    small = quick(__doc__ or "")
    if not MODEL.exists() or not CONTRIB.is_dir():
        missing = MODEL if not MODEL.exists() else CONTRIB
        print(f"bench_proposals needs {missing}; `make bench-venv` makes the peers' environment", file=sys.stderr)
        return 1
    sys.path.insert(0, str(ROOT))
    where = "import skimage, pathlib; print(pathlib.Path(skimage.__file__).parent / 'data')"
    photos = Path(subprocess.run([PEER, "-c", where], check=True, capture_output=True, text=True).stdout.strip())
    sets = {
        "howtocook": sorted((CORPUS / "howtocook-site").rglob("*.jpg"))[:: 12 if small else 1],
        "skimage": [photos / name for name in PHOTOS],
    }
    figures = {}
    for name, files in sets.items():
        found = recalls(files)
        ours = found.pop("proposals")
        found.pop("fixed boxes", None)
        for other in ("grid 6", "selective search", "felzenszwalb"):
            key = f"{name}_recall_to_{other.replace(' ', '_')}"
            figures[key] = at_least(ours / max(found[other], 1e-3), 1.0)
        figures[f"{name}_recall"] = at_least(ours, 0.0, "share")
    return report(figures)


def recalls(files: list[Path]) -> dict[str, float]:
    """Recall of each side over all boxes of the files."""
    from data_specs.pictures.boxes import cleaned
    from pipeline.detectors.grid import Grid
    from pipeline.detectors.onnx import Onnx
    from pipeline.detectors.proposals import Proposals
    from pipeline.pictures.decode import decode

    yolox, ours = Onnx(weights=str(MODEL), score=0.4), Proposals()
    judge, state = yolox.load(), ours.load()
    wanted, pictures = {}, {}
    for file in files:
        picture = decode(file.read_bytes()).pixels
        raw = yolox.detect(judge, [picture])[0]
        boxes = np.clip(raw[0], 0, np.array([*picture.shape[1::-1]] * 2, np.float32))
        if len(boxes):
            wanted[file], pictures[file] = boxes, picture
    of_peers = peers(list(wanted))
    fixed = fixed_boxes()
    sides: dict[str, Callable[[Path], Any]] = {
        "proposals": lambda file: ours.detect(state, [pictures[file]])[0],
        "grid 6": lambda file: Grid(n=6).detect(None, [pictures[file]])[0],
        "grid 3": lambda file: Grid(n=3).detect(None, [pictures[file]])[0],
        **{
            peer: lambda file, peer=peer: ranked(of_peers[peer][str(file)])
            for peer in ("selective search", "felzenszwalb")
        },
        **({"fixed boxes": lambda file: ranked(scaled(fixed, pictures[file]))} if fixed is not None else {}),
    }
    table, total = {}, sum(len(boxes) for boxes in wanted.values())
    print(f"{len(wanted)} of {len(files)} pictures with {total} boxes", file=sys.stderr)
    print(f"{'':18} of all boxes | mean over pictures | both with the whole picture", file=sys.stderr)
    for name, side in sides.items():
        hits, with_whole = [], []
        for file, boxes in wanted.items():
            height, width = pictures[file].shape[:2]
            mine = cleaned(side(file), width, height, MOST)[0]
            whole = np.array([[0, 0, width, height]], np.float32)
            hits.append(met(boxes, mine))
            with_whole.append(met(boxes, np.concatenate([mine, whole])))
        shares = [[float(hit.mean()) for hit in kind] for kind in (hits, with_whole)]
        pooled = [float(np.concatenate(kind).mean()) for kind in (hits, with_whole)]
        table[name] = pooled[0]
        figures = (pooled[0], float(np.mean(shares[0])), pooled[1], float(np.mean(shares[1])))
        print(f"{name:18} " + " ".join(f"{figure:8.3f}" for figure in figures), file=sys.stderr)
    return table


def met(wanted: Any, boxes: Any) -> Any:
    """Of each wanted box [W, 4] whether one of the boxes [R, 4] meets it."""
    if not len(boxes):
        return np.zeros(len(wanted), bool)
    low = np.maximum(wanted[:, None, :2], boxes[None, :, :2])
    high = np.minimum(wanted[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clip(0).prod(-1)
    area = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (wanted, boxes)]
    return (shared / (area[0][:, None] + area[1][None] - shared)).max(1) >= IOU


def ranked(boxes: Any) -> Any:
    """Boxes in their order of merit, as a detector gives them."""
    found = np.asarray(boxes, np.float32).reshape(-1, 4)
    return found, np.linspace(1, 0, len(found), endpoint=False, dtype=np.float32), np.zeros(len(found), np.int32)


def scaled(boxes: Any, picture: Any) -> Any:
    return boxes * np.array([*picture.shape[1::-1]] * 2, np.float32)


def fixed_boxes() -> Any:
    """36 boxes, as shares of the sides, that meet most things of 1,500 composites; None where there are no cut-outs."""
    if not CUTOUTS.is_dir():
        return None
    from tests.benchmarks.proposals.composites import composite
    from tests.benchmarks.proposals.cutouts import load

    cutouts, things = load(CUTOUTS, CORPUS / "howtocook-site"), []
    for number in range(1_500):
        made = composite(20_000_000 + number, cutouts)
        shown = (made.square != 114).any(-1)
        sides = np.array([shown.any(0).nonzero()[0].max() + 1, shown.any(1).nonzero()[0].max() + 1] * 2, np.float32)
        things.append((made.boxes / sides).clip(0, 1))
    thing, chosen = np.concatenate(things), []
    centre = np.random.default_rng(0).permutation(len(thing))[:1_500]
    fits = np.stack([met(thing, thing[[i]]) for i in centre])
    for _ in range(MOST):
        best = int(fits.sum(1).argmax())
        chosen.append(thing[centre[best]])
        fits &= ~fits[best]
    return np.stack(chosen)


def peers(files: list[Path]) -> dict[str, dict[str, Any]]:
    """Boxes of the peers by file, made in their environment."""
    asked = json.dumps([str(file) for file in files])
    command = [str(PEER), __file__, "--peers"]
    environment = {**os.environ, "PYTHONPATH": str(CONTRIB), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, input=asked, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def serve_peers() -> None:
    import cv2
    from skimage.segmentation import felzenszwalb

    cv2.setNumThreads(1)
    found: dict[str, dict[str, Any]] = {"selective search": {}, "felzenszwalb": {}}
    for file in json.loads(sys.stdin.read()):
        picture = cv2.imread(file)
        scale = min(1.0, SIDE / max(picture.shape[:2]))
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(picture)
        search.switchToSelectiveSearchFast()
        boxes = search.process().astype(float)[:200]
        boxes[:, 2:] += boxes[:, :2]
        found["selective search"][file] = (boxes / scale).tolist()
        segments = []
        for size in (50, 100, 200, 400, 800):
            labels = felzenszwalb(picture, scale=size, sigma=0.8, min_size=100)
            for label in range(labels.max() + 1):
                y, x = np.nonzero(labels == label)
                box = [x.min() / scale, y.min() / scale, (x.max() + 1) / scale, (y.max() + 1) / scale]
                segments.append((len(x), box))
        segments.sort(key=lambda segment: -segment[0])
        found["felzenszwalb"][file] = [box for _, box in segments[:200]]
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peers"]:
        serve_peers()
    else:
        raise SystemExit(main())
