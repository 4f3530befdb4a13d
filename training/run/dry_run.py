"""`fit --dry-run`: the cost of a run, from a count of its model and five real steps on its data.

The steps are those of the loop, on the first batches, without prefilled queues and without a checkpoint; nothing stays.
Time is that of the last three, so that a first step that compiles or allocates does not count.

Limits: one process. More ranks share the steps' samples, not what they exchange; recall and checkpoints are not in it.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.config import Config
from training.device import device_of
from training.outputs.journal import read_metrics
from training.run.flops import Meter
from training.run.footprint import footprint, machine_memory, used_memory

STEPS, _COUNTED = 5, 3


def dry_run(
    config: Config, data: Sequence[str], *, init: Path | None = None, cache: Path | None = None
) -> dict[str, Any]:
    """Parameters, operations, memory and time of a run, and `lines` that say them. Raises what `fit` raises."""
    from training.data.index import open_dataset
    from training.run.setup import steps_of
    from training.run.train import fit

    device = device_of(config.run.device)
    samples = len(open_dataset(data, "train", detector=config.data.detector, cache=cache))
    steps = steps_of(config, samples)
    short = replace(
        config,
        run=replace(
            config.run,
            epochs=STEPS * config.run.batch_size / max(samples, 1),
            log_every=1,
            eval_every=0,
            patience=0,
            checkpoint_every=0,
            profile_steps=0,
            mirror="",
            tracker="none",
        ),
        moco=replace(config.moco, prefill=False),
    )
    with tempfile.TemporaryDirectory(prefix="wenlan-dry-run-") as folder:
        fit(short, data, Path(folder), init=init, cache=cache, save=False)
        measured = [line for line in read_metrics(Path(folder)) if "samples_per_second" in line][-_COUNTED:]
    needs = footprint(config)
    rate = statistics.median(line["samples_per_second"] for line in measured)
    waiting = statistics.median(line["waiting_for_data"] for line in measured)
    peak = used_memory(device)
    flops = Meter(config, device).sample_flops()
    seconds = steps * config.run.batch_size / rate
    return {
        "parameters": {"trained": needs.trained, "frozen": needs.frozen, "averaged": needs.averaged},
        "flops_per_sample": flops,
        "memory": {"floor_bytes": needs.floor_bytes, "peak_bytes": peak, "machine_bytes": machine_memory()},
        "samples": samples,
        "steps": steps,
        "samples_per_second": rate,
        "waiting_for_data": waiting,
        "seconds": seconds,
        "device": str(device),
        "lines": [
            f"parameters: {needs.trained:,} trained, {needs.frozen:,} frozen, {needs.averaged:,} in key towers",
            f"work: {flops / 1e9:.2f} GFLOP a sample, {flops * config.run.batch_size / 1e12:.3f} TFLOP a step",
            f"memory: {needs.floor_bytes / 2**30:.2f} GiB of weights, gradients, moments and queues; "
            f"{peak / 2**30:.2f} GiB at the peak of {STEPS} steps on {device}",
            f"data: {samples:,} samples, {config.run.epochs:g} epochs, {steps:,} steps of {config.run.batch_size}",
            f"time: {_duration(seconds)} at {rate:.3g} samples/s, {waiting:.0%} of it waiting for data",
        ],
    }


def _duration(seconds: float) -> str:
    days, rest = divmod(round(seconds), 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, seconds_over = divmod(rest, 60)
    parts = [f"{days} d"] * (days > 0) + [f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (minutes > 0 and not days)
    return " ".join(parts) or f"{seconds_over} s"
