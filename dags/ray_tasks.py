"""The Airflow tasks around one Ray job: submit (setup), wait (a rescheduling sensor), stop (teardown). Defines no DAG.

Why a sensor and not a deferrable operator: Airflow's triggerer cannot import from a DAG bundle (apache/airflow#65455),
so a trigger would have to be installed apart from the DAG files. The sensor holds a worker for seconds a poll.

Why setup and teardown: clearing `wait` clears `submit` too, and `stop` runs also where the wait timed out or a person
marked the run failed, so that no job goes on that nobody waits for.

A job's id is made of DAG, run, task and how often the task was cleared. So a try after a crash (of a worker, the
scheduler, the whole of Airflow) attaches to the job that is there, and a try after a clear ends that job and starts
the next one.

Limits: Airflow clears a task's XComs at each poll, so the place in the log is kept in the task state store (Airflow
3.3); under an older 3.x each poll shows the last lines only, and the last one the whole log.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, BaseOperatorLink, Param, PokeReturnValue, get_current_context, task, task_group
from airflow.sdk.exceptions import AirflowFailException
from ray_jobs import Job, JobUnknown, RayJobs, RayJobsRefused, last_object, submission_id, why_it_failed

log = logging.getLogger("airflow.task")

DATASET = Asset("wenlan_dataset")
"""A published dataset. Its event's extra holds: manifest, build_id, snapshot, revision, content_digest, missed."""

CHECKPOINT = Asset("wenlan_checkpoint")
"""A published checkpoint. Its event's extra holds: checkpoint, manifest, recall (mean of six, on the val split)."""

RUNTIME_ENV = Param(
    json.loads(os.environ.get("WENLAN_RUNTIME_ENV") or "{}"), type="object", description="Ray's runtime environment"
)
"""Parameter of every DAG here. A scheduled run takes the JSON object in WENLAN_RUNTIME_ENV."""
POLL_S = float(os.environ.get("WENLAN_POLL_S", "30"))
LONGEST = timedelta(days=float(os.environ.get("WENLAN_LONGEST_DAYS", "7")))
RETRIES: dict[str, Any] = {"retries": 5, "retry_delay": timedelta(minutes=1), "retry_exponential_backoff": True}
"""For a cluster that does not answer. A job that failed is not repeated by itself."""
TAIL = 20


def param(name: str, description: str, **schema: Any) -> Param:
    """A parameter of text, which a scheduled run takes from WENLAN_<NAME>."""
    return Param(os.environ.get(f"WENLAN_{name.upper()}", ""), type="string", description=description, **schema)


def given(*names: str) -> dict[str, Any]:
    """The run's parameters. Fails the task if one of `names` is empty."""
    params: dict[str, Any] = get_current_context()["params"]
    for name in names:
        if not params[name]:
            raise AirflowFailException(f"parameter {name} is empty: set WENLAN_{name.upper()} or give it to the run")
    return params


class _Report(BaseOperatorLink):
    """A button on the task's page, which opens what the job is about."""

    name = "Quality report"
    xcom_key = "quality_report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        link = operator.op_kwargs.get("link", "")
        return link if isinstance(link, str) else ""


@task_group
def ray_job(command: Any, link: Any = "", num_gpus: float = 0) -> Any:
    """One shell command as one Ray job. Gives the JSON object that the command printed last.

    command: the command, or the XComArg of one. link: what the failing task says besides the fault, and where its
    button leads. num_gpus: what the command itself needs.
    """
    job = submit(command, num_gpus)
    result = wait(job=job, link=link)
    result.operator.operator_extra_links = (_Report(),)
    ending = stop(job).as_teardown(setups=job, on_failure_fail_dagrun=True)
    result >> ending
    return result


@task(**RETRIES)
def submit(command: str, num_gpus: float) -> str:
    """Start the job, or attach to the one that an earlier try of this task started. Gives its submission id."""
    context = get_current_context()
    ti: Any = context["ti"]
    name = (context["dag"].dag_id, context["run_id"], ti.task_id)
    cleared_at = ti.max_tries - (ti.task.retries or 0)  # tries there had been when the task was last cleared
    try:
        jobs = RayJobs.from_environment()
        for earlier in range(cleared_at):
            if jobs.end(_id_of(name, earlier)):
                log.info("this task was cleared: Ray job %s was stopped", _id_of(name, earlier))
        job, ours = jobs.attach_or_submit(_id_of(name, cleared_at), command, context["params"]["runtime_env"], num_gpus)
    except RayJobsRefused as e:
        raise AirflowFailException(str(e)) from None
    did = "submitted" if ours else f"re-attached to ({job.state})"
    log.info("%s Ray job %s at %s: %s", did, job.submission_id, jobs.address, job.entrypoint)
    return job.submission_id


def _id_of(name: tuple[str, ...], cleared_at: int) -> str:
    return f"{submission_id(*name)}-{cleared_at}"


@task.sensor(mode="reschedule", poke_interval=POLL_S, timeout=LONGEST.total_seconds(), **RETRIES)
def wait(job: str, link: str) -> PokeReturnValue:
    """Bring the job's log into the task's log until the job ends; fail if it fails."""
    try:
        jobs = RayJobs.from_environment()
        found = jobs.status(job)  # before the log, so that the log of a job that ended is whole
        logs = jobs.logs(job)
    except JobUnknown as e:
        raise AirflowFailException(f"{e}: was the cluster restarted? Clear this task to submit it again") from None
    except RayJobsRefused as e:
        raise AirflowFailException(str(e)) from None
    _show_new(found, logs)
    if not found.ended:
        return PokeReturnValue(is_done=False)
    if found.state != "SUCCEEDED":
        what, *why = why_it_failed(found, logs).splitlines()
        raise AirflowFailException("\n".join([what, *filter(None, [link]), *why]))
    return PokeReturnValue(is_done=True, xcom_value=last_object(logs) or {})


@task(**RETRIES)
def stop(job: str) -> None:
    """End the job if it still runs: the wait timed out, or a person marked the run failed.

    Fails then, and with it the run: Airflow sets what comes after the wait to skipped, and would call that a success.
    """
    try:
        jobs = RayJobs.from_environment()
        stopped = jobs.end(job)
    except RayJobsRefused as e:
        raise AirflowFailException(str(e)) from None
    if stopped:
        raise AirflowFailException(f"Ray job {job} still ran and was stopped")
    log.info("Ray job %s has ended", job)


def _show_new(job: Job, logs: str) -> None:
    """Log the whole lines that were not logged by an earlier poll."""
    store: Any = get_current_context().get("task_state_store")
    key = f"logged-{job.submission_id}"
    lines = logs.splitlines() if job.ended else logs[: logs.rfind("\n") + 1].splitlines()
    begin = int(store.get(key, 0)) if store is not None else 0 if job.ended else max(0, len(lines) - TAIL)
    for line in lines[begin:]:
        log.info("%s", line)
    if store is not None:
        store.set(key, len(lines))
