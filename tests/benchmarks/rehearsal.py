"""One training step of every recipe and objective as one of 8 ranks, without a GPU (`make gpu-rehearsal`).

The step is the real one: comparison of the ranks, prefill, forward, loss, backward, exchange, AdamW, key towers,
queues, health, tensors of a checkpoint. Its tensors are torch's fake ones, with shape, type and device but without
contents, and its process group is torch's fake one: brivl_b5_base takes seconds and no memory. Two passes:

    device    on device `meta` in float32: an operation on tensors of two devices fails as it would on a GPU, and each
              value that Python reads from the device, where a GPU would be waited for, is listed by its line
    types     on fake CPU tensors under autocast: products in float32 by line, and bytes of live tensors at the peak

Why not fake CUDA tensors: torch's wheels for CPUs cannot run a backward on them.

Limits: autocast is that of CPUs, whose list of operations is not quite CUDA's, and attention is the plain formula in
float32. Bytes are those of tensors: workspaces of cuDNN, buffers of NCCL and fragmentation come on top. Logged metrics
(queue ages) are not in the step.

    python -m tests.benchmarks.rehearsal [RECIPE ...] [--steps | --memory | --negatives]
"""

from __future__ import annotations

import argparse
import pkgutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.distributed._tools.fake_collectives  # lets fake tensors through the exchanges
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.benchmarks.harness import LARGE, MAIN
from training import objectives
from training.config import Config
from training.method.key_queue import SampleIds
from training.moco import BriVL, Features
from training.outputs.checkpoint import RunState, parts_of
from training.records import Batch
from training.resolve import fine_tunes, known_recipes, resolve
from training.run import gradient_exchange
from training.run.activations import LiveBytes
from training.run.agreement import Agreement
from training.run.flops import Meter
from training.run.footprint import footprint
from training.run.health import Health
from training.run.launch import Leave
from training.run.optimizer import build_optimizer
from training.run.setup import Setup
from training.run.step import Stepper, StepResult

RANKS = 8
GIB = 2**30
HELD = ("torch.bool", "torch.float32", "torch.int64")
"""Types of what a checkpoint holds."""

_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default, _aten.convolution.default}
_OURS = str(Path(objectives.__file__).parents[2])


@dataclass(frozen=True)
class Rehearsed:
    """What a pass found: lines that read a value from the device, lines with products in float32, bytes, CPU time."""

    step: StepResult
    reads: Counter[str]
    exact: Counter[str]
    peak: int
    held: int
    seconds: float


class Ledger(LiveBytes):
    """Watches the operations on one device: bytes of live storages, values that the host reads, types of products."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.reads, self.exact = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten._local_scalar_dense.default:
            kind = args[0].dtype
            if args[0].device.type == self.device:
                self.reads[_line()] += 1
            return True if kind is torch.bool else 1.0 if kind.is_floating_point else 1
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func in _PRODUCTS and out.dtype is torch.float32:
            self.exact[f"{_line()} {func.overloadpacket.__name__}"] += 1
        return out


def _line() -> str:
    """The innermost line of this repository that is being run, as `training/run/step.py:90`; of a backward its call."""
    frame: FrameType | None = sys._getframe()  # traceback.extract_stack reads files: a fifth of all the time
    while frame is not None and not frame.f_code.co_filename.startswith(f"{_OURS}/training/"):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.removeprefix(_OURS + '/')}:{frame.f_lineno}" if frame else "elsewhere"


class _Unsent(DistributedDataParallel):
    """A replica without others: the fake group returns nothing for a bucket, and could not agree on new buckets."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, find_unused_parameters=True)  # keeps the first buckets
        self.register_comm_hook(None, noop_hook)


@contextmanager
def ranks(count: int = RANKS) -> Iterator[None]:
    """Be rank 0 of so many, of whom the others do not exist."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rehearse(config: Config, device: str, model: BriVL | None = None) -> Rehearsed:
    """One step on `meta`, in float32, or on `cpu`. `model`: one without memory. Raises what the step raises."""
    bare = model or without_memory(config)
    ledger, began = Ledger(device), time.process_time()
    # torch's fused AdamW wants to know that a device has it; where its result is fake, every device has it.
    fused = patch("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: ["cpu", "meta"])
    with FakeTensorMode(), ledger, fused, patch.object(gradient_exchange, "DistributedDataParallel", _Unsent):
        setup = _setup(config, _on_device(bare, torch.device(device)))
        stepper = Stepper(setup)
        setup.model.train()
        micros = [_batch(config) for _ in range(config.run.accumulate)]
        valid = config.run.batch_size
        state = replace(setup.state, step=config.run.compare_every)  # in which the ranks are compared whole
        if device == "meta":
            stepper._autocast = nullcontext  # meta has none
            stepper.prefill(micros[:1])
            Agreement(setup).before_step(state, valid, Leave.NO)
        step = stepper.step(micros, state, valid)
        peak = ledger.peak  # without the checkpoint's copy, which is not on a GPU
        if device == "meta":
            Health(setup.model, config, setup.samples).record_step(state.step, step.micros, step.outputs)
        _check(setup, step, device)
        held = ledger.live
    return Rehearsed(step, ledger.reads, ledger.exact, peak, held, time.process_time() - began)


def without_memory(config: Config) -> BriVL:
    with torch.device("meta"):
        return BriVL(config, load_weights=False)


def _on_device(bare: BriVL, device: torch.device) -> BriVL:
    """A model of the same shape out of fake tensors; a parameter that two towers share stays one."""
    import copy

    made: dict[int, Any] = {}
    for tensor in (*bare.parameters(), *bare.buffers()):
        fake: Tensor = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
    return copy.deepcopy(bare, made)


def _setup(config: Config, model: BriVL) -> Setup:
    """A run after its first steps, without data."""
    device = next(model.parameters()).device
    state = RunState(0, 0, 0, (), (), "")
    optimizer = build_optimizer(model, config.optim)
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):  # as after the first step
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.zeros((), device=device), **moments}
    none: Any = None
    return Setup(config, device, none, range(10**6), none, None, model, optimizer, state, 10**6)


def _batch(config: Config) -> Batch:
    """This rank's micro-batch, on the CPU as the loader hands it over."""
    data, rows = config.data, config.run.batch_size // dist.get_world_size() // config.run.accumulate
    ids = torch.zeros(rows, dtype=torch.int64)
    images = torch.zeros(rows, data.image_size, data.image_size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    boxes, tokens = torch.zeros(rows, data.max_boxes + 1, 4), ids[:, None].expand(-1, data.max_tokens).contiguous()
    return Batch(images, boxes, ids, tokens, ids, ids, ids, ids, ids == 0, ids)


def _check(setup: Setup, step: StepResult, device: str) -> None:
    """All that a step leaves is on the device, in the types of a checkpoint, and has moved."""
    assert not step.skipped
    for output in step.outputs:
        for tensor in (output.loss, output.losses_B, output.image_keys_BD, output.text_keys_BD):
            assert (tensor.device.type, tensor.dtype) == (device, torch.float32), tensor
    parts = parts_of(setup.model, setup.optimizer)
    for where, part in ((device, parts), ("cpu", parts_of(setup.model, setup.optimizer, copied=True))):
        for name, tensor in (pair for tensors in part.values() for pair in tensors.items()):
            assert tensor.device.type == where, f"{name} is on {tensor.device}"
            assert str(tensor.dtype) in HELD, f"{name} is {tensor.dtype}"
    moved = {name.partition("/")[2] for name in parts["optimizer"]}
    assert moved == {name for name, p in setup.model.named_parameters() if p.requires_grad}, (
        "parameters without moments"
    )


def config_of(recipe: str, *settings: str) -> Config:
    """A recipe's config, or that of a fine-tuning recipe after `tiny`, on random weights."""
    begin = resolve("tiny", []) if fine_tunes(recipe) else None
    return resolve(recipe, ["image.weights=", "text.weights=", *settings], begin)


def steps(recipes: Sequence[str]) -> None:
    """Both passes of every recipe and objective."""
    lines, exact = Counter[str](), Counter[str]()
    for recipe in recipes:
        for objective in sorted(module.name for module in pkgutil.iter_modules(objectives.__path__)):
            config = config_of(recipe, f"moco.objective={objective}", "run.precision=bf16")
            config = replace(config, run=replace(config.run, batch_size=-(-config.run.batch_size // RANKS) * RANKS))
            bare, needs = without_memory(config), footprint(config)
            with ranks():
                of_device, of_types = rehearse(config, "meta", bare), rehearse(config, "cpu", bare)
            lines, exact = lines | of_device.reads, exact | of_types.exact
            said = f"{needs.trained / 1e6:7.1f} M trained, {needs.averaged / 1e6:6.1f} M in key towers"
            gib = f"{needs.floor_bytes / GIB:5.1f} GiB floor, {of_types.peak / GIB:6.1f} at the peak"
            seconds = of_device.seconds + of_types.seconds
            print(
                f"{recipe:18} {objective:7} {said}, {gib} of {config.run.batch_size // RANKS} a rank; {seconds:.0f} s"
            )
    print("\nvalues that the host reads from the device in a step, by line:", _listed(lines))
    print("products in float32 under bf16, by line:", _listed(exact))


def memory(recipe: str, batches: Sequence[int] = (32, 128)) -> None:
    """Bytes of a rank beyond weights, gradients, moments and queues, by recompute and its batch."""
    print(f"\n{recipe}, bf16: GiB beyond the floor by batch of a rank", *(f"{b:>7}" for b in batches))
    for recompute in ("nothing", "pointwise", "blocks"):
        row = []
        for batch in batches:
            settings = "run.precision=bf16", f"run.recompute={recompute}", f"run.batch_size={RANKS * batch}"
            config = config_of(recipe, *settings)
            with ranks():
                row.append((rehearse(config, "cpu").peak - footprint(config).floor_bytes) / GIB)
        print(f"{recompute:>{len(recipe) + 43}}", *(f"{gib:7.1f}" for gib in row), flush=True)


def negatives(recipe: str, counts: Sequence[int] = (1024, 4096, 16384, 65536), batch: int = 256) -> None:
    """Memory and work of a rank at equal negatives: a queue, or a batch as large, whole and through GradCache."""
    print(f"\n{recipe}, bf16, {RANKS} ranks: a queue with a batch of {batch}; in-batch negatives (clip), whole and")
    print(f"through GradCache in micro-batches of {batch}, whose one more forward is up to a third of the work on top")
    print(f"{'negatives':>10} {'queue GiB':>10} {'TFLOP/step':>11} {'in-batch GiB':>13} {'GradCache':>10} {'TFLOP':>7}")
    for number, queue, work, whole, cached, works in negatives_of(recipe, counts, batch):
        print(f"{number:>10,} {queue:>10.1f} {work:>11.1f} {whole:>13.1f} {cached:>10.1f} {works:>7.1f}", flush=True)


def negatives_of(
    recipe: str, counts: Sequence[int], batch: int
) -> Iterator[tuple[int, float, float, float, float, float]]:
    """By number of negatives: GiB and TFLOP of a step with a queue; GiB in-batch, GiB with GradCache, and TFLOP."""
    for number in counts:
        queued = config_of(recipe, "run.precision=bf16", f"moco.queue_size={number}", f"run.batch_size={batch}")
        whole = config_of(recipe, "run.precision=bf16", "moco.objective=clip", f"run.batch_size={number}")
        cached = replace(whole, run=replace(whole.run, accumulate=number // batch))
        gib = []
        for config in (queued, whole, cached):
            with ranks(), _first_and_last(config.run.accumulate):
                gib.append(rehearse(config, "cpu").peak / GIB)
        work, works = (
            Meter(config, torch.device("cpu")).sample_flops() * config.run.batch_size / RANKS / 1e12
            for config in (queued, whole)
        )
        yield number, gib[0], work, gib[1], gib[2], works


@contextmanager
def _first_and_last(micros: int) -> Iterator[None]:
    """Of many equal micro-steps through GradCache run the first and the last; the others hold what they would hold."""
    features, calls = BriVL.features, count()

    def some(self: BriVL, batch: Batch, *, keys: bool = True) -> Features:
        if next(calls) % micros in (0, micros - 1):
            return features(self, batch, keys=keys)
        grad = torch.is_grad_enabled()
        image, text = (torch.empty(len(batch), self.moco.feature_dim, requires_grad=grad) for _ in "it")
        return Features(image, text, image, text, SampleIds.of(batch))

    with patch.object(BriVL, "features", some):
        yield


def _listed(lines: Counter[str]) -> str:
    return ", ".join(sorted(lines)) or "none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="default: all, and the tables of the main ones")
    for part in (steps, memory, negatives):
        parser.add_argument(f"--{part.__name__}", action="store_true", help=f"only this part: {part.__doc__}")
    asked = parser.parse_args()
    every = not (asked.steps or asked.memory or asked.negatives)
    print(f"torch {torch.__version__}; fake tensors on meta and cpu, {RANKS} ranks that do not exist; no GPU is used")
    if every or asked.steps:
        steps(asked.recipes or sorted(known_recipes()))
    for recipe in asked.recipes or (MAIN, LARGE):
        if every or asked.memory:
            memory(recipe)
    if every or asked.negatives:
        negatives((asked.recipes or [MAIN])[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
