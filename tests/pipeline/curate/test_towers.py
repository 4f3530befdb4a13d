"""The towers of a spec: two files of one model, or one line that names the file that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from data_specs.build import BuildSpec, SpecError
from pipeline.curate._towers import checked_towers, models_of, towers_of
from tests import towered

MINIMAL = {
    "name": "t",
    "contact": "mailto:a@b.c",
    "sources": [{"kind": "folder", "name": "f", "source_kind": "library", "path": "."}],
}


def spec(section: dict[str, Any], base: str = "") -> BuildSpec:
    return BuildSpec.model_validate({**MINIMAL, "pair_score": section, "base": base})


def test_ids_follow_files_and_options_and_not_places(tmp_path: Path) -> None:
    first, second = (towers_of(spec(towered.written(tmp_path / name))) for name in ("a", "b"))
    assert (first.image_id, first.text_id) == (second.image_id, second.text_id)
    assert first.image_id.startswith("pair-image-")
    relative = towers_of(spec({**towered.written(tmp_path / "a"), **towered.FILES}, str(tmp_path / "a")))
    assert (relative.image_id, relative.text_id) == (first.image_id, first.text_id)
    other = towers_of(spec(towered.written(tmp_path / "a", mean=(0.5, 0.5, 0.5), threads=2)))
    assert other.image_id != first.image_id
    assert other.text_id == first.text_id
    section = towered.written(tmp_path / "c")
    (tmp_path / "c" / "vocab.txt").write_text("".join(f"{t}\n" for t in [*towered.VOCABULARY, "海"]), "utf-8")
    third = towers_of(spec(section))
    assert third.image_id == first.image_id
    assert third.text_id != first.text_id


def test_models_are_opened_once_and_pictures_keep_twice_the_side(tmp_path: Path) -> None:
    image, text = models_of(spec(towered.written(tmp_path)))
    assert image.reduce_to == 2 * towered.SIDE
    assert image.load() is image.load()
    [row] = image.run(image.load(), [np.full((40, 60, 3), (255, 0, 0), np.uint8)])
    assert row.dtype == np.float16
    assert row.tolist() == [1, 0, 0]
    assert text.run(text.load(), ["红"])[0].tolist() == pytest.approx([1, 0.007, 0.007], abs=1e-3)


def test_towers_of_wenlan_say_themselves_how_pictures_are_prepared(tmp_path: Path) -> None:
    """Files with the metadata of `wenlan-train export`; the real ones are tested in tests/data_specs/search."""
    section = own(tmp_path, "f" * 64, "f" * 64)
    image, text = models_of(spec(section))
    assert checked_towers(spec(section)).vocabulary is None
    assert image.run(image.load(), [np.full((9, 9, 3), (0, 255, 0), np.uint8)])[0].tolist() == [0, 1, 0]
    assert text.run(text.load(), ["红绿", "红"])[1].tolist() == pytest.approx([1, 0, 0], abs=0.01)


def own(folder: Path, image_of: str, text_of: str) -> dict[str, str]:
    """The section of two files that say that they are of these checkpoints."""
    about = towered.own_about(boxes=4, towers=image_of)
    (folder / "m.image.onnx").write_bytes(towered.image_tower(name="images", **about).SerializeToString())
    nodes = [
        *towered.text_tower(name="input_ids", batch="batch").graph.node,
        helper.make_node("LpNormalization", ["s"], ["text_features"], axis=1, p=2),
    ]
    model = towered.text_tower(name="input_ids", batch="batch")
    del model.graph.node[:]
    nodes[1].output[0] = "s"
    model.graph.node.extend(nodes)
    model.graph.output[0].name = "text_features"
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "tokens"
    model.graph.input.append(helper.make_tensor_value_info("n_tokens", TensorProto.INT64, ["batch"]))
    about = {**towered.own_about(towers=text_of), "vocabulary": "\n".join(towered.VOCABULARY), "config": "{}"}
    helper.set_model_props(model, about | {"max_tokens": "8", "feature_dim": "3"})
    (folder / "m.text.onnx").write_bytes(model.SerializeToString())
    return {name: str(folder / f"m.{name}.onnx") for name in ("image", "text")}


def _break(section: dict[str, Any], what: str, folder: Path) -> dict[str, Any]:
    """The section with one thing wrong."""
    path = folder / "wrong.onnx"
    if what == "garbage":
        path.write_bytes(b"\x00nothing")
    elif what == "custom operator":
        model = towered.image_tower()
        model.graph.node[0].domain, model.graph.node[0].op_type = "evil", "RunsCode"
        model.opset_import.append(helper.make_opsetid("evil", 1))
        path.write_bytes(model.SerializeToString())
    elif what == "another width":
        path.write_bytes(towered.image_tower(width=5).SerializeToString())
    elif what == "a text tower":
        path.write_bytes(towered.text_tower().SerializeToString())
    elif what == "weights elsewhere":
        model = towered.image_tower()
        weights = model.graph.initializer[0]
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "../../secret.bin"), ("offset", "0"), ("length", "36")):
            weights.external_data.add(key=key, value=value)
        path.write_bytes(model.SerializeToString())
    elif what == "vocabulary":
        (folder / "words.txt").write_text("一\n二\n", "utf-8")
        return {**section, "vocabulary": str(folder / "words.txt")}
    elif what == "address":
        return {**section, "image": "s3://bucket/image.onnx"}
    elif what == "side":
        return {**section, "side": 32}
    elif what == "tokens":
        return {**section, "max_tokens": 9}
    return {**section, "image": str(path)}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing there", r"wrong.onnx: cannot be read \(No such file or directory\)"),
        ("garbage", r"wrong.onnx: cannot be read \("),
        ("custom operator", r"wrong.onnx: cannot be read \(.*evil:RunsCode"),
        ("another width", r"text.onnx: 3 features, but 5 in \S*wrong.onnx"),
        ("a text tower", r"wrong.onnx: takes text tensor\(int64\) \[1, 8\]; an image tower takes pictures"),
        ("weights elsewhere", r"wrong.onnx: keeps weights in '../../secret.bin'; only wrong.onnx.extra_file or"),
        ("vocabulary", r"words.txt: not a BERT vocabulary: it lacks \[PAD\]"),
        ("address", r"pair_score.image: s3://bucket/image.onnx: is a URL"),
        ("side", r"image.onnx: takes \[0, 3, 16, 16\], pair_score.side is 32"),
        ("tokens", r"text.onnx: takes 8 tokens, pair_score.max_tokens is 9"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path, what: str, said: str) -> None:
    section = _break(towered.written(tmp_path), what, tmp_path)
    with pytest.raises(SpecError, match=said) as raised:
        checked_towers(spec(section))
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("pair_score")


def test_two_halves_of_different_checkpoints_are_no_towers(tmp_path: Path) -> None:
    section = own(tmp_path, "a" * 64, "b" * 64)
    with pytest.raises(SpecError, match=r"m.text.onnx: not of the same checkpoint as \S*m.image.onnx"):
        checked_towers(spec(section))
    foreign = towered.written(tmp_path / "foreign")
    mixed = {"image": foreign["image"], "text": section["text"]}
    with pytest.raises(SpecError, match=r"image.onnx: is not an image tower made by wenlan-train export --to onnx"):
        checked_towers(spec(mixed))


def test_a_worker_says_which_file_has_gone(tmp_path: Path) -> None:
    from pipeline.errors import ModelError

    image, text = models_of(spec(towered.written(tmp_path)))
    (tmp_path / "text.onnx").unlink()
    with pytest.raises(ModelError, match=r"text.onnx: cannot be read \(No such file"):
        text.load()
    assert json.dumps(image.id)
