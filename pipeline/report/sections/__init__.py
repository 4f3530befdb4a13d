"""The sections of the quality report, one file each, in the order of the page.

To add one: write `pipeline/report/sections/<name>.py`, which ends with `SECTION = Section(...)`, and add its line to
SECTIONS.
"""

from __future__ import annotations

from pipeline.report.section import Section
from pipeline.report.sections import (
    balance,
    cost,
    data_profile,
    dataset,
    drift,
    duplicates,
    faults,
    funnel,
    gates,
    pair_scores,
    samples,
    semantic_duplicates,
    shapes,
    sources,
    state,
    texts,
    totals,
    watermark,
)

SECTIONS: tuple[Section, ...] = (
    faults.SECTION,
    state.SECTION,
    totals.SECTION,
    gates.SECTION,
    dataset.SECTION,
    samples.SECTION,
    funnel.SECTION,
    data_profile.SECTION,
    sources.SECTION,
    texts.SECTION,
    shapes.SECTION,
    watermark.SECTION,
    pair_scores.SECTION,
    balance.SECTION,
    drift.SECTION,
    duplicates.SECTION,
    semantic_duplicates.SECTION,
    cost.SECTION,
)
"""Every section. This is the order of the page."""
