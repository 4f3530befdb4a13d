"""drafts: filters and options that fit what was looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_specs.build import DEFAULT_FILTERS, load
from pipeline import cli
from pipeline.commands.guesses import LOOKED_AT
from tests.drafted import CONTACT, WORDS, built, init


@pytest.mark.slow
def test_a_folder_of_pictures_keeps_all_that_is_there(photos, capsys):
    answer = init(capsys, "--from", "photos/")
    assert answer["next"] == ["wenlan-data", "plan", "photos.yaml"]
    spec = load("photos.yaml")
    [source] = spec.sources
    assert (source.kind, source.source_kind, source.options["path"]) == ("folder", "library", "photos")
    filters = {ref.name: ref.options for ref in spec.filters}
    assert filters == {ref.name: {} for ref in DEFAULT_FILTERS}, "as a spec that is written by hand has them"
    assert (spec.shards.dev_share, spec.shards.val_share) == (0.2, 0.2)
    assert cli.main(["plan", "photos.yaml"]) == 0
    assert built(Path("photos.yaml")) == 6


@pytest.mark.slow
def test_shares_leave_something_to_measure_by_where_the_pictures_are_few_or_not_counted(here, capsys):
    for name, count in (("t.csv", 420), ("big.csv", LOOKED_AT)):
        lines = (f"https://a.example/{n}.jpg,{WORDS[0]}{n}" for n in range(count))
        (here / name).write_text("\n".join(["url,caption", *lines]), encoding="utf-8")
    (here / "warc.paths").write_text("a.warc.gz\n")
    for given, share in (("t.csv", 0.11), ("https://a.example/", 0.1), ("big.csv", 0.01), ("warc.paths", 0.01)):
        init(capsys, "--from", given, "--out", "s.yaml", "--force", "--name", "t", *CONTACT)
        assert load("s.yaml").shards.val_share == share, given


@pytest.mark.slow
def test_a_table_of_pictures_of_one_host_is_a_collection(here, capsys):
    for hosts, pages, kind in ((1, 0, "library"), (2, 0, "image_search"), (1, 1, "image_search")):
        lines = [f"https://h{n % hosts}.example/{n}.jpg,{WORDS[0]}" + f",https://p.example/{n}" * pages for n in (0, 1)]
        (here / "t.csv").write_text("\n".join(["url,caption" + ",page" * pages, *lines]) + "\n", encoding="utf-8")
        init(capsys, "--from", "t.csv", "--force", *CONTACT)
        assert load("t.yaml").sources[0].source_kind == kind


def test_pictures_without_any_text_are_refused_and_nothing_is_written(photos, capsys):
    for text in photos.glob("*.txt"):
        text.unlink()
    assert cli.main(["init", "--from", "photos"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("wenlan-data: photos: 6 pictures but no texts: each X.jpg needs an X.txt")
    assert list(photos.parent.iterdir()) == [photos]
