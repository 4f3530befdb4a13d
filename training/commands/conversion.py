"""Commands that write and read other people's formats: `export`, `import-brivl`, `import-transformers`."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from training.commands.options import add_json, path
from training.errors import ConfigError

LOG = logging.getLogger("training")


def add_export(commands: Any) -> None:
    what = "export a checkpoint's towers for other programs"
    export = commands.add_parser(
        "export",
        help=what,
        description=what,
        examples=[
            "wenlan-train export runs/1 --to safetensors --out towers.safetensors",
            "wenlan-train export runs/1 --to onnx --out brivl.onnx",
            "wenlan-train export clip --to transformers --out clip-folder",
        ],
    )
    export.add_argument("checkpoint", type=path, metavar="CHECKPOINT", help="a checkpoint, or a run's folder")
    export.add_argument(
        "--to",
        required=True,
        choices=["safetensors", "onnx", "brivl-1.0", "transformers"],
        help="format: one file of tensors, two ONNX files (FILE.image.onnx, FILE.text.onnx), the released format, or a "
        "folder that transformers loads (only towers of CLIP's kind, without regions)",
    )
    export.add_argument(
        "--out", required=True, type=path, metavar="FILE", help="file to write; with --to transformers a folder"
    )
    add_json(export)
    export.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.use.export import export

    written = export(arguments.checkpoint, arguments.to, arguments.out)
    LOG.info("%s: %s", written["format"], ", ".join(written["out"]))
    return written


def add_import(commands: Any) -> None:
    command = commands.add_parser(
        "import-brivl",
        help="convert a released BriVL-1.0 checkpoint into one that eval, embed, export and fit --init read",
        description="Reads tensors only, runs none of the file's code and downloads nothing. The recipe is recognised "
        "by the shapes. The features equal those of the released code (compat).",
        examples=[
            "wenlan-train import-brivl BriVL-1.0.pth --out brivl",
            "wenlan-train import-brivl BriVL-1.0.pth --out brivl --json",
        ],
    )
    command.add_argument("file", type=path, metavar="FILE", help="a BriVL-1.0 checkpoint (.pth)")
    command.add_argument("--out", required=True, type=path, metavar="DIR", help="folder for the checkpoint")
    add_json(command)
    command.set_defaults(run=_import)


def _import(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.weights.released import import_brivl

    read = import_brivl(arguments.file, arguments.out)
    LOG.info(
        "%s: %d tensors, %s with compat %s, %d of them kept for export only",
        *(read[name] for name in ("out", "tensors", "recipe", "compat", "kept_for_export")),
    )
    return read


def add_import_transformers(commands: Any) -> None:
    command = commands.add_parser(
        "import-transformers",
        help="convert a transformers folder (CLIP, Chinese-CLIP, SigLIP) into a checkpoint for eval, embed and export",
        description="Reads weights, tokenizer and pixel statistics, and runs none of the folder's code. The features "
        "equal get_image_features and get_text_features, normalised, of a picture scaled to a square.",
        examples=["wenlan-train import-transformers chinese-clip-vit-base-patch16 --out chinese-clip"],
    )
    command.add_argument("folder", type=path, metavar="FOLDER", help="folder with config.json, weights and tokenizer")
    command.add_argument("--out", required=True, type=path, metavar="DIR", help="folder for the checkpoint")
    add_json(command)
    command.set_defaults(run=_import_transformers)


def _import_transformers(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.weights.two_towers import import_transformers, is_two_towers

    if not is_two_towers(arguments.folder):
        raise ConfigError(str(arguments.folder), "not a transformers folder of two supported towers (see config.json)")
    read = import_transformers(arguments.folder, arguments.out)
    LOG.info("%s: %d tensors of %s", *(read[name] for name in ("out", "tensors", "model_type")))
    return read
