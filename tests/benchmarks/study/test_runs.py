"""The queue of runs: each record once, whatever ends the study, and the same figures however often it was ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.study.runs import go_on
from tests.benchmarks.study.trial import Trial
from tests.places import ROOT
from tests.processes import descendants, wait_until

_SCRIPT = """
import pickle, sys
from tests.benchmarks.study.runs import go_on
if __name__ == "__main__":
    go_on(pickle.loads(bytes.fromhex(sys.argv[1])), 2, float("inf"))
"""


def records(study: Any) -> dict[str, Path]:
    return {path.name: path for path in (study.folder / "trials").glob("*.json")}


def figures(study: Any) -> dict[str, object]:
    found = {}
    for name, path in records(study).items():
        trial = Trial.of_json(json.loads(path.read_text())["trial"])
        found[name] = [(p.samples, p.loss, p.i2t, p.t2i) for p in trial.points]
    return found


@pytest.mark.drill(30)
@pytest.mark.timeout(600)
def test_a_killed_study_goes_on_and_ends_with_the_figures_of_one_that_was_not(make_study: Any, tmp_path: Path) -> None:
    import pickle

    killed, whole = (make_study("moco", "clip", name=name, samples=640) for name in ("killed", "whole"))
    (tmp_path / "study.py").write_text(_SCRIPT)
    command = [sys.executable, str(tmp_path / "study.py"), pickle.dumps(killed).hex()]
    for _ in range(5):
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
            try:
                wait_until(lambda: len(records(killed)) >= 1, "a first record")
                workers = descendants(process.pid)
            finally:
                process.send_signal(signal.SIGKILL)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the workers end with the study")  # noqa: B023
        done = {name: path.stat().st_mtime_ns for name, path in records(killed).items()}
        if len(done) < 4:
            break
        for path in records(killed).values():  # on a busy machine the study may be done when the signal comes
            path.unlink()
    assert 1 <= len(done) < 4
    assert go_on(killed, 1, float("inf"))
    assert go_on(whole, 1, float("inf"))
    assert {name: path.stat().st_mtime_ns for name, path in records(killed).items() if name in done} == done
    assert len(records(killed)) == 4
    assert figures(killed) == figures(whole)


@pytest.mark.drill(30)
def test_two_processes_find_the_figures_of_one(make_study: Any) -> None:
    one, two = (make_study("clip", name=name, samples=64) for name in ("one", "two"))
    assert go_on(one, 1, float("inf"))
    assert go_on(two, 2, float("inf"))
    assert figures(one) == figures(two)


@pytest.mark.drill(5)
def test_a_temperature_is_chosen_by_short_runs_on_dev_styles_and_dev_names(make_study: Any) -> None:
    study = make_study(
        "clip", samples=64, seeds=(0,), captions=("name",), temperatures=(0.03, 5.0), rates=(5e-4,), tuning=480
    )
    (arm,) = study.plan.arms
    assert study.choice(arm)[1]
    assert study.reported(arm) == []
    assert go_on(study, 1, float("inf"))
    tuned = {
        name: json.loads(path.read_text()) for name, path in records(study).items() if name.startswith("clip.tuning")
    }
    assert tuned.keys() == {f"clip.tuning.name.t{t:g}.r0.0005.json" for t in (0.03, 0.07, 5.0)}
    del tuned["clip.tuning.name.t0.07.r0.0005.json"]  # it chose the captions
    points = {record["trial"]["setting"]["temperature"]: record["trial"]["points"][-1] for record in tuned.values()}
    reached = {t: sum(p[way][g] for way in ("i2t", "t2i") for g in ("dev", "dev_names")) for t, p in points.items()}
    best = study.choice(arm)[0].temperature
    assert reached[best] == max(reached.values()) > min(reached.values())
    assert f"clip.seed0.name.t{best:g}.r0.0005.json" in records(study)
    # Which is the best is the records' word alone, dev names among them: with other figures it is the other one.
    other = next(t for t in reached if t != best)
    name = f"clip.tuning.name.t{other:g}.r0.0005.json"
    tuned[name]["trial"]["points"][-1]["i2t"]["dev_names"] = 4.5
    records(study)[name].write_text(json.dumps(tuned[name]))
    assert study.choice(arm)[0].temperature == other


@pytest.mark.drill(3)
def test_a_record_of_another_length_or_a_damaged_one_is_done_again(make_study: Any) -> None:
    study = make_study("clip", samples=64, seeds=(0,))
    (task,) = study.reported(study.plan.arms[0])
    assert go_on(study, 1, float("inf"))
    assert study.trial(task) is not None
    longer = make_study("clip", samples=80, seeds=(0,))
    assert longer.trial(longer.reported(longer.plan.arms[0])[0]) is None
    next(iter(records(study).values())).write_text('{"key"')
    assert study.trial(task) is None
