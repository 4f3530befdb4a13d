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
    measure,
    meet,
    rank,
    report,
    score,
    screen,
    shard,
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
        score.STAGE,
        choose.STAGE,
        concepts.STAGE,
        balance.STAGE,
        detect.STAGE,
        shard.STAGE,
        report.STAGE,
    )
}
"""Every stage by its name. This is the order of a build."""
