"""Section `texts`: kinds, fallbacks and removed texts as the build's files have them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_specs.shard import Text
from pipeline.records import candidate_rows, candidates_of
from pipeline.report.section import Material
from pipeline.report.sections import texts
from pipeline.stages import STAGES, report
from pipeline.stages.admit import admit
from pipeline.store import templates
from pipeline.store.build import Build

Run = Any


def test_every_sample_has_one_primary_text_and_a_build_without_removals_says_so(
    synthetic_build: Build, run_stage: Run
) -> None:
    run_stage(synthetic_build, "shard")
    figures = texts.figures(Material(synthetic_build), {})["texts"]
    assert figures["samples"] == sum(kind["count"] for kind in figures["kinds"]) > 0
    assert figures["fallbacks"] == sum(kind["fallbacks"] for kind in figures["kinds"]) == 0


def test_removed_texts_and_templates_are_shown_and_what_pages_say_is_escaped(
    synthetic_build: Build, run_stage: Run, counted: Any
) -> None:
    build, stage = synthetic_build, synthetic_build.stage("admit")
    partition = stage.partitions()[0]
    record = stage.record(partition)
    candidates = candidates_of(stage.table(record))[:3]
    kept, _ = admit([replace(c, texts=(Text("caption", "<"), *c.texts)) for c in candidates], build.spec)
    assert all(c.text_rank == 1 for c in kept)
    with stage.attempt(partition) as attempt:
        attempt.write_table("parquet", candidate_rows(kept, build.spec.seed))
        attempt.commit(record.counts, record.info)
    row = {"host": "a.cn", "group": "own", "side": "begins", "text": "<i>某某网【", "texts": 321, "example": ""}
    templates.write(build, [row])
    run_stage(build, "shard")
    made = report.make(build)
    [group] = [g for g in made["texts"]["removed"] if g["stage"] == "admit"]
    assert (group["kind"], group["count"]) == ("caption", len(kept))
    assert group["examples"][0]["text"] == "<"
    assert made["texts"]["listed"] == [row]
    assert texts.figures(counted(build), {})["texts"] == made["texts"]
    html = report.render(made, STAGES)
    assert "&lt; (1 characters; needs 2)" in html
    assert "<code>&lt;i&gt;某某网【</code>" in html
