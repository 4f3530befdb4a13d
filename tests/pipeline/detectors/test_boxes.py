"""Boxes as the contract asks, and as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.pictures.boxes import cleaned
from data_specs.shard import REGION_SCHEMA
from pipeline.detectors import NONE, Boxes, Detector, Picture
from pipeline.detectors._boxes import blank, boxes_of, raw_boxes, rows_of
from pipeline.errors import DetectorError
from pipeline.rows.records import BOX_SCHEMA

floats = st.floats(-50, 150, width=32) | st.just(np.nan) | st.just(np.inf)


@pytest.mark.slow
@settings(deadline=None)
@given(
    raw=st.lists(st.tuples(floats, floats, floats, floats, st.sampled_from([0.5, 0.5, 0.9, 0.1, np.nan])), max_size=12),
    cap=st.integers(1, 8),
    data=st.data(),
)
def test_cleaned_boxes_keep_the_contract(raw: list[tuple[float, ...]], cap: int, data: st.DataObject) -> None:
    values = np.array(raw, np.float32).reshape(-1, 5)
    once = cleaned((values[:, :4], values[:, 4], np.zeros(len(values), np.int32)), 100, 60, cap)
    boxes, scores, labels = once
    assert boxes.dtype == scores.dtype == np.float32
    assert labels.dtype == np.int32
    assert len(boxes) == len(scores) == len(labels) <= cap
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 100).all()
    assert (boxes[:, 3] <= 60).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
    assert (np.diff(scores) <= 0).all()
    assert len({tuple(box) for box in boxes.tolist()}) == len(boxes)
    assert [0, 0, 100, 60] not in boxes.tolist()
    order = data.draw(st.permutations(range(len(values))))
    other = cleaned((values[order, :4], values[order, 4], np.zeros(len(values), np.int32)), 100, 60, cap)
    assert all(np.array_equal(a, b) for a, b in zip(once, other, strict=True))


def test_cleaning_keeps_sound_boxes_as_they_are() -> None:
    raw = np.array([[10, 10, 50, 50], [5, 5, 200, 30], [10, 10, 50, 50], [0, 0, 100, 60], [7, 7, 7.5, 20]], np.float32)
    boxes, scores, labels = cleaned((raw, np.arange(5) / 10, np.arange(5)), 100, 60, 36)
    assert boxes.tolist() == [[10, 10, 50, 50], [5, 5, 100, 30]]
    assert scores == pytest.approx([0.2, 0.1])
    assert labels.tolist() == [2, 1]


class _Careless(Detector):
    """Returns boxes of the first picture alone, unless all are asked for; its weights are a gigabyte to read."""

    whole: bool = True

    def weights_digest(self) -> str:
        raise AssertionError("the weights were read for a batch")

    def detect(self, state: Any, pictures: Sequence[Picture]) -> list[Boxes]:
        return [NONE for _ in (pictures if self.whole else pictures[:1])]


def test_a_batch_does_not_read_the_weights_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [blank(20, 10), blank(10, 20)]
    assert len(raw_boxes(_Careless(), None, pictures)) == 2
    monkeypatch.setattr(_Careless, "weights_digest", lambda self: "")
    with pytest.raises(DetectorError, match=r"test_boxes-[0-9a-f]{12}: returned boxes of 1 pictures for 2"):
        raw_boxes(_Careless(whole=False), None, pictures)


def test_the_columns_are_the_contract_without_the_key() -> None:
    assert BOX_SCHEMA.names == [name for name in REGION_SCHEMA.names if name != "key"]
    assert all(BOX_SCHEMA.field(name) == REGION_SCHEMA.field(name) for name in BOX_SCHEMA.names)


@pytest.mark.slow
def test_boxes_come_back_from_their_rows() -> None:
    rng = np.random.default_rng(0)
    boxes = {
        name: (rng.random((n, 4), np.float32), rng.random(n, np.float32), np.arange(n, dtype=np.int32))
        for name, n in (("b" * 64, 3), ("a" * 64, 0), ("c" * 64, 1))
    }
    rows = rows_of(boxes)
    assert rows.schema.equals(BOX_SCHEMA)
    again = boxes_of(rows.slice(1))
    assert list(again) == ["a" * 64, "c" * 64]
    for name, values in again.items():
        assert all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(values, boxes[name], strict=True))
        assert values[0].shape == boxes[name][0].shape
