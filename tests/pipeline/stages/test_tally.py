"""tally: the report is the same with it and without, and nothing that is taken down stays in it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import pulse
from pipeline.publish import release
from pipeline.records import sha256_hex
from pipeline.report import page, tally
from pipeline.stages import STAGES, report
from pipeline.stages import tally as stage
from pipeline.store.build import Build
from pipeline.store.frames import Frames
from pipeline.store.partitions import StageDir
from pipeline.store.progress import Ran, counts_of, figures
from pipeline.store.store import Store
from pipeline.takedown.forget import Request, forget

Run = Any


@pytest.fixture
def counted(synthetic_build: Build, run_stage: Run, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A small build, counted by several groups of each stage."""
    monkeypatch.setattr(stage, "FEWEST", 1)
    monkeypatch.setattr(tally, "GROUP", 20)
    run_stage(synthetic_build, "shard")
    assert len(run_stage(synthetic_build, "tally")) > 12
    return synthetic_build


def made(build: Build) -> str:
    """report.json, without what it says of costs, and the page."""
    values = page.make(build)
    values["cost"] = []
    return page.as_json(values) + page.render(values, STAGES)


def without(build: Build) -> str:
    """The same where nobody has counted before."""
    marks = {name: mark for name, mark in build.fingerprints.items() if name != "tally"}
    return made(replace(build, fingerprints=marks))


def test_progress_is_told_after_each_partition_in_words_that_say_what_is_counted(
    synthetic_build: Build, run_stage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "FEWEST", 1)
    run_stage(synthetic_build, "shard")
    told: list[int] = []
    monkeypatch.setattr(pulse, "advance", lambda rows=1: told.append(rows))
    [group, *_] = [name for name in stage.partitions(synthetic_build) if name.startswith("admit")]
    stage.run_partition(synthetic_build, group)
    assert told == [1, 1]
    directory = synthetic_build.stage("tally")
    so_far = figures(stage.STAGE, 9, 1, counts_of(directory.records()), [], Ran(1, 1.0))
    assert so_far.line().startswith("2 records, 1 of 9 partitions")


def nobody(*_: object) -> None:
    raise AssertionError("it was counted already")


@contextlib.contextmanager
def killed_sweep(name: str) -> Iterator[None]:
    """A takedown is killed before it deletes the files of a stage that no record names any more."""
    whole = StageDir.sweep

    def sweep(stage: StageDir) -> list[str]:
        if stage.name == name:
            raise KeyboardInterrupt
        return whole(stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageDir, "sweep", sweep)
        yield


def test_the_report_is_the_same_with_it_and_is_made_of_summaries_alone(
    counted: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "GROUP", 10**9)
    expected = without(counted)
    monkeypatch.setattr(tally, "GROUP", 20)
    assert without(counted) == expected, "whatever the groups"
    monkeypatch.setattr(tally, "summary", nobody)
    assert made(counted) == expected
    with pytest.raises(AssertionError, match="counted already"):
        without(counted)


def test_a_small_build_and_one_whose_report_is_done_have_no_partition(
    synthetic_build: Build, run_stage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(synthetic_build, "shard")
    assert stage.partitions(synthetic_build) == []
    candidates = sum(r.counts["kept"] + r.counts["dropped"] for r in synthetic_build.stage("extract").records())
    monkeypatch.setattr(stage, "FEWEST", candidates)
    assert len(stage.partitions(synthetic_build)) > 3
    run_stage(synthetic_build, "report")
    assert stage.partitions(synthetic_build) == [], "an older wenlan made it"


def test_a_summary_of_other_files_or_other_takedowns_is_passed_over(counted: Build, synthetic: Any) -> None:
    expected, url = made(counted), synthetic.items()[4].candidate.image_url
    with counted.stage("extract").attempt("more") as attempt:
        attempt.decide(next(Frames.of(counted).tables("decisions")).slice(0, 2))
        attempt.commit({})
    assert made(counted) == without(counted) != expected
    counted.stage("extract").delete_record("more")
    assert made(counted) == expected
    counted.store.folder.write_json("forgotten/1.json", {"hashes": [sha256_hex(url)]})
    assert f'"{url}"' in expected
    assert f'"{url}"' not in made(counted)
    assert made(counted) == without(counted) != expected


def test_a_takedown_deletes_all_that_was_counted_and_the_report_counts_again(
    counted: Build, synthetic: Any, run_stage: Run
) -> None:
    run_stage(counted, "report")
    release.publish(counted)
    victim = [item.candidate for item in synthetic.items() if item.stage == "shard"][20]
    folder = Path(counted.out) / "tallied"
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.json"))
    assert victim.candidate_id in text
    before, finished = json.loads((Path(counted.out) / "report/report.json").read_bytes()), folder / "_stage.json"
    noted = finished.read_bytes()
    with killed_sweep("tally"), pytest.raises(KeyboardInterrupt):
        forget(counted.store, [counted], Request(urls=[victim.image_url], exact=True))
    assert len(list(folder.glob("*.json"))) > 12, "files that no record names any more"
    forget(counted.store, [counted], Request(urls=[victim.image_url], exact=True))
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["_stage.json"]
    assert (counted.stage("tally").finished(), finished.read_bytes()) == (True, noted), "not written for each group"
    after = json.loads((Path(counted.out) / "report/report.json").read_bytes())
    assert after["totals"]["kept"] == before["totals"]["kept"] - 1
    assert made(counted) == without(counted)

    anew = {name: sha256_hex(f"later {name}") for name in ("tally", "report")}
    later = replace(counted, fingerprints=counted.fingerprints | anew)
    assert stage.token(later) != stage.token(replace(later, store=Store(f"{counted.out}/none")))
    assert len(run_stage(later, "tally")) > 12, "the next build counts in parallel again"
    assert made(later) == without(later)
    assert report.STAGE.inputs == ("shard",), "builds of an older wenlan keep their fingerprints"
