"""Pre-train on a dataset as soon as it is published, and publish the checkpoint unless it is worse than the last.

Started by the asset event of `dataset_build`, whose extra names the manifest; started by hand, the parameter `manifest`
names it. The run's folder is named after the build: a second run on the same build goes on from its last checkpoint.

`evaluate` measures the new checkpoint, `evaluate_last` the one that was published last, both on the val split of the
new dataset: only recall on the same pairs can be compared, and no pair of it was ever trained on, since a picture keeps
its split across builds. If the mean recall is lower by more than `margin`, `judge` fails and nothing is published. A
published checkpoint is an event of the asset `wenlan_checkpoint`, whose extra names it; the next run compares with it.

Settings of the environment (defaults of the run's parameters): WENLAN_RECIPE, WENLAN_RUN_ROOT, WENLAN_INIT,
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
from ray_tasks import CHECKPOINT, DATASET, RUNTIME_ENV, given, param, ray_job

log = logging.getLogger("airflow.task")

PARAMS = {
    "manifest": Param("", type="string", description="a dataset's manifest.json; empty: that of the asset event"),
    "recipe": param("recipe", "a recipe of wenlan-train"),
    "run_root": param("run_root", "where runs are kept"),
    "init": param("init", "checkpoint to begin from, if any"),
    "workers": Param(int(os.environ.get("WENLAN_TRAIN_WORKERS", "1")), type="integer", minimum=1),
    "margin": Param(
        float(os.environ.get("WENLAN_MARGIN", "0.01")),
        type="number",
        minimum=0,
        maximum=1,
        description="a checkpoint is published if its mean recall is at most this much below the last one's",
    ),
    "runtime_env": RUNTIME_ENV,
}


@dag(schedule=[DATASET], catchup=False, max_active_runs=1, params=PARAMS, tags=["wenlan"], doc_md=__doc__)
def pretrain() -> None:
    planned = plan()
    fitted = ray_job.override(group_id="fit")(planned["fit"])
    gpus = float(os.environ.get("WENLAN_EVAL_GPUS", "0"))
    found = ray_job.override(group_id="evaluate")(evaluation(planned["manifest"], fitted), "", gpus)
    last = ray_job.override(group_id="evaluate_last")(evaluation_of_last(planned["manifest"], fitted), "", gpus)
    publish(planned, fitted, judge(found, last))


@task
def plan() -> dict[str, Any]:
    """The fit's command, from the run's parameters and the asset event."""
    context: Any = get_current_context()
    params = given("recipe", "run_root")
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
    return {"fit": shlex.join([*fit, "--workers", str(params["workers"]), "--json"]), "manifest": manifest}


@task
def evaluation(manifest: str, fitted: dict[str, Any]) -> str:
    """The command that evaluates the checkpoint which the fit ended with."""
    if not fitted.get("checkpoint"):
        raise AirflowFailException("the job succeeded, but printed no result of wenlan-train fit; see fit.wait's log")
    return _evaluation(fitted["checkpoint"], manifest)


@task(inlets=[CHECKPOINT])
def evaluation_of_last(manifest: str, fitted: dict[str, Any]) -> str:
    """The command that evaluates the checkpoint published last; skipped if there is none, or it is this one."""
    events = get_current_context()["inlet_events"][CHECKPOINT]
    last = events[-1].extra["checkpoint"] if len(events) else ""
    if last in ("", fitted.get("checkpoint")):
        raise AirflowSkipException("no other checkpoint was published before")
    return _evaluation(last, manifest)


def _evaluation(checkpoint: str, manifest: str) -> str:
    return shlex.join(["wenlan-train", "eval", checkpoint, "--data", manifest, "--task", "retrieval", "--json"])


@task(trigger_rule="none_failed")
def judge(found: dict[str, Any], last: dict[str, Any] | None) -> float:
    """The new checkpoint's mean recall. Fails if it is worse than the last one's by more than the margin."""
    margin = get_current_context()["params"]["margin"]
    if "mean_recall" not in found:
        raise AirflowFailException("the job succeeded, but printed no result of wenlan-train eval; see evaluate.wait")
    recall = float(found["mean_recall"])
    if not last:
        log.info("mean recall %.4f, the first to be published", recall)
        return recall
    before = float(last["mean_recall"])
    said = f"mean recall {recall:.4f}, the last published checkpoint has {before:.4f} on the same pairs"
    if recall < before - margin:
        raise AirflowFailException(f"not published: {said}, which is more than {margin} (margin) better")
    log.info("%s (margin %s)", said, margin)
    return recall


@task(outlets=[CHECKPOINT])
def publish(planned: dict[str, Any], fitted: dict[str, Any], recall: float) -> None:
    """Emit the asset event that names the checkpoint: for whoever serves it, and for the next run to compare with."""
    told = {"checkpoint": fitted["checkpoint"], "manifest": planned["manifest"], "recall": recall}
    get_current_context()["outlet_events"][CHECKPOINT].extra = told


pretrain()
