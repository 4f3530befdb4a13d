"""Histograms, counters and words of the report."""

from __future__ import annotations

from collections import Counter
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.figures import Histogram, domains, han_share, han_shares, trim
from pipeline.texts.words import words_of


@given(st.lists(st.floats(-10, 10_000), max_size=50))
def test_a_histogram_counts_every_value_once_as_numpy_does(values: list[float]) -> None:
    edges = [0, 1, 5, 10, 100]
    histogram = Histogram("x", "x", "x", edges, ["a"] * 5)
    histogram.add(values[:20])
    histogram.add(values[20:])
    expected, _ = np.histogram(np.maximum(values, 0) if values else [], [*edges, np.inf])
    assert histogram.counts.tolist() == expected.tolist()


def test_words_and_han_share() -> None:
    assert words_of("番茄炒蛋的做法，2 种！") == ["番茄", "炒蛋", "的", "做法", "2", "种"]
    assert han_share("番茄 egg") == pytest.approx(2 / 5)
    assert han_share(" \n") == 0


def test_a_long_counter_keeps_its_larger_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.figures.COUNTER_LIMIT", 4)
    counter = Counter({"a": 1, "b": 5, "c": 4, "d": 2, "e": 3})
    trim(counter)
    assert counter == {"b": 5, "c": 4}


_URL = st.text(st.sampled_from("aB.中:/?#@[] \t\n1-") | st.characters(codec="utf-8"), max_size=30)


@given(st.lists(_URL | _URL.map("http://".__add__), max_size=20))
def test_hosts_are_counted_as_urllib_finds_them_in_each_url(urls: list[str]) -> None:
    expected: Counter[str] = Counter()
    for url in urls:
        try:
            expected[urlsplit(url).hostname or ""] += 1
        except ValueError:
            expected[""] += 1
    assert domains(pa.array(urls, pa.string())) == expected


@given(st.lists(st.text(st.characters() | st.sampled_from("番茄蛋 \u3000\n\ud800𠀀")), max_size=8))
def test_shares_of_many_texts_are_those_of_each(texts: list[str]) -> None:
    assert han_shares(texts).tolist() == [han_share(text) for text in texts]


@given(st.text())
def test_the_share_of_han_leaves_white_space_out(text: str) -> None:
    visible = [c for c in text if not c.isspace()]
    assert han_share(text) == pytest.approx(han_share("".join(visible)))
    assert bool(visible) or han_share(text) == 0
