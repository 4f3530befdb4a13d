"""The Airflow tasks around one Ray job: submit (setup), wait (a sensor), stop (teardown). Defines no DAG.

Why a sensor and not a deferrable operator: Airflow's triggerer cannot import from a DAG bundle (apache/airflow#65455),
so a trigger would have to be installed apart from the DAG files. With polls a minute or more apart the sensor gives its
worker back between two of them; with shorter ones it keeps it (RESCHEDULED_FROM_S says why).

Why setup and teardown: clearing `wait` also clears `submit`, and `stop` also runs if the wait timed out or a person
marked the run failed. So no job keeps running without a task that waits for it.

A job's id is made of the DAG, the run, the task and the number of tries before its last clear. So a try after a crash
(of a worker, the scheduler or all of Airflow) attaches to the existing job, and a try after a clear stops that job and
starts a new one.

Limits: Airflow clears a task's XComs at each poll, so the position in the log is kept in the task state store (Airflow
3.3). Under an older 3.x each poll shows only the last lines, and the last poll the whole log.
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
"""A release of a dataset. The extra of its event: dataset, release, release_manifest (which never changes), samples (of
the release, by split); of the build that made it: manifest, build_id, snapshot, revision, content_digest, new_samples
(by split), missed."""

CHECKPOINT = Asset("wenlan_checkpoint")
"""A published checkpoint. The extra of its event: checkpoint, manifest (the data's), run (its folder), init (where it
began, "" for the recipe's weights), recall (mean of six, on the val split of that data)."""


def setting(name: str, default: str) -> str:
    """The environment variable WENLAN_<name>; the default where it is unset, or set and empty."""
    return os.environ.get(f"WENLAN_{name}") or default


RUNTIME_ENV = Param(json.loads(setting("RUNTIME_ENV", "{}")), type="object", description="Ray's runtime environment")
"""Parameter of every DAG. A scheduled run uses the JSON object in WENLAN_RUNTIME_ENV."""
POLL_S = float(setting("POLL_S", "60"))
"""Seconds between two polls of a job."""
RESCHEDULED_FROM_S = 60.0
"""Seconds between two polls from which the sensor is rescheduled; below, it keeps its worker and sleeps.

The scheduler fails a rescheduled sensor when the executor reports the end of one poll after the next one was queued
("finished with state success, but the task instance's state attribute is queued": apache/airflow#71172). The report
comes seconds after the end, so polls a few seconds apart lose a retry nearly every time."""
LONGEST = timedelta(days=float(setting("LONGEST_DAYS", "7")))
"""Time after which a job is stopped."""
RETRIES: dict[str, Any] = {"retries": 5, "retry_delay": timedelta(minutes=1), "retry_exponential_backoff": True}
"""For a cluster that does not answer. A job that failed is not repeated automatically."""
TAIL = 20
"""Lines of the log that each poll shows without a task state store."""


def param(name: str, description: str, **schema: Any) -> Param:
    """A text parameter; a scheduled run takes its value from WENLAN_<NAME>."""
    return Param(os.environ.get(f"WENLAN_{name.upper()}", ""), type="string", description=description, **schema)


def numeric(variable: str, default: float, description: str | None = None, **bounds: float) -> Param:
    """A parameter of the kind of its default, whole or not; a scheduled run takes it from WENLAN_<variable>."""
    value = type(default)(setting(variable, str(default)))
    kind = "integer" if isinstance(default, int) else "number"
    return Param(value, type=kind, description=description, **bounds)


def run_params(*required: str) -> dict[str, Any]:
    """The parameters of the run. Fails the task if a required one is empty."""
    params: dict[str, Any] = get_current_context()["params"]
    for name in required:
        if not params[name]:
            raise AirflowFailException(
                f"parameter {name} is empty: set WENLAN_{name.upper()}, or the parameter of the run"
            )
    return params


class _Report(BaseOperatorLink):
    """A button on the task's page that opens the quality report."""

    name = "Quality report"
    xcom_key = "quality_report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        link = operator.op_kwargs.get("link", "")
        return link if isinstance(link, str) else ""


@task_group
def ray_job(command: Any, link: Any = "", num_gpus: float = 0) -> Any:
    """Run one shell command as one Ray job; returns the JSON object that the command printed last.

    command: the command, or the XComArg of one. link: shown with the fault if the job fails, and the target of the
    task's button. num_gpus: GPUs of the command itself.
    """
    job = submit(command, num_gpus)
    result = wait(job=job, link=link)
    result.operator.operator_extra_links = (_Report(),)
    ending = stop(job).as_teardown(setups=job, on_failure_fail_dagrun=True)
    result >> ending
    return result


@task(**RETRIES)
def submit(command: str, num_gpus: float) -> str:
    """Start the job, or attach to the one that an earlier try of this task started; returns its submission id."""
    context = get_current_context()
    ti: Any = context["ti"]
    name = (context["dag"].dag_id, context["run_id"], ti.task_id)
    cleared_at = ti.max_tries - (ti.task.retries or 0)  # a clear sets max_tries to the tries so far plus the retries
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


@task.sensor(
    mode="reschedule" if POLL_S >= RESCHEDULED_FROM_S else "poke",
    poke_interval=POLL_S,
    timeout=LONGEST.total_seconds(),
    **RETRIES,
)
def wait(job: str, link: str) -> PokeReturnValue:
    """Copy the job's log to the task's log until the job ends; fails if the job fails."""
    try:
        jobs = RayJobs.from_environment()
        state = jobs.status(job)  # before the log, so that the log of a job that has ended is complete
        logs = jobs.logs(job)
    except JobUnknown as e:
        raise AirflowFailException(f"{e}: was the cluster restarted? Clear this task to submit it again") from None
    except RayJobsRefused as e:
        raise AirflowFailException(str(e)) from None
    _show_new(state, logs)
    if not state.ended:
        return PokeReturnValue(is_done=False)
    if state.state != "SUCCEEDED":
        what, *why = why_it_failed(state, logs).splitlines()
        raise AirflowFailException("\n".join([what, *filter(None, [link]), *why]))
    return PokeReturnValue(is_done=True, xcom_value=last_object(logs) or {})


@task(**RETRIES)
def stop(job: str) -> None:
    """Stop the job if it is still running, because the wait timed out or a person marked the run failed.

    In that case the task fails, and with it the run: Airflow skips the tasks after the wait, and would call the run a
    success.
    """
    try:
        jobs = RayJobs.from_environment()
        stopped = jobs.end(job)
    except RayJobsRefused as e:
        raise AirflowFailException(str(e)) from None
    if stopped:
        raise AirflowFailException(f"Ray job {job} was still running and was stopped")
    log.info("Ray job %s has ended", job)


def _show_new(job: Job, logs: str) -> None:
    """Log the complete lines that no earlier poll has logged."""
    store: Any = get_current_context().get("task_state_store")
    key = f"logged-{job.submission_id}"
    lines = logs.splitlines() if job.ended else logs[: logs.rfind("\n") + 1].splitlines()
    begin = int(store.get(key, 0)) if store is not None else 0 if job.ended else max(0, len(lines) - TAIL)
    for line in lines[begin:]:
        log.info("%s", line)
    if store is not None:
        store.set(key, len(lines))
