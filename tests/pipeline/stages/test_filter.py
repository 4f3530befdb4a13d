"""filter: candidates become pairs, or are dropped with every reason."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from data_specs.build import SpecError
from data_specs.shard import Text
from pipeline.rows.records import PAIR_SCHEMA
from pipeline.stages import filter
from tests.drawn import encoded
from tests.stages import run_stage

TABLE = {"kind": "url_table", "name": "table", "source_kind": "library", "path": "t.csv"}
TABLE["columns"] = {"texts": {"caption": "text"}}
CRAWLED = {**TABLE, "source_kind": "image_search"}


def flat(colour: str, size: tuple[int, int]) -> bytes:
    return encoded(Image.new("RGB", size, colour), "PNG")


def busy(size: tuple[int, int]) -> bytes:
    return encoded(Image.effect_noise(size, 80).convert("RGB"), "PNG")


def run(build: Any) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]], dict[str, int]]:
    """(pairs, decisions by image URL's end, counts)."""
    pairs, decided, counts = [], {}, {}
    run_stage(build, "measure", "filter")
    stage = build.stage("filter")
    for record in stage.records():
        table = stage.table(record)
        assert table.schema.names == PAIR_SCHEMA.names
        pairs += table.to_pylist()
        for row in stage.table(record, "decisions.parquet").to_pylist():
            decided[row["url"].rpartition("/")[2]] = row
        counts = {k: counts.get(k, 0) + v for k, v in record.counts.items()}
    return pairs, decided, counts


@pytest.mark.slow
def test_every_failing_filter_is_a_reason(fetched_build: Any, got: Any) -> None:
    filters = [{"name": "image_sides", "min_side": 50}, {"name": "image_aspect"}, {"name": "image_blank"}]
    images = [
        got("good", busy((90, 80))),
        got("strip", flat("red", (400, 20))),
        got("plain", flat("red", (90, 80))),
        got("broken", b"\x89PNG\r\n\x1a\n"),
    ]
    pairs, decided, counts = run(fetched_build(images, parts=2, filters=filters, sources=[CRAWLED]))
    assert [p["image_url"].rpartition("/")[2] for p in pairs] == ["good"]
    assert decided["strip"]["reason"] == "image_too_small"
    assert decided["strip"]["reasons"] == ["image_too_small", "image_aspect", "image_blank"]
    assert "400 x 20" in decided["strip"]["evidence"]
    assert decided["plain"]["reasons"] == ["image_blank"]
    assert "broken" not in decided  # measure has said why
    assert (counts["seen"], counts["kept"], counts["dropped"]) == (3, 1, 2)


@pytest.mark.slow
def test_a_strip_with_words_of_its_own_may_be_longer(fetched_build: Any, got: Any) -> None:
    images = [
        got("described", busy((400, 90)), Text("alt", "长卷上的故宫")),
        got("long", busy((460, 90)), Text("alt", "更长的画卷")),
        got("titled", busy((400, 91)), Text("title", "雪后的故宫")),
    ]
    for number, options in enumerate(({}, {"max_aspect": 3.0})):
        filters = [{"name": "image_aspect", **options}]
        pairs, decided, _ = run(fetched_build(images, name=f"b{number}", filters=filters, sources=[CRAWLED]))
        kept = [p["image_url"].rpartition("/")[2] for p in pairs]
        assert kept == ([] if options else ["described"])
        assert {row["reason"] for row in decided.values()} == {"image_aspect"}
        assert ("at most 5" in decided["long"]["evidence"]) is not bool(options)
        assert "at most 3" in decided["titled"]["evidence"]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["library", "image_search"])
def test_small_and_long_pictures_of_a_collection_stay_unless_the_spec_states_a_limit(
    source: str, fetched_build: Any, got: Any
) -> None:
    images = [got("small", busy((150, 80))), got("scroll", busy((1600, 240))), got("line", busy((2100, 100)))]
    sources = [{**TABLE, "source_kind": source}]
    for number, options in enumerate(({}, {"image_sides": {"min_side": 90}})):
        filters = [{"name": "image_sides"}, {"name": "image_aspect"}]
        own = [{**one, "filters": options} for one in sources]
        pairs, _, _ = run(fetched_build(images, name=f"b{number}", filters=filters, sources=own))
        kept = {p["image_url"].rpartition("/")[2] for p in pairs}
        assert kept == (set() if source != "library" else {"scroll"} if options else {"small", "scroll"})


def test_pairs_are_sorted_and_carry_both_halves(fetched_build: Any, got: Any) -> None:
    images = [got(f"{i}", busy((90 + i, 80)), f"图{i}") for i in range(9)]
    build = fetched_build(images, filters=[])
    pairs, decided, counts = run(build)
    assert decided == {}
    assert counts["kept"] == 9
    assert [(p["order_key"], p["candidate_id"]) for p in pairs] == sorted(
        (p["order_key"], p["candidate_id"]) for p in pairs
    )
    assert {p["width"]: p["texts"][0]["text"] for p in pairs} == {90 + i: f"图{i}" for i in range(9)}
    assert {p["fetched_at"] for p in pairs} == {"2026-01-02T03:04:05Z"}


def test_a_wrong_option_is_named() -> None:
    from pipeline.filters import ImageFilter
    from pipeline.plugins import configure

    with pytest.raises(SpecError, match=r"filters\[0\]\.min_sides: unknown option; did you mean min_side\?"):
        configure("filters", "image_sides", {"min_sides": 3}, ImageFilter, "filters[0]")


def test_the_token_holds_image_filters_only(fetched_build: Any) -> None:
    one = fetched_build([], filters=[{"name": "image_blank"}])
    two = fetched_build([], name="two", filters=[{"name": "image_blank", "max_blankness": 0.5}])
    assert filter.token(one) != filter.token(two)
