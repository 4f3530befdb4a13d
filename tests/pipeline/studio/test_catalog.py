"""The catalog against the decisions themselves, read and counted by pandas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.stages import STAGES
from pipeline.store.build import Build
from pipeline.store.commits import Record
from pipeline.store.frames import Frames
from pipeline.studio.catalog import Catalog
from pipeline.studio.facets import Filters
from pipeline.studio.preparation import Preparation

pytestmark = pytest.mark.slow


@pytest.fixture(params=["at once", "prepared"])
def catalog(built: Build, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Catalog]:
    catalog = Catalog(Frames.open(built.out, STAGES), tmp_path)
    if request.param == "prepared":
        preparation = Preparation(catalog, None, tmp_path / "index")
        preparation.start()
        preparation.wait()
        assert catalog.ready
    yield catalog
    catalog.close()


@pytest.fixture
def truth(built: Build) -> pd.DataFrame:
    return Frames.of(built).frame("decisions")


def test_every_decision_is_reached_once_and_as_it_was_written(catalog: Catalog, truth: pd.DataFrame) -> None:
    places: list[int] = []
    while more := catalog.positions(Filters(), len(places), 17):
        places += more
    rows = catalog.rows(places)
    assert len(places) == len(set(places)) == len(truth)
    columns = ["subject", "id", "stage", "kept", "reason", "url", "text", "duplicate_of", "evidence"]
    expected = Counter(tuple(row) for row in truth[columns].itertuples(index=False))
    assert Counter(tuple(row[name] for name in columns) for row in rows) == expected
    assert [row["pos"] for row in rows] == places
    assert [row["kept"] for row in rows][:30] == [True] * 30, "what was kept comes first"


def test_counts_of_facets_are_those_of_the_decisions(catalog: Catalog, truth: pd.DataFrame) -> None:
    counts = catalog.counts(Filters())
    assert counts.total == counts.matching == len(truth)
    for name in ("stage", "source", "reason", "subject"):
        assert dict(counts.facets[name]) == truth[name].value_counts().to_dict(), name
    chosen = Filters({"source": ("table",), "reason": ("same_image", "near_image", "data_uri")})
    by_hand = truth[(truth.source == "table") & truth.reason.isin(["same_image", "near_image", "data_uri"])]
    counts = catalog.counts(chosen)
    assert counts.matching == len(by_hand) > 0
    assert dict(counts.facets["stage"]) == by_hand.stage.value_counts().to_dict()
    of_table = truth[truth.source == "table"]
    assert dict(counts.facets["reason"]) == of_table.reason.value_counts().to_dict(), "its own choice does not count"
    assert len(catalog.positions(chosen, 0, 100)) == len(by_hand)


def test_the_first_counts_read_no_decision_and_those_of_older_records_are_the_same(
    built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogs = [Catalog(Frames.open(built.out, STAGES), tmp_path / name) for name in ("new", "old")]
    chosen = Filters({"source": ("table",), "fate": ("dropped",)})
    with monkeypatch.context() as patch:
        patch.delattr(Catalog, "query")
        counted = [catalogs[0].counts(filters) for filters in (Filters(), chosen)]
        assert catalogs[0].positions(Filters(), 0, 60)
    monkeypatch.setattr(Record, "fates", None)
    assert [catalogs[1].counts(filters) for filters in (Filters(), chosen)] == counted
    for catalog in catalogs:
        catalog.close()


def test_pages_of_a_listing_do_not_overlap(catalog: Catalog, truth: pd.DataFrame) -> None:
    dropped = Filters({"fate": ("dropped",)}, sort="random")
    pages = [catalog.positions(dropped, at, 7) for at in range(0, 40, 7)]
    places = [pos for page in pages for pos in page]
    candidates_and_pages = int((~truth.kept & (truth.reason != "known")).sum())
    assert len(places) == len(set(places)) == candidates_and_pages
    assert places != sorted(places)


def test_words_are_searched_in_all_texts_and_addresses_in_both_scripts(catalog: Catalog, truth: pd.DataFrame) -> None:
    def found(words: str) -> set[str]:
        return {row["id"] for row in catalog.rows(catalog.positions(Filters(words=words), 0, 100))}

    assert found("海边的日落") == set(truth[truth.text.str.contains("海边的日落")].id)
    assert found("海邊的日落") == found("海边的日落"), "in Traditional script too"
    assert found("海边 第1幅") == set(truth[truth.text.str.contains("海边") & truth.text.str.contains("第1幅")].id)
    assert found("IMG1.example/7") == set(truth[truth.url.str.contains("img1.example/7", regex=False)].id)
    second = found("图3")  # a second text, which no decision has
    assert second
    assert not truth[truth.text.str.contains("图3")].shape[0]
    assert found("没有这样的文本") == set()
    assert found("' OR 1=1 --") == set()
    assert catalog.counts(Filters(words="海边的日落")).matching == len(found("海边的日落"))


def test_more_searches_than_are_kept_still_answer(catalog: Catalog) -> None:
    first = catalog.positions(Filters(words="海边"), 0, 100)
    for number in range(12):
        catalog.positions(Filters(words=f"第{number}幅"), 0, 100)
    assert catalog.positions(Filters(words="海边"), 0, 100) == first


def test_a_group_of_duplicates_is_its_leader_and_all_copies(catalog: Catalog, truth: pd.DataFrame) -> None:
    leader = truth[truth.duplicate_of != ""].duplicate_of.iloc[0]
    rows = catalog.rows(catalog.positions(Filters(leader=leader), 0, 100))
    expected = set(truth[truth.duplicate_of == leader].id) | {leader}
    assert {row["id"] for row in rows} == expected
    place = catalog.positions_of([leader, leader[:32], "no id"])
    assert place[leader] == place[leader[:32]]
    assert catalog.rows([place[leader]])[0]["kept"]


def test_what_is_named_is_found(catalog: Catalog, truth: pd.DataFrame) -> None:
    one = truth[truth.kept].iloc[3]
    assert [row["id"] for row in catalog.rows(catalog.find([one.url], [], "", 9))] == [one.id]
    assert [row["id"] for row in catalog.rows(catalog.find([], [], one.id[:10], 9))] == [one.id]
    page = truth[truth.page_url != ""].page_url.iloc[0]
    found = {row["id"] for row in catalog.rows(catalog.find([page], [], "", 99))}
    assert found == set(truth[truth.page_url == page].id)
    assert catalog.find([], [], "", 9) == []


def test_nothing_is_answered_of_a_place_that_is_no_row(catalog: Catalog) -> None:
    assert catalog.rows([1 << 40, 5_000_000]) == []


def test_a_build_that_decided_nothing_is_empty_and_not_broken(built: Build, tmp_path: Path) -> None:
    catalog = Catalog(Frames("nowhere", (), ()), tmp_path)
    assert catalog.counts(Filters()).total == 0
    assert catalog.positions(Filters(), 0, 10) == []
    assert catalog.positions(Filters(words="花"), 0, 10) == []
    catalog.close()


def test_the_digest_follows_the_files(built: Build, tmp_path: Path, own: Callable[..., Any]) -> None:
    first, second = (Catalog(Frames.open(built.out, STAGES), tmp_path) for _ in range(2))
    other = Catalog(Frames.open(own().out, STAGES), tmp_path)
    assert first.digest == second.digest != other.digest
