"""words: BM25 as its formula says it, over words as jieba cuts them, whatever script and width they are typed in."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import repeat
from pathlib import Path

import jieba
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.search import words
from data_specs.search.words import WordSearch, cut_rows, words_of
from data_specs.text.folding import fold_characters

CAPTIONS = ["一只小猫咪在窗台上", "故宫的雪景", "红烧肉的做法", "清蒸鲈鱼和红烧肉", "Nikon D850 相机", "", "。。。"]


def table(captions: list[str], texts: list[list[str]] | None = None) -> pa.Table:
    kinds = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())]))
    more = [[{"kind": "alt", "text": t} for t in row] for row in texts or [[] for _ in captions]]
    return pa.table({"caption": captions, "texts": pa.array(more, kinds)})


def search(folder: Path, captions: list[str]) -> WordSearch:
    path = folder / "w.sqlite"
    path.unlink(missing_ok=True)
    words.write(path, cut_rows(table(captions)))
    return WordSearch(path)


def found(search: WordSearch, asked: str, count: int) -> list[int]:
    return search.ranked(asked, np.ones(count, np.bool_))[0].tolist()


def open_files() -> list[str]:
    return [str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ("红烧肉", {2, 3}),
        ("紅燒肉", {2, 3}),  # traditional
        ("红烧", {2, 3}),  # within a longer word
        ("猫", {0}),  # one character, within 小猫咪
        ("故宮雪景", {1}),
        ("nikon", {4}),
        ("ＮＩＫＯＮ　Ｄ８５０", {4}),  # full width
        ("雪景 鲈鱼", {1, 3}),  # any of them
        ("长城", set()),
        ("。，！", set()),
        ("", set()),
        ('" OR 1 NEAR(', set()),  # FTS5's own language is text here
        ("words : *", set()),
    ],
)
def test_words_are_found_in_any_script_and_width(tmp_path: Path, asked: str, rows: set[int]) -> None:
    assert set(found(search(tmp_path, CAPTIONS), asked, len(CAPTIONS))) == rows


@pytest.mark.slow
def test_words_are_those_of_jieba() -> None:
    sentences = [
        "清晨的山谷里飘着薄雾，远处有几座白墙黛瓦的老房子",
        "中华人民共和国国家博物馆馆藏青铜器",
        "杭研大厦的小明硕士毕业于中国科学院计算所",  # words that the dictionary lacks
        *CAPTIONS,
    ]
    for sentence in sentences:
        pieces = jieba.cut_for_search(fold_characters(sentence))
        assert Counter(words_of(sentence)) == Counter(re.findall(r"[^\W_]+", " ".join(pieces))), sentence


def test_all_texts_of_a_row_are_searched_each_once() -> None:
    (cut,) = cut_rows(table(["红烧肉"], [["红烧肉", "一碗米饭"]]))
    assert Counter(cut.split())["红烧肉"] == 1
    assert "米饭" in cut.split()


def bm25(captions: list[str], asked: str) -> dict[int, float]:
    """By SQLite's documentation of bm25(): k1 1.2, b 0.75; a rare word's weight is never below 1e-6."""
    cut = [cut_rows(table([c]))[0].split() for c in captions]
    single = [[c for word in row if len(word) > 1 for c in word if not c.isascii()] for row in cut]
    length = [len(a) + len(b) for a, b in zip(cut, single, strict=True)]
    mean = sum(length) / len(length)
    scores: dict[int, float] = {}
    for word in dict.fromkeys(words_of(asked)):
        counts = [
            row.count(word) + (one.count(word) if len(word) == 1 else 0) for row, one in zip(cut, single, strict=True)
        ]
        having = sum(map(bool, counts))
        idf = max(1e-6, math.log((len(captions) - having + 0.5) / (having + 0.5)))
        for row, count in enumerate(counts):
            if count:
                weight = count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length[row] / mean))
                scores[row] = scores.get(row, 0) + idf * weight
    return scores


PIECES = ["猫", "小猫咪", "红烧肉", "的", "故宫", "雪景", "在", "cat", "D850", " ", "，", "中华人民共和国"]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    captions=st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), min_size=1, max_size=12),
    asked=st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join),
    random=st.randoms(use_true_random=False),
)
def test_scores_are_bm25(tmp_path_factory: pytest.TempPathFactory, captions, asked, random) -> None:
    allowed = np.array([random.random() < 0.8 for _ in captions])
    rows, scores = search(tmp_path_factory.mktemp("w"), captions).ranked(asked, allowed)
    expected = {row: score for row, score in bm25(captions, asked).items() if allowed[row]}
    assert dict(zip(rows.tolist(), scores.tolist(), strict=True)) == pytest.approx(expected, rel=1e-5)
    pairs = list(zip((-scores).tolist(), rows.tolist(), strict=True))
    assert pairs == sorted(pairs)


def test_many_threads_search_at_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    opened = search(tmp_path, CAPTIONS)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(found, repeat(opened, 64), repeat("红烧肉"), repeat(len(CAPTIONS))))
    assert all(set(answer) == {2, 3} for answer in answers)
    path = str(tmp_path / "w.sqlite")
    assert 1 <= open_files().count(path) <= 8
    del opened
    assert path not in open_files(), "what searched is closed with the index"


def test_the_index_keeps_no_text(tmp_path: Path) -> None:
    words.write(tmp_path / "w", cut_rows(table(["清蒸鲈鱼和红烧肉"])))
    assert "清蒸鲈鱼和红烧肉".encode() not in (tmp_path / "w").read_bytes()
    assert not (tmp_path / "w-journal").exists()
