"""What a report says became of its build: before publish, after it, and after a publish or a takedown was killed."""

from __future__ import annotations

import json
import re
import shlex
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from data_specs.storage.whole_files import sha256_of
from pipeline.errors import GateError, NothingNew, StoreError
from pipeline.files.folder import Folder
from pipeline.publish import release
from pipeline.report import page
from pipeline.report.sections import state as section
from pipeline.report.state import BuildState
from pipeline.stages import STAGES
from pipeline.store.build import Build

pytestmark = pytest.mark.slow


def state_of(build: Build) -> dict[str, Any]:
    """`state` of report.json."""
    state: dict[str, Any] = json.loads((Path(build.out) / "report/report.json").read_bytes())["state"]
    return state


def shown(build: Build) -> str:
    """The part of the page that says what became of the build."""
    html = (Path(build.out) / "report/index.html").read_text("utf-8")
    assert html.count("<!--state-->") == html.count("<!--/state-->") == 1
    return html.partition("<!--state-->")[2].partition("<!--/state-->")[0]


def test_a_build_is_ready_and_then_published_as_a_release(weeks: Any) -> None:
    build = weeks.build("2026-01-01", range(12))
    assert (state_of(build)["verdict"], state_of(build)["release"]) == ("ready", 0)
    assert f"wenlan-data publish {build.out}" in shown(build)
    manifest = release.publish(build)
    state = state_of(build)
    assert (state["verdict"], state["release"], state["new"], state["held"]) == ("published", 1, 12, 0)
    assert state["since"] == manifest.created_at
    assert "Published as release" in shown(build)
    tree = {p: p.read_bytes() for p in weeks.folder.rglob("*") if p.is_file()}
    assert release.publish(build) == manifest
    assert {p: p.read_bytes() for p in weeks.folder.rglob("*") if p.is_file()} == tree, "nothing more to say"
    record = build.stage("report").record("all")
    for suffix, name in (("html", "index.html"), ("json", "report.json")):
        assert record.files[suffix].sha256 == sha256_of(Path(build.out) / "report" / name)


@pytest.mark.drill(1)
def test_manual_approval_waits_since_the_report_said_so(weeks: Any) -> None:
    build = weeks.build("2026-01-01", range(12), publish={"approve": "manual"})
    state = state_of(build)
    assert state["verdict"] == "waiting"
    assert f"Waiting for approval since</span> {state['since'][:10]} {state['since'][11:16]} UTC" in shown(build)
    with pytest.raises(GateError):
        release.publish(build)
    assert state_of(build) == state
    release.publish(build, approved=True)
    assert state_of(build)["verdict"] == "published"


@pytest.mark.drill(2)
def test_a_week_with_nothing_new_says_so(weeks: Any) -> None:
    release.publish(weeks.build("2026-01-01", range(12)))
    again = weeks.build("2026-01-08", range(12))
    assert (state_of(again)["verdict"], state_of(again)["held"]) == ("nothing_new", 12)
    with pytest.raises(NothingNew):
        release.publish(again)
    assert state_of(again)["verdict"] == "nothing_new"
    assert "Nothing new" in shown(again)
    assert "No release was created" in shown(again)


@pytest.mark.drill(2)
@pytest.mark.parametrize("at", ["index.html", "report.json"])
def test_telling_that_is_killed_anywhere_is_done_by_the_next_publish(
    weeks: Any, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    build = weeks.build("2026-01-01", range(12))
    write = Folder.write

    def killed(self: Folder, name: str, data: bytes) -> None:
        if name == at:
            raise KeyboardInterrupt
        write(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            release.publish(build)
    assert state_of(build)["verdict"] == "ready"
    release.publish(build)
    assert state_of(build)["verdict"] == "published"
    assert "Published" in shown(build)


def test_a_build_without_a_report_is_published_without_one(synthetic_build: Build, run_stage: Any) -> None:
    run_stage(synthetic_build, "shard")
    page.update_state(synthetic_build)
    assert not (Path(synthetic_build.out) / "report").exists()


@pytest.mark.parametrize("verdict", ["refused", "waiting", "ready"])
def test_a_command_names_a_folder_with_a_space_as_a_shell_takes_it(weeks: Any, verdict: str) -> None:
    html = page.environment(STAGES).from_string(section.HTML)
    now = BuildState(build_id="b", dataset="d", verdict=verdict, place="/data/my builds/第一")  # type: ignore[arg-type]
    said = html.render(state=now.model_dump(), gates=[], dataset=None)
    [line] = re.findall(r'<code class="command">([^<]+)</code>', said)
    assert shlex.split(unescape(line))[:3] == ["wenlan-data", "publish", "/data/my builds/第一"]


def test_a_report_that_cannot_be_written_holds_up_no_publish(
    weeks: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = Folder.write

    def full(self: Folder, name: str, data: bytes) -> None:
        if name == "index.html":
            raise StoreError(self.at(name), "cannot be written (No space left on device)")
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", full)
    assert release.publish(weeks.build("2026-01-01", range(12))).revision == 0
    assert "index.html: cannot be written (No space left on device); the report of" in caplog.text
