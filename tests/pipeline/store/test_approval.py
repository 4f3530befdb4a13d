"""What people say of a build: kept in build.json, about these shards only, and heard by `publish`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_specs.build import SpecError
from data_specs.shard import MANIFEST
from pipeline import cli
from pipeline.errors import ApprovalError, GateError, StoreError
from pipeline.publish import release
from pipeline.report import drift, page
from pipeline.stages import STAGES
from pipeline.store import approval, build_json
from pipeline.store.build import Build
from tests.kept import Kept
from tests.weeks import Weeks

pytestmark = pytest.mark.slow  # all begin with a build


@pytest.fixture(scope="module")
def _once(tmp_path_factory: pytest.TempPathFactory, synthetic: Any) -> tuple[Kept, Build]:
    folder = tmp_path_factory.mktemp("waiting")
    build = Weeks(folder, synthetic.encode, "report").build("2026-01-01", range(12), publish={"approve": "manual"})
    build.store.check()
    return Kept(folder), build


@pytest.fixture
def waiting(_once: tuple[Kept, Build]) -> Build:
    """A build with all its stages done that waits for approval."""
    _once[0].restore()
    return replace(_once[1])


def published(build: Build) -> bool:
    return (Path(build.out) / "shards" / MANIFEST).exists()


def test_a_refusal_stops_every_publish_until_somebody_approves(waiting: Build) -> None:
    approval.say(waiting, "refused", "李 静", "太多  图标")
    for approved in (False, True):
        with pytest.raises(GateError, match=r"refused by 李 静 on 20..-..-..: 太多 图标") as failed:
            release.publish(waiting, approved=approved)
        assert not isinstance(failed.value, ApprovalError), "it does not wait, it is refused"
        assert "--accept approve" in str(failed.value)
    assert not published(waiting)
    approval.say(waiting, "approved", "王", "图标已去除")
    release.publish(waiting)
    assert published(waiting)
    assert [word.verdict for word in approval.history(waiting)] == ["refused", "approved"]


def test_a_refusal_is_accepted_with_a_reason_that_the_manifest_keeps(waiting: Build) -> None:
    approval.say(waiting, "refused", "Li", "logos")
    manifest = release.publish(waiting, accept=["approve"], because="looked at by Wang", approved=True)
    assert manifest.accepted == {"approve": "looked at by Wang"}


def test_the_command_shows_it_and_fails_with_its_reason(waiting: Build, capsys: pytest.CaptureFixture[str]) -> None:
    approval.say(waiting, "refused", "Li", "too many logos")
    assert cli.main(["publish", waiting.out]) == 1
    said = capsys.readouterr().err
    assert "refused by Li" in said
    assert "too many logos" in said
    approval.say(waiting, "approved", "Wang", "they are gone")
    assert cli.main(["publish", waiting.out]) == 0
    assert "was approved by Wang" in capsys.readouterr().err


def test_a_word_outlives_the_same_build_and_no_other_shards(waiting: Build) -> None:
    approval.say(waiting, "refused", "Li", "logos")
    build_json.note(waiting)
    again = build_json.reopen(waiting.out, STAGES)
    assert approval.latest_word(again) == approval.latest_word(waiting) is not None
    other = replace(waiting, fingerprints={**waiting.fingerprints, "shard": "f" * 64})
    assert approval.latest_word(other) is None
    assert len(approval.history(other)) == 1


def test_the_report_says_it(waiting: Build) -> None:
    approval.say(waiting, "refused", "Li", "<b>logos</b>")
    page.update_state(waiting)
    html = (Path(waiting.out) / "report/index.html").read_text("utf-8")
    assert "Publication refused by" in html
    assert "&lt;b&gt;logos" in html
    approval.say(waiting, "approved", "Wang", "fine")
    page.update_state(waiting)
    report = drift.read(waiting.out)
    assert report is not None
    assert report["state"]["verdict"] == "ready"
    assert "Approved by" in (Path(waiting.out) / "report/index.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("verdict", "name", "because"),
    [("maybe", "Li", "x"), ("approved", " ", "x"), ("refused", "Li", ""), ("refused", "Li", "x" * 501)],
)
def test_a_word_needs_a_name_and_a_reason(waiting: Build, verdict: str, name: str, because: str) -> None:
    with pytest.raises(SpecError):
        approval.say(waiting, verdict, name, because)
    assert approval.history(waiting) == []


def test_nobody_is_asked_where_the_spec_asks_nobody(weeks: Any) -> None:
    with pytest.raises(SpecError, match="does not require"):
        approval.say(weeks.build("2026-01-01", range(12)), "approved", "Li", "x")


def test_it_waits_for_no_build_that_is_at_work(waiting: Build) -> None:
    with build_json.sole_owner(waiting), pytest.raises(StoreError, match="another wenlan-data"):
        approval.say(waiting, "approved", "Li", "x")


def test_words_are_bounded_and_damage_is_named(waiting: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approval, "MOST", 3)
    for number in range(5):
        approval.say(waiting, "refused", "Li", str(number))
    assert [word.because for word in approval.history(waiting)] == ["2", "3", "4"]
    known = build_json.read(waiting.folder)
    waiting.folder.write_json("build.json", {**known, "approvals": [{"name": 1}]})
    with pytest.raises(StoreError, match="approvals"):
        approval.latest_word(waiting)
