"""The most memory of a step is what the kernel saw."""

from __future__ import annotations

import sys

import pytest

from tests.processes import value_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count is read on Linux alone")


PEAKS = """
import json
import numpy as np
from pipeline.store.commits import begin_peak, peak_bytes
begin_peak()
before = peak_bytes()
assert np.ones(25_000_000).sum() == 25_000_000  # 200 MB, freed at once
after = peak_bytes()
begin_peak()
print(json.dumps([after - before, peak_bytes() - before]))
"""


@pytest.mark.slow
def test_a_peak_is_counted_after_it_has_gone_and_begins_anew():
    """In a process of its own: of this one other tests may have left threads that take memory or give it back."""
    first, anew = value_of(PEAKS)
    assert 150_000_000 < first < 300_000_000
    assert anew < 100_000_000
