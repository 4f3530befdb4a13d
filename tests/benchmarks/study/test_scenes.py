"""Scenes are drawn alike by one seed, show what their caption names, and tables become folders that a build reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_specs.build import load
from tests.benchmarks.study import scenes


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


@pytest.mark.slow
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
