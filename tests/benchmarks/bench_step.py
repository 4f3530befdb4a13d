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

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import LARGE, MAIN, Figure, at_least, at_most, report

PAIRS = 4
GPU_BATCHES = {MAIN: (16, 32, 64, 128, 256), LARGE: (8, 16, 32, 64)}


class Side:
    """A process that steps on command."""

    def __init__(self, name: str) -> None:
        self.name = name
        command = [sys.executable, str(Path(__file__).with_name("step_sides.py")), name, MAIN, str(PAIRS)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return float(self.next()["seconds"])

    def next(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"side {self.name} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> dict[str, Any]:
        """Its last answer."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        answer = self.next()
        self._process.wait()
        return answer


def in_turn(one: str, other: str, rounds: int) -> tuple[float, float, dict[str, Any], dict[str, Any]]:
    """Median seconds of a step of two sides that step in turn, after one of each that does not count; their memory."""
    sides = Side(one), Side(other)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for side, seconds in zip(sides, times, strict=True):
            took = side.step()
            told(f"{side.name}: {took:.2f} s" + ("" if turn else " (warm-up)"))
            if turn:
                seconds.append(took)
    return statistics.median(times[0]), statistics.median(times[1]), sides[0].end(), sides[1].end()


def above(memory: dict[str, Any]) -> float:
    return float(memory["peak"] - memory["parameters"] - memory["optimizer"])


def on_cpu(rounds: int) -> dict[str, Figure]:
    released, ours, their_memory, memory = in_turn("released", "ours", rounds)
    released_keep, ours_again, _, _ = in_turn("released_keep", "ours", rounds)
    _, bf16, blocks_memory, _ = in_turn("ours_blocks", "ours_bf16", rounds)
    loss = Side("loss").next()
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
        "bf16_speedup": at_least(statistics.median([ours, ours_again]) / bf16, 0.0),
    }


def on_gpu() -> dict[str, Figure]:
    """bf16, random weights, full queues. A batch that does not fit is said and skipped."""
    import torch
    from step_sides import OurStep, config_of

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
        figures[f"{name}_samples"] = at_least(step.pairs / seconds, 0.0, "1/s")
        figures[f"{name}_mfu"] = at_least(found.get("mfu", 0.0), 0.0, "of peak")
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


def told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one timed step a side, at most 5 minutes")
    parser.add_argument("--gpu", action="store_true", help="samples a second and MFU on this machine's GPU instead")
    asked = parser.parse_args()
    return report(on_gpu() if asked.gpu else on_cpu(1 if asked.quick else 5))


if __name__ == "__main__":
    raise SystemExit(main())
