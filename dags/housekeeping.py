"""Applies takedowns, expires old builds and prunes caches, on schedule. Each is a Ray job of its own.

Takedowns come first: `wenlan-data forget` for every line of the list, over all builds that STORE knows. Repeating a
takedown changes nothing, so lines may stay in the list, and they may name what no build has yet. It is a text file that
Airflow's workers can read, with one takedown per line:

    url https://example.org/a.jpg        domain example.org        sha256 9f86d0...        like /path/of/a/picture.jpg

Then follow `wenlan-data gc --keep N --keep-releases R`, for builds, releases and their files (a build that a kept
release needs is kept), and `wenlan-data regions prune --before DATE`, for the boxes of detectors that no build has used
for `keep_region_days`. If a takedown fails, the others are carried out, and the other jobs do not run, so that the
failure is noticed.

Environment variables (defaults of the run's parameters): WENLAN_STORE, WENLAN_TAKEDOWNS (the list),
WENLAN_KEEP_BUILDS (of each dataset; 8), WENLAN_KEEP_RELEASES (of each dataset; 26: half a year of weeks),
WENLAN_KEEP_REGION_DAYS (180), WENLAN_RUNTIME_ENV; and WENLAN_HOUSEKEEPING_SCHEDULE, a cron expression (UTC).
"""

from __future__ import annotations

import itertools
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import CronTriggerTimetable, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException
from ray_tasks import RUNTIME_ENV, numeric, param, ray_job, run_params, setting

KINDS = ("url", "domain", "sha256", "like")
"""Kinds of takedowns, which are options of `wenlan-data forget`."""
LONGEST = 128_000
"""Bytes of the command of a job at most: Ray hands them to `sh -c` as one argument, of which Linux takes 131,071."""

PARAMS = {
    "store": param("store", "STORE, the folder that all builds share"),
    "takedowns": param("takedowns", "path of the list of takedowns on Airflow's workers; empty: no takedowns"),
    "keep_builds": numeric("KEEP_BUILDS", 8, "builds of each dataset to keep whole", minimum=1),
    "keep_releases": numeric(
        "KEEP_RELEASES", 26, "releases of each dataset to keep, with the builds that they list", minimum=1
    ),
    "keep_region_days": numeric(
        "KEEP_REGION_DAYS", 180, "days to keep the boxes of a detector that no build uses any more", minimum=1
    ),
    "runtime_env": RUNTIME_ENV,
}


@dag(
    schedule=CronTriggerTimetable(setting("HOUSEKEEPING_SCHEDULE", "0 1 * * *"), timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    params=PARAMS,
    tags=["wenlan"],
    doc_md=__doc__,
)
def housekeeping() -> None:
    planned = plan()
    steps = [ray_job.override(group_id=name)(planned[name]) for name in ("takedowns", "expire", "prune")]
    for before, after in itertools.pairwise(steps):
        before >> after.operator.task_group


@task
def plan() -> dict[str, Any]:
    """The three commands, from the run's parameters and the list of takedowns as it is now."""
    params = run_params("store")
    store = shlex.quote(params["store"])
    before = get_current_context()["dag_run"].run_after - timedelta(days=params["keep_region_days"])
    options = [f"--{kind} {shlex.quote(value)}" for kind, value in takedowns(params["takedowns"])]
    forget = f"wenlan-data forget --store {store} {' '.join(options)} --missing-ok --json" if options else ""
    if (size := len(forget.encode())) > LONGEST:
        raise AirflowFailException(
            f"takedowns: {params['takedowns']}: its {len(options):,} takedowns make a command of {size:,} bytes, a job "
            f"takes at most {LONGEST:,}; remove lines that an earlier run has applied: STORE keeps them"
        )
    return {
        "takedowns": forget or "echo the list of takedowns is empty",
        "expire": f"wenlan-data gc --store {store} --keep {params['keep_builds']} "
        f"--keep-releases {params['keep_releases']} --json",
        "prune": f"wenlan-data regions prune --store {store} --before {before:%Y-%m-%d} --json",
    }


def takedowns(path: str) -> list[tuple[str, str]]:
    """(kind, value) of each line of the list. Skips blank lines and comments (#); fails the task for any other line."""
    if not path:
        return []
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise AirflowFailException(f"takedowns: {path} cannot be read: {e}") from None
    listed = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        kind, _, value = line.strip().partition(" ")
        if kind not in KINDS or not value.strip():
            raise AirflowFailException(
                f"takedowns: {path}:{number}: not one of {', '.join(KINDS)}, followed by a space and a value"
            )
        listed.append((kind, value.strip()))
    return listed


housekeeping()
