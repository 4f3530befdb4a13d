"""measures: the bins of a measure are those of its histogram."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.figures import Figures
from pipeline.report.measures import MEASURES


@given(st.sampled_from(sorted(MEASURES)), st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_measures_have_the_bins_of_their_histograms(name: str, values: list[float]) -> None:
    measure = MEASURES[name]
    figures = Figures([], 1)
    known = {h.name: h for h in (figures.characters, figures.short, figures.long, figures.aspect)}
    assert len(measure.edges) == len(measure.labels)
    assert list(measure.steps) == sorted(measure.steps)
    if name in known:
        known[name].add(values)
        assert known[name].labels == measure.labels or list(known[name].labels) == list(measure.labels)
        assert np.bincount(measure.bins(values), minlength=len(measure.edges)).tolist() == known[name].counts.tolist()
    for value in values:
        assert int(measure.bins([value])[0]) <= measure.place(value) <= len(measure.edges)
