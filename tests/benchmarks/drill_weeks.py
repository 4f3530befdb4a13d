"""Five weeks of a dataset on a real Airflow and a real Ray cluster: the part `weeks` of `drill_schedule.py`.

Builds, takedown and trainings are runs of the three DAGs, for the weeks of `weekly.py`. Then the same weeks are run
again by the commands, on one worker and without Airflow: every release must have the same content digest. The table of
the weeks is printed on stderr, and written as weeks.json into the drill's folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_specs.release import open_manifest
from tests.benchmarks import weekly
from tests.benchmarks.harness import ROOT, Figure, at_least, at_most, told
from tests.benchmarks.services import PATIENCE, until

if TYPE_CHECKING:
    from tests.benchmarks.drill_schedule import Drill

LONG = 900
"""Seconds that a run may take on a busy machine."""
COLUMNS = ("week", "new", "known", "dropped", "release", "train", "dev", "val", "Airflow", "pretrain", "recall", "last")


def data(*words: str) -> dict[str, Any]:
    """A command of wenlan-data as a process with a Ray of one CPU: the object that it prints."""
    more = ["--workers", "1"] if words[0] == "build" else []
    command = [sys.executable, "-m", "pipeline", *words, *more, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONG * PATIENCE, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit {done.returncode}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


class InAirflow:
    """The weeks as runs of the DAGs. `rows`: the table; `digests`: of the newest release after each step."""

    def __init__(self, drill: Drill, weeks: weekly.Weeks) -> None:
        self.drill, self.weeks, self.ledger = drill, weeks, weekly.Ledger()
        self.rows: list[dict[str, Any]] = []
        self.digests: dict[str, str] = {}

    def go(self) -> None:
        """All steps, in order."""
        for week in (1, 2, 3, 4):
            self.build(str(week), week, weekly.SNAPSHOTS[week])
        self.build("4 anew", 4, weekly.ANEW, generation="new")
        self.take_down()
        self.build("5", 5, weekly.SNAPSHOTS[5])
        self.weeks.roll_back()
        self.note("back", train=self.train(manifest=str(self.weeks.latest.with_name(self.newest_file()))))

    def build(self, step: str, week: int, snapshot: str, **conf: Any) -> None:
        """A run of `dataset_build` for a week, and of `pretrain` if there is an event."""
        drill, self.weeks.site.week = self.drill, week
        before = set(drill.runs("pretrain"))
        conf |= {"spec": str(self.weeks.spec(week)), "store": self.weeks.store, "out_root": str(self.weeks.folder)}
        body = {"logical_date": f"{snapshot}T00:00:00Z", "conf": conf}
        run = str(drill.api("dags/dataset_build/dagRuns", body)["dag_run_id"])
        state, tasks = drill.ends("dataset_build", run, LONG), drill.tasks("dataset_build", run)
        train: dict[str, Any] = {}
        if tasks["announce"] == "success":
            train = self.trained(until("pretrain", 120, lambda: set(drill.runs("pretrain")) - before).pop())
        stages = data("status", str(self.weeks.folder / f"{weekly.NAME}-{snapshot}"))["stages"]
        counts = weekly.counts({name: stage.get("funnel", {}) for name, stage in stages.items()})
        self.note(step, airflow=f"{state}, announce {tasks['announce']}", train=train, **counts)

    def train(self, **conf: Any) -> dict[str, Any]:
        return self.trained(self.drill.trigger("pretrain", **conf))

    def trained(self, run: str) -> dict[str, Any]:
        """State of a run of `pretrain`, and the recalls that it measured on the release's val split."""
        state = self.drill.ends("pretrain", run, LONG)
        recalls = {name: self.measured(run, f"{name}.wait") for name in ("evaluate", "evaluate_last")}
        return {"state": state, "recall": recalls["evaluate"], "last": recalls["evaluate_last"]}

    def measured(self, run: str, task: str) -> float | None:
        """The mean recall that a task returned; None if it was skipped."""
        if self.drill.tasks("pretrain", run)[task] != "success":
            return None
        path = f"dags/pretrain/dagRuns/{run}/taskInstances/{task}/xcomEntries/return_value?deserialize=true"
        value = self.drill.api(path)["value"]
        return float((json.loads(value) if isinstance(value, str) else value)["mean_recall"])

    def take_down(self) -> None:
        """A run of `housekeeping` with a takedown in its list."""
        listed = self.weeks.folder / "takedowns"
        listed.write_text(f"url http://{self.weeks.host}/i{weekly.TAKEN_DOWN}.jpg\n", encoding="utf-8")
        self.drill.unpause("housekeeping")
        run = self.drill.trigger("housekeeping", store=self.weeks.store, takedowns=str(listed))
        state = self.drill.ends("housekeeping", run, LONG)
        done = self.drill.tasks("housekeeping", run)["takedowns.wait"]
        self.note("5 takedown", airflow=f"{state}, takedowns {done}", train={})

    def newest_file(self) -> str:
        return Path(open_manifest(str(self.weeks.latest), lambda path: Path(path).read_bytes())[0]).name

    def note(self, step: str, train: dict[str, Any], airflow: str = "", **counts: int) -> None:
        release = self.weeks.newest()
        self.ledger.see(release)
        self.digests[step] = release.content_digest
        row = {"week": step, **counts, "release": release.release, **release.samples, "Airflow": airflow}
        self.rows.append(
            {**row, "pretrain": train.get("state"), "recall": train.get("recall"), "last": train.get("last")}
        )
        told(json.dumps(self.rows[-1]))

    def states(self) -> dict[str, str]:
        return {row["week"]: row["Airflow"] for row in self.rows}


def weeks(drill: Drill) -> dict[str, Figure]:
    """Five weeks of one dataset, and the same by the commands on one worker."""
    site = weekly.Site()
    host = f"127.0.0.1:{drill.services.serve(site.handler())}"
    folders = [drill.folder / name for name in ("weekly", "weekly-again")]
    for folder in folders:
        folder.mkdir()
    drill.unpause("pretrain")
    _unpause_quietly(drill)
    flown = InAirflow(drill, weekly.Weeks(site, host, folders[0], data))
    try:
        flown.go()
    finally:
        (drill.folder / "weeks.json").write_text(json.dumps(flown.rows, indent=1), encoding="utf-8")
        _show(flown.rows)
    again = weekly.Weeks(site, host, folders[1], data)
    digests = {step: again.newest().content_digest for step, _ in again.steps()}
    said = dict.fromkeys(("1", "2", "4", "4 anew", "5"), "success, announce success")
    said["3"] = "success, announce skipped"
    as_said = sum(flown.states()[step] == state for step, state in said.items())
    trained = [row for row in flown.rows if row["pretrain"]]
    green = sum(row["pretrain"] == "success" and row["recall"] is not None for row in trained)
    compared = sum(row["last"] is not None for row in trained[1:])
    return {
        "weeks: builds green or skipped as said": at_least(as_said, len(said), "runs"),
        "weeks: the takedown is applied": at_least(flown.states()["5 takedown"] == "success, takedowns success", 1, ""),
        "weeks: trainings that are green, with recall on the release": at_least(green, len(said), "runs"),
        "weeks: trainings compared with the last checkpoint": at_least(compared, len(trained) - 1, "runs"),
        "weeks: keys reused, splits moved, pictures twice": at_most(len(flown.ledger.faults), 0, ""),
        "weeks: releases with other bytes on one worker": at_most(
            sum(digests[step] != digest for step, digest in flown.digests.items()), 0, "releases"
        ),
    }


def _unpause_quietly(drill: Drill) -> None:
    """Unpause `dataset_build`. Its scheduled run, where this part runs alone, is not of these weeks."""
    if any(run.startswith("scheduled") for run in drill.runs("dataset_build")):
        return
    drill.unpause("dataset_build")
    run = until("the scheduled run", 120, lambda: [r for r in drill.runs("dataset_build") if r.startswith("scheduled")])
    drill.api(f"dags/dataset_build/dagRuns/{run[0]}", {"state": "failed"}, "PATCH")
    until("no job", 120, lambda: not drill.running("--until report"))


def _show(rows: list[dict[str, Any]]) -> None:
    """The table on stderr."""
    cells = [COLUMNS, *([_cell(row.get(name)) for name in COLUMNS] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(COLUMNS))]
    for line in cells:
        told("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
