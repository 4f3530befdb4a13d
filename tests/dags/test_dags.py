"""The DAGs in a real Airflow that has none of our packages: they import, have their graphs, and run.

Skipped where `make dags-venv` has not been run. That they import neither Ray nor our packages is also read from their
import statements, without Airflow, by tests/test_architecture.py. A real scheduler against a real cluster, with kills:
tests/benchmarks/drill_schedule.py.
"""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import _parser as data_parser
from tests.dags.conftest import faking
from tests.places import ROOT
from training.cli import _parser as train_parser

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PYTHON = ROOT / ".venv-dags" / "bin" / "python"
FILES = sorted((ROOT / "dags").glob("*.py"))

needs_airflow = pytest.mark.skipif(not PYTHON.exists(), reason="no Airflow here: run `make dags-venv` first")

DESCRIBE = """
import importlib.util, json, sys
sys.path.append(sys.argv[1])
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(dag_folder=sys.argv[1])
def kind(t):
    return "setup" if t.is_setup else "teardown" if t.is_teardown else getattr(t, "mode", "task")
def describe(dag):
    tasks = {t.task_id: {"kind": kind(t), "then": sorted(t.downstream_task_ids), "rule": str(t.trigger_rule.value),
                         **({"outlets": [a.name for a in t.outlets]} if t.outlets else {}),
                         **({"links": [l.name for l in t.operator_extra_links]} if t.operator_extra_links else {})}
             for t in sorted(dag.tasks, key=lambda t: t.task_id)}
    return {"timetable": type(dag.timetable).__name__, "catchup": dag.catchup, "max_active_runs": dag.max_active_runs,
            "params": {k: dag.params[k] for k in dag.params}, "tasks": tasks}
print(json.dumps({"errors": {k: v.splitlines()[-1] for k, v in bag.import_errors.items()},
                  "dags": {i: describe(d) for i, d in sorted(bag.dags.items())},
                  "ours": [m for m in ("ray", "pipeline", "training", "data_specs") if importlib.util.find_spec(m)]}))
"""


EACH = """
import contextlib, io, json, os, sys
dags, (said, programs) = sys.argv[1], ([], json.loads(sys.argv.pop()))
for code, environment in programs:
    os.environ.update(environment)
    for name in [name for name, own in sys.modules.items() if (getattr(own, "__file__", "") or "").startswith(dags)]:
        del sys.modules[name]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {"__name__": "__main__"})
    said.append(json.loads(printed.getvalue().splitlines()[-1]))
print(json.dumps(said))
"""
"""Runs programs one after the other, each with the DAGs imported again: Airflow is imported once."""


def _in_airflow(tmp_path: Path, code: str, *arguments: str) -> Any:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "WENLAN", "RAY_", "PYTHON"))}
    environment |= {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    environment |= {"WENLAN_SPEC": "s3://specs/news.yaml", "WENLAN_STORE": "s3://store", "WENLAN_OUT_ROOT": "s3://b/"}
    environment |= {"AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"), "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
    command = [str(PYTHON), "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


def test_dag_files_import_the_standard_library_airflow_and_each_other_only() -> None:
    allowed = {"airflow", *(p.stem for p in FILES), *sys.stdlib_module_names}
    assert len(FILES) >= 5
    assert {p.name: _imported(p) - allowed for p in FILES if _imported(p) - allowed} == {}
    assert "airflow" not in _imported(ROOT / "dags" / "ray_jobs.py")


ROADS = {
    "data_loop": "strict>scorer scorer>export export>build build>fit",
    "dataset_build": "build>publish publish>announce",
    "housekeeping": "takedowns>expire expire>prune",
    "pretrain": "fit>evaluation fit>evaluation_of_last fit>publish evaluation>evaluate evaluate>judge "
    "evaluation_of_last>evaluate_last evaluate_last>judge judge>publish",
}
"""Which job or task of a DAG waits for which, but for `plan`, which comes first."""


def road(tasks: dict[str, Any]) -> set[str]:
    """The edges between jobs and tasks: a job is three tasks, NAME.submit, NAME.wait and NAME.stop."""
    edges = {
        (name.partition(".")[0], other.partition(".")[0]) for name, task in tasks.items() for other in task["then"]
    }
    return {f"{one}>{other}" for one, other in edges if one not in (other, "plan")}


@needs_airflow
def test_every_dag_imports_where_nothing_of_ours_is_and_has_its_graph(said: list[Any]) -> None:
    found = said[0]
    assert found["errors"] == {}
    assert found["ours"] == []
    assert {name: road(dag["tasks"]) for name, dag in found["dags"].items()} == {
        name: set(edges.split()) for name, edges in ROADS.items()
    }
    assert {name: dag["timetable"] for name, dag in found["dags"].items()} == {
        "data_loop": "NullTimetable",
        "dataset_build": "CronDataIntervalTimetable",
        "housekeeping": "CronTriggerTimetable",
        "pretrain": "AssetTriggeredTimetable",
    }
    assert found["dags"]["dataset_build"]["tasks"]["announce"]["outlets"] == ["wenlan_dataset"]
    assert found["dags"]["pretrain"]["tasks"]["publish"]["outlets"] == ["wenlan_checkpoint"]
    assert found["dags"]["pretrain"]["tasks"]["judge"]["rule"] == "none_failed", "the last may not be evaluated"
    for dag in found["dags"].values():
        assert (dag["catchup"], dag["max_active_runs"]) == (False, 1)
        for name, task in dag["tasks"].items():
            if name.endswith(".wait"):
                assert task["kind"] == "reschedule"
                assert task["links"] == ["Quality report"]
                assert name.replace(".wait", ".stop") in task["then"], "whoever waits, stops"
            elif name.endswith((".submit", ".stop")):
                assert task["kind"] == ("setup" if name.endswith(".submit") else "teardown")


VARIABLES = ("POLL_S", "LONGEST_DAYS", "KEEP_BUILDS", "KEEP_RELEASES", "KEEP_REGION_DAYS", "TRAIN_WORKERS", "MARGIN",
             "NEW_WEIGHT", "EVAL_GPUS", "SCHEDULE", "HOUSEKEEPING_SCHEDULE", "RUNTIME_ENV")  # fmt: skip


@needs_airflow
def test_a_variable_that_is_set_and_empty_is_as_good_as_none(said: list[Any]) -> None:
    """As templates of deployments leave what nobody has filled in: with one of them no DAG could be imported."""
    found = said[3]
    assert found["errors"] == {}
    assert found["dags"] == said[0]["dags"]


PLAN = """
import datetime, json, sys, types
sys.path.append(sys.argv[1])
import dataset_build, housekeeping, pretrain, ray_tasks
day = lambda n: datetime.datetime(2026, 1, n, 3, tzinfo=datetime.timezone.utc)
run = types.SimpleNamespace(
    data_interval_start=day(12), data_interval_end=day(19), run_after=day(19), run_type="scheduled")
before = types.SimpleNamespace(data_interval_end=day(5))
class Inlets(dict):
    def __missing__(self, key): return []
context = {"params": {"spec": "s3://specs/news.yaml", "store": "s3://store", "out_root": "s3://b/", "recipe": "starter",
                      "generation": "",
                      "run_root": "/runs", "init": "", "workers": 2, "manifest": "", "margin": 0.01,
                      "keep_builds": 8, "keep_releases": 26, "keep_region_days": 30, "new_weight": 1, "set": "",
                      "warm_set": "optim.lr_factor=0.5 optim.warmup_share=0.02",
                      "report_url": "http://reports/", "takedowns": sys.argv[2]},
           "dag_run": run, "ti": types.SimpleNamespace(get_previous_dagrun=lambda: before), "inlet_events": Inlets(),
           "triggering_asset_events": {"wenlan_dataset": [
               types.SimpleNamespace(timestamp=2, extra={"manifest": "/b/new/shards/manifest.json", "build_id": "new"}),
               types.SimpleNamespace(timestamp=1, extra={"manifest": "/b/old/shards/manifest.json"})]}}
release = {"dataset": "news", "release": 3, "release_manifest": "/s/datasets/news/000003.json",
           "samples": {"train": 100, "dev": 5, "val": 5}, "new_samples": {"train": 10, "dev": 0, "val": 1},
           "manifest": "/b/new/shards/manifest.json", "build_id": "new"}
published = lambda name, run: types.SimpleNamespace(extra={"checkpoint": f"/runs/{name}", "run": run})
def planned(params={}, event=release, checkpoints=()):
    changed = {**context, "params": context["params"] | {"init": "last", "manifest": ""} | params}
    changed["inlet_events"] = {ray_tasks.CHECKPOINT: list(checkpoints)}
    changed["triggering_asset_events"] = {"d": [types.SimpleNamespace(timestamp=1, extra=event)]}
    pretrain.get_current_context = ray_tasks.get_current_context = lambda: changed
    try: return pretrain.plan.function()
    finally: pretrain.get_current_context = ray_tasks.get_current_context = lambda: context
for module in (dataset_build, housekeeping, pretrain, ray_tasks):
    module.get_current_context = lambda: context
said = {"build": dataset_build.plan.function(), "fit": pretrain.plan.function(), "keep": housekeeping.plan.function()}
run.run_type = "backfill"
said["backfill"] = dataset_build.plan.function()
run.run_type, run.logical_date = "manual", day(21)
said["manual"] = dataset_build.plan.function()
run.run_type, before.data_interval_end = "scheduled", day(12)
said["on_time"] = dataset_build.plan.function()["missed"]
context["params"]["manifest"] = "/b/given/shards/manifest.json"
said["by_hand"] = pretrain.plan.function()["fit"]
context["params"]["generation"] = "new"
said["generation"] = dataset_build.plan.function()["build"]
said["evaluation"] = pretrain.evaluation.function("/m.json", {"checkpoint": "/runs/c"})
context["inlet_events"][ray_tasks.CHECKPOINT] = [types.SimpleNamespace(extra={"checkpoint": "/runs/l"})]
said["last"] = pretrain.evaluation_of_last.function("/m.json", {"checkpoint": "/runs/c"})
by_hand = types.SimpleNamespace(extra={"from_rest_api": True})
context["inlet_events"][ray_tasks.CHECKPOINT].append(by_hand)
said["last_but_by_hand"] = pretrain.evaluation_of_last.function("/m.json", {"checkpoint": "/runs/c"})
whole = lambda recall: recall and {"mean_recall": recall, "headline": "all"}
judge = lambda new, last: pretrain.judge.function(whole(new), whole(last))
said["judged"] = [judge(.2, None), judge(.2, .1), judge(.2, .2099)]
split = lambda all_, unseen: {"mean_recall": all_, "headline": "unseen", "unseen": {"mean_recall": unseen}}
said["judged_unseen"] = pretrain.judge.function(split(.4, .2), split(.9, .2))
def fault(f):
    try: f()
    except Exception as e: return f"{type(e).__name__}: {e}"
before_it, own = published("a", "/runs/starter-news-000002"), published("b", "/runs/starter-news-000003")
later = published("c", "/runs/starter-news-000004")
said["releases"] = {
    "anew": planned({"init": "", "set": "run.epochs=2"}), "first": planned(), "warm": planned({}, release, [before_it]),
    "by_hand_after": planned({}, release, [before_it, by_hand]),
    "again": planned({}, release, [before_it, own, later]), "first_again": planned({}, release, [own, later]),
    "named": planned({"init": "/c"}, release, [before_it]), "weighted": planned({"new_weight": 3}),
    "all_new": planned({"new_weight": 3}, release | {"new_samples": release["samples"]}),
    "by_hand": planned({"manifest": "/s/datasets/news/000002.json"})}
said["refused"] = [fault(lambda: planned({}, release | {"samples": {"train": 9, "dev": 1, "val": 0}})),
                   fault(lambda: planned({"manifest": "/s/datasets/news/latest.json"})),
                   fault(lambda: planned({"manifest": "/s/datasets/news/000002.json", "new_weight": 2})),
                   fault(lambda: dataset_build.announce.function({}, {"published": False, "nothing_new": True}))]
context["params"]["takedowns"] = sys.argv[2] + ".long"
said["too_long"] = fault(housekeeping.plan.function)
context["params"] |= {"store": "", "recipe": ""}
said["faults"] = [
    fault(dataset_build.plan.function), fault(pretrain.plan.function),
    fault(lambda: dataset_build.announce.function(said["build"], {})),
    fault(lambda: dataset_build.announce.function(said["build"], {"published": False})),
    fault(lambda: judge(.2, .2101)), fault(lambda: housekeeping.takedowns(sys.argv[2] + ".bad")),
    fault(lambda: housekeeping.takedowns("/nowhere")),
    fault(lambda: pretrain.evaluation_of_last.function("/m.json", {"checkpoint": "/runs/l"}))]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What DESCRIBE, PLAN, LOOP, DESCRIBE with empty variables, and RUN print; and how many jobs RUN submitted."""
    folder = tmp_path_factory.mktemp("airflow")
    listed = folder / "list"
    listed.write_text("# asked for in May\nurl https://a.example/1.jpg?x=1&y=2\n\ndomain b.example\n", encoding="utf-8")
    (folder / "list.bad").write_text("url https://a.example/1.jpg\npage https://a.example/\n", encoding="utf-8")
    long = "".join(f"url https://a.example/pictures/{i:032d}.jpg\n" for i in range(2_000))
    (folder / "list.long").write_text(long, encoding="utf-8")
    empty = {f"WENLAN_{name}": "" for name in VARIABLES}
    with faking() as fake:
        fake.outcome = fake.good_day
        run = {"RAY_API_SERVER_ADDRESS": fake.url, "RAY_AUTH_MODE": "disabled", "WENLAN_POLL_S": "1"}
        programs = [(DESCRIBE, {}), (PLAN, {}), (LOOP, {}), (DESCRIBE, empty), (RUN, run)]
        answers: list[Any] = _in_airflow(folder, EACH, str(ROOT / "dags"), str(listed), json.dumps(programs))
        return [*answers, len(fake.jobs)]


@needs_airflow
def test_what_the_dags_run(said: list[Any]) -> None:
    planned(said[1])


def planned(said: dict[str, Any]) -> None:
    """What PLAN prints."""
    out = "s3://b/news-2026-01-19"
    build = f"wenlan-data build s3://specs/news.yaml --out {out} --store s3://store --snapshot 2026-01-19 --json"
    assert said["build"]["publish"] == build
    assert said["build"]["build"] == f"{build} --until report"
    assert said["build"]["report"] == "http://reports/news-2026-01-19/report/index.html"
    assert said["build"]["missed"] == {"from": "2026-01-05T03:00:00+00:00", "to": "2026-01-12T03:00:00+00:00"}
    assert said["on_time"] is None
    assert said["backfill"]["publish"] == f"{build} --no-crawl"
    assert said["backfill"]["missed"] is None
    assert (said["manual"]["snapshot"], said["manual"]["missed"]) == ("2026-01-21", None)
    assert said["generation"] == f"{build} --generation new --until report"

    new = "/b/new/shards/manifest.json"
    fit = f"wenlan-train fit --recipe starter --data {new} --out /runs/starter-new --workers 2 --json"
    assert said["fit"] == {"fit": fit, "manifest": new, "run": "/runs/starter-new", "init": ""}
    assert "--out /runs/starter-given " in said["by_hand"]
    evaluation = "wenlan-train eval /runs/c --data /m.json --task retrieval --json"
    assert said["evaluation"] == evaluation
    assert said["last"] == said["last_but_by_hand"] == evaluation.replace("/runs/c", "/runs/l")
    assert said["judged"] == [0.2, 0.2, 0.2]
    assert said["judged_unseen"] == 0.2, "by the pairs that stand nowhere in train, not by all"

    named = "--url 'https://a.example/1.jpg?x=1&y=2' --domain b.example"
    assert said["keep"]["takedowns"] == f"wenlan-data forget --store s3://store {named} --missing-ok --json"
    assert "list.long: its 2,000 takedowns make a command of" in said["too_long"]
    assert said["keep"]["prune"] == "wenlan-data regions prune --store s3://store --before 2025-12-20 --json"
    assert said["keep"]["expire"] == "wenlan-data gc --store s3://store --keep 8 --keep-releases 26 --json"

    faults = said["faults"]
    skipped = [fault.startswith("AirflowSkipException: ") for fault in faults]
    assert skipped == [False, False, False, True, False, False, False, True]
    assert "set WENLAN_STORE" in faults[0]
    assert f"wenlan-data publish {out}" in faults[3]
    assert "not published: mean recall 0.2000, the last published checkpoint has 0.2101" in faults[4]
    assert "list.bad:2: not one of url, domain, sha256, like" in faults[5]
    assert "/nowhere cannot be read" in faults[6]

    of_releases(said["releases"])
    small, latest, weighted, nothing_new = said["refused"]
    assert "release 3 of news is too small to train on and judge (train 9, dev 1, val 0): nothing is trained" in small
    assert "latest.json may change before the evaluation" in latest
    assert "new_weight: only an asset event says which samples are new" in weighted
    assert nothing_new.startswith("AirflowSkipException: nothing new")


def of_releases(said: dict[str, dict[str, str]]) -> None:
    """What `pretrain` runs on a release: where it begins, by which rule for the learning rate, on which data."""
    release, build = "/s/datasets/news/000003.json", "/b/new/shards/manifest.json"
    out, end = "/runs/starter-news-000003", "--workers 2 --json"
    begin = f"wenlan-train fit --recipe starter --data {release} --out {out}"
    warm = f"{begin} --init /runs/a --set optim.lr_factor=0.5 --set optim.warmup_share=0.02 {end}"
    assert said["anew"] == {"fit": f"{begin} --set run.epochs=2 {end}", "manifest": release, "run": out, "init": ""}
    assert said["first"]["fit"] == said["first_again"]["fit"] == f"{begin} {end}", "anew where none was published"
    assert said["warm"]["fit"] == said["again"]["fit"] == warm, "a repeated run begins as it did"
    assert said["by_hand_after"]["fit"] == warm, "an event that somebody made by hand names no checkpoint"
    assert said["warm"]["init"] == "/runs/a"
    assert said["named"]["fit"] == f"{begin} --init /c {end}", "with the recipe's learning rate"
    mixed = f"--data {release}@90 {build}@30 --out {out}-new3 "
    assert mixed in said["weighted"]["fit"]
    assert said["weighted"]["manifest"] == release, "what is evaluated on is the release alone"
    assert f"--data {release} --out {out}-new3 " in said["all_new"]["fit"]
    assert f"--data /s/datasets/news/000002.json --out /runs/starter-news-000002 {end}" in said["by_hand"]["fit"]


RUN = """
import json, logging, sys
from airflow.cli import cli_parser
from airflow.utils import db
logging.disable(logging.CRITICAL)
db.initdb()
parser = cli_parser.get_parser()
def run(*words):
    args = parser.parse_args(["dags", "test", *words])
    args.func(args)
run("dataset_build", "2026-01-19")
run("pretrain", "-c", json.dumps({"manifest": "/b/n/shards/manifest.json", "recipe": "tiny", "run_root": "/runs"}))
run("housekeeping")
from airflow.models import DagRun, TaskInstance
from airflow.models.asset import AssetEvent
from airflow.utils.session import create_session
with create_session() as session:
    runs = {r.dag_id: str(getattr(r.state, "value", r.state)) for r in session.query(DagRun)}
    tasks = {f"{t.dag_id}/{t.task_id}": str(getattr(t.state, "value", t.state)) for t in session.query(TaskInstance)}
    events = [e.extra for e in session.query(AssetEvent)]
print(json.dumps({"runs": runs, "tasks": tasks, "events": events}))
"""


@needs_airflow
def test_airflow_dags_test_of_each(said: list[Any]) -> None:
    told, jobs = said[4:]
    assert told["runs"] == {"dataset_build": "success", "pretrain": "success", "housekeeping": "success"}
    skipped = {task for task, state in told["tasks"].items() if state != "success"}
    assert skipped == {
        f"pretrain/{t}" for t in ("evaluation_of_last", *(f"evaluate_last.{n}" for n in ("submit", "wait", "stop")))
    }
    dataset, checkpoint = told["events"]
    assert (dataset["manifest"], dataset["snapshot"]) == ("/b/n/shards/manifest.json", "2026-01-19")
    named = [dataset[name] for name in ("dataset", "release", "release_manifest", "samples", "new_samples")]
    assert named == ["news", 2, "/s/datasets/news/000002.json", {"train": 30}, {"train": 3}]
    manifest, run = "/b/n/shards/manifest.json", "/runs/tiny-n"
    assert checkpoint == {"checkpoint": "/runs/c", "manifest": manifest, "run": run, "init": "", "recall": 0.25}
    assert jobs == 7


LOOP = """
import datetime, json, sys, types
sys.path.append(sys.argv[1])
import data_loop, ray_tasks
day = datetime.datetime(2026, 1, 19, 3, tzinfo=datetime.timezone.utc)
params = {"strict_spec": "/specs/best.yaml", "spec": "/specs/all.yaml", "store": "/store", "out_root": "/b/",
          "run_root": "/runs/", "towers": "/towers/best", "recipe": "starter", "scorer_recipe": "tiny",
          "scorer_set": "run.epochs=1", "set": "", "workers": 2}
def planned(**changed):
    context = {"params": params | changed, "dag_run": types.SimpleNamespace(logical_date=day, run_after=day)}
    data_loop.get_current_context = ray_tasks.get_current_context = lambda: context
    try: return data_loop.plan.function()
    except Exception as e: return f"{type(e).__name__}: {e}"
print(json.dumps([planned(), planned(scorer_recipe=""), planned(spec="/specs/best.yaml"), planned(towers="")]))
"""


@needs_airflow
def test_the_loop_builds_trains_exports_scores_and_trains_again(said: list[Any]) -> None:
    whole, same, one, nowhere = said[2]
    assert list(whole.values()) == [
        "wenlan-data build /specs/best.yaml --out /b/best-2026-01-19 --store /store --snapshot 2026-01-19 --json",
        "wenlan-train fit --recipe tiny --data /b/best-2026-01-19/shards/manifest.json "
        "--out /runs/scorer-best-2026-01-19 --set run.epochs=1 --workers 2 --json",
        "wenlan-train export /runs/scorer-best-2026-01-19 --to onnx --out /towers/best --json",
        "wenlan-data build /specs/all.yaml --out /b/all-2026-01-19 --store /store --snapshot 2026-01-19 --json",
        "wenlan-train fit --recipe starter --data /b/all-2026-01-19/shards/manifest.json "
        "--out /runs/starter-all-2026-01-19 --workers 2 --json",
    ]
    for program, *words in map(shlex.split, whole.values()):  # as the command lines of the cluster read them
        assert (data_parser() if program == "wenlan-data" else train_parser()).parse_args(words).json is True
    assert same["scorer"].startswith("wenlan-train fit --recipe starter ")
    assert "strict_spec and spec are the same file" in one
    assert "parameter towers is empty" in nowhere
