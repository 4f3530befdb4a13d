"""Pre-trains on a dataset as soon as it is published, and publishes the checkpoint unless it is worse than the last.

The asset event of `dataset_build` starts it and names the manifest in its extra; in a manual run the parameter
`manifest` names it. The run's folder is named after the build, so a second run on the same build continues from its
last checkpoint.

`evaluate` measures the new checkpoint and `evaluate_last` the one published last, both on the val split of the new
dataset: recall can be compared on the same pairs only, and none of these pairs was ever trained on, because an image
keeps its split across builds. If the mean recall is lower by more than `margin`, `judge` fails and nothing is
published. A published checkpoint is an event of the asset `wenlan_checkpoint`, whose extra names it; the next run
compares with it.

Environment variables (defaults of the run's parameters): WENLAN_RECIPE, WENLAN_RUN_ROOT, WENLAN_INIT,
WENLAN_TRAIN_WORKERS, WENLAN_MARGIN, WENLAN_RUNTIME_ENV; and WENLAN_EVAL_GPUS. Paths are as the cluster's nodes see
them.
"""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import PurePosixPath
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from ray_tasks import CHECKPOINT, DATASET, RUNTIME_ENV, param, ray_job, run_params

log = logging.getLogger("airflow.task")

PARAMS = {
    "manifest": Param("", type="string", description="manifest.json of a dataset; if empty, that of the asset event"),
    "recipe": param("recipe", "a recipe of wenlan-train"),
    "run_root": param("run_root", "folder of the runs"),
    "init": param("init", "checkpoint to start from, if any"),
    "workers": Param(int(os.environ.get("WENLAN_TRAIN_WORKERS", "1")), type="integer", minimum=1),
    "margin": Param(
        float(os.environ.get("WENLAN_MARGIN", "0.01")),
        type="number",
        minimum=0,
        maximum=1,
        description="how far its mean recall may be below the last one's for a checkpoint to be published",
    ),
    "runtime_env": RUNTIME_ENV,
}


@dag(schedule=[DATASET], catchup=False, max_active_runs=1, params=PARAMS, tags=["wenlan"], doc_md=__doc__)
def pretrain() -> None:
    planned = plan()
    fitted = ray_job.override(group_id="fit")(planned["fit"])
    gpus = float(os.environ.get("WENLAN_EVAL_GPUS", "0"))
    new = ray_job.override(group_id="evaluate")(evaluation(planned["manifest"], fitted), "", gpus)
    last = ray_job.override(group_id="evaluate_last")(evaluation_of_last(planned["manifest"], fitted), "", gpus)
    publish(planned, fitted, judge(new, last))


@task
def plan() -> dict[str, Any]:
    """The command of the training, from the run's parameters and the asset event."""
    context: Any = get_current_context()
    params = run_params("recipe", "run_root")
    manifest, build = params["manifest"], ""
    if not manifest:
        events = [event for events in context["triggering_asset_events"].values() for event in events]
        if not events:
            raise AirflowFailException("no dataset: a manual run needs the parameter manifest")
        newest = max(events, key=lambda event: event.timestamp)
        if "manifest" not in newest.extra:
            raise AirflowFailException("the asset event names no manifest; set the parameter manifest of the run")
        manifest, build = newest.extra["manifest"], newest.extra.get("build_id", "")
    build = build or PurePosixPath(manifest).parent.parent.name  # BUILD/shards/manifest.json
    out = f"{params['run_root'].rstrip('/')}/{params['recipe']}-{build}"
    fit = ["wenlan-train", "fit", "--recipe", params["recipe"], "--data", manifest, "--out", out]
    fit += ["--init", params["init"]] if params["init"] else []
    return {"fit": shlex.join([*fit, "--workers", str(params["workers"]), "--json"]), "manifest": manifest}


@task
def evaluation(manifest: str, fitted: dict[str, Any]) -> str:
    """The command that evaluates the last checkpoint of the training."""
    if not fitted.get("checkpoint"):
        raise AirflowFailException("the job succeeded, but printed no result of wenlan-train fit; see fit.wait's log")
    return _evaluation(fitted["checkpoint"], manifest)


@task(inlets=[CHECKPOINT])
def evaluation_of_last(manifest: str, fitted: dict[str, Any]) -> str:
    """The command that evaluates the checkpoint published last; skipped if there is none, or if it is the new one."""
    events = get_current_context()["inlet_events"][CHECKPOINT]
    last = events[-1].extra["checkpoint"] if len(events) else ""
    if last in ("", fitted.get("checkpoint")):
        raise AirflowSkipException("no other checkpoint was published before")
    return _evaluation(last, manifest)


def _evaluation(checkpoint: str, manifest: str) -> str:
    return shlex.join(["wenlan-train", "eval", checkpoint, "--data", manifest, "--task", "retrieval", "--json"])


@task(trigger_rule="none_failed")
def judge(new: dict[str, Any], last: dict[str, Any] | None) -> float:
    """The mean recall of the new checkpoint. Fails if that of the last one is higher by more than the margin."""
    margin = get_current_context()["params"]["margin"]
    if "mean_recall" not in new:
        raise AirflowFailException("the job succeeded, but printed no result of wenlan-train eval; see evaluate.wait")
    recall = float(new["mean_recall"])
    if not last:
        log.info("mean recall %.4f, the first to be published", recall)
        return recall
    before = float(last["mean_recall"])
    compared = f"mean recall {recall:.4f}, the last published checkpoint has {before:.4f} on the same pairs"
    if recall < before - margin:
        raise AirflowFailException(f"not published: {compared}, which is better by more than the margin of {margin}")
    log.info("%s (margin %s)", compared, margin)
    return recall


@task(outlets=[CHECKPOINT])
def publish(planned: dict[str, Any], fitted: dict[str, Any], recall: float) -> None:
    """Emit the asset event that names the checkpoint, for those who serve it and for the next run to compare with."""
    extra = {"checkpoint": fitted["checkpoint"], "manifest": planned["manifest"], "recall": recall}
    get_current_context()["outlet_events"][CHECKPOINT].extra = extra


pretrain()
