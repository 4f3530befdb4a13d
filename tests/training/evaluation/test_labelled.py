"""Labelled images: folders, labels of a dataset, lists of classes; what is none is one line that says where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.evaluation.conftest import CLASSES
from training.errors import InputError
from training.evaluation.labelled import EvaluationData, classes_digest, open_labelled, read_classes, read_labels


def test_folders_of_classes_with_and_without_splits(folder: Path) -> None:
    found = open_labelled(EvaluationData((f"classes:{folder}",)), "val", "")
    assert found.split == "val"
    assert [one.names for one in found.classes] == [tuple(names) for names in CLASSES.values()], "of classes.json"
    items = list(found.items())
    assert [found.classes[item.label].key for item in items] == [item.picture.id.split("/")[1] for item in items]
    alone = open_labelled(EvaluationData((f"classes:{folder / 'train'}",)), "val", "")
    assert alone.split == "all"
    assert [one.names for one in alone.classes] == [(key,) for key in sorted(CLASSES)], "the folders' names"
    assert classes_digest(found.classes) == classes_digest(read_classes(folder / "classes.json"))
    assert classes_digest(found.classes) != classes_digest(alone.classes), "other names of the same classes"
    assert len(list(alone.items())) == 48


def test_a_listed_class_without_images_is_a_candidate(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text(
        "".join(f"{key}\t{names[0]}\n" for key, names in CLASSES.items()) + "fish\t鱼、鱼儿\n"
    )
    found = open_labelled(EvaluationData((f"classes:{folder}",), classes=tmp_path / "c.txt"), "val", "")
    assert [one.key for one in found.classes] == [*CLASSES, "fish"]
    assert found.classes[-1].names == ("鱼", "鱼儿")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "mountain\t山\nwater\t山,水\n", "'mountain' and 'water' share the name '山'"),
        ("c.txt", "mountain\nmountain\n", "twice"),
        ("c.txt", "mountain\t\nwater\n", "line 1: no name after the tab"),
        ("c.txt", "mountain\n", "lists 1 classes"),
        ("c.json", "[1]", "not an object"),
        ("c.json", '{"mountain": [], "water": "水"}', "class 'mountain': not a name"),
        ("c.json", "{", "not JSON"),
    ],
)
def test_a_list_of_classes_that_is_none_is_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_classes(tmp_path / name)


def test_folders_that_no_class_has_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("mountain\nwater\n", encoding="utf-8")
    with pytest.raises(InputError, match="2 labels are not in the list of classes, first 'bird'"):
        open_labelled(EvaluationData((f"classes:{folder}",), classes=tmp_path / "c.txt"), "val", "")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.jsonl", '{"key": "a"}', "line 1: no"),
        ("l.jsonl", '{"key": "a", "label": true}', "line 1: contains no key with a label"),
        ("l.jsonl", '{"key": "a", "label": "x"}\n{"key": "a", "label": "y"}', "line 2: a second label of a"),
        ("l.jsonl", "", "contains no labels"),
        ("l.csv", "id,label\na,b\n", "does not name the columns key and label"),
        ("l.csv", f"key,label\n{'a' * 2_000_000},b\n", r"l\.csv: cannot be read as a table \(field larger than"),
        ("l.parquet", "none", "not a Parquet file with the columns"),
    ],
)
def test_labels_that_are_none_are_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_labels(tmp_path / name)


def test_numbers_may_be_labels_and_keys_without_a_sample_are_no_fault(
    make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    manifest = make_shards(train=(4,), val=(3,))
    keys = pq.read_table(manifest.parent / "val-000000.parquet")["key"].to_pylist()
    pq.write_table(pa.table({"key": [*keys, "other"], "label": [3, 7, 3, 9]}), tmp_path / "l.parquet")
    found = open_labelled(EvaluationData((str(manifest),), labels=tmp_path / "l.parquet"), "val", "grid")
    assert [one.key for one in found.classes] == ["3", "7", "9"]
    assert [item.label for item in found.items()] == [0, 1, 0]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps({"key": k, "label": k}) + "\n" for k in "ab"))
    found = open_labelled(EvaluationData((str(manifest),), labels=tmp_path / "l.jsonl"), "val", "grid")
    with pytest.raises(InputError, match="labels none of the samples in the val split"):
        list(found.items())


def test_a_hidden_folder_is_neither_a_class_nor_hides_the_splits(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "set")
    (tmp_path / "set" / "classes.json").unlink()
    for place in (tmp_path / "set", tmp_path / "set" / "val"):
        (place / ".ipynb_checkpoints").mkdir()
    found = open_labelled(EvaluationData((f"classes:{tmp_path / 'set'}",)), "val", "")
    assert found.split == "val"
    assert [one.key for one in found.classes] == sorted(CLASSES)
