"""Region classification: a box alone is what the tower makes of an image with that one box; crops; three sources."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.errors import ConfigError, InputError
from training.evaluation.class_texts import TEMPLATES, class_features
from training.evaluation.classification import classify, cosines
from training.evaluation.labelled import EvaluationData
from training.evaluation.labelled_boxes import open_boxed
from training.evaluation.results import Result
from training.evaluation.tasks.regions import embed_regions, summary
from training.use.encode import open_encoder
from training.weights.load import load

Run = Callable[..., Result]


@pytest.mark.slow
def test_a_box_alone_is_the_feature_of_an_image_with_that_box_only(checkpoint: Path, scenes: Path) -> None:
    loaded = load(checkpoint, "cpu")
    boxed = open_boxed(EvaluationData((f"coco:{scenes}",)), "val", "", 0.5)
    regions = embed_regions(loaded, boxed)
    assert (len(regions.label_N), len(regions.images)) == (18, 6), "a crowd is no box"
    at = 0
    for item in boxed.items():
        pixels = loaded.open_image(item.picture.read(), None).image_3SS
        for box in item.boxes:
            scale = np.array([64 / 120, 64 / 80] * 2, np.float32)
            only = loaded.image_batch([pixels], [np.array([box], np.float32) * scale])
            with torch.inference_mode():
                expected = loaded.model.encode_image(only)[0].numpy()
            assert regions.alone_ND is not None
            assert np.abs(regions.alone_ND[at] - expected).max() < 1e-5
            at += 1
    rows = regions.alone_ND
    assert np.abs(rows[0] - rows[1]).max() > 1e-3, "boxes of one image differ"


@pytest.mark.slow
def test_a_crop_is_the_feature_of_the_cut_out_picture(checkpoint: Path, scenes: Path) -> None:
    loaded = load(checkpoint, "cpu")
    boxed = open_boxed(EvaluationData((f"coco:{scenes}",)), "val", "", 0.5)
    regions = embed_regions(loaded, boxed)
    encoder, at = open_encoder(checkpoint, "cpu"), 0
    for item in boxed.items():
        with Image.open(item.picture.content) as image:
            cut = [image.convert("RGB").crop(tuple(map(int, box))) for box in item.boxes]
        expected = encoder.encode_image(cut)
        assert np.abs(regions.crop_ND[at : at + len(cut)] - expected).max() < 1e-2, "another decoder, at most"
        at += len(cut)


@pytest.mark.slow
def test_figures_are_those_of_the_features_and_the_difference_is_paired(
    run: Run, checkpoint: Path, scenes: Path
) -> None:
    loaded = load(checkpoint, "cpu")
    boxed = open_boxed(EvaluationData((f"coco:{scenes}",)), "val", "", 0.5)
    regions = embed_regions(loaded, boxed)
    vectors = class_features(loaded, boxed.classes, TEMPLATES)
    assert regions.alone_ND is not None
    right = [
        classify(cosines(rows, vectors), regions.label_N).rank_N == 1 for rows in (regions.alone_ND, regions.crop_ND)
    ]
    result = run("regions", f"coco:{scenes}", pictures=True)
    assert (result["n"], result["protocol"]["boxes"], result["protocol"]["images"]) == (18, 18, 6)
    assert result["top1"] == pytest.approx(right[0].mean())
    assert result["crop"]["top1"] == pytest.approx(right[1].mean())
    assert result["alone_minus_crop"] == pytest.approx(right[0].mean() - right[1].mean())
    low, high = result["alone_minus_crop_interval"]
    assert low <= result["alone_minus_crop"] <= high
    assert "box alone minus its crop" in summary(result)[-1]
    for one in result["examples"]:
        x1, y1, x2, y2 = one["query"]["box"]
        assert 0 <= x1 < x2 <= 1
        assert 0 <= y1 < y2 <= 1


@pytest.mark.slow
def test_json_lines_give_the_same_as_coco(run: Run, scenes: Path, tmp_path: Path) -> None:
    described = json.loads(scenes.read_bytes())
    names = {row["id"]: row["name"] for row in described["categories"]}
    lines = []
    for image in described["images"]:
        own = [a for a in described["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)]
        path = str(scenes.parent / "images" / image["file_name"])
        lines.append({"image": path, "boxes": boxes, "labels": [names[a["category_id"]] for a in own]})
    lines[0]["boxes"].append([200, 200, 300, 300])
    lines[0]["labels"].append("山")
    file = tmp_path / "boxes.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "classes.txt").write_text("\n".join(names.values()), encoding="utf-8")
    ours = run("regions", f"boxes:{file}", classes=tmp_path / "classes.txt")
    theirs = run("regions", f"coco:{scenes}")
    assert [ours[name] for name in ("n", "top1", "crop", "per_class")] == [
        theirs[name] for name in ("n", "top1", "crop", "per_class")
    ]
    assert (ours["empty"], theirs["empty"]) == (1, 0)


@pytest.mark.slow
def test_boxes_and_labels_of_a_datasets_detector(run: Run, make_shards: Callable[..., Path], tmp_path: Path) -> None:
    manifest = make_shards(train=(8,), val=(4,), detector="find")
    (tmp_path / "names.txt").write_text("背景\n山\n水\n", encoding="utf-8")
    result = run("regions", manifest, detector="find", classes=tmp_path / "names.txt", min_score=0.5)
    assert (result["n"], result["headline"]) == (8, "unseen")
    assert {row["class"]: row["n"] for row in result["per_class"]} == {"山": 4, "水": 4}
    assert "boxes of detector find with a score of 0.5 or more" in result["protocol"]["line"]
    assert run("regions", manifest, detector="find", classes=tmp_path / "names.txt", min_score=0.6)["n"] == 4
    (tmp_path / "names.txt").write_text("背景\n山\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"2 classes, but .* has label 2"):
        run("regions", manifest, detector="find", classes=tmp_path / "names.txt")
    with pytest.raises(ConfigError, match="--classes"):
        run("regions", manifest, detector="find")
    with pytest.raises(ConfigError, match="--detector"):
        run("regions", manifest, classes=tmp_path / "names.txt", detector="grid")


@pytest.mark.slow
def test_regions_that_are_damaged_are_named(run: Run, make_shards: Callable[..., Path], tmp_path: Path) -> None:
    manifest = make_shards(train=(2,), val=(2,), detector="find")
    (tmp_path / "names.txt").write_text("背景\n山\n水\n", encoding="utf-8")
    [file] = manifest.parent.glob("regions/find/val-*.parquet")
    run("regions", manifest, detector="find", classes=tmp_path / "names.txt")  # the index is in the cache
    file.write_bytes(b"PAR1" + bytes(file.stat().st_size - 8) + b"PAR1")
    with pytest.raises(InputError, match=r"val-000000\.parquet: its regions cannot be read"):
        run("regions", manifest, detector="find", classes=tmp_path / "names.txt")


def test_an_id_that_is_no_number_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"categories": [{"id": Infinity, "name": "a"}], "images": [], "annotations": []}')
    with pytest.raises(InputError, match=r"a\.json: not COCO's images"):
        run("regions", f"coco:{tmp_path / 'a.json'}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.jpg", "boxes": [[0, 0, 1, 1]], "labels": []}', "1 boxes, 0 labels"),
        ('{"image": "a.jpg", "boxes": [[0, 0, 1]], "labels": ["a"]}', "not lists of four numbers"),
        ("[]", "line 1: contains no image with boxes and labels"),
    ],
)
def test_a_line_that_is_none_is_named(run: Run, line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        run("regions", f"boxes:{tmp_path / 'b.jsonl'}")
