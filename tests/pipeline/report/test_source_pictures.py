"""Pictures that no stage has read: shown from their source, unless taken down or not looked at by a filter."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_specs.build import BuildSpec
from pipeline import opening
from pipeline.features import feature_id
from pipeline.features._rows import measure_image
from pipeline.report.pictures import add_pictures, source_pictures
from pipeline.sources import folder
from pipeline.store.build import Build
from pipeline.store.frames import Frames
from pipeline.store.sql import Tables
from pipeline.store.takedowns import NO_TAKEDOWNS, Look, Takedowns
from tests.drawn import blobs
from tests.stages import run_noted

WEB = "https://img.example/w.jpg"


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Two pictures whose texts are too short; one of them says that it came from the web."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, name in enumerate(["own", "web"]):
        Image.fromarray(blobs(number, (320, 240))).save(photos / f"{name}.jpg")
    (photos / "own.txt").write_text("短", "utf-8")
    (photos / "web.json").write_text(json.dumps({"url": WEB, "caption": "网"}), "utf-8")
    source = {"kind": "folder", "name": "mine", "source_kind": "library", "path": "photos"}
    filters = [{"name": "text_length", "min_chars": 5}]
    spec = {"name": "photos", "contact": "mailto:a@b.c", "base": str(tmp_path), "sources": [source], "filters": filters}
    made = opening.open_build(BuildSpec.model_validate(spec), str(tmp_path / "out"), str(tmp_path / "store"), "1")
    run_noted(made, "crawl", "extract", "admit", "fetch", "measure", "filter")
    return made


def rows_of(build: Build) -> list[dict[str, Any]]:
    return [row for table in Frames.of(build).tables("decisions") for row in table.to_pylist()]


@pytest.mark.slow
def test_pictures_of_files_that_were_dropped_are_shown(build: Build) -> None:
    rows = rows_of(build)
    with Tables.of(build) as tables:
        add_pictures(build, tables, rows, NO_TAKEDOWNS)
    assert {(row["url"], row["reason"], row["width"], row["height"]) for row in rows} == {
        ("folder:///mine/own.jpg", "text_too_short", 320, 240),
        (WEB, "text_too_short", 320, 240),
    }
    assert all(row["picture"].startswith("data:image/jpeg;base64,") for row in rows)


@pytest.mark.slow
def test_what_was_taken_down_is_not_shown_by_its_bytes_nor_by_its_looks(build: Build, tmp_path: Path) -> None:
    rows = rows_of(build)
    shown = list(source_pictures(build, rows, NO_TAKEDOWNS))
    by_bytes = Takedowns(frozenset([shown[0].sha256]))
    with Tables.of(build) as tables:
        add_pictures(build, tables, rows, by_bytes)
    assert sum(bool(row["picture"]) for row in rows) == 1
    own = measure_image((tmp_path / "photos/own.jpg").read_bytes(), 10**8)
    look = Look(tuple(own["phash"]), own["signature"], 4, 0.07, feature_id())
    [rest] = source_pictures(build, rows, Takedowns(looks=(look,)))
    assert rest.data == (tmp_path / "photos/web.jpg").read_bytes()


@pytest.mark.slow
def test_with_a_filter_that_looks_at_pixels_what_it_has_not_seen_is_not_shown(build: Build) -> None:
    filters = [*build.spec.filters, {"name": "image_nsfw"}]
    spec = BuildSpec.model_validate({**build.spec.model_dump(mode="json"), "filters": filters})
    assert list(source_pictures(replace(build, spec=spec), rows_of(build), NO_TAKEDOWNS)) == []


@pytest.mark.slow
def test_a_folder_that_is_gone_costs_its_pictures_only(build: Build, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "photos")
    folder._scan.cache_clear()
    assert list(source_pictures(build, rows_of(build), NO_TAKEDOWNS)) == []
