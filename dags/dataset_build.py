"""Lets a dataset grow on schedule: builds, publishes the next release if the gates pass, and announces it by an event.

It submits two Ray jobs. `build` runs every stage up to the quality report; its log shows the progress. `publish` is the
same command without a stop: it finds the stages done and checks the gates. So a failed `publish` is a gate: nothing is
published, and the task's button opens the report. A failed `build` is a fault. When all gates hold and nothing was kept
that the dataset did not hold, no release is made: `announce` is skipped, the run is a success, and no event starts
anything. To be notified of that, set the gate `min_new` in the spec.

A crawl cannot visit the past, so a missed interval is not made up for (catchup=False) but reported: the next run logs
it, and the asset event carries it as `missed`. A backfill works from stored captures only, and fails without them.
Two scheduled builds never write at the same time (max_active_runs=1). The snapshot is the day on which the data
interval ends, or for a manual run its logical date. So there is at most one build per day: a second run on the same day
continues that build, and does nothing if it is done.

Environment variables (defaults of the run's parameters, which a scheduled run uses): WENLAN_SPEC, WENLAN_STORE and
WENLAN_OUT_ROOT, all as the cluster's nodes see them; WENLAN_REPORT_URL, the URL of WENLAN_OUT_ROOT for a browser;
WENLAN_RUNTIME_ENV, Ray's runtime environment as a JSON object; and WENLAN_SCHEDULE, a cron expression (UTC). For the
variables of the cluster see `ray_jobs.py`.
"""

from __future__ import annotations

import logging
import shlex
from pathlib import PurePosixPath
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, Param, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from ray_tasks import DATASET, RUNTIME_ENV, param, ray_job, run_params, setting

log = logging.getLogger("airflow.task")

PARAMS = {
    "spec": param("spec", "spec file, on the cluster"),
    "store": param("store", "STORE, the folder that all builds share"),
    "out_root": param("out_root", "folder of the builds"),
    "generation": Param(
        "",
        type="string",
        enum=["", "new"],
        description="new: rebuild the whole dataset from stored captures and images, as its next generation",
    ),
    "report_url": param("report_url", "URL of out_root for a browser; if empty, the report's path is shown"),
    "runtime_env": RUNTIME_ENV,
}


@dag(
    schedule=CronDataIntervalTimetable(setting("SCHEDULE", "0 3 * * 1"), timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    params=PARAMS,
    tags=["wenlan"],
    doc_md=__doc__,
)
def dataset_build() -> None:
    planned = plan()
    built = ray_job.override(group_id="build")(planned["build"], planned["report"])
    published = ray_job.override(group_id="publish")(planned["publish"], planned["report"])
    built >> published.operator.task_group
    announce(planned, published)


@task
def plan() -> dict[str, Any]:
    """The commands of the jobs, from the run's parameters and its data interval."""
    context: Any = get_current_context()
    params = run_params("spec", "store", "out_root")
    dag_run = context["dag_run"]
    manual = dag_run.run_type == "manual"  # its logical date is the day asked for, which is today by default
    moment = (dag_run.logical_date if manual else dag_run.data_interval_end) or dag_run.run_after
    snapshot = moment.strftime("%Y-%m-%d")
    name = f"{PurePosixPath(params['spec']).stem}-{snapshot}"
    out = f"{params['out_root'].rstrip('/')}/{name}"
    command = ["wenlan-data", "build", params["spec"], "--out", out, "--store", params["store"]]
    command += ["--snapshot", snapshot, "--json"]
    if params["generation"]:
        command += ["--generation", params["generation"]]
    if dag_run.run_type == "backfill":
        command.append("--no-crawl")
    return {
        "build": shlex.join([*command, "--until", "report"]),
        "publish": shlex.join(command),
        "snapshot": snapshot,
        "out": out,
        "report": f"{params['report_url'].rstrip('/') + '/' + name if params['report_url'] else out}/report/index.html",
        "missed": missed(context),
    }


def missed(context: Any) -> dict[str, str] | None:
    """The time between the data interval of the previous run and that of this one, which no run covered; or None."""
    dag_run = context["dag_run"]
    if dag_run.run_type != "scheduled":
        return None
    before = context["ti"].get_previous_dagrun()
    if before is None or before.data_interval_end is None or before.data_interval_end >= dag_run.data_interval_start:
        return None
    span = {"from": before.data_interval_end.isoformat(), "to": dag_run.data_interval_start.isoformat()}
    log.warning("missed: no build ran for %s to %s, and this cannot be caught up", span["from"], span["to"])
    return span


@task(outlets=[DATASET])
def announce(planned: dict[str, Any], result: dict[str, Any]) -> None:
    """Emit the asset event that starts `pretrain`; skipped if nothing was new, or if the spec requires approval."""
    if "published" not in result:
        raise AirflowFailException("the job succeeded, but printed no result of wenlan-data build; see publish.wait")
    if result.get("nothing_new"):
        raise AirflowSkipException(
            "nothing new: the dataset already contains everything that was kept, so there is nothing new to train on"
        )
    if not result["published"]:
        raise AirflowSkipException(
            f"the spec requires manual approval: run wenlan-data publish {planned['out']}, then clear publish.wait"
        )
    extra = {name: result[name] for name in ("manifest", "build_id", "revision", "content_digest")}
    extra |= {name: result[name] for name in ("dataset", "release", "release_manifest")}
    extra |= {"samples": result["dataset_samples"], "new_samples": result["samples"]}
    extra |= {"snapshot": planned["snapshot"], "missed": planned["missed"]}
    get_current_context()["outlet_events"][DATASET].extra = extra


dataset_build()
