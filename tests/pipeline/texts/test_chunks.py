"""chunks: a function of a text is computed for a whole chunk, and says what it would have said of each text alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.texts import chunks
from pipeline.texts.chunks import announce, chunkwise


@pytest.fixture(autouse=True)
def nothing_announced() -> Iterator[None]:
    announce([])
    yield
    announce([])


def counting(calls: list[list[str]], fails: str | None = None) -> Callable[[str], int]:
    """The length of a text; notes of which texts it was computed at once, and fails on one of them."""

    def lengths(texts: Sequence[str]) -> list[int]:
        calls.append(list(texts))
        return [length.__wrapped__(text) for text in texts]  # type: ignore[attr-defined]

    @chunkwise(lengths)
    def length(text: str) -> int:
        if text == fails:
            raise ValueError(text)
        return len(text)

    return length


def test_announced_texts_are_computed_at_once_and_others_by_themselves():
    calls: list[list[str]] = []
    length = counting(calls)
    announce(["一", "一二", "一", "一二三"])
    assert [length(text) for text in ("一二", "一", "一二三", "四五六七")] == [2, 1, 3, 4]
    assert calls == [["一", "一二", "一二三"]]
    announce(["一二", "八九十", "一" * 5])
    assert [length("八九十"), length("一" * 5)] == [3, 5]
    assert calls[1:] == [["八九十", "一" * 5]], "what is known is not computed again"


def test_a_text_that_fails_takes_no_other_with_it():
    length = counting([], fails="bad")
    announce(["a", "bad", "ccc"])
    assert length("a") == 1
    with pytest.raises(ValueError, match="bad"):
        length("bad")
    assert length("ccc") == 3


def test_values_that_are_too_few_or_too_many_are_no_values():
    @chunkwise(lambda texts: [len(part) for text in texts for part in text.split()])
    def length(text: str) -> int:
        return len(text)

    for announced in (["a", "bb c", "ddd"], ["e", " ", "ff"]):
        announce(announced)
        assert [length(text) for text in announced] == [len(text) for text in announced]


def test_long_texts_are_computed_in_parts_and_what_is_remembered_is_bounded(monkeypatch):
    calls: list[list[str]] = []
    length = counting(calls)
    monkeypatch.setattr(chunks, "MOST_CHARACTERS", 10)
    announce(["a" * 6, "b" * 4, "c" * 30, "d"])
    assert [length(text) for text in ("a" * 6, "b" * 4, "c" * 30, "d")] == [6, 4, 30, 1]
    assert [len(texts) for texts in calls] == [2]
    monkeypatch.setattr(chunks, "REMEMBERED", 5)
    announce([])
    assert [length("x" * i) for i in range(100)] == list(range(100))
    assert len(calls) == 1


@given(st.lists(st.text(max_size=5)), st.lists(st.text(max_size=5)))
def test_what_is_announced_changes_no_answer(announced, asked):
    length = counting([])
    announce(announced)
    for text in (*asked, *announced):
        assert length(text) == len(text)
