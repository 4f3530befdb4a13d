"""Commands that the studio runs: their words, their confirmations, and one at a time."""

from __future__ import annotations

import shlex
import threading
import time
from typing import Any

import pytest

from data_specs.build import SpecError
from pipeline.errors import StoreError
from pipeline.store.build import Build
from pipeline.studio import actions
from pipeline.studio.actions import Busy, Jobs, command_line, takedown
from tests.processes import wait_until

ROW = {
    "subject": "candidate",
    "id": "a" * 64,
    "page_url": "https://www.x.example:8/1.html",
    "url": "https://x.example/1.jpg",
}


def ended(jobs: Jobs, number: int) -> actions.Job:
    job = jobs.get(number)
    assert job is not None
    wait_until(lambda: job.code is not None, f"the end of {job.line}")
    return job


@pytest.mark.slow
def test_a_takedown_names_pictures_pages_or_domains(built: Build) -> None:
    def words(*rows: dict[str, Any], what: Any = "picture", exact: bool = False) -> list[str]:
        return takedown("store", [built], rows, what, exact)[4:]

    page = {**ROW, "subject": "capture", "id": "b" * 64}
    assert words(ROW, ROW, exact=True) == [f"--item={'a' * 32}", "--exact"]
    assert words(ROW, what="page", exact=True) == ["--url=https://www.x.example:8/1.html"]
    assert words(ROW, page, what="domain") == ["--domain=www.x.example"]
    assert words(page) == ["--url=https://www.x.example:8/1.html"], "a page that was flagged is a page"
    for rows, what in (([], "picture"), ([ROW] * 201, "picture"), ([{**ROW, "page_url": ""}], "page")):
        with pytest.raises(SpecError):
            takedown("store", [built], rows, what, False)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="do not share one STORE"):
        takedown("", [built], [ROW], "picture", False)


@pytest.mark.slow
def test_an_item_of_a_dataset_cannot_be_an_option_of_a_command(built: Build) -> None:
    build = built
    row = {"subject": "candidate", "id": "a" * 64, "page_url": "--store=/etc", "url": "https://x.example/$(reboot)"}
    assert takedown(build.store.url, [build], [row], "page", False)[-1] == "--url=--store=/etc"
    assert takedown(build.store.url, [build], [{**row, "page_url": ""}], "domain", False)[-1] == "--domain=x.example"


def test_the_line_that_is_shown_is_quoted_for_a_shell() -> None:
    words = ["forget", "--url=https://x.example/$(reboot)'; rm -rf /"]
    assert shlex.split(command_line(words)) == ["wenlan-data", *words]


@pytest.mark.drill(2)
def test_commands_run_one_at_a_time_and_say_how_they_ended(built: Build) -> None:
    changed: list[int] = []
    looked = threading.Event()

    def done() -> None:
        looked.wait(90)
        changed.append(1)

    jobs = Jobs(done)
    first = jobs.start("takedown", ["status", built.out])
    with pytest.raises(Busy):
        jobs.start("takedown", ["status", built.out])
    looked.set()  # the first, which has not ended before
    assert ended(jobs, first.number).code == 0
    assert first.answer["build_id"] == built.build_id
    assert changed == [1]
    second = jobs.start("publish", ["status", f"{built.out}/none"])
    assert ended(jobs, second.number).code == 1
    assert "not a build" in "".join(second.lines)
    assert jobs.running is None


def test_a_confirmation_is_of_one_command_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs()
    jobs._confirmable["x"] = (time.monotonic() + 1000, ("forget",))
    assert jobs.take_confirmed("x") == ("forget",)
    with pytest.raises(SpecError, match="is used"):
        jobs.take_confirmed("x")
    jobs._confirmable["y"] = (time.monotonic() - 1, ("forget",))
    with pytest.raises(SpecError, match="expired"):
        jobs.take_confirmed("y")


@pytest.mark.drill(2)
def test_a_place_that_cannot_be_opened_anew_keeps_no_other_command_waiting(built: Build) -> None:
    def done() -> None:
        raise StoreError("/builds/1", "is being rewritten")

    jobs = Jobs(done)
    first = ended(jobs, jobs.start("publish", ["status", built.out]).number)
    assert (first.code, first.lines[-1]) == (0, "/builds/1: is being rewritten")
    assert ended(jobs, jobs.start("publish", ["status", built.out]).number).code == 0


def test_every_command_has_a_number_of_its_own_however_many_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs()
    monkeypatch.setattr(jobs, "_execute", lambda job, dry: 0)
    numbers = [ended(jobs, jobs.start("preview", ["status", "x"]).number).number for _ in range(60)]
    assert numbers == list(range(1, 61))
    assert jobs.get(10) is None, "old ones are forgotten"
