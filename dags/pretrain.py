"""Pre-trains on a release of a dataset as soon as there is one, and publishes the checkpoint unless it got worse.

The asset event of `dataset_build` starts it and names the release in its extra. The release's manifest never changes,
so training and both evaluations see the same samples. In a manual run the parameter `manifest` names a release's
(STORE/datasets/NAME/000003.json) or a build's. The run's folder is named after recipe, dataset and release: a second
run on the same release continues from its last checkpoint, a new release is a new folder.

`init` chooses the start of a run:

- empty: from the recipe's weights, with the recipe's learning rate;
- `last`: from the checkpoint published last (a warm start); before the first it acts as empty, and the log says so;
- otherwise: from the checkpoint of that name, with the recipe's learning rate.

The rule for the learning rate of a warm start is `warm_set`: the towers go on, the optimiser's averages do not. So the
rate rises again over a short share of the run, to a part of the recipe's peak, and then falls to 0 as the recipe says.
Each run trains on all of the release, old material included, which keeps what was learnt: re-warming, re-decaying and
replay, after arXiv 2403.08763. A run that is repeated begins as it began the first time.

`new_weight` is how many times as often as older samples those of the newest build are seen: 1 is the release as
it is. Above that, the run reads the release and the newest build as a mixture (NAME@WEIGHT), in which every sample
belongs to one of the two (training/data/index.py), for as many steps as before.

`evaluate` measures the new checkpoint and `evaluate_last` the one published last, both on the val split of the release:
recall can be compared on the same pairs only, and none of these pairs was ever trained on, because an image keeps its
split across builds. They are judged by their headline, the recall of pairs whose texts stand nowhere in train either.
If their mean is lower by more than `margin`, `judge` fails and nothing is published. A release without a val
split is not trained on, since nothing could be judged: `plan` fails and says so. A published checkpoint is an event of
the asset `wenlan_checkpoint`, whose extra names it; the next run compares with it.

Environment variables (defaults of the run's parameters): WENLAN_RECIPE, WENLAN_RUN_ROOT, WENLAN_INIT, WENLAN_SET,
WENLAN_WARM_SET, WENLAN_NEW_WEIGHT, WENLAN_TRAIN_WORKERS, WENLAN_MARGIN, WENLAN_RUNTIME_ENV; and WENLAN_EVAL_GPUS. Paths
are as the cluster's nodes see them.
"""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import PurePosixPath
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from ray_tasks import CHECKPOINT, DATASET, RUNTIME_ENV, numeric, param, ray_job, run_params, setting

log = logging.getLogger("airflow.task")

LAST = "last"
"""Value of `init`: the checkpoint published last."""
WARM_SET = "optim.lr_factor=0.5 optim.warmup_samples=0 optim.warmup_share=0.02"
"""The rule for the learning rate of a warm start: half the recipe's peak, reached after a fiftieth of the run."""

PARAMS = {
    "manifest": Param("", type="string", description="manifest of a release or a build; if empty, the asset event's"),
    "recipe": param("recipe", "a recipe of wenlan-train"),
    "run_root": param("run_root", "folder of the runs"),
    "init": param(
        "init", f"start: empty for random weights, {LAST!r} for the checkpoint published last, or a checkpoint"
    ),
    "set": param("set", "changes to the recipe, KEY=VALUE, separated by spaces"),
    "warm_set": Param(
        os.environ.get("WENLAN_WARM_SET", WARM_SET),
        type="string",
        description="further changes, for a run that starts from the checkpoint published last",
    ),
    "new_weight": numeric(
        "NEW_WEIGHT", 1.0, "how many times as often as older samples those of the newest build are seen", minimum=0.01
    ),
    "workers": numeric("TRAIN_WORKERS", 1, minimum=1),
    "margin": numeric(
        "MARGIN", 0.01, "largest drop in mean recall at which a checkpoint is still published", minimum=0, maximum=1
    ),
    "runtime_env": RUNTIME_ENV,
}


@dag(schedule=[DATASET], catchup=False, max_active_runs=1, params=PARAMS, tags=["wenlan"], doc_md=__doc__)
def pretrain() -> None:
    planned = plan()
    fitted = ray_job.override(group_id="fit")(planned["fit"])
    gpus = float(setting("EVAL_GPUS", "0"))
    new = ray_job.override(group_id="evaluate")(evaluation(planned["manifest"], fitted), "", gpus)
    last = ray_job.override(group_id="evaluate_last")(evaluation_of_last(planned["manifest"], fitted), "", gpus)
    publish(planned, fitted, judge(new, last))


@task(inlets=[CHECKPOINT])
def plan() -> dict[str, Any]:
    """The command of the training, from the run's parameters, the asset event and the checkpoints published so far."""
    context: Any = get_current_context()
    params = run_params("recipe", "run_root")
    event = {} if params["manifest"] else _newest_release(context)
    manifest = params["manifest"] or event.get("release_manifest") or event["manifest"]
    out = f"{params['run_root'].rstrip('/')}/{params['recipe']}-{_run_name(manifest, event)}"
    data = [manifest]
    if params["new_weight"] != 1:
        data, out = _mixture(event, params["new_weight"]), f"{out}-new{params['new_weight']:g}"
    init, settings = params["init"], params["set"].split()
    if init == LAST:
        init = _earlier_checkpoint(out, context["inlet_events"][CHECKPOINT])
        settings += params["warm_set"].split() if init else []
        log.info("starts %s", f"from {init}" if init else "from random weights: no checkpoint was published before")
    fit = ["wenlan-train", "fit", "--recipe", params["recipe"], "--data", *data, "--out", out]
    fit += ["--init", init] if init else []
    fit += [word for value in settings for word in ("--set", value)]
    fit += ["--workers", str(params["workers"]), "--json"]
    return {"fit": shlex.join(fit), "manifest": manifest, "run": out, "init": init}


def _newest_release(context: Any) -> dict[str, Any]:
    """The extra of the newest asset event of this run. Fails if it is missing, or too small to train on and judge."""
    events = [event for events in context["triggering_asset_events"].values() for event in events]
    if not events:
        raise AirflowFailException("no dataset: a manual run needs the parameter manifest")
    extra: dict[str, Any] = max(events, key=lambda event: event.timestamp).extra
    if "manifest" not in extra:
        raise AirflowFailException("the asset event does not name a manifest; set the run's parameter manifest")
    samples = extra.get("samples")
    if samples is not None and not (samples["train"] and samples["val"]):
        counts = ", ".join(f"{split} {count}" for split, count in samples.items())
        raise AirflowFailException(
            f"release {extra['release']} of {extra['dataset']} is too small to train on and judge ({counts}): "
            "nothing is trained or published; raise shards.val_share in its spec, or wait until it has grown"
        )
    return extra


def _run_name(manifest: str, event: dict[str, Any]) -> str:
    """Name of the run's folder: dataset and release, or a build's id. Fails for latest.json."""
    path = PurePosixPath(manifest)
    if "release" in event:
        return f"{event['dataset']}-{event['release']:06d}"
    if path.name == "latest.json":
        raise AirflowFailException(
            f"manifest: {manifest} may change before the evaluation; name a release, such as {path.parent}/000001.json"
        )
    if path.stem.isdigit():  # STORE/datasets/NAME/000003.json
        return f"{path.parent.name}-{path.stem}"
    return event.get("build_id") or path.parent.parent.name  # BUILD/shards/manifest.json


def _mixture(event: dict[str, Any], new_weight: float) -> list[str]:
    """The release and its newest build as a mixture, in which the build's samples are seen `new_weight` times as often.

    The parts are what was there before and what is new. Their weights are their sizes, times `new_weight` for the new.
    """
    if "release_manifest" not in event:
        raise AirflowFailException("new_weight: only an asset event says which samples are new; set it to 1")
    new = event["new_samples"]["train"]
    before = event["samples"]["train"] - new
    if not (new and before):
        return [event["release_manifest"]]  # all of it is new, or nothing to train on is
    return [f"{event['release_manifest']}@{before}", f"{event['manifest']}@{new * new_weight:.15g}"]


def _earlier_checkpoint(out: str, events: Any) -> str:
    """The checkpoint that was published last before the first of the run in folder `out`, or "".

    A run that is repeated finds its own checkpoint, and those of later runs, among the events: it must begin as it did.
    """
    last = ""
    for extra in _published(events):
        if extra.get("run") == out:
            break
        last = extra["checkpoint"]
    return last


def _published(events: Any) -> list[dict[str, Any]]:
    """Extras of the events that name a checkpoint, oldest first: one that was made on Airflow's page names none."""
    return [event.extra for event in events if "checkpoint" in event.extra]


@task
def evaluation(manifest: str, fitted: dict[str, Any]) -> str:
    """The command that evaluates the last checkpoint of the training."""
    if not fitted.get("checkpoint"):
        raise AirflowFailException("the job succeeded, but printed no result of wenlan-train fit; see fit.wait's log")
    return _evaluation(fitted["checkpoint"], manifest)


@task(inlets=[CHECKPOINT])
def evaluation_of_last(manifest: str, fitted: dict[str, Any]) -> str:
    """The command that evaluates the checkpoint published last; skipped if it does not exist or is the new one."""
    published = _published(get_current_context()["inlet_events"][CHECKPOINT])
    last = published[-1]["checkpoint"] if published else ""
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
    recall = _headline(new)
    if not last:
        log.info("mean recall %.4f, the first to be published", recall)
        return recall
    before = _headline(last)
    compared = f"mean recall {recall:.4f}, the last published checkpoint has {before:.4f} on the same pairs"
    if recall < before - margin:
        raise AirflowFailException(f"not published: {compared}, which is better by more than the margin of {margin}")
    log.info("%s (margin %s)", compared, margin)
    return recall


def _headline(result: dict[str, Any]) -> float:
    """Mean recall of the pairs that are unseen in train; of all pairs where none is.

    Both checkpoints are evaluated on one release, so that the same pairs are unseen for both.
    """
    part = result if result["headline"] == "all" else result[result["headline"]]
    return float(part["mean_recall"])


@task(outlets=[CHECKPOINT])
def publish(planned: dict[str, Any], fitted: dict[str, Any], recall: float) -> None:
    """Emit the asset event that names the checkpoint, for those who serve it and for the next run to compare with."""
    extra = {"checkpoint": fitted["checkpoint"], "recall": recall}
    extra |= {name: planned[name] for name in ("manifest", "run", "init")}
    get_current_context()["outlet_events"][CHECKPOINT].extra = extra


pretrain()
