"""vectors: pairs with the features of their images, ranked by the column that the spec names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.matching.semantic import UNIT
from pipeline.stages import vectors
from pipeline.stages._vectors import codes_column, codes_in
from tests import alike

RED = (0.8, 0.1, 0.1)
SHOWN = [
    ("large", RED, 400, "蓝色"),
    ("told", RED, 300, "蓝色的图是第一二三四的图"),
    ("fits", (0.85, 0.1, 0.1), 280, "红色"),
]


@pytest.mark.parametrize(
    ("keep", "stays"), [("larger_image", "large"), ("longer_text", "told"), ("higher_score", "fits")]
)
def test_which_of_those_that_are_alike_is_kept_is_the_specs_choice(
    fetched_build: Any, got: Any, tmp_path: Path, keep: str, stays: str
) -> None:
    build = alike.made(fetched_build, got, tmp_path, SHOWN, {"keep": keep}, parts=2)
    assert alike.kept(build) == {stays}
    for record in build.stage("vectors").records():
        ranks = build.stage("vectors").table(record)["rank"].to_pylist()
        assert ranks == sorted(ranks)


def test_an_image_that_the_tower_cannot_read_is_kept_and_leads_nobody(
    fetched_build: Any, got: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = vectors.model_values

    def without_first(build: Any, partition: str, images: Any, models: Any) -> Any:
        result = seen(build, partition, images, models)
        result.values[models[0].id].pop(sorted(result.values[models[0].id])[0])
        return result

    monkeypatch.setattr(vectors, "model_values", without_first)
    build = alike.made(fetched_build, got, tmp_path, SHOWN)
    [record] = build.stage("vectors").records()
    assert (record.counts["pairs"], record.counts["compared"]) == (3, 2)
    assert len(alike.kept(build)) == 2


def test_codes_are_read_as_they_were_written() -> None:
    codes = np.array([[UNIT, -UNIT, 7], [0, 1, -1]], np.int16)
    column = codes_column(codes)
    assert (codes_in(column) == codes).all()
    assert (codes_in(column.slice(1)) == codes[1:]).all()
    assert codes_in(column.slice(2)).shape == (0, 0)


def test_codes_of_more_than_two_gigabytes_are_a_column_too() -> None:
    """A binary array of Arrow counts its bytes in 32 bits."""
    codes = np.zeros((2**21 + 3, 512), np.int16)  # zeros that nobody reads take no memory
    column = codes_column(codes)
    assert len(column) == len(codes)
    assert [len(column[row].as_py()) for row in (0, 2**20, 2**21 - 1, 2**21 + 2)] == [1024] * 4
    np.testing.assert_array_equal(codes_in(column.slice(2**21 - 2)), codes[:5])
