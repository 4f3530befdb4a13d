"""The command `fit`."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_specs.command.command_line import completed_by
from data_specs.errors import WenlanError
from training.commands.options import add_data, add_shared, first_rank, path, recipes, settings
from training.errors import ConfigError
from training.evaluation.benchmarks import BENCHMARKS

if TYPE_CHECKING:
    from training.config import Config

LOG = logging.getLogger("training")

DEFAULT = "starter"
"""Recipe of a run that names none."""


def add_fit(commands: Any) -> None:
    what = "train; the same command with the same --out resumes from the last checkpoint"
    fit = commands.add_parser(
        "fit",
        help=what,
        description=what,
        examples=[
            "wenlan-train fit --data builds/1",
            "wenlan-train fit --recipe brivl_b5_base --data s3://bucket/a@3 /mnt/b --out runs/2 --set optim.lr=1e-4",
            "wenlan-train fit --recipe brivl_b5_base --data builds/1 --out runs/3 --dry-run",
            "wenlan-train fit --recipe finetune_captions --init runs/2 --data aic-icc:DIR --out runs/4",
        ],
    )
    recipe = fit.add_argument(
        "--recipe", default=DEFAULT, help=f"a function of training/recipes.py (default {DEFAULT}: your pairs, on a CPU)"
    )
    completed_by(recipe, recipes)
    add_data(fit, f"; or a caption set, KIND:PATH, of the kinds {', '.join(BENCHMARKS)}")
    fit.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        help="folder of the run (default: a new one, runs/RECIPE-NUMBER); name an existing run to resume it",
    )
    fit.add_argument(
        "--init",
        type=path,
        metavar="CHECKPOINT",
        help="start from the towers of a checkpoint (and its queues, with --set moco.init_queues=true), or from a "
        "transformers folder (CLIP, Chinese-CLIP, SigLIP), whose towers and tokenizer replace the recipe's",
    )
    setting = fit.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for example optim.lr=1e-4; may be repeated"
    )
    completed_by(setting, settings)
    fit.add_argument(
        "--workers",
        metavar="N",
        help="train on N Ray Train workers, or on LO:HI, as many as there is room for (RAY_ADDRESS for a cluster)",
    )
    fit.add_argument(
        "--max-failures", type=int, default=10, metavar="N", help="with --workers: give up after this many lost workers"
    )
    fit.add_argument(
        "--dry-run",
        action="store_true",
        help="train 5 steps, keep nothing, and report what the run would need: parameters, FLOPs, memory, time",
    )
    add_shared(fit)
    fit.set_defaults(run=_fit)


def _fit(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.resolve import fine_tunes, resolve

    taken, begin = list[str](), None
    if arguments.init is not None:
        from training.outputs.checkpoint import TOWERS, open_checkpoint
        from training.weights.two_towers import is_two_towers, overrides_of

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
    with _folder(arguments):
        return _train(config, arguments)


@contextlib.contextmanager
def _folder(arguments: argparse.Namespace) -> Iterator[None]:
    """Name a new folder where `--out` names none; one in which nothing was begun does not stay.

    Raises ConfigError under torchrun, whose processes would each take one.
    """
    if arguments.out is not None:
        yield
        return
    if "WORLD_SIZE" in os.environ:
        raise ConfigError("--out", "several processes need a shared folder; name it")
    out = arguments.out = _new_folder(arguments.recipe)
    LOG.info("%s: the folder of this run; to resume it later, run the same command with --out %s", out, out)
    try:
        yield
    finally:
        if not (out / "config.json").exists():
            shutil.rmtree(out)


def _new_folder(recipe: str) -> Path:
    """The first of runs/RECIPE-1, runs/RECIPE-2 ... that is not there, made."""
    for number in itertools.count(1):
        folder = Path("runs", f"{recipe}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
    return folder


def _train(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
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

        result = asdict(fit(config, arguments.data, arguments.out, init=arguments.init, cache=arguments.cache))
        if config.run.background and first_rank():
            _add_backgrounds(config, arguments, Path(result["checkpoint"]))
    loss = "" if result["loss"] is None else f"loss {result['loss']:.4f}, "
    LOG.info(
        "%s steps, %s samples seen, %scheckpoint %s", result["steps"], result["position"], loss, result["checkpoint"]
    )
    return result


def _add_backgrounds(config: Config, arguments: argparse.Namespace, last: Path) -> None:
    """Calibrate a run's last checkpoint and its best one: either may be the one that is used."""
    from training.outputs.checkpoint import BEST

    best = last.with_name(BEST).resolve()
    for checkpoint in (last, best) if best.exists() and best.name != last.name else (last,):
        _add_background(config, arguments, checkpoint)


def _add_background(config: Config, arguments: argparse.Namespace, checkpoint: Path) -> None:
    """Calibrate a checkpoint, unless an earlier call has; without a background a checkpoint is as good."""
    from training.evaluation.calibrate import calibrate
    from training.outputs.checkpoint import open_checkpoint

    try:
        opened = open_checkpoint(checkpoint)
        if opened.background() is None:
            calibrate(
                checkpoint,
                arguments.data,
                images=config.run.background,
                detector=opened.detector,
                device=config.run.device,
                cache=arguments.cache,
            )
    except WenlanError as e:
        LOG.info("scores are not calibrated: %s", e)
        return
    if config.run.mirror:  # also of an earlier call, which may have been killed before it had copied it
        from training.outputs.saver import copy_again

        copy_again(checkpoint, config.run.mirror)
