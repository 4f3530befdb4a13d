"""Build a dataset on schedule, publish it if its gates hold, and tell those who wait for it by an asset event.

Two Ray jobs: `build` runs every stage up to the quality report (its log shows how far it is), `publish` is the same
command without a stop, which finds all of that done and asks the gates. So a red `publish` is a gate, with the report
behind the task's button, and nothing is published; a red `build` is a fault.

A crawl cannot visit the past. A missed interval is not made up for (catchup=False) but said: the run after it logs it
and the asset event carries it as `missed`. A backfill works from stored captures only and fails where there are none.
Two scheduled builds never write at once (max_active_runs=1). The snapshot is the day on which the data interval ends,
of a run by hand its logical date; hence at most one build a day: a second run on that day goes on with the same build,
and does nothing where it is done.

Settings of the environment (defaults of the run's parameters, which a scheduled run takes): WENLAN_SPEC, WENLAN_STORE,
WENLAN_OUT_ROOT, all as the cluster's nodes see them; WENLAN_REPORT_URL, under which a browser finds WENLAN_OUT_ROOT;
WENLAN_RUNTIME_ENV, Ray's runtime environment as a JSON object; and WENLAN_SCHEDULE, a cron expression (UTC). The
cluster: `ray_jobs.py`.
"""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import PurePosixPath
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from ray_tasks import DATASET, RUNTIME_ENV, given, param, ray_job

log = logging.getLogger("airflow.task")

PARAMS = {
    "spec": param("spec", "spec file, on the cluster"),
    "store": param("store", "what outlives builds"),
    "out_root": param("out_root", "where builds are made"),
    "report_url": param("report_url", "where a browser finds out_root; empty: the report's path is shown"),
    "runtime_env": RUNTIME_ENV,
}


@dag(
    schedule=CronDataIntervalTimetable(os.environ.get("WENLAN_SCHEDULE", "0 3 * * 1"), timezone="UTC"),
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
    """The commands, from the run's parameters and its data interval."""
    context: Any = get_current_context()
    params = given("spec", "store", "out_root")
    dag_run = context["dag_run"]
    by_hand = dag_run.run_type == "manual"  # then it is the day for which the person asked, today if no other was said
    moment = (dag_run.logical_date if by_hand else dag_run.data_interval_end) or dag_run.run_after
    snapshot = moment.strftime("%Y-%m-%d")
    name = f"{PurePosixPath(params['spec']).stem}-{snapshot}"
    out = f"{params['out_root'].rstrip('/')}/{name}"
    command = ["wenlan-data", "build", params["spec"], "--out", out, "--store", params["store"]]
    command += ["--snapshot", snapshot, "--json"]
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
    """The time between the data interval of the run before and that of this one: no run saw it, and none will."""
    dag_run = context["dag_run"]
    if dag_run.run_type != "scheduled":
        return None
    before = context["ti"].get_previous_dagrun()
    if before is None or before.data_interval_end is None or before.data_interval_end >= dag_run.data_interval_start:
        return None
    span = {"from": before.data_interval_end.isoformat(), "to": dag_run.data_interval_start.isoformat()}
    log.warning("missed: no build was scheduled from %s to %s; it stays missed", span["from"], span["to"])
    return span


@task(outlets=[DATASET])
def announce(planned: dict[str, Any], result: dict[str, Any]) -> None:
    """Emit the asset event that starts `pretrain`; skipped if the spec wants a person to publish."""
    if "published" not in result:
        raise AirflowFailException("the job succeeded, but printed no result of wenlan-data build; see publish.wait")
    if not result["published"]:
        raise AirflowSkipException(
            f"a person publishes this one: wenlan-data publish {planned['out']}; then clear publish.wait"
        )
    told = {name: result[name] for name in ("manifest", "build_id", "revision", "content_digest")}
    told |= {"snapshot": planned["snapshot"], "missed": planned["missed"]}
    get_current_context()["outlet_events"][DATASET].extra = told


dataset_build()
