"""The stages of a build, one file each, in the order in which a candidate meets them.

To add one: write `pipeline/stages/<name>.py`, which ends with `STAGE = Stage(...)`, and add its line to STAGES.
A file `_*.py` is a helper of a stage.
"""

from __future__ import annotations

from pipeline.stages import (
    admit,
    balance,
    choose,
    concepts,
    crawl,
    deal,
    dedup,
    detect,
    extract,
    fetch,
    filter,
    lead,
    marks,
    measure,
    meet,
    nearest,
    rank,
    report,
    score,
    screen,
    semantic_dedup,
    shard,
    vectors,
    watermark,
)
from pipeline.store.stage import Stage

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        crawl.STAGE,
        extract.STAGE,
        admit.STAGE,
        fetch.STAGE,
        measure.STAGE,
        filter.STAGE,
        rank.STAGE,
        deal.STAGE,
        meet.STAGE,
        lead.STAGE,
        dedup.STAGE,
        screen.STAGE,
        marks.STAGE,
        watermark.STAGE,
        score.STAGE,
        choose.STAGE,
        vectors.STAGE,
        nearest.STAGE,
        semantic_dedup.STAGE,
        concepts.STAGE,
        balance.STAGE,
        detect.STAGE,
        shard.STAGE,
        report.STAGE,
    )
}
"""Every stage by its name. This is the order of a build."""
