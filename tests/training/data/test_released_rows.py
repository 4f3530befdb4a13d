"""Rows as BriVL released them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.data.released_rows import BrokenRow, read_rows

BOXES = [[4, 2, 30, 40], [0, 0, 20, 20], [30, 10, 60, 50], [8, 8, 16, 16], [1, 2, 3, 4], [9, 9, 50, 60]]


SENTENCES = [["alt_text", "红船"], ["sur_text", "山水相连。白云飞"]]


def row(image: str, boxes: Any = BOXES, sentences: Any = SENTENCES) -> str:
    return json.dumps({"image_id": image, "sentences": sentences, "bbox": boxes}, ensure_ascii=False)


def test_text_kinds_go_by_both_names_and_derived_ones_are_made(tmp_path: Path) -> None:
    long = "长" * 130 + "。后"
    rows = [
        [["alt_text", "甲"], ["surText", long]],
        [["sur_text", "丙。丁"], ["easy", "戊"], ["first", "己"]],
        [["content", "微博"]],
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(row("x.png", sentences=s) for s in rows), encoding="utf-8")
    first, second, third = read_rows(file)
    assert not isinstance(first, BrokenRow)
    assert not isinstance(second, BrokenRow)
    assert not isinstance(third, BrokenRow)
    kinds = ("primary", "alt_text", "alt", "sur_text", "surText", "surrounding", "easy", "first", "content")
    assert [first.text(k) for k in kinds] == ["甲", "甲", "甲", long, long, long, "长" * 128, "长" * 130, None]
    assert [second.text(k) for k in ("primary", "easy", "first")] == ["丙。丁", "戊", "己"]
    assert [third.text(k) for k in ("content", "first", "alt")] == ["微博", None, None]
    assert first.image == tmp_path / "x.png"


@pytest.mark.parametrize("number", [10**400, 1e300, float("nan"), float("-inf")])
def test_a_box_of_a_number_without_end_is_a_broken_row(number: float, tmp_path: Path) -> None:
    """1e300 is infinite in float32, and would make the feature of its picture NaN."""
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{row('x.png', boxes=[[1, 2, 3, number]])}\n{row('y.png')}\n", encoding="utf-8")
    broken, sound = read_rows(file)
    assert isinstance(broken, BrokenRow)
    assert broken.problem == "x.png: its boxes are not finite numbers"
    assert not isinstance(sound, BrokenRow)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (r'{"image_id": "\ud83d.png"}', "its image_id contains an unpaired surrogate"),
        (
            r'{"image_id": "x.png", "sentences": [["alt_text", "笑\ud83d"]]}',
            "x.png: its sentences contain an unpaired surrogate",
        ),
    ],
)
def test_half_of_a_surrogate_pair_is_a_broken_row(line: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(line, encoding="utf-8")
    [broken] = read_rows(tmp_path / "rows.jsonl")
    assert isinstance(broken, BrokenRow)
    assert broken.problem == problem
