"""`fit --dry-run`: the cost of a run, from a count of its model and five real steps on its data.

The steps are those of the loop, on the first batches, without prefilled queues and without a checkpoint; nothing stays.
Time is that of the last three, so that a first step that compiles or allocates does not count.

Limits: one process. More ranks share the steps' samples, not what they exchange; recall and checkpoints are not in it.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.config import Config
from training.device import device_of
from training.outputs.journal import read_metrics
from training.outputs.trackers import check_tracker
from training.run.flops import Meter
from training.run.footprint import footprint, machine_memory, used_memory

STEPS, _COUNTED = 5, 3


def dry_run(
    config: Config, data: Sequence[str], *, init: Path | None = None, cache: Path | None = None
) -> dict[str, Any]:
    """Parameters, operations, memory and time of a run, and `lines` that describe them. Raises what `fit` raises."""
    from training.data.index import open_dataset
    from training.evaluation.caption_sets import pack_caption_sets
    from training.run.setup import steps_of
    from training.run.train import fit

    device = device_of(config.run.device)
    check_tracker(config.run.tracker)
    samples = len(
        open_dataset(pack_caption_sets(data, "train", cache), "train", detector=config.data.detector, cache=cache)
    )
    steps = steps_of(config, samples)
    with tempfile.TemporaryDirectory(prefix="wenlan-dry-run-") as folder:
        fit(_short_config(config, samples), data, Path(folder), init=init, cache=cache, save=False)
        measured = [line for line in read_metrics(Path(folder)) if "samples_per_second" in line][-_COUNTED:]
    peak = used_memory(device)
    needs = footprint(config)
    rate = statistics.median(line["samples_per_second"] for line in measured)
    result = {
        "parameters": {"trained": needs.trained, "frozen": needs.frozen, "averaged": needs.averaged},
        "flops_per_sample": Meter(config, device).sample_flops(),
        "memory": {
            "floor_bytes": needs.floor_bytes,
            "peak_bytes": peak,
            "machine_bytes": machine_memory(),
        },
        "samples": samples,
        "steps": steps,
        "samples_per_second": rate,
        "waiting_for_data": statistics.median(line["waiting_for_data"] for line in measured),
        "seconds": steps * config.run.batch_size / rate,
        "device": str(device),
    }
    return {**result, "lines": _lines(config, result)}


def _short_config(config: Config, samples: int) -> Config:
    """Config of the run's first STEPS steps, every one logged, without anything that is kept or is not a step."""
    run = replace(
        config.run,
        epochs=STEPS * config.run.batch_size / max(samples, 1),
        log_every=1,
        eval_every=0,
        eval_epochs=0,
        patience=0,
        checkpoint_every=0,
        profile_steps=0,
        mirror="",
        tracker="none",
    )
    return replace(config, run=run, moco=replace(config.moco, prefill=False))


def _lines(config: Config, result: Mapping[str, Any]) -> list[str]:
    parameters, memory, flops = result["parameters"], result["memory"], result["flops_per_sample"]
    batch, rate, waiting = config.run.batch_size, result["samples_per_second"], result["waiting_for_data"]
    return [
        "parameters: {trained:,} trained, {frozen:,} frozen, {averaged:,} in key towers".format(**parameters),
        f"work: {flops / 1e9:.2f} GFLOP per sample, {flops * batch / 1e12:.3f} TFLOP per step",
        f"memory: {memory['floor_bytes'] / 2**30:.2f} GiB of weights, gradients, moments and queues; "
        f"{memory['peak_bytes'] / 2**30:.2f} GiB at the peak of {STEPS} steps on {result['device']}",
        f"data: {result['samples']:,} samples, {config.run.epochs:g} epochs, {result['steps']:,} steps of {batch}",
        f"time: {_duration(result['seconds'])} at {rate:.3g} samples/s, {waiting:.0%} of it waiting for data",
    ]


def _duration(seconds: float) -> str:
    days, rest = divmod(round(seconds), 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, seconds_over = divmod(rest, 60)
    parts = [f"{days} d"] * (days > 0) + [f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (minutes > 0 and not days)
    return " ".join(parts) or f"{seconds_over} s"
