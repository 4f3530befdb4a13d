"""Arguments that several commands of `wenlan-train` share."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from training.errors import ConfigError

LOG = logging.getLogger("training")


def path(text: str) -> Path | str:
    """Type of a path argument. A URL stays a string for `_fetched_checkpoints`, since Path would change it."""
    return text if "://" in text else Path(text)


def recipes(**_: object) -> list[str]:
    from training.resolve import known_recipes

    return sorted(known_recipes())


def settings(**_: object) -> list[str]:
    from training.resolve import known_keys

    return [f"{key}=" for key in known_keys()]


def add_data(command: argparse.ArgumentParser, more: str = "") -> None:
    command.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="DATA",
        help="manifest.json, its folder, STORE/datasets/NAME/latest.json, or plain tars: 'x-{000..099}.tar', "
        "'x-*.tar' or their folder; DATA@WEIGHT mixes several" + more,
    )


def add_regions(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--regions",
        type=path,
        metavar="PLACE",
        help="boxes of --images or of a benchmark: one JSON line [[x1, y1, x2, y2], ...] per image (--images only), "
        "a dataset's regions .parquet, or a folder of them such as STORE/regions/DETECTOR",
    )


def add_beams(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--beams",
        type=int,
        metavar="N",
        help="captioning: width of the beam search, 1 for greedy (default: as trained)",
    )


def add_detector(command: argparse.ArgumentParser, more: str = "") -> None:
    command.add_argument(
        "--detector",
        default="",
        metavar="NAME",
        help="detector whose regions of --data to use (default: the checkpoint's); grid for plain tars" + more,
    )


def add_shared(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--cache", type=path, metavar="DIR", help="folder for cached indexes of shards (default: ~/.cache/wenlan/index)"
    )
    add_json(command)


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")


def beams(arguments: argparse.Namespace) -> int | None:
    beams: int | None = arguments.beams
    if beams is not None and not 1 <= beams <= 100:
        raise ConfigError("--beams", f"{beams} is out of range; it must be between 1 and 100")
    return beams


def first_rank() -> bool:
    """True if this process prints and logs: the only one, or torchrun's first."""
    return os.environ.get("RANK", "0") == "0"
