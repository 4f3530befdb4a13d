"""Scenes are drawn alike by one seed, show what their caption names, and tables become folders that a build reads."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_specs.build import load
from training.errors import InputError
from training.study import scenes


@pytest.fixture
def stamps(tmp_path: Path) -> list[tuple[Path, str]]:
    """Eight stamps, each a square of one strong colour."""
    made = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        colour = tuple(255 * (number >> bit & 1) // 2 for bit in range(3))
        Image.new("RGBA", (80, 60), (*colour, 255)).save(path)
        made.append((path, f"颜色{number}"))
    return made


def test_the_same_seed_draws_the_same_scenes(stamps: list[tuple[Path, str]], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two", "other")]
    captions = []
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        folder.mkdir()
        captions.append(scenes.draw(stamps, folder, 5, seed))
    assert captions[0] == captions[1] != captions[2]
    for scene in captions[0]:
        assert (folders[0] / scene.file).read_bytes() == (folders[1] / scene.file).read_bytes()


def test_a_scene_shows_the_stamp_that_its_caption_names(stamps: list[tuple[Path, str]], tmp_path: Path) -> None:
    for scene in scenes.draw(stamps, tmp_path, 20):
        number = int(scene.caption.removeprefix("颜色"))
        colour = [255 * (number >> bit & 1) // 2 for bit in range(3)]
        with Image.open(tmp_path / scene.file) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        assert pixels.shape == (scenes.SIDE, scenes.SIDE, 3)
        is_named = np.abs(pixels - colour).max(-1) <= 2
        left, top, right, bottom = (round(share * scenes.SIDE) for share in scene.boxes[0])
        assert is_named[top:bottom, left:right].all()  # the first box is that of the stamp that is named
        assert is_named.sum() == (bottom - top) * (right - left) > 500
        assert 2 <= len(scene.boxes) <= 4


def test_stamps_that_are_signs_or_have_no_short_caption_are_left_out(tmp_path: Path) -> None:
    rows = [
        ("a.png", "青蛙。", "animals"),
        ("b.png", "字母A", "symbols/x"),
        ("c.png", "青蛙。", "animals"),
        ("d.png", "", "x"),
    ]
    (tmp_path / "stamps").mkdir()
    with (tmp_path / "stamps.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image_url", "zh_cn", "zh_tw", "category"))
        for name, caption, category in rows:
            (tmp_path / "stamps" / name).write_bytes(b"")
            table.writerow((f"http://127.0.0.1:1/{name}", caption, "", category))
    assert scenes.read_stamps(tmp_path) == [(tmp_path / "stamps" / "a.png", "青蛙")]


def test_what_is_not_there_is_skipped_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos, drawn = scenes.sources(tmp_path, photos=True, scenes=0)
    assert photos.skipped == "../shared/corpus/howtocook-site.truth.jsonl is not beside this checkout"
    assert drawn.skipped == "this form of the study leaves it out"


def test_photos_that_must_not_be_taken_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tmp_path / "shared" / "corpus"
    (corpus / "howtocook-site" / "images").mkdir(parents=True)
    lines = [{"image": f"images/{n}.jpg", "title": "小龙虾的做法", "allowed": n != "b"} for n in "abc"]
    (corpus / "howtocook-site.truth.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    for n in "abc":
        (corpus / "howtocook-site" / "images" / f"{n}.jpg").write_bytes(b"jpeg")
    (tmp_path / "checkout" / "pictures").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "checkout")
    assert scenes._photos(Path("pictures")) == [("a.jpg", "小龙虾"), ("c.jpg", "小龙虾")]
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["a.jpg", "c.jpg"]


def test_the_spec_is_one_that_a_build_takes(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(scenes._SPEC.format(name="scenes"), encoding="utf-8")
    spec = load(tmp_path / "spec.yaml")
    assert [d.name for d in spec.regions.detectors] == ["grid", "proposals"]
    assert spec.regions.max_boxes == 9


def test_true_boxes_are_found_by_the_key_of_a_sample(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    manifest = make_shards(val=(8,))
    table = pq.read_table(next(manifest.parent.glob("val-*.parquet")))
    keys = table["key"].to_pylist()
    files = [url.rpartition("/")[2] for url in table["image_url"].to_pylist()]
    known = {file: [[0.0, 0.0, number / 10, 0.5]] * (1 + number % 2) for number, file in enumerate(files)}
    (tmp_path / "boxes.json").write_text(json.dumps(known))
    source = scenes.Source("scenes", ("", ""), ("", ""), manifest, true_boxes=tmp_path / "boxes.json")
    assert source.boxes_of("val", keys[::-1]) == [known[file] for file in files[::-1]]
    assert source.ceiling() == pytest.approx(0.75)
    assert replace(source, true_boxes=None).ceiling() is None
    (tmp_path / "boxes.json").write_text("[")
    with pytest.raises(InputError, match="boxes"):
        source.ceiling()
