"""Two small towers whose features are known by heart: the mean colour of a picture, and the colours that a text names.

Their interface is that of Chinese-CLIP's export: `image` [batch, 3, S, S] and `text` int64 [1, L], features that are
not normalised, a vocab.txt of BERT.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from PIL import Image

from tests.drawn import encoded

SIDE, TOKENS = 16, 8
COLOURS = {"红": (1, 0, 0), "绿": (0, 1, 0), "蓝": (0, 0, 1)}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *COLOURS, *"图第一二三四五六七八九十的色"]


def image_tower(width: int = 3, name: str = "image", **about: str) -> ModelProto:
    """`name` [batch, 3, S, S] -> features [batch, width]: the mean of each colour, repeated."""
    weights = numpy_helper.from_array(np.eye(3, width, dtype=np.float32), "w")
    nodes = [
        helper.make_node("GlobalAveragePool", [name], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["unnorm_image_features"]),
    ]
    return _model(nodes, [(name, TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])], "unnorm_image_features", weights, about)


def text_tower(width: int = 3, name: str = "text", batch: int | str = 1) -> ModelProto:
    """`name` int64 [1, L] -> features [1, width]: the sum of the colours of its characters, and a little of each."""
    table = np.full((len(VOCABULARY), width), 0.001, np.float32)
    for character, colour in COLOURS.items():
        table[VOCABULARY.index(character), :3] = colour
    nodes = [
        helper.make_node("Gather", ["table", name], ["g"]),
        helper.make_node("ReduceSum", ["g", "axis"], ["unnorm_text_features"], keepdims=0),
    ]
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    weights = numpy_helper.from_array(table, "table")
    given = [(name, TensorProto.INT64, [batch, TOKENS])]
    return _model(nodes, given, "unnorm_text_features", weights, {}, axis)


def own_text_tower(**about: str) -> ModelProto:
    """`input_ids` [B, L], `n_tokens` [B] -> features [B, 3], with metadata as `wenlan-train export` writes."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["g"]),
        helper.make_node("ReduceSum", ["g", "axis"], ["s"], keepdims=0),
        helper.make_node("Cast", ["n_tokens"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["c", "axis"], ["n"]),
        helper.make_node("Div", ["s", "n"], ["out"]),
    ]
    given = [("input_ids", TensorProto.INT64, ["B", "L"]), ("n_tokens", TensorProto.INT64, ["B"])]
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    table = numpy_helper.from_array(np.eye(len(VOCABULARY), 3, dtype=np.float32) + 0.1, "table")
    told = {"recipe": "tiny", "towers_sha256": "f" * 64, "config": "{}", "max_tokens": str(TOKENS), "feature_dim": "3"}
    vocabulary = "".join(f"{token}\n" for token in VOCABULARY)
    return _model(nodes, given, "out", table, {**told, "vocabulary": vocabulary, **about}, axis)


def _model(nodes: Any, given: Any, out: str, weights: TensorProto, about: dict[str, str], *more: Any) -> ModelProto:
    inputs = [helper.make_tensor_value_info(*one) for one in given]
    outputs = [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "tower", inputs, outputs, [weights, *more])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, about)
    return model


def written(folder: Path, **options: Any) -> dict[str, Any]:
    """The towers and their vocabulary in a folder, and the section `pair_score` of a spec that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "image.onnx").write_bytes(image_tower().SerializeToString())
    (folder / "text.onnx").write_bytes(text_tower().SerializeToString())
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY), "utf-8")
    named = {name: str(folder / file) for name, file in FILES.items()}
    return {**named, "side": SIDE, "max_tokens": TOKENS, "mean": (0, 0, 0), "std": (1, 1, 1), **options}


FILES = {"image": "image.onnx", "text": "text.onnx", "vocabulary": "vocab.txt"}


def own_about(side: int = SIDE, boxes: int = 4, towers: str = "f" * 64) -> dict[str, str]:
    """Metadata as `wenlan-train export --to onnx` writes them."""
    about = {"recipe": "tiny", "towers_sha256": towers, "image_size": str(side), "max_boxes": str(boxes)}
    return about | {"pixel_mean": json.dumps([0.0] * 3), "pixel_std": json.dumps([1.0] * 3)}


def coloured(seed: int, red: float, green: float, blue: float, size: tuple[int, int] = (320, 240)) -> bytes:
    """A JPEG that only this seed has, whose mean colour is about the given one, each 0 to 1."""
    noise = np.random.default_rng(seed).uniform(0.6, 1.4, (6, 8, 1))
    small = np.clip(noise * np.array([red, green, blue]) * 255, 0, 255).astype(np.uint8)
    return encoded(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC), quality=95)
