"""Lets the model improve the data, and the data the model: Data Filtering Networks (arXiv 2309.17425) in five Ray jobs.

    strict   wenlan-data build STRICT_SPEC           little, and well chosen: by its filters, or by its sources
    scorer   wenlan-train fit on that                a small recipe will do
    export   wenlan-train export --to onnx           TOWERS.image.onnx, TOWERS.text.onnx
    build    wenlan-data build SPEC                  scores every pair by these towers, and keeps a share
    fit      wenlan-train fit on what was kept

The second spec says what is kept, and is all that ties the two halves together:

    pair_score: {image: TOWERS.image.onnx, text: TOWERS.text.onnx}
    filters: [..., {name: pair_score, top_share: 0.7}]

Both specs read the same sources into one STORE, so that nothing is fetched twice, under two names, so that neither
deduplicates against the other. Each job goes on where it ended, and does nothing if it is done. Another round: start
the DAG with the second spec as `strict_spec`, other TOWERS, and a third spec that names them.

A model that has seen a pair many times knows it by heart, a wrong caption too, and scores it high. So the strict subset
is little, and its model is trained for few epochs (`scorer_set`); what is scored is mostly what it has not seen. On
emoji with 30% of their captions shuffled, scored with folds (5 seeds), held-out R@1 was 16.3 after the loop, 13.7 on
all pairs and 17.8 on the correct ones (revision 1ee10270, tests/benchmarks/study/loop.py).

It runs without a schedule: it is started by hand, on Airflow's page or by `airflow dags trigger data_loop --conf JSON`.
Environment variables (defaults of the run's parameters): WENLAN_STRICT_SPEC, WENLAN_SPEC, WENLAN_STORE,
WENLAN_OUT_ROOT, WENLAN_RUN_ROOT, WENLAN_TOWERS, WENLAN_RECIPE, WENLAN_SCORER_RECIPE, WENLAN_SCORER_SET, WENLAN_SET,
WENLAN_TRAIN_WORKERS, WENLAN_RUNTIME_ENV. Paths are as the cluster's nodes see them.
"""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath
from typing import Any

from airflow.sdk import dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException
from ray_tasks import RUNTIME_ENV, numeric, param, ray_job, run_params

PARAMS = {
    "strict_spec": param("strict_spec", "spec of the strictest subset, on the cluster"),
    "spec": param("spec", "spec of all pairs, on the cluster, with the section and the filter pair_score using TOWERS"),
    "store": param("store", "STORE, the folder that all builds share"),
    "out_root": param("out_root", "folder of the builds"),
    "run_root": param("run_root", "folder of the runs"),
    "towers": param("towers", "path of the towers in the second spec, without .image.onnx and .text.onnx"),
    "recipe": param("recipe", "a recipe of wenlan-train"),
    "scorer_recipe": param("scorer_recipe", "recipe of the scoring model; if empty, the same recipe"),
    "scorer_set": param("scorer_set", "changes to the scorer's recipe, KEY=VALUE, separated by spaces; use few epochs"),
    "set": param("set", "changes to the recipe of the last training, KEY=VALUE"),
    "workers": numeric("TRAIN_WORKERS", 1, minimum=1),
    "runtime_env": RUNTIME_ENV,
}

STEPS = ("strict", "scorer", "export", "build", "fit")


@dag(schedule=None, catchup=False, max_active_runs=1, params=PARAMS, tags=["wenlan"], doc_md=__doc__)
def data_loop() -> None:
    planned = plan()
    before = None
    for step in STEPS:
        done = ray_job.override(group_id=step)(planned[step])
        if before is not None:
            before >> done.operator.task_group
        before = done


@task
def plan() -> dict[str, str]:
    """The commands of the five jobs, from the run's parameters."""
    context: Any = get_current_context()
    params = run_params("strict_spec", "spec", "store", "out_root", "run_root", "towers", "recipe")
    if params["strict_spec"] == params["spec"]:
        raise AirflowFailException(
            "strict_spec and spec are the same file; give a strict spec and one that keeps a share"
        )
    dag_run = context["dag_run"]
    snapshot = (dag_run.logical_date or dag_run.run_after).strftime("%Y-%m-%d")
    runs, towers = params["run_root"].rstrip("/"), params["towers"].removesuffix(".onnx")
    builds = {
        name: f"{params['out_root'].rstrip('/')}/{_folder_name(params[name], snapshot)}"
        for name in ("strict_spec", "spec")
    }
    scorer = f"{runs}/scorer-{_folder_name(params['strict_spec'], snapshot)}"
    model = f"{runs}/{params['recipe']}-{_folder_name(params['spec'], snapshot)}"
    workers = params["workers"]
    export = ["wenlan-train", "export", scorer, "--to", "onnx", "--out", towers]
    return {
        "strict": _build(params["strict_spec"], builds["strict_spec"], params["store"], snapshot),
        "scorer": _fit(
            params["scorer_recipe"] or params["recipe"], builds["strict_spec"], scorer, params["scorer_set"], workers
        ),
        "export": shlex.join([*export, "--json"]),
        "build": _build(params["spec"], builds["spec"], params["store"], snapshot),
        "fit": _fit(params["recipe"], builds["spec"], model, params["set"], workers),
    }


def _folder_name(spec: str, snapshot: str) -> str:
    return f"{PurePosixPath(spec).stem}-{snapshot}"


def _build(spec: str, out: str, store: str, snapshot: str) -> str:
    return shlex.join(["wenlan-data", "build", spec, "--out", out, "--store", store, "--snapshot", snapshot, "--json"])


def _fit(recipe: str, build: str, out: str, settings: str, workers: int) -> str:
    command = ["wenlan-train", "fit", "--recipe", recipe, "--data", f"{build}/shards/manifest.json", "--out", out]
    command += [word for value in settings.split() for word in ("--set", value)]
    return shlex.join([*command, "--workers", str(workers), "--json"])


data_loop()
