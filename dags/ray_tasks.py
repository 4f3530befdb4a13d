"""The Airflow tasks around one Ray job: submit (setup), wait (a rescheduling sensor), stop (teardown). Defines no DAG.

Why a sensor and not a deferrable operator: Airflow's triggerer cannot import from a DAG bundle (apache/airflow#65455),
so a trigger would have to be installed apart from the DAG files. The sensor holds a worker for seconds a poll.

Why setup and teardown: clearing `wait` clears `submit` too, and `stop` runs also where the wait timed out or a person
marked the run failed, so that no job goes on that nobody waits for.

Limits: Airflow clears a task's XComs at each poll, so the place in the log is kept in the task state store (Airflow
3.3); under an older 3.x each poll shows the last lines only, and the last one the whole log.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, Param, PokeReturnValue, get_current_context, task, task_group
from airflow.sdk.exceptions import AirflowFailException
from ray_jobs import Job, JobUnknown, RayJobs, RayJobsRefused, last_object, submission_name, why_it_failed

log = logging.getLogger("airflow.task")

DATASET = Asset("wenlan_dataset")
"""A published dataset. Its event's extra holds: manifest, build_id, snapshot, revision, content_digest."""

RUNTIME_ENV = Param(
    json.loads(os.environ.get("WENLAN_RUNTIME_ENV") or "{}"), type="object", description="Ray's runtime environment"
)
"""Parameter of every DAG here. A scheduled run takes the JSON object in WENLAN_RUNTIME_ENV."""
POLL_S = float(os.environ.get("WENLAN_POLL_S", "30"))
LONGEST = timedelta(days=float(os.environ.get("WENLAN_LONGEST_DAYS", "7")))
RETRIES: dict[str, Any] = {"retries": 5, "retry_delay": timedelta(minutes=1), "retry_exponential_backoff": True}
"""For a cluster that does not answer. A job that failed is not repeated by itself."""
TAIL = 20


@task_group
def ray_job(command: Any, on_failure: Any = "", num_gpus: float = 0) -> Any:
    """One command as one Ray job. Gives the JSON object that the command printed last.

    command: list of words, or the XComArg of one. on_failure: what the failing task says besides the fault. num_gpus:
    what the command itself needs.
    """
    submission_id = submit(command, num_gpus)
    result = wait(submission_id, on_failure)
    ending = stop(submission_id).as_teardown(setups=submission_id, on_failure_fail_dagrun=True)
    result >> ending
    return result


@task(**RETRIES)
def submit(command: list[str], num_gpus: float) -> str:
    """Start the job, or attach to the one that an earlier try of this task started."""
    context = get_current_context()
    try:
        jobs = RayJobs.from_environment()
        job, ours = jobs.attach_or_submit(
            submission_name(context["dag"].dag_id, context["run_id"], context["ti"].task_id),
            shlex.join(command),
            context["params"]["runtime_env"],
            num_gpus,
        )
    except RayJobsRefused as e:
        raise AirflowFailException(str(e)) from None
    did = "submitted" if ours else f"re-attached to ({job.state})"
    log.info("%s Ray job %s at %s: %s", did, job.submission_id, jobs.address, job.entrypoint)
    return job.submission_id


@task.sensor(mode="reschedule", poke_interval=POLL_S, timeout=LONGEST.total_seconds(), **RETRIES)
def wait(submission_id: str, on_failure: str) -> PokeReturnValue:
    """Bring the job's log into the task's log until the job ends; fail if it fails."""
    try:
        jobs = RayJobs.from_environment()
        job = jobs.status(submission_id)  # before the log, so that the log of a job that ended is whole
        logs = jobs.logs(submission_id)
    except JobUnknown as e:
        raise AirflowFailException(f"{e}: was the cluster restarted? Clear this task to submit it again") from None
    except RayJobsRefused as e:
        raise AirflowFailException(str(e)) from None
    _show_new(job, logs)
    if not job.ended:
        return PokeReturnValue(is_done=False)
    if job.state != "SUCCEEDED":
        raise AirflowFailException("\n".join(filter(None, [why_it_failed(job, logs), on_failure])))
    return PokeReturnValue(is_done=True, xcom_value=last_object(logs) or {})


@task(**RETRIES)
def stop(submission_id: str) -> None:
    """End the job if it still runs: the wait timed out, or a person marked the run failed.

    Fails then, and with it the run: Airflow sets what comes after the wait to skipped, and would call that a success.
    """
    try:
        jobs = RayJobs.from_environment()
        job = jobs.status(submission_id)
        stopped = not job.ended and jobs.stop(submission_id)
    except JobUnknown as e:
        log.info("%s: nothing to stop", e)
        return
    except RayJobsRefused as e:
        raise AirflowFailException(str(e)) from None
    if stopped:
        raise AirflowFailException(f"Ray job {submission_id} still ran and was stopped")
    log.info("Ray job %s has ended: %s", submission_id, job.state)


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
