"""Fine-tuning on few classes, whose captions are duplicates: with our masks, without, and as positives.

    python tests/benchmarks/bench_few_classes.py CHECKPOINT DIR [--seeds N] [--arms masked none] [--set KEY=VALUE]

CHECKPOINT: what to begin from. DIR: {train,test}/CLASS/*.jpg, as `--data classes:DIR` reads them. Each arm is
`wenlan-train fit --recipe finetune_classes --init CHECKPOINT` under another `moco.false_negatives`, with 5 seeds; the
best checkpoint by recall on the dev images is asked for the nearest class name of every test image.

The frozen stages of the image tower are computed once per image and looked up afterwards: the runs are those of the
command, only faster.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from training.encoders import cnn_regions
from training.evaluation.benchmarks import open_benchmark
from training.outputs.checkpoint import TOWERS, open_checkpoint
from training.records import Batch
from training.resolve import resolve
from training.run.train import fit
from training.use.embed import text_features
from training.weights.load import load

ARMS = {"masked": "masked", "none": "negatives", "positives": "positives"}


def remember_prefix() -> None:
    """Let the frozen prefix of the image tower compute every image once."""
    compute, maps = cnn_regions.Prefix.forward, dict[bytes, torch.Tensor]()

    def forward(self: cnn_regions.Prefix, batch: Batch) -> torch.Tensor:
        if batch.images_B3HW.is_meta:  # the FLOP counter's
            return compute(self, batch)
        names = [image.numpy().tobytes() for image in batch.images_B3HW]
        if any(name not in maps for name in names):
            maps.update(zip(names, compute(self, batch).detach(), strict=True))
        return torch.stack([maps[name] for name in names])

    cnn_regions.Prefix.forward = forward  # type: ignore[method-assign]


def top_1(checkpoint: Path, data: str) -> float:
    """Share of the test images whose class has the nearest name."""
    loaded, test = load(checkpoint, "cpu"), open_benchmark(data, "test")
    classes = sorted({caption.text for caption in test.captions})
    texts_CD = text_features(loaded, classes)
    truth = {caption.images[0]: classes.index(caption.text) for caption in test.captions}
    right = []
    for picture in test.pictures():
        opened = loaded.open_image(picture.read(), None)
        with torch.inference_mode():
            feature_1D = loaded.model.encode_image(loaded.opened_batch([opened]))
        right.append(int((feature_1D @ texts_CD.T).argmax()) == truth[picture.id])
    return float(np.mean(right))


def interval(values: list[float]) -> str:
    """Mean and its 95% interval by Student's t."""
    from scipy import stats

    mean, error = np.mean(values), stats.sem(values)
    half = stats.t.ppf(0.975, len(values) - 1) * error if len(values) > 1 else 0.0
    return f"{100 * mean:.1f} [{100 * (mean - half):.1f}, {100 * (mean + half):.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--set", action="append", default=[])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    remember_prefix()
    data, begin = f"classes:{asked.folder}", open_checkpoint(asked.checkpoint, TOWERS).config
    print(f"before: top-1 {100 * top_1(asked.checkpoint, data):.1f}", flush=True)
    found: dict[str, list[float]] = {arm: [] for arm in asked.arms}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(asked.seeds):
            for arm in asked.arms:
                settings = [f"seed={seed}", f"moco.false_negatives={ARMS[arm]}", "data.num_workers=0"]
                settings += ["run.tracker=none", "run.device=cpu", *asked.set]
                config = resolve("finetune_classes", settings, begin)
                out = Path(folder) / f"{arm}-{seed}"
                result = fit(config, [data], out, init=asked.checkpoint, cache=Path(folder) / "cache")
                best = out / "checkpoints" / "best"
                found[arm].append(top_1(best if best.exists() else out, data))
                print(f"seed {seed}, {arm}: {100 * found[arm][-1]:.1f} after {result.steps} steps", flush=True)
    for arm, values in found.items():
        print(f"{arm}: top-1 {interval(values)}")
        if arm != "none" and "none" in found:
            print(f"{arm} above none: {interval([a - b for a, b in zip(values, found['none'], strict=True)])}")
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
