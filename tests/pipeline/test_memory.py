"""The most memory of a step is what the kernel saw."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from pipeline.memory import begin_peak, peak_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count is read on Linux alone")


def test_a_peak_is_counted_after_it_has_gone_and_begins_anew():
    begin_peak()
    before = peak_bytes()
    assert np.ones(25_000_000).sum() == 25_000_000  # 200 MB, freed at once
    assert 150_000_000 < peak_bytes() - before < 300_000_000
    begin_peak()
    assert peak_bytes() - before < 100_000_000
