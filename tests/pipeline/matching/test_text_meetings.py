"""text_meetings: no text that is the same as another one is missed, however keys are dealt out; others are left."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.matching import text_meetings, text_rows
from pipeline.matching.meetings import BUCKETS
from pipeline.matching.near_texts import TextIndex
from pipeline.matching.text_meetings import Compared, TextFinder, TextTable, distinct, words_of
from pipeline.matching.text_rows import TextRows

THRESHOLD = 0.7


def looked(texts: TextRows, runs: int, parts: int) -> tuple[Any, int]:
    """(which texts [N] all parts find together, of texts that lie in some runs; how many were compared)."""
    borders = [len(texts) * run // runs for run in range(runs + 1)]
    found, dealt, numbers, compared = np.zeros(len(texts), bool), [], [np.zeros(0, np.int64)], 0
    for low, high in itertools.pairwise(borders):
        own = texts.take(np.arange(low, high))
        first, again = distinct(own.ids)
        found[low + again] = True
        entries, starts = TextTable.of(own.take(first).sketches.keys)
        dealt.append((sum(map(len, numbers)), entries, starts))
        numbers.append(low + first)
    among_all = np.concatenate(numbers)

    def read(some: Any) -> Compared:
        own = texts.take(among_all[some])
        return Compared(words_of(own.ids), own.sketches)

    for part in range(parts):
        first, last = BUCKETS * part // parts, BUCKETS * (part + 1) // parts
        finder = TextFinder(THRESHOLD, read)
        tables = [
            (at, TextTable(own.keys[at_ : starts[last]], own.owner[at_ : starts[last]]))
            for at, own, starts in dealt
            for at_ in [starts[first]]
        ]
        found[among_all[finder.look(tables)]] = True
        compared += finder.compared
    return found, compared


def matches(texts: TextRows) -> Any:
    """[N, N] which texts are the same, by the index of leaders, asked one by one; or to the letter."""
    names = [row.tobytes() for row in texts.ids]
    matrix = np.array([one == other for one in names for other in names], bool).reshape(len(names), -1 if names else 0)
    for at in range(len(texts)):
        index = TextIndex(THRESHOLD)
        index.add(texts.take([at]).sketches, np.zeros(1, np.int64))
        matrix[:, at] |= index.first(texts.sketches) == 0
    return matrix & ~np.eye(len(texts), dtype=bool)


WORDS = [
    "",
    "红烧肉",
    "红烧鱼",
    "今天天气很好我们一家人去公园散步吧",
    "这张照片展示了制作宫保鸡丁的步骤",
    "a b c 12",
    "。。",
]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(WORDS), st.integers(0, 30), st.sampled_from(["甲", "乙", ""])), max_size=30),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from([1, 2, 5, 64]),
)
def test_what_is_the_same_is_found_in_any_runs_and_parts(
    drawn: list[tuple[str, int, str]], runs: int, parts: int, long: int
) -> None:
    """Chains too: a text is changed in one place, or in another."""
    texts = text_rows.made([word[:at] + sign + word[at + 1 :] for word, at, sign in drawn], THRESHOLD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_meetings, "LONG", long)
        found, _ = looked(texts, runs, parts)
    expected = matches(texts).any(axis=1)
    assert not (expected & ~found).any()
    if long == 64:  # no key is too long to be compared: then it is exactly these
        assert (found == expected).all()


def test_of_texts_that_share_a_key_each_is_compared_with_each() -> None:
    """Not with its neighbours alone; texts without shingles are the same by their ids."""
    texts = text_rows.made(
        ["今天天气很好我们去公园散步吧", "清蒸鱼", "今天天气很好我们去公园散步啦", "", "红烧肉", ""], THRESHOLD
    )
    finder = TextFinder(THRESHOLD, lambda some: Compared(words_of(texts.ids[some]), texts.sketches.take(some)))
    table = TextTable(np.full(6, 7, np.uint32), np.arange(6, dtype=np.uint32))
    assert finder.look([(0, table)]).tolist() == [0, 2, 3, 5]
    assert finder.apart > 0


def test_texts_of_their_own_are_not_found() -> None:
    rng = np.random.default_rng(1)
    texts = text_rows.made(["".join(map(chr, rng.integers(0x4E00, 0x9000, 12))) for _ in range(3_000)], THRESHOLD)
    assert not looked(texts, 3, 2)[0].any()


def test_a_key_of_many_texts_is_taken_as_a_whole_and_a_cluster_costs_little() -> None:
    base = "这家餐厅的红烧肉味道非常好值得推荐给大家来尝试一下"
    cluster = [base[:i] + chr(0x6C00 + j) + base[i + 1 :] for i in range(len(base)) for j in range(40)]
    texts = text_rows.made(cluster, THRESHOLD)
    found, compared = looked(texts, 2, 1)
    assert found.all()
    assert compared < len(texts), "keys of more than LONG are not compared, and others neighbour by neighbour"
    same = text_rows.made(["同一句话说了很多遍"] * 500, THRESHOLD)
    found, compared = looked(same, 1, 1)
    assert found.all()
    assert compared == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=30))
def test_equal_texts_are_one_text_and_words_that_collide_hide_none(rows: list[tuple[int, int]]) -> None:
    ids = np.zeros((len(rows), 32), np.uint8)
    ids[:, 0], ids[:, 31] = [word for word, _ in rows], [rest for _, rest in rows]
    first, again = distinct(ids)
    assert set(rows) == {rows[at] for at in first}
    assert sorted(first) == first.tolist()
    for at, row in enumerate(rows):  # of equal texts either both are named, or both have entries
        assert at in again or rows.count(row) == 1 or sum(rows[other] == row for other in first) > 1
