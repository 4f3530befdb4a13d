"""Export of a checkpoint's query towers into other programs' formats.

    safetensors   one file: the query towers' tensors; config and vocabulary as metadata
    onnx          two files, STEM.image.onnx and STEM.text.onnx, with any batch, number of boxes and length. A
                  tower of more than 1.5 GB has its weights beside it, in STEM.image.onnx.data
    brivl-1.0     the released format, for the released code: see `released`
    transformers  a folder that AutoModel and AutoProcessor of transformers load: see `transformers_folder`

ONNX inputs are images [B, 3, S, S] float32 normalised, boxes [B, R, 4] in pixels of S, n_boxes [B] with the whole image
last; input_ids [B, L], n_tokens [B]. Outputs are image_features and text_features [B, D], unit rows.

Each ONNX file says what it is in its metadata (`metadata_props`, which onnxruntime returns as `custom_metadata_map`):
recipe, config, the sha256 of the towers in the checkpoint, the sizes that its inputs must have, `pixel_mean` and
`pixel_std` of RGB pixels in [0, 1] by which `images` are normalised, the tokenizer's name and, unless it is a class of
another package, its vocabulary, and `background` where the checkpoint was calibrated: JSON whose `cosines` and `shares`
turn a cosine into a score by linear interpolation (training/outputs/background.py).

Limits: S of an ONNX file is the recipe's image size. ONNX needs the extra `wenlan[onnx]`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_specs.command.extras import install
from training.config import Config, to_dict
from training.data.tokenizer import JsonTokenizer, is_code, vocabulary_text
from training.errors import ConfigError
from training.outputs.atomic_files import atomic_file, write_errors, write_tensors
from training.outputs.checkpoint import TOWERS, Checkpoint, open_checkpoint
from training.records import Batch
from training.weights.load import Loaded, load
from training.weights.transformers_folder import export_transformers

if TYPE_CHECKING:
    import torch

    from training.moco import BriVL

LOG = logging.getLogger(__name__)

Format = Literal["safetensors", "onnx", "brivl-1.0", "transformers"]

_OPSET = 18


def export(path: Path, to: Format, out: Path) -> dict[str, Any]:
    """Write a checkpoint in another format; returns the files and their numbers of tensors as JSON values.

    Raises TrainingError (no checkpoint, towers without a place in the format), ConfigError (ONNX is not installed).
    """
    if to == "transformers":
        return export_transformers(path, out)
    if to == "onnx":
        return _export_onnx(path, out)
    return _export_released(path, out) if to == "brivl-1.0" else _export_safetensors(path, out)


def _export_safetensors(path: Path, out: Path) -> dict[str, Any]:
    opened = open_checkpoint(path, TOWERS)
    towers = opened.tensors("towers.safetensors")
    about = {"format": "pt", "wenlan": "query towers", **_metadata(opened)}
    with atomic_file(out) as temporary:
        write_tensors(temporary, towers, about)
    return {"out": [str(out)], "format": "safetensors", "tensors": len(towers)}


def _metadata(opened: Checkpoint) -> dict[str, str]:
    """Metadata of an export: what a user of the towers needs."""
    config, background = opened.config, opened.background()
    sizes = {"image_size": config.data.image_size, "max_boxes": config.data.max_boxes}
    sizes |= {"max_tokens": config.data.max_tokens, "feature_dim": config.moco.feature_dim}
    return {
        "recipe": config.recipe,
        "config": json.dumps(to_dict(config), ensure_ascii=False),
        "towers_sha256": opened.towers,
        **{name: str(size) for name, size in sizes.items()},
        "detector": opened.detector,
        "tokenizer": config.data.tokenizer,
        **({} if is_code(config.data.tokenizer) else {"vocabulary": vocabulary_text(opened.tokenizer)}),
        **({"tokenizer_json": opened.tokenizer.content} if isinstance(opened.tokenizer, JsonTokenizer) else {}),
        **({} if background is None else {"background": background.to_json()}),
    }


def _export_released(path: Path, out: Path) -> dict[str, Any]:
    import torch

    from training.weights.released import to_released

    learnable = to_released(open_checkpoint(path))
    with atomic_file(out) as temporary, temporary.open("wb") as file:  # of a path torch hides why it cannot be written
        torch.save({"learnable": learnable}, file)
    return {"out": [str(out)], "format": "brivl-1.0", "tensors": len(learnable)}


def _export_onnx(path: Path, out: Path) -> dict[str, Any]:
    loaded = load(path, "cpu")
    stem = out.with_suffix("") if out.suffix == ".onnx" else out
    files = {name: stem.with_name(f"{stem.name}.{name}.onnx") for name in ("image", "text")}
    made = write_onnx(loaded, files["image"], files["text"])
    return {"out": [str(file) for file in made], "format": "onnx", "opset": _OPSET}


def write_onnx(loaded: Loaded, image: Path, text: Path) -> list[Path]:
    """Write both query towers as ONNX files; returns the written files. Raises ConfigError for a missing package."""
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError("--to onnx", f"{package} is not installed: {install('onnx')}")
    about = {"wenlan": "query towers", **_metadata(loaded.checkpoint), **_pixels(loaded.model)}
    model = loaded.model.cpu() if loaded.device.type != "cpu" else loaded.model
    made = _write_onnx(_image_tower(model), _image_example(loaded.config), "image_features", image, about)
    # A tower that looks positions up is traced twice where the exporter has to find their number by itself.
    most = {"tokens": loaded.config.text.max_positions}
    made += _write_onnx(_text_tower(model), _text_example(), "text_features", text, about, most)
    model.to(loaded.device)
    return made


def _pixels(model: BriVL) -> dict[str, str]:
    """Mean and standard deviation by which the image tower normalises pixels of [0, 1], as JSON lists of three."""
    prefix = model.image_query.prefix
    return {f"pixel_{name}": json.dumps(getattr(prefix, name).flatten().tolist()) for name in ("mean", "std")}


def _image_tower(model: BriVL) -> torch.nn.Module:
    import torch
    from torch import Tensor

    class ImageTower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = model.image_query

        def forward(self, images: Tensor, boxes: Tensor, n_boxes: Tensor) -> Tensor:
            features: Tensor = self.tower(Batch.of(images_B3HW=images, boxes_BR4=boxes, n_boxes_B=n_boxes))
            return features

    return ImageTower().eval()


def _text_tower(model: BriVL) -> torch.nn.Module:
    import torch
    from torch import Tensor

    class TextTower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = model.text_query

        def forward(self, input_ids: Tensor, n_tokens: Tensor) -> Tensor:
            features: Tensor = self.tower(Batch.of(token_ids_BL=input_ids, n_tokens_B=n_tokens))
            return features

    return TextTower().eval()


def _image_example(config: Config) -> dict[str, tuple[torch.Tensor, tuple[str, ...]]]:
    """Inputs to trace with, each with the names of its dynamic leading axes."""
    import torch

    size = config.data.image_size
    boxes = torch.tensor([[0.0, 0.0, size, size], [0.0, 0.0, size / 2, size / 2], [0.0, 0.0, size, size]])
    return {
        "images": (torch.zeros(2, 3, size, size), ("batch",)),
        "boxes": (boxes.repeat(2, 1, 1), ("batch", "regions")),
        "n_boxes": (torch.tensor([3, 1]), ("batch",)),
    }


def _text_example() -> dict[str, tuple[torch.Tensor, tuple[str, ...]]]:
    import torch

    return {
        "input_ids": (torch.tensor([[2, 3, 4, 0], [2, 3, 4, 3]]), ("batch", "tokens")),
        "n_tokens": (torch.tensor([3, 4]), ("batch",)),
    }


def _write_onnx(
    tower: torch.nn.Module,
    example: dict[str, tuple[torch.Tensor, tuple[str, ...]]],
    output: str,
    out: Path,
    about: dict[str, str],
    most: dict[str, int] | None = None,
) -> list[Path]:
    """The files that were written. `most`: the largest size of the dynamic axes that have one."""
    import torch

    axes = {name: dict(enumerate(names)) for name, (_, names) in example.items()}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            tower,
            tuple(tensor for tensor, _ in example.values()),
            input_names=list(example),
            output_names=[output],
            dynamic_shapes={
                name: {axis: torch.export.Dim(word, min=1, max=(most or {}).get(word)) for axis, word in named.items()}
                for name, named in axes.items()
            },
            opset_version=_OPSET,
            dynamo=True,
        )
        assert program is not None
        fixed = [name for name in axes if not _is_free(program.model.graph, name, len(axes[name]))]
        assert not fixed, f"the exporter fixed the size of {fixed}: some code takes it for a number"
        program.model.metadata_props.update(about)
        return _save(program, out)


def _save(program: torch.onnx.ONNXProgram, out: Path) -> list[Path]:
    """Write an ONNX file whole; one of more than 1.5 GB has its weights in `out`.data, which it names. Returns both."""
    temporary = out.with_name(f".{out.name}.made.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with write_errors(out):
        temporary.mkdir(parents=True)
        try:
            # Under its own name, by which it names the other one.
            program.save(temporary / out.name, external_data=False)
            made = sorted(temporary.iterdir())
            for file in reversed(made):  # the weights first
                file.replace(out.with_name(file.name))
            return [out.with_name(file.name) for file in made]
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _is_free(graph: Any, name: str, axes: int) -> bool:
    """True if the leading axes of an input may have any size, or if the graph lacks it: a tower may not look at it."""
    shapes = [given.shape for given in graph.inputs if given.name == name]
    return not any(isinstance(shape[axis], int) for shape in shapes for axis in range(axes))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own parts and prints its progress on stdout, which carries results only."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
