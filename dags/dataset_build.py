"""Build a dataset on schedule: one `wenlan-data build` as one Ray job, and an asset event when it is published.

A crawl cannot visit the past: a missed interval is not made up for (catchup=False), and two builds never write at once
(max_active_runs=1). The snapshot is the day on which the data interval ends, hence at most one build a day: a second
run on that day goes on with the same build, and does nothing where it is done.

Settings of the environment (defaults of the run's parameters, which a scheduled run takes): WENLAN_SPEC, WENLAN_STORE,
WENLAN_OUT_ROOT, all as the cluster's nodes see them; WENLAN_RUNTIME_ENV, Ray's runtime environment as a
JSON object; and WENLAN_SCHEDULE, a cron expression. The cluster: `ray_jobs.py`.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from ray_tasks import DATASET, RUNTIME_ENV, ray_job

PARAMS = {
    "spec": Param(os.environ.get("WENLAN_SPEC", ""), type="string", description="spec file, on the cluster"),
    "store": Param(os.environ.get("WENLAN_STORE", ""), type="string", description="what outlives builds"),
    "out_root": Param(os.environ.get("WENLAN_OUT_ROOT", ""), type="string", description="where builds are made"),
    "runtime_env": RUNTIME_ENV,
}


@dag(
    schedule=os.environ.get("WENLAN_SCHEDULE", "0 3 * * 1"),
    catchup=False,
    max_active_runs=1,
    params=PARAMS,
    tags=["wenlan"],
    doc_md=__doc__,
)
def dataset_build() -> None:
    planned = plan()
    result = ray_job(planned["command"], planned["on_failure"])
    announce(planned, result)


@task
def plan() -> dict[str, Any]:
    """The command, from the run's parameters and its data interval."""
    context = get_current_context()
    params = context["params"]
    for name in ("spec", "store", "out_root"):
        if not params[name]:
            raise AirflowFailException(f"parameter {name} is empty: set WENLAN_{name.upper()} or give it to the run")
    moment = context.get("data_interval_end") or context["dag_run"].run_after
    snapshot = moment.strftime("%Y-%m-%d")
    out = f"{params['out_root'].rstrip('/')}/{PurePosixPath(params['spec']).stem}-{snapshot}"
    command = ["wenlan-data", "build", params["spec"], "--out", out, "--store", params["store"]]
    return {
        "command": [*command, "--snapshot", snapshot, "--json"],
        "snapshot": snapshot,
        "out": out,
        "on_failure": f"the quality report, if the build came that far: {out}/report/index.html",
    }


@task(outlets=[DATASET])
def announce(planned: dict[str, Any], result: dict[str, Any]) -> None:
    """Emit the asset event that starts `pretrain`; skipped if the spec wants a person to publish."""
    if "published" not in result:
        raise AirflowFailException("the job succeeded, but printed no result of wenlan-data build; see the log of wait")
    if not result["published"]:
        raise AirflowSkipException(f"a person publishes this one: wenlan-data publish {planned['out']}")
    told = {name: result[name] for name in ("manifest", "build_id", "revision", "content_digest")}
    get_current_context()["outlet_events"][DATASET].extra = {**told, "snapshot": planned["snapshot"]}


dataset_build()
