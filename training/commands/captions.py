"""The commands `fit-captioner` and `caption`, and the task `captioning` of `eval`."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from training.commands.options import add_beams, add_data, add_detector, add_json, add_regions, add_shared, beams, path
from training.errors import ConfigError
from training.evaluation.benchmarks import BENCHMARKS

LOG = logging.getLogger("training")

CAPTIONING = "captioning"
"""The task of `eval` that is not in training/evaluation/tasks: its checkpoints are captioners (training/captions)."""


def add_fit_captioner(commands: Any) -> None:
    command = commands.add_parser(
        "fit-captioner",
        help="train a caption decoder on a checkpoint's image tower",
        description="Trains a Transformer decoder on the region features of a checkpoint and copies its towers "
        "unchanged into the result. The same command with the same --out resumes from the last checkpoint.",
        examples=[
            "wenlan-train fit-captioner runs/1 --data builds/1 --out runs/2",
            "wenlan-train fit-captioner runs/1 --data aic-icc:DIR --out runs/2 --set layers=4",
        ],
    )
    command.add_argument("checkpoint", type=path, metavar="CHECKPOINT", help="a checkpoint, or a run's folder")
    add_data(command, f"; or a caption set, KIND:PATH, of the kinds {', '.join(BENCHMARKS)}")
    command.add_argument("--out", required=True, type=path, metavar="DIR", help="folder of the run")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for example layers=4; may be repeated"
    )
    add_detector(command)
    command.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    add_shared(command)
    command.set_defaults(run=_fit_captioner)


def _fit_captioner(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.captions.decoder import CaptionerConfig
    from training.captions.train import fit_captioner
    from training.resolve import apply_overrides

    config = apply_overrides(CaptionerConfig(), arguments.set)
    values = fit_captioner(
        arguments.checkpoint,
        arguments.data,
        arguments.out,
        config,
        detector=arguments.detector,
        device=arguments.device,
        cache=arguments.cache,
    )
    LOG.info(
        "%s steps, loss %s, CIDEr on dev %s, best checkpoint %s",
        *(values[name] for name in ("steps", "loss", "dev_cider", "best")),
    )
    return values


def add_caption(commands: Any) -> None:
    what = "write a caption for each image"
    command = commands.add_parser(
        "caption",
        help=what,
        description=what + "; prints one line per image: FILE, a tab, the caption",
        examples=["wenlan-train caption runs/2/checkpoints/best --images a.jpg b.jpg"],
    )
    command.add_argument(
        "checkpoint", type=path, metavar="CHECKPOINT", help="a checkpoint of fit-captioner, or its run's folder"
    )
    command.add_argument("--images", required=True, nargs="+", metavar="FILE", help="image files")
    add_regions(command)
    add_beams(command)
    command.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    add_json(command)
    command.set_defaults(run=_caption)


def _caption(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.captions.evaluate import caption_files
    from training.evaluation.file_regions import read_regions

    files = arguments.images
    boxes = read_regions(arguments.regions, files) if arguments.regions else [None] * len(files)
    written = caption_files(arguments.checkpoint, files, boxes, beams=beams(arguments), device=arguments.device)
    if not arguments.json:
        for one in written:
            sys.stdout.write(f"{one['image']}\t{one['caption']}\n")
    return {"captions": written}


def eval_captioning(arguments: argparse.Namespace) -> dict[str, Any]:
    for option in ("report", "labels"):
        if getattr(arguments, option) is not None:
            raise ConfigError(f"--{option}", f"is not supported by --task {CAPTIONING}")
    if arguments.towers != "query":
        raise ConfigError("--towers", "a captioner only has query towers")
    from training.captions.evaluate import evaluate_captioning, summary

    result = evaluate_captioning(
        arguments.checkpoint,
        arguments.data,
        arguments.split,
        tokens=arguments.tokens or "jieba",
        beams=beams(arguments),
        detector=arguments.detector,
        device=arguments.device,
        cache=arguments.cache,
    )
    for line in summary(result):
        LOG.info("%s", line)
    return result
