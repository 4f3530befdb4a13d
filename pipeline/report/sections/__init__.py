"""The sections of the quality report, one file each.

To add one: write `pipeline/report/sections/<name>.py`, which ends with `SECTION = Section(...)`, and put its name into
ORDER.
"""

from __future__ import annotations

from importlib import import_module

from pipeline.report.section import Section

ORDER = (
    "faults state totals remarks gates dataset samples funnel sources texts shapes watermark "
    "pair_scores balance drift duplicates semantic_duplicates cost"
)
"""Their names, in the order of the page."""

SECTIONS: tuple[Section, ...] = tuple(import_module(f"{__name__}.{name}").SECTION for name in ORDER.split())
