"""Short sections: what their part of the page says, of the first week of a dataset and of the second one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_specs.shard import Text
from pipeline.report import page
from pipeline.report.page import environment
from pipeline.report.sample_sheet import KNOWN
from pipeline.report.sections.cost import stage_costs
from pipeline.report.sections.state import END, HTML, START
from pipeline.rows.records import candidate_rows, candidates_of
from pipeline.stages import STAGES
from pipeline.stages.admit import admit
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.build_json import Cost, Result
from pipeline.store.commits import DECISIONS
from tests.fetched import begun

pytestmark = pytest.mark.slow  # all begin with a build

Weeks = tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]
Run = Callable[..., list[str]]


@pytest.mark.drill(1)
def test_the_page_begins_with_what_became_of_the_build(grown: Weeks) -> None:
    for (html, report), number in zip(grown, (1, 2), strict=True):
        main = html.partition("<main")[2]
        assert main.index(START) < main.index(END) < main.index('class="tiles"')
        assert f"Published as release</span> {number} " in main
        assert report["state"]["release"] == number
    assert "in the first build of the dataset" in grown[0][0]
    assert '<b>3</b> <span data-zh="个新样本，">new samples,</span> 15' in grown[1][0]


def test_samples_of_earlier_builds_that_were_left_out_are_counted(grown: Weeks) -> None:
    _, (html, report) = grown
    assert "were removed at the same time" not in html
    fewer = {**report, "state": {**report["state"], "total": 13}}
    said = environment(STAGES).from_string(HTML).render(**fewer)
    assert "<p>2 <span" in said
    assert "samples of earlier builds were removed at the same time" in said


def test_the_tiles_add_up(grown: Weeks) -> None:
    for html, report in grown:
        totals = report["totals"]
        assert totals["candidates"] == totals["kept"] + totals["dropped"] + totals["known"]
        tiles = html.partition('<section class="tiles"')[2].partition("</section>")[0]
        numbers = [int(n) for n in re.findall(r"<b>(\d+)</b>", tiles)]
        known = [totals["known"]] if totals["known"] else []
        head = [totals["candidates"], totals["kept"], *known, totals["dropped"]]
        splits = [] if report["dataset"] else [split["samples"] for split in report["splits"]]
        assert numbers == [*head, *splits, report["duplicates"]]
    assert "new samples" in grown[1][0]
    assert "samples kept" in grown[0][0]


def test_min_samples_counts_the_dataset(grown: Weeks) -> None:
    for (_, report), samples in zip(grown, ("12", "15"), strict=True):
        assert {gate["name"]: gate["found"] for gate in report["gates"]}["min_samples"] == samples


def test_the_new_ones_come_first_and_all_of_them_are_shown(grown: Weeks, part: Callable[[str, str], str]) -> None:
    _, (second, report) = grown
    html = part(second, "samples")
    fresh, _, rest = html.partition("Dropped, or known")
    assert "New in this build" in fresh
    assert fresh.count("<img") == fresh.count("is-kept") == report["totals"]["kept"] == 3
    assert set(re.findall(r'data-reason="([^"]*)"', rest)) == {"known"}
    assert rest.count("is-known") == rest.count("<img") == min(12, KNOWN)
    assert '<option value="known"' in html


def test_the_first_build_of_a_dataset_has_kept_samples(grown: Weeks, part: Callable[[str, str], str]) -> None:
    (first, _), _ = grown
    html = part(first, "samples")
    assert "Samples, kept and dropped" in html
    assert "New in this build" not in html
    assert html.count("is-kept") == 12


def test_known_has_a_bar_a_count_and_a_line_in_the_legend(grown: Weeks, part: Callable[[str, str], str]) -> None:
    (first, _), (second, report) = grown
    dedup = next(row for row in report["funnel"] if row["stage"] == "dedup")
    assert (dedup["seen"], dedup["kept"], dedup["dropped"], dedup["known"]) == (15, 3, 0, 12)
    html = part(second, "funnel")
    assert '<i class="known" style="width:80.0%" title="known: 12"></i>' in html
    assert '<span class="equal">=12</span>' in html
    assert "the dataset has already decided on its image" in html.partition('<ol class="funnel">')[0]
    assert (
        "the dataset has already decided on its image" not in part(first, "funnel").partition('<ol class="funnel">')[0]
    )


def test_every_bar_has_a_colour() -> None:
    css = Path(page.__file__).with_name("templates").joinpath("report.css").read_text("utf-8")
    assert ".flow .known" in css
    assert css.count("--known:") == css.count("--accent:") == 3, "light, dark by the system, dark by the switch"


def test_removed_texts_and_templates_are_shown_and_what_pages_say_is_escaped(
    synthetic_build: Build, run_stage: Run
) -> None:
    build, stage = synthetic_build, synthetic_build.stage("admit")
    partition = stage.partitions()[0]
    record = stage.record(partition)
    candidates = candidates_of(stage.table(record))[:3]
    kept, _ = admit([replace(c, texts=(Text("caption", "<"), *c.texts)) for c in candidates], build.spec)
    assert all(c.text_rank == 1 for c in kept)
    stage.delete_record(partition)
    with stage.attempt(partition) as attempt:
        attempt.write_table("parquet", candidate_rows(kept, build.spec.seed))
        attempt.commit(record.counts, record.info)
    row = {"host": "a.cn", "group": "own", "side": "begins", "text": "<i>某某网【", "texts": 321, "example": ""}
    build.stage("admit.sort").write_reduced([row])
    run_stage(build, "shard")
    made = page.make_report(build)
    [group] = [g for g in made["texts"]["removed"] if g["stage"] == "admit"]
    assert (group["kind"], group["count"]) == ("caption", len(kept))
    assert group["examples"][0]["text"] == "<"
    assert made["texts"]["listed"] == [row]
    html = page.render(made, STAGES)
    assert '&lt; (<span data-zh="1 个字符；至少 2">1 characters; needs 2</span>)' in html
    assert "<code>&lt;i&gt;某某网【</code>" in html


def test_the_whole_dataset_comes_first_and_few_samples_are_said_to_be_few(
    grown: Weeks, part: Callable[[str, str], str]
) -> None:
    (first, _), (second, report) = grown
    assert part(first, "drift") == ""
    html = part(second, "drift")
    whole, fresh = html.index("The whole dataset"), html.index("New data only")
    assert whole < fresh
    assert report["drift"]["samples"] == [12, 3]
    assert report["dataset"]["drift"]["samples"] == [12, 15]
    assert "no gate checks it" in html[fresh:]
    names = {row["name"] for row in report["drift"]["distributions"]}
    assert names == {row["name"] for row in report["dataset"]["drift"]["distributions"]}
    worst = [max(row["psi"] for row in of["distributions"]) for of in (report["dataset"]["drift"], report["drift"])]
    assert worst[0] < worst[1], "three of fifteen move the whole less than themselves"


def test_what_a_run_noted_counts_only_for_the_results_that_it_made(synthetic_build: Build, run_stage: Run) -> None:
    run_stage(synthetic_build, "shard")
    rows = {row["stage"]: row for row in stage_costs(synthetic_build)}
    assert rows["shard"]["partitions"] == len(list(synthetic_build.stage("shard").records()))
    assert rows["shard"]["wall_seconds"] is None
    assert "report" not in rows, "it has no record yet"

    noted = {"seconds": 12.5, "partitions": 2, "cost": asdict(Cost())}
    passes = {
        "shard": {**noted, "fingerprint": synthetic_build.fingerprints["shard"]},
        "filter": {**noted, "fingerprint": "of another run"},
    }
    (Path(synthetic_build.out) / "build.json").write_text(
        json.dumps({"version": build_json.VERSION, "stages": {}, "passes": passes}), encoding="utf-8"
    )
    rows = {row["stage"]: row for row in stage_costs(synthetic_build)}
    assert (rows["shard"]["wall_seconds"], rows["filter"]["wall_seconds"]) == (12.5, None)


def test_a_stage_costs_what_its_passes_cost_also_when_their_records_are_deleted(tmp_path: Path) -> None:
    build = begun(tmp_path)
    build = replace(build, fingerprints=dict.fromkeys(build.passes, "f" * 64))
    names = [own.name for own in build.stages["dedup"].passes]
    for name in names:
        with build.stage(name).attempt("0") as attempt:
            attempt.path("bin").write_bytes(bytes(1_000))
            attempt.commit({})
        records = list(build.stage(name).records())
        build_json.note(build, Result(name, False, 1, 1, 1.5, {}, Cost.of(records)))
    [before] = stage_costs(build)
    found = before["partitions"], before["bytes"], before["wall_seconds"]
    assert found == (len(names), 1_000 * len(names), 1.5 * len(names))
    build.delete_working()
    assert stage_costs(build) == [before]


def test_a_lost_decision_is_the_first_thing_on_the_page(synthetic_build: Build, run_stage: Run) -> None:
    stage = synthetic_build.stage("filter")
    record = next(record for record in stage.records() if record.counts["dropped"])
    stage.delete_record(record.partition)
    with stage.attempt(record.partition) as attempt:  # the same counts, but no decisions
        attempt.commit(record.counts)
    run_stage(synthetic_build, "shard")
    made = page.make_report(synthetic_build)
    assert any(fault.startswith("filter: its records count 3 dropped") for fault in made["faults"])
    main = page.render(made, STAGES).partition("<main")[2]
    assert main.partition("\n\n")[2].startswith('<section class="alert" role="alert">')
    assert main.count("<li>filter: its records count 3 dropped") == 1


@pytest.mark.drill(1)
def test_a_decision_that_is_lost_after_its_record_counted_it_is_a_fault_too(
    synthetic_build: Build, run_stage: Run
) -> None:
    run_stage(synthetic_build, "shard")
    stage = synthetic_build.stage("filter")
    record = next(record for record in stage.records() if record.counts["dropped"])
    path = Path(stage.folder.at(record.files[DECISIONS].name))
    pq.write_table(pq.read_table(path).slice(1), path)
    assert "filter: its records count 3 dropped, but its decisions 2" in page.make_report(synthetic_build)["faults"]


@pytest.mark.drill(1)
def test_a_sound_build_has_no_alert(written: tuple[str, dict[str, Any]]) -> None:
    html, made = written
    assert made["faults"] == []
    assert 'class="alert"' not in html
