"""filter: candidates become pairs, or are dropped with every reason."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from data_specs.build import SpecError
from pipeline.records import PAIR_SCHEMA
from pipeline.stages import filter
from tests.stages import run_stage


def flat(colour: str, size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def busy(size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(out, "PNG")
    return out.getvalue()


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


def test_every_failing_filter_is_a_reason(fetched_build: Any, got: Any) -> None:
    filters = [{"name": "image_sides", "min_side": 50}, {"name": "image_aspect"}, {"name": "image_blank"}]
    images = [
        got("good", busy((90, 80))),
        got("strip", flat("red", (400, 20))),
        got("plain", flat("red", (90, 80))),
        got("broken", b"\x89PNG\r\n\x1a\n"),
    ]
    pairs, decided, counts = run(fetched_build(images, parts=2, filters=filters))
    assert [p["image_url"].rpartition("/")[2] for p in pairs] == ["good"]
    assert decided["strip"]["reason"] == "image_too_small"
    assert decided["strip"]["reasons"] == ["image_too_small", "image_aspect", "image_blank"]
    assert "400 x 20" in decided["strip"]["evidence"]
    assert decided["plain"]["reasons"] == ["image_blank"]
    assert "broken" not in decided  # measure has said why
    assert (counts["seen"], counts["kept"], counts["dropped"]) == (3, 1, 2)


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


@pytest.mark.parametrize(
    ("options", "width", "height", "size", "blankness", "reason"),
    [
        ({"name": "image_sides"}, 200, 199, 9_000, 0.1, "image_too_small"),
        ({"name": "image_sides"}, 200, 200, 9_000, 0.1, None),
        ({"name": "image_sides", "max_side": 1000}, 1001, 200, 9_000, 0.1, "image_too_large"),
        ({"name": "image_aspect"}, 300, 100, 9_000, 0.1, None),
        ({"name": "image_aspect"}, 100, 301, 9_000, 0.1, "image_aspect"),
        ({"name": "image_blank"}, 100, 100, 9_000, 0.99, "image_blank"),
        ({"name": "image_blank", "max_blankness": 0.99}, 100, 100, 9_000, 0.99, None),
        ({"name": "image_bytes"}, 100, 100, 4_999, 0.1, "image_too_small"),
        ({"name": "image_bytes", "max_bytes": 8_000}, 100, 100, 9_000, 0.1, "image_too_large"),
        ({"name": "image_bytes"}, 100, 100, 5_000, 0.1, None),
    ],
)
def test_thresholds(
    options: dict[str, Any], width: int, height: int, size: int, blankness: float, reason: str | None
) -> None:
    from pipeline.filters import ImageFilter
    from pipeline.plugins import configure
    from pipeline.records import Features

    options = dict(options)
    judge = configure("filters", options.pop("name"), options, ImageFilter)
    features = Features("0" * 64, "png", width, height, size, 1, False, 1, blankness, (1, 2, 3), b"")
    dropped = judge.check(features)
    assert (dropped and dropped.reason.value) == reason
    assert dropped is None or any(c.isdigit() for c in dropped.evidence)


@pytest.mark.parametrize(
    ("options", "seen", "reason"),
    [
        ({"name": "image_sharpness"}, {"sharpness": 49.0}, "image_blurred"),
        ({"name": "image_sharpness"}, {"sharpness": 50.0}, None),
        ({"name": "image_sharpness", "min_sharpness": 0}, {"sharpness": 0.0}, None),
        ({"name": "image_entropy"}, {"entropy": 0.9}, "image_entropy"),
        ({"name": "image_entropy"}, {"entropy": 1.0}, None),
        ({"name": "image_frames"}, {"frames": 2}, "image_animated"),
        ({"name": "image_frames", "max_frames": 2}, {"frames": 2}, None),
    ],
)
def test_thresholds_of_what_pixels_tell(options: dict[str, Any], seen: dict[str, Any], reason: str | None) -> None:
    from pipeline.filters import ImageFilter
    from pipeline.plugins import configure
    from pipeline.records import Features

    options = dict(options)
    judge = configure("filters", options.pop("name"), options, ImageFilter)
    dropped = judge.check(replace(Features("0" * 64, "gif", 100, 100, 9_000, 1, False, 1, 0.1, (1, 2, 3), b""), **seen))
    assert (dropped and dropped.reason.value) == reason
    assert dropped is None or any(c.isdigit() for c in dropped.evidence)


def test_a_wrong_option_is_named() -> None:
    from pipeline.filters import ImageFilter
    from pipeline.plugins import configure

    with pytest.raises(SpecError, match=r"filters\[0\]\.min_sides: unknown option; did you mean min_side\?"):
        configure("filters", "image_sides", {"min_sides": 3}, ImageFilter, "filters[0]")


def test_the_token_holds_image_filters_only(fetched_build: Any) -> None:
    one = fetched_build([], filters=[{"name": "image_blank"}])
    two = fetched_build([], name="two", filters=[{"name": "image_blank", "max_blankness": 0.5}])
    assert filter.token(one) != filter.token(two)
