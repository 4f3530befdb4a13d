"""wenlan-train: fit, fit-captioner, eval, caption, embed, export and import-brivl on the command line.

stdout carries results only; with `--json` its last line is one JSON object, also of a command that fails
(`data_specs.answers`); of several ranks the first prints it. Everything for people goes to stderr.
Exit 0 done; 1 the work failed (corrupt data, a foreign checkpoint); 2 bad usage or configuration.

Limits: torch and the rest are imported inside the commands, so that `--help` and usage errors are quick.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_specs import answers, object_store
from data_specs.command_line import Parser, UsageError, VersionAction, complete, completed_by
from data_specs.extras import missing_line
from data_specs.ownership import check_ownership
from data_specs.printable import printable, printable_line
from data_specs.shard import SPLITS, ContractError
from training.config import Config
from training.data.released_rows import PRIMARY, ROW_TEXT_KINDS
from training.errors import ConfigError, FirstRankError, TrainingError
from training.use.benchmarks import BENCHMARKS, is_benchmark
from training.use.labelled import KINDS as LABELLED
from training.use.labelled_boxes import KINDS as BOXED
from training.use.tasks import MIN_SCORE, NEIGHBOURS, TASKS

LOG = logging.getLogger("training")

CAPTIONING = "captioning"
"""The task of `eval` that is none of training/use/tasks: its checkpoints are a captioner's (training/captions)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    as_json = answers.wants_json(words) and _first_rank()
    if problem := object_store.credentials_in(" ".join(words)):  # before anything repeats it
        _log_to_stderr()
        return _fail(problem, 2, as_json)
    try:
        parser = _parser()
        complete(parser)
        arguments = parser.parse_args(words)
    except UsageError as e:
        print(printable(str(e)), file=sys.stderr)
        return _failed(str(e), 2, as_json)
    _log_to_stderr()
    foreign = check_ownership()
    if foreign is not None:
        return _fail(foreign, 2, as_json)
    try:
        with _brought_here(arguments):
            result: dict[str, Any] = arguments.run(arguments)
    except ConfigError as e:
        return _fail(str(e), 2, as_json)
    except FirstRankError:
        return 1
    except (ContractError, TrainingError) as e:
        return _fail(str(e), 1, as_json)
    except OSError as e:
        return _fail(f"{e.filename or 'input/output'}: {e.strerror or e}", 1, as_json)
    except object_store.faults() as e:
        return _fail(f"{arguments.command}: {object_store.reason(e)}", 1, as_json)
    except ImportError as e:
        line = missing_line(e, f"wenlan-train {arguments.command}", "training")
        if line is None:
            raise
        print(line, file=sys.stderr)
        return _failed(line, 2, as_json)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from the last checkpoint", 1, as_json)
    except Exception as e:  # a fault of ours: its traceback is for people, programs still get their line
        _failed(f"{type(e).__name__}: {e}", 1, as_json)
        raise
    if as_json:
        print(answers.answer(result))
    return 0


def _fail(message: str, code: int, as_json: bool) -> int:
    LOG.error("%s", message)
    return _failed(message, code, as_json)


def _failed(message: str, code: int, as_json: bool) -> int:
    if as_json:
        print(answers.failure(message, code))
    return code


_LOCAL = {
    "out": "is written on a local disk",
    "cache": "is mapped from a local disk",
    "regions": "is read from a local disk",
    "texts": "is read from a local disk",
    "jsonl": "is read from a local disk",
    "tensors": "is read from a local disk",
    "file": "is read from a local disk",
}
"""Arguments that must be paths, and why."""


def _path(text: str) -> Path | str:
    """An argument that is a path; a URL stays as it is for `_brought_here`, since a Path would make another of it."""
    return text if "://" in text else Path(text)


@contextlib.contextmanager
def _brought_here(arguments: argparse.Namespace) -> Iterator[None]:
    """Give the command paths: checkpoints behind URLs are fetched for as long as it runs. Raises ConfigError."""
    with contextlib.ExitStack() as stack:
        for name, value in vars(arguments).items():
            if not isinstance(value, str) or "://" not in value:
                continue
            if name in _LOCAL:
                option = f"--{name}" if name != "file" else name
                todo = "set run.mirror to this URL" if arguments.command == "fit" and name == "out" else "copy it"
                raise ConfigError(option, f"{value}: {_LOCAL[name]}; give a path, and {todo}")
            if name == "init" and arguments.workers is not None:
                raise ConfigError("--init", f"{value}: with --workers it is a folder that all machines see; copy it")
            if name in ("checkpoint", "init"):
                from training.outputs.saver import here

                setattr(arguments, name, stack.enter_context(here(value)))
        yield


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="wenlan-train",
        description="Pre-train BriVL on a wenlan dataset, and use it.",
        examples=[
            "wenlan-train fit --recipe demo --data builds/1 --out runs/1",
            "wenlan-train eval runs/1 --data builds/1 --task retrieval",
        ],
    )
    parser.add_argument("--version", action=VersionAction)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_fit(commands)
    _add_fit_captioner(commands)
    _add_eval(commands)
    _add_caption(commands)
    _add_embed(commands)
    _add_calibrate(commands)
    _add_export(commands)
    _add_import(commands)
    _add_import_transformers(commands)
    return parser


def _add_fit(commands: Any) -> None:
    what = "train; the same command on the same --out goes on from the last checkpoint"
    fit = commands.add_parser(
        "fit",
        help=what,
        description=what,
        examples=[
            "wenlan-train fit --recipe demo --data builds/1/shards/manifest.json --out runs/1",
            "wenlan-train fit --recipe brivl_b5_base --data s3://bucket/a@3 /mnt/b --out runs/2 --set optim.lr=1e-4",
            "wenlan-train fit --recipe brivl_b5_base --data builds/1 --out runs/3 --dry-run",
            "wenlan-train fit --recipe finetune_captions --init runs/2 --data aic-icc:DIR --out runs/4",
        ],
    )
    recipe = fit.add_argument("--recipe", required=True, help="a function of training/recipes.py, for example demo")
    completed_by(recipe, _recipes)
    _add_data(fit, f"; or a caption set, KIND:PATH, of the kinds {', '.join(BENCHMARKS)}")
    fit.add_argument("--out", required=True, type=_path, metavar="DIR", help="folder of the run")
    fit.add_argument(
        "--init",
        type=_path,
        metavar="CHECKPOINT",
        help="begin from the towers of a checkpoint (--set moco.init_queues=true: and its queues), or from a folder of "
        "transformers (CLIP, Chinese-CLIP, SigLIP), whose towers and tokenizer then take the recipe's place",
    )
    keys = fit.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for example optim.lr=1e-4; may be repeated"
    )
    completed_by(keys, _keys)
    fit.add_argument(
        "--workers",
        metavar="N",
        help="run on N workers of Ray Train, or LO:HI for as many as there is room for (RAY_ADDRESS for a cluster)",
    )
    fit.add_argument(
        "--max-failures", type=int, default=10, metavar="N", help="lost workers after which --workers gives up"
    )
    fit.add_argument(
        "--dry-run",
        action="store_true",
        help="train 5 steps, keep nothing, and say what the run would take: parameters, FLOPs, memory, time",
    )
    _add_shared(fit)
    fit.set_defaults(run=_fit)


def _add_fit_captioner(commands: Any) -> None:
    command = commands.add_parser(
        "fit-captioner",
        help="train a decoder that writes captions, on a checkpoint's image tower",
        description="Train a Transformer decoder on the region features of a checkpoint, whose towers stay as they are "
        "and come along; the same command on the same --out goes on from the last checkpoint.",
        examples=[
            "wenlan-train fit-captioner runs/1 --data builds/1 --out runs/2",
            "wenlan-train fit-captioner runs/1 --data aic-icc:DIR --out runs/2 --set layers=4",
        ],
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run's folder")
    _add_data(command, f"; or a caption set, KIND:PATH, of the kinds {', '.join(BENCHMARKS)}")
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the run")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for example layers=4; may be repeated"
    )
    _add_detector(command)
    command.add_argument("--device", default="auto")
    _add_shared(command)
    command.set_defaults(run=_fit_captioner)


def _add_caption(commands: Any) -> None:
    what = "write a caption of each image by a captioner"
    command = commands.add_parser(
        "caption",
        help=what,
        description=what + "; one line an image: FILE, a tab, the caption",
        examples=["wenlan-train caption runs/2/checkpoints/best --images a.jpg b.jpg"],
    )
    command.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint of fit-captioner, or its run"
    )
    command.add_argument("--images", required=True, nargs="+", metavar="FILE", help="image files")
    _add_regions(command)
    _add_beams(command)
    command.add_argument("--device", default="auto")
    _add_json(command)
    command.set_defaults(run=_caption)


def _recipes(**_: object) -> list[str]:
    from training.resolve import known_recipes

    return sorted(known_recipes())


def _keys(**_: object) -> list[str]:
    from training.resolve import known_keys

    return [f"{key}=" for key in known_keys()]


def _add_eval(commands: Any) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="recall or accuracy of a checkpoint on a split, a benchmark or labelled images, beside chance",
        description="Figures with chance and 95% intervals. On a split of a dataset: over the queries whose image and "
        "text stand nowhere in train, over the others, and over all. retrieval: recall both ways; zero-shot: images "
        "against class names; regions: boxes against class names; probe: linear probe and nearest neighbours; "
        "image-to-image and text-to-text: search within one kind.",
        examples=[
            "wenlan-train eval runs/1 --data builds/1/shards/manifest.json --task retrieval",
            "wenlan-train eval runs/1 --data builds/2 --task retrieval --split dev --json",
            "wenlan-train eval runs/1 --data coco-cn:DIR --task retrieval --split test --towers key",
            "wenlan-train eval runs/1 --data classes:DIR --task zero-shot --report evals/1",
            "wenlan-train eval runs/1 --data builds/1 --labels labels.jsonl --task probe --report evals/1",
            "wenlan-train eval runs/1 --data coco:instances_val.json --classes names.json --task regions",
            "wenlan-train eval runs/2 --data coco-cn:DIR --task captioning --split test",
        ],
    )
    evaluate.add_argument("checkpoint", type=_path, metavar="CHECKPOINT", help="a checkpoint, or a run's folder")
    _add_data(
        evaluate,
        f"; or one benchmark, KIND:PATH, of the kinds {', '.join(BENCHMARKS)}; labelled images: "
        f"{', '.join(LABELLED)}; labelled boxes: {', '.join(BOXED)}",
    )
    evaluate.add_argument(
        "--task", required=True, choices=(*TASKS, CAPTIONING), help="captioning: of a checkpoint of fit-captioner"
    )
    evaluate.add_argument(
        "--split", default="val", choices=(*SPLITS, "test"), help="default val; test: not of a dataset"
    )
    _add_classes(evaluate)
    evaluate.add_argument(
        "--report",
        type=Path,
        metavar="PATH",
        help="add the result, with hits and misses as pictures, to the page PATH/index.html, or PATH.html",
    )
    evaluate.add_argument(
        "--towers", default="query", choices=["query", "key"], help="key: the moving average of the query towers"
    )
    _add_detector(evaluate)
    evaluate.add_argument(
        "--regions",
        type=Path,
        metavar="PLACE",
        help="boxes of a benchmark's images by their sha256: a regions .parquet, or a folder of them such as "
        "STORE/regions/DETECTOR",
    )
    evaluate.add_argument(
        "--tokens",
        default="jieba",
        choices=["jieba", "characters"],
        help="captioning: what figures count (default jieba)",
    )
    _add_beams(evaluate)
    evaluate.add_argument("--device", default="auto")
    _add_shared(evaluate)
    evaluate.set_defaults(run=_eval)


def _add_classes(evaluate: argparse.ArgumentParser) -> None:
    """Options of the tasks that have classes."""
    evaluate.add_argument(
        "--labels", type=Path, metavar="FILE", help="key and label of a dataset's samples: .jsonl, .csv or .parquet"
    )
    evaluate.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help='classes in order with their names: .txt lines "CLASS<tab>NAME,NAME" or .json {"CLASS": ["NAME"]}',
    )
    evaluate.add_argument(
        "--templates", type=Path, metavar="FILE", help="sentences for class names, one per line, with {} for the name"
    )
    evaluate.add_argument(
        "--k", type=int, default=NEIGHBOURS, metavar="K", help=f"neighbours that vote in probe (default {NEIGHBOURS})"
    )
    evaluate.add_argument(
        "--min-score",
        type=float,
        default=MIN_SCORE,
        metavar="S",
        help=f"regions of a dataset: the detector's boxes from this score on (default {MIN_SCORE})",
    )


def _add_embed(commands: Any) -> None:
    embed = commands.add_parser(
        "embed",
        help="features of images, texts, released rows or ready arrays",
        description="Features (float32 unit rows) of one kind of input. --data and files make a .safetensors file, "
        "--jsonl a Parquet file with id, image_features and text_features, --tensors an .npz file, a benchmark with "
        "--to chinese-clip a folder.",
        examples=[
            "wenlan-train embed runs/1 --images a.jpg b.jpg --texts texts.txt --out features.safetensors",
            "wenlan-train embed runs/1 --data builds/1 --split val --out val.safetensors",
            "wenlan-train embed runs/1 --data coco-cn:DIR --split test --to chinese-clip --out features",
        ],
    )
    embed.add_argument("checkpoint", type=_path, metavar="CHECKPOINT", help="a checkpoint, or a run's folder")
    embed.add_argument(
        "--data",
        nargs="+",
        metavar="DATA",
        help="manifests or tars, or a benchmark KIND:PATH: both features of one split",
    )
    embed.add_argument("--images", nargs="+", metavar="FILE", help="image files; --texts may be given beside them")
    _add_regions(embed)
    embed.add_argument("--texts", type=_path, metavar="FILE", help="UTF-8 file, one text per line")
    embed.add_argument(
        "--jsonl", type=_path, metavar="FILE", help="rows as BriVL released them; image paths relative to the file"
    )
    embed.add_argument(
        "--tensors",
        type=_path,
        metavar="FILE",
        help=".npz with images, boxes and n_boxes, or input_ids and n_tokens, or all five",
    )
    embed.add_argument(
        "--text-kind",
        default=PRIMARY,
        choices=ROW_TEXT_KINDS,
        metavar="KIND",
        help=f"which text of a --jsonl row (default {PRIMARY}, its first): {', '.join(ROW_TEXT_KINDS)}",
    )
    embed.add_argument(
        "--split", default="val", choices=(*SPLITS, "test"), help="of --data; default val; test: benchmarks only"
    )
    embed.add_argument(
        "--to",
        default="",
        choices=["chinese-clip"],
        help="features and answers of a benchmark for Chinese-CLIP's evaluation scripts; --out is their folder",
    )
    _add_detector(embed)
    embed.add_argument("--out", required=True, type=_path, metavar="FILE", help="where the features go")
    embed.add_argument("--device", default="auto")
    _add_shared(embed)
    embed.set_defaults(run=_embed)


def _add_calibrate(commands: Any) -> None:
    what = "add to a checkpoint what its scores are measured against; fit does it at its end"
    calibrate = commands.add_parser(
        "calibrate",
        help=what,
        description="Writes the distribution of the cosines of unrelated training pairs into a checkpoint. A score is "
        "the share of it below a cosine: eval, embed, export and wenlan.load(...).similarity have it from there.",
        examples=[
            "wenlan-train calibrate runs/1 --data builds/1",
            "wenlan-train calibrate runs/1/checkpoints/best --data builds/1 --images 4000",
        ],
    )
    calibrate.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run's folder")
    _add_data(calibrate)
    calibrate.add_argument("--images", type=int, default=1000, metavar="N", help="of the train split (default 1000)")
    _add_detector(calibrate)
    calibrate.add_argument("--device", default="auto")
    _add_shared(calibrate)
    calibrate.set_defaults(run=_calibrate)


def _add_export(commands: Any) -> None:
    what = "write a checkpoint's towers for other programs"
    export = commands.add_parser(
        "export",
        help=what,
        description=what,
        examples=[
            "wenlan-train export runs/1 --to safetensors --out towers.safetensors",
            "wenlan-train export runs/1 --to onnx --out brivl.onnx",
            "wenlan-train export runs/1 --to transformers --out brivl",
        ],
    )
    export.add_argument("checkpoint", type=_path, metavar="CHECKPOINT", help="a checkpoint, or a run's folder")
    export.add_argument(
        "--to",
        required=True,
        choices=["safetensors", "onnx", "brivl-1.0", "transformers"],
        help="one file of tensors, two ONNX files (FILE.image.onnx, FILE.text.onnx), the released format, or a folder "
        "that transformers loads",
    )
    export.add_argument("--out", required=True, type=_path, metavar="FILE", help="a folder with --to transformers")
    _add_json(export)
    export.set_defaults(run=_export)


def _add_import(commands: Any) -> None:
    command = commands.add_parser(
        "import-brivl",
        help="a released BriVL-1.0 checkpoint into one that eval, embed, export and fit --init read",
        description="Reads tensors only and runs no code of the file; downloads nothing. The recipe is recognised by "
        "the shapes, and the features are those of the released code (compat).",
        examples=[
            "wenlan-train import-brivl BriVL-1.0.pth --out brivl",
            "wenlan-train import-brivl BriVL-1.0.pth --out brivl --json",
        ],
    )
    command.add_argument("file", type=_path, metavar="FILE", help="a BriVL-1.0 checkpoint (.pth)")
    command.add_argument("--out", required=True, type=_path, metavar="DIR", help="the checkpoint's folder")
    _add_json(command)
    command.set_defaults(run=_import)


def _add_import_transformers(commands: Any) -> None:
    command = commands.add_parser(
        "import-transformers",
        help="a folder of transformers (CLIP, Chinese-CLIP, SigLIP) into a checkpoint that eval, embed and export read",
        description="Reads weights, tokenizer and pixel statistics, and runs no code of the folder. The features are "
        "those of get_image_features and get_text_features, of length 1, on a picture scaled to a square.",
        examples=["wenlan-train import-transformers chinese-clip-vit-base-patch16 --out chinese-clip"],
    )
    command.add_argument("folder", type=Path, metavar="FOLDER", help="config.json, weights and tokenizer in it")
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="the checkpoint's folder")
    _add_json(command)
    command.set_defaults(run=_import_transformers)


def _add_data(command: argparse.ArgumentParser, more: str = "") -> None:
    command.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="DATA",
        help="manifest.json, its folder, STORE/datasets/NAME/latest.json, or plain tars: 'x-{000..099}.tar', "
        "'x-*.tar' or their folder; NAME@WEIGHT mixes" + more,
    )


def _add_regions(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--regions",
        type=_path,
        metavar="PLACE",
        help="boxes of --images or of a benchmark: one JSON line [[x1, y1, x2, y2], ...] per image (--images only), "
        "a dataset's regions .parquet, or a folder of them such as STORE/regions/DETECTOR",
    )


def _add_beams(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--beams",
        type=int,
        metavar="N",
        help="captioning: width of the beam search, 1 for greedy (default: as trained)",
    )


def _add_detector(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--detector",
        default="",
        metavar="NAME",
        help="whose regions of --data (default: the checkpoint's); grid for plain tars, which have none",
    )


def _add_shared(command: argparse.ArgumentParser) -> None:
    command.add_argument("--cache", type=_path, metavar="DIR", help="where indexes of shards are kept")
    _add_json(command)


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")


def _fit(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.resolve import fine_tunes, resolve

    taken, begin = list[str](), None
    if arguments.init is not None:
        from training.outputs.checkpoint import TOWERS, open_checkpoint
        from training.use.two_towers import is_two_towers, overrides_of

        if is_two_towers(arguments.init):
            taken = overrides_of(arguments.init)
        elif fine_tunes(arguments.recipe):
            begin = open_checkpoint(arguments.init, TOWERS).config
    config = resolve(arguments.recipe, [*taken, *arguments.set], begin)
    if arguments.dry_run:
        from training.run.dry_run import dry_run

        planned: dict[str, Any] = dry_run(config, arguments.data, init=arguments.init, cache=arguments.cache)
        for line in planned.pop("lines"):
            LOG.info("%s", line)
        return planned
    if arguments.workers is not None:
        from training.run.ray_job import fit_on_ray, parse_workers

        result: dict[str, Any] = fit_on_ray(
            config,
            arguments.data,
            arguments.out,
            parse_workers(arguments.workers),
            init=arguments.init,
            cache=arguments.cache,
            max_failures=arguments.max_failures,
        )
    else:
        from training.run.train import fit

        result = fit(config, arguments.data, arguments.out, init=arguments.init, cache=arguments.cache).to_json()
        if config.run.background and _first_rank():
            _add_background(config, arguments, Path(result["checkpoint"]))
    LOG.info(
        "%s steps, %s samples seen, loss %s, checkpoint %s",
        *(result[name] for name in ("steps", "position", "loss", "checkpoint")),
    )
    return result


def _add_background(config: Config, arguments: argparse.Namespace, checkpoint: Path) -> None:
    """Calibrate a run's last checkpoint, unless an earlier call has; without one a checkpoint is as good."""
    from training.outputs.checkpoint import open_checkpoint
    from training.use.calibrate import calibrate

    opened = open_checkpoint(checkpoint)
    if opened.background() is not None:
        return
    try:
        calibrate(
            checkpoint,
            arguments.data,
            images=config.run.background,
            detector=opened.detector,
            device=config.run.device,
            cache=arguments.cache,
        )
    except TrainingError as e:
        LOG.info("no background for scores: %s", e)


def _eval(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.use.labelled import Source
    from training.use.tasks import Request, task

    if arguments.task == CAPTIONING:
        return _eval_captioning(arguments)
    if arguments.regions is not None and arguments.task != "retrieval":
        raise ConfigError("--regions", f"are boxes of a benchmark for retrieval; {arguments.task} takes none")
    asked = task(arguments.task)
    result = asked.run(
        Request(
            arguments.checkpoint,
            Source(tuple(arguments.data), arguments.labels, arguments.classes, arguments.cache),
            arguments.split,
            detector=arguments.detector,
            device=arguments.device,
            towers=arguments.towers,
            regions=arguments.regions,
            templates=arguments.templates,
            k=arguments.k,
            min_score=arguments.min_score,
            pictures=arguments.report is not None,
        )
    )
    for line in asked.summary(result):
        LOG.info("%s", line)
    if arguments.report is not None:
        from training.use.page import add_result

        page = add_result(arguments.report, result)
        LOG.info("page: %s", page)
        result = {**{name: value for name, value in result.items() if name != "examples"}, "report": str(page)}
    return result


def _calibrate(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.use.calibrate import calibrate

    if arguments.images < 2:
        raise ConfigError("--images", f"{arguments.images} images have no unrelated pair; give at least 2")
    counted = calibrate(
        arguments.checkpoint,
        arguments.data,
        images=arguments.images,
        detector=arguments.detector,
        device=arguments.device,
        cache=arguments.cache,
    )
    LOG.info(
        "%s: %s pairs of %s unrelated images and texts; half have a cosine above %.3f, one of a hundred above %.3f",
        *(counted[name] for name in ("checkpoint", "pairs", "images", "median_cosine", "cosine_of_0.99")),
    )
    return counted


def _eval_captioning(arguments: argparse.Namespace) -> dict[str, Any]:
    for option in ("report", "regions", "labels", "classes", "templates"):
        if getattr(arguments, option) is not None:
            raise ConfigError(f"--{option}", f"--task {CAPTIONING} does not take it")
    from training.captions.evaluate import evaluate_captioning, summary

    result = evaluate_captioning(
        arguments.checkpoint,
        arguments.data,
        arguments.split,
        tokens=arguments.tokens,
        beams=_beams(arguments),
        detector=arguments.detector,
        device=arguments.device,
        cache=arguments.cache,
    )
    for line in summary(result):
        LOG.info("%s", line)
    return result


def _fit_captioner(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.captions.decoder import CaptionerConfig
    from training.captions.train import fit_captioner
    from training.resolve import overridden

    config = overridden(CaptionerConfig(), arguments.set)
    result = fit_captioner(
        arguments.checkpoint,
        arguments.data,
        arguments.out,
        config,
        detector=arguments.detector,
        device=arguments.device,
        cache=arguments.cache,
    ).to_json()
    LOG.info(
        "%s steps, loss %s, CIDEr on dev %s, best checkpoint %s",
        *(result[name] for name in ("steps", "loss", "dev_cider", "best")),
    )
    return result


def _caption(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.captions.evaluate import caption_files
    from training.use.file_regions import read_regions

    files = arguments.images
    boxes = read_regions(arguments.regions, files) if arguments.regions else [None] * len(files)
    written = caption_files(arguments.checkpoint, files, boxes, beams=_beams(arguments), device=arguments.device)
    if not arguments.json:
        for one in written:
            print(f"{one['image']}\t{one['caption']}")
    return {"captions": written}


def _beams(arguments: argparse.Namespace) -> int | None:
    beams: int | None = arguments.beams
    if beams is not None and not 1 <= beams <= 100:
        raise ConfigError("--beams", f"{beams} is out of range; it lies between 1 and 100")
    return beams


def _embed(arguments: argparse.Namespace) -> dict[str, Any]:
    given = [name for name in ("data", "images", "texts", "jsonl", "tensors") if getattr(arguments, name)]
    if len(given) != 1 and given != ["images", "texts"]:
        raise ConfigError("embed", "give one of --data, --images (and --texts), --texts, --jsonl, --tensors")
    of_benchmark = bool(arguments.data) and any(is_benchmark(name) for name in arguments.data)
    if arguments.regions and not (arguments.images or of_benchmark):
        raise ConfigError("--regions", "are boxes of --images; give both")
    if arguments.to and not of_benchmark:
        raise ConfigError(
            "--to", f"{arguments.to} wants a benchmark, --data KIND:PATH; a dataset can be exported to one"
        )
    from training.use import embed
    from training.use.evaluate import split_of_dataset

    checkpoint, out, device = arguments.checkpoint, arguments.out, arguments.device
    if of_benchmark:
        written = embed.embed_benchmark(
            checkpoint,
            arguments.data,
            arguments.split,
            out,
            to=arguments.to,
            regions=arguments.regions,
            device=device,
        )
    elif arguments.data:
        written = embed.embed_data(
            checkpoint,
            arguments.data,
            split_of_dataset(arguments.split),
            out,
            detector=arguments.detector,
            device=device,
            cache=arguments.cache,
        )
    elif arguments.jsonl:
        written = embed.embed_rows(checkpoint, arguments.jsonl, arguments.text_kind, out, device=device)
    elif arguments.tensors:
        written = embed.embed_arrays(checkpoint, arguments.tensors, out, device=device)
    else:
        written = embed.embed_files(
            checkpoint, arguments.images or [], arguments.regions, arguments.texts, out, device=device
        )
    LOG.info("%d features of width %d in %s", written["rows"], written["width"], out)
    return written


def _export(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.use.export import export

    written = export(arguments.checkpoint, arguments.to, arguments.out)
    LOG.info("%s: %s", written["format"], ", ".join(written["out"]))
    return written


def _import(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.use.released import import_brivl

    read = import_brivl(arguments.file, arguments.out)
    LOG.info(
        "%s: %d tensors, %s with compat %s, %d of them kept for export only",
        *(read[name] for name in ("out", "tensors", "recipe", "compat", "kept_for_export")),
    )
    return read


def _import_transformers(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.use.two_towers import import_transformers, is_two_towers

    if not is_two_towers(arguments.folder):
        raise ConfigError(str(arguments.folder), "no folder of transformers with two towers known here (config.json)")
    read = import_transformers(arguments.folder, arguments.out)
    LOG.info("%s: %d tensors of %s", *(read[name] for name in ("out", "tensors", "model_type")))
    return read


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what sys.stderr is at the time, so that lines go above a progress bar and not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _OneLine(logging.Formatter):
    """One line per record; an error names the command that it comes from."""

    def format(self, record: logging.LogRecord) -> str:
        line = printable_line(" ".join(record.getMessage().splitlines()))
        return f"wenlan-train: {line}" if record.levelno >= logging.ERROR else line


def _log_to_stderr() -> None:
    handler = _Stderr(sys.stderr)
    handler.setFormatter(_OneLine())
    LOG.handlers[:] = [handler]
    LOG.setLevel(logging.INFO if _first_rank() else logging.WARNING)
    LOG.propagate = False


def _first_rank() -> bool:
    """Whether this process prints and logs: the only one, or torchrun's first."""
    return os.environ.get("RANK", "0") == "0"
