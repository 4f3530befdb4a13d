"""The DAGs in a real Airflow that has none of our packages: they import, and have the tasks and edges they must have.

Skipped where `make dags-venv` has not been run. That they import neither Ray nor our packages is also read from their
import statements, without Airflow, by tests/test_architecture.py.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-dags" / "bin" / "python"
FILES = sorted((ROOT / "dags").glob("*.py"))

needs_airflow = pytest.mark.skipif(not PYTHON.exists(), reason="no Airflow here: run `make dags-venv` first")

DESCRIBE = """
import json, sys
sys.path.append(sys.argv[1])
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(dag_folder=sys.argv[1])
def describe(dag):
    tasks = {t.task_id: sorted(t.downstream_task_ids) for t in dag.tasks}
    kinds = {t.task_id: "setup" if t.is_setup else "teardown" if t.is_teardown else "" for t in dag.tasks}
    outlets = {t.task_id: [a.name for a in t.outlets] for t in dag.tasks if t.outlets}
    reschedule = [t.task_id for t in dag.tasks if getattr(t, "mode", "") == "reschedule"]
    return {"tasks": tasks, "kinds": kinds, "outlets": outlets, "reschedule": reschedule, "catchup": dag.catchup,
            "max_active_runs": dag.max_active_runs, "timetable": type(dag.timetable).__name__,
            "params": {k: dag.params[k] for k in dag.params}}
import importlib.util
print(json.dumps({"errors": {k: v.splitlines()[-1] for k, v in bag.import_errors.items()},
                  "dags": {i: describe(d) for i, d in bag.dags.items()},
                  "ours": [m for m in ("ray", "pipeline", "training", "data_specs") if importlib.util.find_spec(m)]}))
"""


def _in_airflow(tmp_path: Path, code: str, *arguments: str) -> Any:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "WENLAN", "RAY_", "PYTHON"))}
    environment |= {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    environment |= {"WENLAN_SPEC": "s3://specs/news.yaml", "WENLAN_STORE": "s3://store", "WENLAN_OUT_ROOT": "s3://b/"}
    environment |= {"AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
    command = [str(PYTHON), "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


def test_dag_files_import_the_standard_library_airflow_and_each_other_only() -> None:
    allowed = {"airflow", *(p.stem for p in FILES), *sys.stdlib_module_names}
    assert len(FILES) >= 4
    assert {p.name: _imported(p) - allowed for p in FILES if _imported(p) - allowed} == {}
    assert "airflow" not in _imported(ROOT / "dags" / "ray_jobs.py")


@needs_airflow
def test_every_dag_imports_and_has_its_graph(tmp_path: Path) -> None:
    found = _in_airflow(tmp_path, DESCRIBE, str(ROOT / "dags"))
    assert found["errors"] == {}
    assert found["ours"] == []
    assert set(found["dags"]) == {"dataset_build", "pretrain"}
    build, pretrain = found["dags"]["dataset_build"], found["dags"]["pretrain"]
    assert build["tasks"] == {
        "plan": ["announce", "ray_job.submit", "ray_job.wait"],
        "ray_job.submit": ["ray_job.stop", "ray_job.wait"],
        "ray_job.wait": ["announce", "ray_job.stop"],
        "ray_job.stop": [],
        "announce": [],
    }
    assert build["kinds"] | {"ray_job.submit": "setup", "ray_job.stop": "teardown"} == build["kinds"]
    assert build["outlets"] == {"announce": ["wenlan_dataset"]}
    assert build["reschedule"] == ["ray_job.wait"]
    assert build["params"]["spec"] == "s3://specs/news.yaml"
    assert (build["catchup"], build["max_active_runs"]) == (False, 1)
    assert (pretrain["catchup"], pretrain["max_active_runs"]) == (False, 1)
    assert pretrain["timetable"] == "AssetTriggeredTimetable"
    assert "evaluation" in pretrain["tasks"]["fit.wait"]
    assert pretrain["tasks"]["evaluation"] == ["evaluate.submit"]


PLAN = """
import json, sys, datetime, types
sys.path.append(sys.argv[1])
import dataset_build, pretrain
context = {"params": {"spec": "s3://specs/news.yaml", "store": "s3://store", "out_root": "s3://b/", "recipe": "demo",
                      "run_root": "/runs", "init": "", "workers": 2, "manifest": ""},
           "data_interval_end": datetime.datetime(2026, 1, 5, 3),
           "triggering_asset_events": {"wenlan_dataset": [
               types.SimpleNamespace(timestamp=2, extra={"manifest": "/b/new/shards/manifest.json", "build_id": "new"}),
               types.SimpleNamespace(timestamp=1, extra={"manifest": "/b/old/shards/manifest.json"})]}}
for module in (dataset_build, pretrain):
    module.get_current_context = lambda: context
build, fit = dataset_build.plan.function(), pretrain.plan.function()
context["params"]["manifest"] = "/b/given/shards/manifest.json"
by_hand = pretrain.plan.function()
evaluation = pretrain.evaluation.function("/m.json", {"checkpoint": "/runs/c"})
def fault(f):
    try: f()
    except Exception as e: return f"{type(e).__name__}: {e}"
context["params"] |= {"store": "", "recipe": ""}
faults = [fault(dataset_build.plan.function), fault(pretrain.plan.function),
          fault(lambda: dataset_build.announce.function(build, {})),
          fault(lambda: dataset_build.announce.function(build, {"published": False}))]
print(json.dumps([build, fit, by_hand, evaluation, faults]))
"""


@needs_airflow
def test_what_the_dags_run(tmp_path: Path) -> None:
    build, fit, by_hand, evaluation, faults = _in_airflow(tmp_path, PLAN, str(ROOT / "dags"))
    out = "s3://b/news-2026-01-05"
    said = f"wenlan-data build s3://specs/news.yaml --out {out} --store s3://store --snapshot 2026-01-05 --json"
    assert " ".join(build["command"]) == said
    assert f"{out}/report/index.html" in build["on_failure"]
    new = "/b/new/shards/manifest.json"
    said = f"wenlan-train fit --recipe demo --data {new} --out /runs/demo-new --workers 2 --json"
    assert " ".join(fit["fit"]) == said
    assert "/runs/demo-given" in by_hand["fit"]
    assert " ".join(evaluation) == "wenlan-train eval /runs/c --data /m.json --task retrieval --json"
    assert [f.split(":")[0] for f in faults] == [*["AirflowFailException"] * 3, "AirflowSkipException"]
    assert "set WENLAN_STORE" in faults[0]
    assert f"wenlan-data publish {out}" in faults[3]
