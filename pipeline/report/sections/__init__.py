"""The sections of the quality report, one file each, in the order of the page.

To add one: write `pipeline/report/sections/<name>.py`, which ends with `SECTION = Section(...)`, and add its line to
SECTIONS.
"""

from __future__ import annotations

from pipeline.report.section import Section
from pipeline.report.sections import (
    balance,
    cost,
    dataset,
    drift,
    duplicates,
    faults,
    funnel,
    gates,
    profile,
    published,
    samples,
    shapes,
    sources,
    state,
    texts,
    totals,
)

SECTIONS: tuple[Section, ...] = (
    faults.SECTION,
    state.SECTION,
    totals.SECTION,
    gates.SECTION,
    dataset.SECTION,
    samples.SECTION,
    funnel.SECTION,
    published.SECTION,
    profile.SECTION,
    sources.SECTION,
    texts.SECTION,
    shapes.SECTION,
    balance.SECTION,
    drift.SECTION,
    duplicates.SECTION,
    cost.SECTION,
)
"""Every section. This is the order of the page."""
