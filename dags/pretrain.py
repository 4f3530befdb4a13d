"""Pre-train on a dataset as soon as it is published: `wenlan-train fit`, then `wenlan-train eval`, each one Ray job.

Started by the asset event of `dataset_build`, whose extra names the manifest; started by hand, the parameter `manifest`
names it. The run's folder is named after the build: a second run on the same build goes on from its last checkpoint.

Settings of the environment (defaults of the run's parameters): WENLAN_RECIPE, WENLAN_RUN_ROOT, WENLAN_INIT,
WENLAN_TRAIN_WORKERS, WENLAN_RUNTIME_ENV; and WENLAN_EVAL_GPUS. Paths are as the cluster's nodes see them.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException
from ray_tasks import DATASET, RUNTIME_ENV, ray_job

PARAMS = {
    "manifest": Param("", type="string", description="a dataset's manifest.json; empty: that of the asset event"),
    "recipe": Param(os.environ.get("WENLAN_RECIPE", ""), type="string", description="a recipe of wenlan-train"),
    "run_root": Param(os.environ.get("WENLAN_RUN_ROOT", ""), type="string", description="where runs are kept"),
    "init": Param(os.environ.get("WENLAN_INIT", ""), type="string", description="checkpoint to begin from, if any"),
    "workers": Param(int(os.environ.get("WENLAN_TRAIN_WORKERS", "1")), type="integer", minimum=1),
    "runtime_env": RUNTIME_ENV,
}


@dag(schedule=[DATASET], catchup=False, max_active_runs=1, params=PARAMS, tags=["wenlan"], doc_md=__doc__)
def pretrain() -> None:
    planned = plan()
    fitted = ray_job.override(group_id="fit")(planned["fit"], planned["on_failure"])
    command = evaluation(planned["manifest"], fitted)
    gpus = float(os.environ.get("WENLAN_EVAL_GPUS", "0"))
    ray_job.override(group_id="evaluate")(command, planned["on_failure"], gpus)


@task
def plan() -> dict[str, Any]:
    """The fit's command, from the run's parameters and the asset event."""
    context = get_current_context()
    params = context["params"]
    for name in ("recipe", "run_root"):
        if not params[name]:
            raise AirflowFailException(f"parameter {name} is empty: set WENLAN_{name.upper()} or give it to the run")
    manifest, build = params["manifest"], ""
    if not manifest:
        events = [e for found in context["triggering_asset_events"].values() for e in found]
        if not events:
            raise AirflowFailException("no dataset: started by hand, the run needs the parameter manifest")
        newest = max(events, key=lambda event: event.timestamp)
        if "manifest" not in newest.extra:
            raise AirflowFailException("the asset event names no manifest; give the run the parameter manifest")
        manifest, build = newest.extra["manifest"], newest.extra.get("build_id", "")
    build = build or PurePosixPath(manifest).parent.parent.name  # BUILD/shards/manifest.json
    out = f"{params['run_root'].rstrip('/')}/{params['recipe']}-{build}"
    fit = ["wenlan-train", "fit", "--recipe", params["recipe"], "--data", manifest, "--out", out]
    fit += ["--init", params["init"]] if params["init"] else []
    return {
        "fit": [*fit, "--workers", str(params["workers"]), "--json"],
        "manifest": manifest,
        "on_failure": f"the run: {out}, on {manifest}",
    }


@task
def evaluation(manifest: str, fitted: dict[str, Any]) -> list[str]:
    """The command that evaluates the checkpoint which the fit ended with."""
    if not fitted.get("checkpoint"):
        raise AirflowFailException("the job succeeded, but printed no result of wenlan-train fit; see fit.wait's log")
    return ["wenlan-train", "eval", fitted["checkpoint"], "--data", manifest, "--task", "retrieval", "--json"]


pretrain()
