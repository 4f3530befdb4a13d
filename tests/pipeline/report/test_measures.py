"""measures: SQL measures a text as the filters do, and bins are those of NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filters.han_share import scripts
from pipeline.report.measures import MEASURES, SAMPLED, SHOWN_TEXT, Measure, histograms
from pipeline.store.build import Build
from pipeline.store.sql import Tables
from pipeline.texts.density import density

Row = dict[str, object]
TEXTS = st.lists(
    st.text(
        st.sampled_from("番茄蛋〇 \u3000\n\xa0\x1c\u2028𠀀あ한aéß1.-")
        | st.characters(codec="utf-8", max_codepoint=0x2FFF)
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, synthetic: object) -> Iterator[Tables]:
    build: Build = synthetic.make(tmp_path_factory.mktemp("measures"))[0]  # type: ignore[attr-defined]
    with Tables.of(build) as opened:
        yield opened


def values(tables: Tables, sql: str, texts: list[str]) -> list[float]:
    return tables.column(f"SELECT ({sql})::DOUBLE FROM (SELECT unnest(?::VARCHAR[]) AS text)", [texts])


def characters(text: str) -> float:
    return max(sum(map(len, text.split())), SHOWN_TEXT if len(text) >= SHOWN_TEXT else 0)


def han_of_letters(text: str) -> float:
    han, _, letters = scripts(text)
    return han / letters if letters else 0.0


@pytest.mark.slow
@given(TEXTS | TEXTS.map(lambda texts: [text * 60 for text in texts]))
def test_texts_are_measured_as_the_filters_measure_them(tables: Tables, texts: list[str]) -> None:
    texts = [text.replace("\0", "") for text in texts]
    for sql, expected in (
        (MEASURES["characters"].sql, characters),
        (MEASURES["han_letters"].sql, han_of_letters),
    ):
        assert values(tables, sql, texts) == pytest.approx([expected(text) for text in texts])


@pytest.mark.slow
def test_words_are_those_that_the_filters_of_words_ask_for(tables: Tables) -> None:
    texts = ["番茄炒蛋的做法", "的了", "iPhone 手机", ""] * 700
    measures = [m for m in MEASURES.values() if m.of_words]
    rows = f"SELECT unnest({texts}) AS text"
    names = {"word_entropy": "entropy"}
    for own in measures:
        expected = np.array([getattr(density(text), names.get(own.name, own.name)) for text in texts], np.float64)
        found, _ = np.histogram(np.minimum(expected, 1e300), [*own.edges[:-1], own.edges[-1], math.inf])
        counted = histograms(tables, [own], rows)[own.name]
        assert [b["count"] for b in counted["bins"]] == found.tolist(), own.name


@pytest.mark.slow
@given(st.sampled_from([*MEASURES.values(), *SAMPLED]), st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_a_value_is_counted_once_in_the_bin_that_numpy_says(tables: Tables, own: Measure, drawn: list[float]) -> None:
    assert len(own.edges) == len(own.labels)
    drawn = [*drawn, *map(float, own.edges)]
    bare = Measure(own.name, own.title, own.title_zh, own.edges, own.labels, "v")
    counted = histograms(tables, [bare], f"SELECT unnest({drawn}::DOUBLE[]) AS v")[own.name]
    expected, _ = np.histogram(np.maximum(drawn, own.edges[0]), [*own.edges, np.inf])
    assert [b["count"] for b in counted["bins"]] == expected.tolist()
    for value in drawn:
        at = int(np.searchsorted(own.edges, value, side="right")) - 1
        assert max(0, at) <= own.position(value) <= len(own.edges)


def test_limits_are_drawn_on_the_bins_of_the_samples() -> None:
    for own in SAMPLED:
        if own.name in MEASURES:
            assert (own.edges, own.labels) == (MEASURES[own.name].edges, MEASURES[own.name].labels)
