"""drafts: filters and options that fit what was looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_specs.build import load
from pipeline import cli
from tests.drafted import built, init


@pytest.mark.slow
def test_a_folder_of_pictures_keeps_all_that_is_there(photos, capsys):
    answer = init(capsys, "--from", "photos/")
    assert answer["next"] == ["wenlan-data", "plan", "photos.yaml"]
    spec = load("photos.yaml")
    [source] = spec.sources
    assert (source.kind, source.source_kind, source.options["path"]) == ("folder", "library", "photos")
    filters = {ref.name: ref.options for ref in spec.filters}
    assert filters["image_sides"]["min_side"] == 90
    assert filters["text_length"]["min_chars"] == 1
    assert {"ads", "boilerplate", "image_aspect"}.isdisjoint(filters), "thresholds of web crawls"
    assert (spec.shards.dev_share, spec.shards.val_share) == (0.1, 0.1)
    assert cli.main(["plan", "photos.yaml"]) == 0
    assert built(Path("photos.yaml")) == 6


def test_pictures_without_any_text_are_refused_and_nothing_is_written(photos, capsys):
    for text in photos.glob("*.txt"):
        text.unlink()
    assert cli.main(["init", "--from", "photos"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("wenlan-data: photos: 6 pictures and no text: X.jpg needs X.txt")
    assert list(photos.parent.iterdir()) == [photos]
