"""A training step of brivl_b5_base (4 pairs, fp32, 2 cores) against the release written plainly.

    default_speedup      both as they come; ours sets its own allocator
    same_allocator       both with our allocator setting
    loss_difference      relative, same weights, compat, dropout 0, batch norms in eval
    memory_above         peak of ours / of the release, each less its parameters and optimiser state
    memory_total         peak of ours with gradient checkpointing / of the release
    bf16_speedup         ours under bf16 against ours in fp32; no bar: it depends on the processor

Two sides at a time step in turn, each in a process of its own, so that other load hits both. `--quick`: one timed step
a side. `--gpu`: samples a second and MFU by batch for both main recipes on this machine's GPU.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from typing import Any

from tests.benchmarks.harness import (
    LARGE,
    MAIN,
    ROOT,
    Figure,
    Side,
    at_least,
    at_most,
    interleaved,
    parser,
    program,
    report,
    shown,
    told,
)

PAIRS = 4
GPU_BATCHES = {MAIN: (16, 32, 64, 128, 256), LARGE: (8, 16, 32, 64)}


def side(name: str) -> Side:
    """A side of step_sides.py, with as many threads as it sets itself."""
    return Side(program("step_sides", name, MAIN, PAIRS), {**os.environ, "PYTHONPATH": str(ROOT)})


def in_turn(one: str, other: str, rounds: int) -> tuple[float, float, dict[str, Any], dict[str, Any]]:
    """Median seconds of a step of two sides that step in turn, after one of each that does not count; their memory."""
    sides = side(one), side(other)
    answers: tuple[dict[str, Any], dict[str, Any]] = ({}, {})

    def step(which: int) -> float:
        answers[which].update(sides[which].ask())
        told(f"{(one, other)[which]}: {answers[which]['seconds']:.2f} s")
        return float(answers[which]["seconds"])

    seconds = interleaved(lambda: step(0), lambda: step(1), rounds=rounds)
    for own in sides:
        own.end()
    return seconds[0], seconds[1], *answers


def above(memory: dict[str, Any]) -> float:
    return float(memory["peak"] - memory["parameters"] - memory["optimizer"])


def on_cpu(rounds: int) -> dict[str, Figure]:
    released, ours, their_memory, memory = in_turn("released", "ours", rounds)
    released_keep, ours_again, _, _ = in_turn("released_keep", "ours", rounds)
    _, bf16, blocks_memory, _ = in_turn("ours_blocks", "ours_bf16", rounds)
    loss = side("loss").ask()
    told(f"loss: {loss['ours']:.7f}, released {loss['released']:.7f}")
    for name, held in (("released", their_memory), ("ours", memory), ("ours_blocks", blocks_memory)):
        parts = ", ".join(f"{part} {held[part] / 2**30:.2f}" for part in ("peak", "parameters", "optimizer"))
        told(f"{name}: {parts}, above {above(held) / 2**30:.2f} GiB")
    return {
        "default_speedup": at_least(released / ours, 2.0),
        "same_allocator": at_least(released_keep / ours_again, 1.9),
        "loss_difference": exact(abs(loss["ours"] - loss["released"]) / abs(loss["released"]), 1e-5),
        "memory_above": at_most(above(memory) / above(their_memory), 0.7),
        "memory_total": at_most(blocks_memory["peak"] / their_memory["peak"], 0.8),
        "bf16_speedup": shown(statistics.median([ours, ours_again]) / bf16),
    }


def on_gpu() -> dict[str, Figure]:
    """bf16, random weights, full queues. A batch that does not fit is said and skipped."""
    import torch

    from tests.benchmarks.step_sides import OurStep, config_of
    from training.device import prepare_device
    from training.run.flops import Meter

    if not torch.cuda.is_available():
        raise SystemExit("--gpu: torch sees no GPU here")
    device = prepare_device("cuda")
    figures: dict[str, Figure] = {}
    told(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}")

    def measure(step: OurStep, name: str, rounds: int = 10) -> None:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(rounds):
            step()
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / rounds
        found = Meter(step.config, device).metrics([step.batch], seconds)
        figures[f"{name}_samples"] = shown(step.pairs / seconds, "1/s")
        figures[f"{name}_mfu"] = shown(found.get("mfu", 0.0), "of peak")
        peak = torch.cuda.max_memory_allocated() / 2**30
        told(f"{name:48} {step.pairs / seconds:8.1f} pairs/s, MFU {found.get('mfu', math.nan):.3f}, {peak:.1f} GiB")

    for recipe, batches in GPU_BATCHES.items():
        for recompute in ("nothing", "pointwise", "blocks"):
            config = config_of(recipe, "run.precision=bf16", f"run.recompute={recompute}")
            for pairs in batches:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                try:
                    measure(OurStep(config, pairs, "cuda"), f"{recipe}_{recompute}_{pairs}")
                except torch.cuda.OutOfMemoryError:
                    told(f"{recipe}_{recompute}_{pairs}: does not fit")
                    break
    return figures


def exact(value: float, bar: float) -> Figure:
    """A difference so small that two digits tell more than three decimals."""
    return Figure(float(f"{value:.2g}"), "relative", bar, value <= bar)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--gpu", action="store_true", help="samples a second and MFU on this machine's GPU instead")
    asked = options.parse_args()
    return report(on_gpu() if asked.gpu else on_cpu(1 if asked.quick else 5))


if __name__ == "__main__":
    sys.exit(main())
