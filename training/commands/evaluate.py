"""The commands `eval` and `calibrate`."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from data_specs.names import SPLITS
from training.commands.captions import CAPTIONING, eval_captioning
from training.commands.options import add_beams, add_data, add_detector, add_shared, path
from training.errors import ConfigError
from training.evaluation.benchmarks import BENCHMARKS
from training.evaluation.labelled import KINDS as LABELLED
from training.evaluation.labelled_boxes import KINDS as BOXED
from training.evaluation.tasks import MIN_SCORE, TASKS

LOG = logging.getLogger("training")


def add_eval(commands: Any) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="measure recall or accuracy on a split, a benchmark or labelled images",
        description="Prints figures with chance and 95% intervals. On a split of a dataset they cover the queries "
        "whose image and text do not occur in train, the others, and all. retrieval: recall both ways; zero-shot: "
        "images against class names; regions: boxes against class names.",
        examples=[
            "wenlan-train eval runs/1 --data builds/1/shards/manifest.json --task retrieval",
            "wenlan-train eval runs/1 --data builds/2 --task retrieval --split dev --json",
            "wenlan-train eval runs/1 --data coco-cn:DIR --task retrieval --split test --towers key",
            "wenlan-train eval runs/1 --data classes:DIR --task zero-shot --report evals/1",
            "wenlan-train eval runs/1 --data builds/1 --labels labels.jsonl --task zero-shot --report evals/1",
            "wenlan-train eval runs/1 --data coco:instances_val.json --classes names.json --task regions",
            "wenlan-train eval runs/2 --data coco-cn:DIR --task captioning --split test",
        ],
    )
    evaluate.add_argument("checkpoint", type=path, metavar="CHECKPOINT", help="a checkpoint, or a run's folder")
    add_data(
        evaluate,
        f"; or one benchmark, KIND:PATH, of the kinds {', '.join(BENCHMARKS)}; labelled images: "
        f"{', '.join(LABELLED)}; labelled boxes: {', '.join(BOXED)}",
    )
    evaluate.add_argument(
        "--task", required=True, choices=(*TASKS, CAPTIONING), help="captioning needs a checkpoint of fit-captioner"
    )
    evaluate.add_argument(
        "--split", default="val", choices=(*SPLITS, "test"), help="default val; datasets do not have test"
    )
    _add_classes(evaluate)
    evaluate.add_argument(
        "--report",
        type=path,
        metavar="PATH",
        help="add the result, with hits and misses as pictures, to the page PATH/index.html, or PATH.html",
    )
    evaluate.add_argument(
        "--towers", default="query", choices=["query", "key"], help="key: the moving average of the query towers"
    )
    add_detector(evaluate)
    evaluate.add_argument(
        "--regions",
        type=path,
        metavar="PLACE",
        help="boxes of a benchmark's images by their sha256: a regions .parquet, or a folder of them such as "
        "STORE/regions/DETECTOR",
    )
    evaluate.add_argument(
        "--tokens",
        choices=["jieba", "characters"],
        help="captioning: tokens that the figures count (default jieba)",
    )
    add_beams(evaluate)
    evaluate.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    add_shared(evaluate)
    evaluate.set_defaults(run=_eval)


def _add_classes(evaluate: argparse.ArgumentParser) -> None:
    """Options of the tasks that have classes."""
    evaluate.add_argument(
        "--labels", type=path, metavar="FILE", help="key and label of a dataset's samples: .jsonl, .csv or .parquet"
    )
    evaluate.add_argument(
        "--classes",
        type=path,
        metavar="FILE",
        help='classes in order with their names: .txt lines "CLASS<tab>NAME,NAME" or .json {"CLASS": ["NAME"]}',
    )
    evaluate.add_argument(
        "--templates", type=path, metavar="FILE", help="sentences for class names, one per line, with {} for the name"
    )
    evaluate.add_argument(
        "--min-score",
        type=float,
        metavar="S",
        help=f"regions of a dataset: lowest score of a detector's box (default {MIN_SCORE})",
    )


_READ_BY = {
    "regions": ("boxes of a benchmark", ("retrieval",)),
    "classes": ("names of classes", ("zero-shot", "regions")),
    "templates": ("sentences for class names", ("zero-shot", "regions")),
    "min_score": ("for boxes that a detector found in a dataset", ("regions",)),
    "tokens": ("for captions", (CAPTIONING,)),
    "beams": ("for captions", (CAPTIONING,)),
}
"""Options that only some tasks read: a description, and these tasks."""


def _check_read(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for an option that was given and that the task would leave unread."""
    for name, (what, tasks) in _READ_BY.items():
        if getattr(arguments, name) is not None and arguments.task not in tasks:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(option, f"{what}; used by {', '.join(tasks)}, not by --task {arguments.task}")
    kind = arguments.data[0].partition(":")[0]
    # Not of captioning, for which a benchmark is packed into plain tars: those have the grid, and want it named.
    if arguments.detector and arguments.task != CAPTIONING and kind in (*BENCHMARKS, *LABELLED, *BOXED):
        raise ConfigError("--detector", f"chooses regions of a dataset, but {arguments.data[0]} is not one")
    if arguments.min_score is not None and kind in BOXED:
        raise ConfigError("--min-score", f"{_READ_BY['min_score'][0]}; {arguments.data[0]} contains labelled boxes")


def _eval(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.evaluation.labelled import EvaluationData
    from training.evaluation.tasks import Request, task

    _check_read(arguments)
    if arguments.task == CAPTIONING:
        return eval_captioning(arguments)
    asked = task(arguments.task)
    if arguments.report is not None:
        from training.evaluation.page import add_result, read_results

        read_results(arguments.report)  # before anything is measured: what cannot be added would be lost
    result = asked.run(
        Request(
            arguments.checkpoint,
            EvaluationData(tuple(arguments.data), arguments.labels, arguments.classes, arguments.cache),
            arguments.split,
            detector=arguments.detector,
            device=arguments.device,
            towers=arguments.towers,
            regions=arguments.regions,
            templates=arguments.templates,
            min_score=MIN_SCORE if arguments.min_score is None else arguments.min_score,
            pictures=arguments.report is not None,
        )
    )
    for line in asked.summary(result):
        LOG.info("%s", line)
    if arguments.report is not None:
        page = add_result(arguments.report, result)
        LOG.info("page: %s", page)
        result = {**{name: value for name, value in result.items() if name != "examples"}, "report": str(page)}
    return result


def add_calibrate(commands: Any) -> None:
    what = "add the background for calibrated scores to a checkpoint (fit does this when it ends)"
    calibrate = commands.add_parser(
        "calibrate",
        help=what,
        description="Writes the distribution of the cosines of unrelated training pairs into a checkpoint. The score "
        "of a cosine is the share of them below it, as used by eval, embed, export and wenlan.load(...).similarity.",
        examples=[
            "wenlan-train calibrate runs/1 --data builds/1",
            "wenlan-train calibrate runs/1/checkpoints/best --data builds/1 --images 4000",
        ],
    )
    calibrate.add_argument("checkpoint", type=path, metavar="CHECKPOINT", help="a checkpoint, or a run's folder")
    add_data(calibrate)
    calibrate.add_argument(
        "--images", type=int, default=1000, metavar="N", help="images of the train split (default 1000)"
    )
    add_detector(calibrate)
    calibrate.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    add_shared(calibrate)
    calibrate.set_defaults(run=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.evaluation.calibrate import calibrate

    if arguments.images < 2:
        raise ConfigError("--images", f"{arguments.images} is out of range; an unrelated pair needs at least 2")
    counted = calibrate(
        arguments.checkpoint,
        arguments.data,
        images=arguments.images,
        detector=arguments.detector,
        device=arguments.device,
        cache=arguments.cache,
    )
    LOG.info(
        "%s: %s pairs of %s unrelated images and texts; half have a cosine above %.3f, one in a hundred above %.3f",
        *(counted[name] for name in ("checkpoint", "pairs", "images", "median_cosine", "cosine_of_0.99")),
    )
    return counted
