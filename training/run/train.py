"""The training loop: read it and you know what a run does.

One step: take this rank's micro-batches of the global batch at `position` -> forward against the queues as they were,
backward (training/method/accumulate.py) -> mean of the gradients over the ranks -> clip -> optimiser -> key towers and
queues move. A step whose gradient is not finite changes nothing but its count. Random numbers of a step follow from
(seed, step, rank), the data from (seed, position): a run that was killed and started again by the same command gives
the losses it would have given.

Between two steps the ranks agree on what any of them was told: to save because a machine may go, or to save and end
(SIGTERM). A run is the only one that writes into its folder.

Limits: gradients are exchanged once, after the last micro-step, without overlap; dropout differs between world sizes.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_specs.shard import ContractError
from training.config import Config
from training.data.index import Dataset, open_dataset
from training.data.loader import Loader, Share
from training.data.order import seed_of
from training.data.tokenizer import load_tokenizer
from training.errors import ConfigError, TrainingError
from training.method import distributed
from training.method.accumulate import backward
from training.moco import BriVL, StepOutput
from training.outputs import checkpoint
from training.outputs.checkpoint import RunState
from training.outputs.journal import Journal, read_metrics
from training.outputs.saver import Saver, fetch
from training.records import Batch
from training.run.flops import Meter
from training.run.footprint import check_fits, used_memory
from training.run.health import Health
from training.run.launch import (
    Leave,
    Told,
    average_gradients,
    device_of,
    exact_float32,
    keep_memory,
    owned,
    process_group,
    terminated,
    together,
)
from training.run.optimizer import batch_factor, build_optimizer, schedule
from training.run.resume import check_same, flat, obeying, say_changes
from training.use.evaluate import Retrieval, embed, retrieval

LOG = logging.getLogger(__name__)

MAX_NON_FINITE = 10
"""Non-finite steps in a row after which the run stops."""


@dataclass(frozen=True)
class FitResult:
    """What a run did. `seconds` and `samples_per_second` are of this process only; recall is of the dev split.

    `stopped_early`: run.patience was at its end. `best_step`: the step with the highest recall on the dev split, or -1.
    """

    out: str
    checkpoint: str
    steps: int
    position: int
    samples: int
    resumed_from: int
    loss: float | None
    skipped: int
    corrupt: int
    seconds: float
    samples_per_second: float
    world_size: int
    device: str
    dev: dict[str, Any] | None = field(default=None)
    best_step: int = -1
    stopped_early: bool = False

    def to_json(self) -> dict[str, Any]:
        """JSON object of the same names."""
        return asdict(self)


def fit(
    config: Config,
    data: Sequence[str],
    out: Path,
    *,
    init: Path | None = None,
    cache: Path | None = None,
    told: Told | None = None,
    save: bool = True,
) -> FitResult:
    """Train by `config` on the train split of `data` into the folder `out`; go on where `out` has a checkpoint.

    `init`: a checkpoint whose towers to begin from (a new run only). `told`: asked after every step, instead of
    SIGTERM, whether to save and whether to end. `save=False` writes no checkpoint. Every rank calls it alike.

    Raises ConfigError (bad usage), ContractError (bad data), TrainingError (the run failed). One line each.
    """
    device = device_of(config.run.device)
    if device.type == "cpu":
        keep_memory()
    exact_float32(device)
    with process_group(device), owned(out) if distributed.rank() == 0 else nullcontext():
        if config.run.mirror:
            _fetch(out, config.run.mirror)
        config = obeying(config, checkpoint.latest(out) or init)
        with nullcontext(told) if told is not None else terminated() as asked:
            return _Run(config, data, out, device, init, cache).go(asked, save=save)


def _fetch(out: Path, mirror: str) -> None:
    """On the first rank, then on those that see another disk."""
    if distributed.rank() == 0:
        fetch(out, mirror)
    if distributed.world_size() > 1:
        torch.distributed.barrier()
        if distributed.rank() > 0:
            fetch(out, mirror)


def steps_of(config: Config, samples: int, position: int = 0) -> int:
    """Steps from `position` to the end of a run over a dataset of so many samples; a run has at least one."""
    left = math.ceil(config.run.epochs * samples) - position
    return max(0 if position else 1, math.ceil(left / config.run.batch_size))


class _Run:
    """One process of one run, from opening the data to the last checkpoint."""

    def __init__(
        self,
        config: Config,
        data: Sequence[str],
        out: Path,
        device: torch.device,
        init: Path | None,
        cache: Path | None,
    ) -> None:
        self.config, self.out, self.device = config, out, device
        self.rank, self.world = distributed.rank(), distributed.world_size()
        self.share = Share(config.run.batch_size, self.rank, self.world, config.run.accumulate)
        check_fits(config, device, int(os.environ.get("LOCAL_WORLD_SIZE", self.world)))
        self.tokenizer = load_tokenizer(config.data.tokenizer)
        if len(self.tokenizer.vocabulary) > config.text.vocab_size:
            raise ConfigError(
                "text.vocab_size", f"{config.text.vocab_size} is below the {len(self.tokenizer.vocabulary)} tokens"
            )
        self.dataset = open_dataset(
            data, "train", detector=config.data.detector, cache=cache, cache_gb=config.data.cache_gb
        )
        if not len(self.dataset):
            raise ContractError(f"{data[0]}: no samples in the train split")
        self.loader = self._loader(self.dataset, train=True)
        self.dev = self._dev_loader(data, cache) if config.run.eval_every else None
        self.samples = math.ceil(config.run.epochs * len(self.dataset))
        digests = self.dataset.content_digests, self.dataset.region_digests
        self.state = RunState(0, 0, 0, *digests, self.dataset.detector, self.dataset.weights)
        self._build(init)
        self.total_steps = self.state.step + steps_of(config, len(self.dataset), self.state.position)

    def _loader(self, dataset: Dataset, *, train: bool) -> Loader:
        pin, by_device = self.device.type == "cuda", self.config.data.decoder == "device"
        if by_device and not pin:
            raise ConfigError("data.decoder", f"'device' decodes on a GPU, and this run's device is {self.device}")
        return Loader(
            dataset,
            self.config.data,
            self.tokenizer,
            self.share,
            seed=self.config.seed,
            train=train,
            as_released=bool(self.config.compat),
            decode_on=self.device if by_device else None,
            pin_memory=pin,
        )

    def _dev_loader(self, data: Sequence[str], cache: Path | None) -> Loader | None:
        dev = open_dataset(
            data,
            "dev",
            detector=self.dataset.detector,
            cache=cache,
            cache_gb=self.config.data.cache_gb,
            plain_tars=False,
        )
        if not len(dev):
            LOG.info("the data has no dev split: no recall while training")
            return None
        return self._loader(dev, train=False)

    def _build(self, init: Path | None) -> None:
        """Model and optimiser: from the run's own checkpoint, from `init`, or from the recipe."""
        config = self.config
        newest = checkpoint.latest(self.out)
        torch.manual_seed(config.seed)
        self.model = BriVL(config, load_weights=newest is None and init is None).to(self.device)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if newest is not None:
            opened = checkpoint.open_checkpoint(newest)
            check_same(opened.config, config, newest)
            state = opened.load_training(self.model, self.optimizer)
            for what in ("content_digests", "region_digests", "weights"):
                if getattr(state, what) != getattr(self.state, what):
                    raise TrainingError(
                        str(newest), "was trained on other data, regions or weights of data; choose another --out"
                    )
            if self.rank == 0:
                say_changes(state, config.run.batch_size, self.world)
            self.state = state
        elif init is not None:
            checkpoint.open_checkpoint(init).load_start(self.model)
        if config.run.compile:
            self.model.compile_towers()
        self.meter = Meter(config, self.device)
        self.health = Health(self.model, config)

    def go(self, told: Told, *, save: bool) -> FitResult:
        """The loop."""
        run, started, first = self.config.run, time.monotonic(), self.state.step
        dev: Retrieval | None = None
        self.model.train()
        about = {"device": str(self.device), "processes": self.world, "host": platform.node(), "pid": os.getpid()}
        journal = Journal(self.out, first, self.total_steps, self.config, about=about, silent=self.rank > 0)
        saver = Saver(self.out, self.config, self.tokenizer) if save and self.rank == 0 else None
        with journal, saver or nullcontext(), self._profiler(first) as profiler:
            journal.say(self._opening())
            if first == 0 and self.config.moco.prefill and self.model.has_keys:
                self._prefill()
            batches = self.loader.batches(self.state.position, self._end())
            failures, leave = 0, Leave.NO
            while self.state.step < self.total_steps and not self._patience_ended():
                step, begun = self.state.step, time.monotonic()
                loaded = [next(batches) for _ in range(run.accumulate)]
                waited = time.monotonic() - begun
                valid = sum(int(batch.valid_B.sum()) for batch in loaded)  # before a GPU has to be waited for
                valid, leave = together(valid, told(), self.device)
                micros = [batch.to(self.device, non_blocking=True) for batch in loaded]
                # After the batches are there: torch's DataLoader draws a number of its own when it starts.
                torch.manual_seed(seed_of("step", self.config.seed, step, self.rank))
                outputs, norm = self._step(micros, valid)
                failures = failures + 1 if norm is None else 0
                if failures > MAX_NON_FINITE:
                    raise TrainingError(f"step {step}", f"{failures} steps in a row with a gradient that is not finite")
                self._moved(skipped=norm is None)
                self.health.saw(step, micros, outputs)
                done, last = self.state.step, self.state.step == self.total_steps or leave is Leave.STOP
                if last or done % run.log_every == 0:
                    seconds = time.monotonic() - begun
                    metrics = self._metrics(outputs, norm, waited, seconds) | self.meter.metrics(micros, seconds)
                    journal.write(done, metrics)
                better = False
                if self.dev is not None and (done == self.total_steps or done % run.eval_every == 0):
                    dev = retrieval(embed(self.model, self.dev.once(), self.device, run.precision))
                    journal.write(done, flat("dev", dev.to_json()))
                    better = self._compared(dev)
                due = run.checkpoint_every and done % run.checkpoint_every == 0
                if last or due or leave or (better and run.keep_best) or self._patience_ended():
                    if saver is not None:
                        saver.save(self.model, self.optimizer, self.state, best=better and run.keep_best)
                    journal.draw()
                journal.advance(done)
                if profiler is not None:
                    profiler.step()
                if leave is Leave.STOP:
                    break
            if saver is not None:
                saver.wait()
        if self.world > 1:
            torch.distributed.barrier()
        if leave is Leave.STOP and self.state.step < self.total_steps:
            raise TrainingError(f"step {self.state.step}", "told to end; saved, and the same command goes on from here")
        return self._result(first, time.monotonic() - started, dev)

    def _end(self) -> int:
        return self.state.position + (self.total_steps - self.state.step) * self.config.run.batch_size

    def _compared(self, dev: Retrieval) -> bool:
        """Whether this recall is the highest so far; it then counts for `best` and for patience."""
        if self.state.best_step >= 0 and dev.mean_recall <= self.state.best:
            return False
        self.state = replace(self.state, best=dev.mean_recall, best_step=self.state.step)
        return True

    def _patience_ended(self) -> bool:
        run, state = self.config.run, self.state
        if not run.patience or state.best_step < 0:
            return False
        return (state.step - state.best_step) // run.eval_every >= run.patience

    def _profiler(self, first: int) -> AbstractContextManager[Any]:
        """torch's profiler over `run.profile_steps` steps after the first three, on rank 0."""
        steps = self.config.run.profile_steps
        if not steps or self.rank:
            return nullcontext()
        folder = self.out / "profile"
        folder.mkdir(exist_ok=True)
        path = str(folder / f"steps-{first + 3:08d}.json")
        return torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=2, warmup=1, active=steps, repeat=1),
            on_trace_ready=lambda profiler: profiler.export_chrome_trace(path),
            profile_memory=True,
        )

    def _opening(self) -> str:
        begin = f"goes on from step {self.state.step}" if self.state.step else "begins"
        trained = sum(p.numel() for p in self.parameters)
        return (
            f"{self.config.recipe} {begin}: {len(self.dataset)} samples, {self.total_steps} steps of "
            f"{self.config.run.batch_size}, {trained:,} trained parameters, {self.world} process(es) on {self.device}"
        )

    def _prefill(self) -> None:
        """Keys of the K stream entries before the first, as if the run had begun before."""
        size = self.config.run.batch_size
        steps = math.ceil(self.config.moco.queue_size / size)
        entries = enumerate(self.loader.batches(-steps * size, 0))
        for number, batch in entries:
            with torch.no_grad(), self._autocast():
                self.model.prefill(batch.to(self.device), number // self.config.run.accumulate - steps)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.run.precision == "bf16")

    def _step(self, micros: Sequence[Batch], valid: int) -> tuple[list[StepOutput], float | None]:
        """One optimiser step; the norm of its gradient, or None when that is not finite and nothing was moved.

        `valid`: samples of all ranks that could be read.
        """
        optim = self.config.optim
        factor = schedule(optim, self.state.position, self.samples) * batch_factor(optim, self.config.run.batch_size)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        statistics = [b.clone() for b in self.model.statistics()]
        samples = max(valid, 1) / self.world
        outputs = backward(self.model, micros, samples, self._autocast)
        average_gradients(self.parameters)
        clip = self.config.optim.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, clip))
        finite = math.isfinite(norm)  # the same on every rank: the gradients are
        if finite:
            self.optimizer.step()
            self.model.after_step(outputs, self.state.step)
        else:
            for now, before in zip(self.model.statistics(), statistics, strict=True):
                now.copy_(before)  # a forward has moved them, perhaps to NaN, and the average would take that along
        self.optimizer.zero_grad(set_to_none=True)
        return outputs, norm if finite else None

    def _moved(self, *, skipped: bool) -> None:
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            position=self.state.position + self.config.run.batch_size,
            skipped=self.state.skipped + skipped,
            batch_size=self.config.run.batch_size,
            world_size=self.world,
        )

    def _metrics(
        self, outputs: Sequence[StepOutput], norm: float | None, waited: float, seconds: float
    ) -> dict[str, float]:
        """Metrics of the step just done: means over ranks and micro-steps, and the health of the queues."""
        names = sorted(outputs[0].metrics)
        loss = torch.stack([o.loss.detach().float() for o in outputs]).sum()
        values = [torch.stack([o.metrics[n].detach().float() for o in outputs]).mean() for n in names]
        vector: Tensor = torch.stack([loss, *values])
        distributed.average_([vector])
        found = dict(zip(["loss", *names], vector.tolist(), strict=True))
        found |= self.health.metrics(self.state.step, self.state.position, outputs, found)
        return {
            "position": self.state.position,
            **self.loader.epochs(self.state.position),
            "lr": float(self.optimizer.param_groups[-1]["lr"]),
            "gradient_norm": math.nan if norm is None else norm,
            "skipped": self.state.skipped,
            "corrupt": self.loader.corrupt,
            "samples_per_second": self.config.run.batch_size / seconds,
            "waiting_for_data": waited / seconds,
            "memory_gib": used_memory(self.device) / 2**30,
            **found,
        }

    def _result(self, first: int, seconds: float, dev: Retrieval | None) -> FitResult:
        logged = [line for line in read_metrics(self.out) if "loss" in line]
        return FitResult(
            out=str(self.out),
            checkpoint=str(checkpoint.latest(self.out)),
            steps=self.state.step,
            position=self.state.position,
            samples=len(self.dataset),
            resumed_from=first,
            loss=logged[-1]["loss"] if logged else None,
            skipped=self.state.skipped,
            corrupt=self.loader.corrupt,
            seconds=seconds,
            samples_per_second=(self.state.step - first) * self.config.run.batch_size / seconds,
            world_size=self.world,
            device=str(self.device),
            dev=dev.to_json() if dev is not None else None,
            best_step=self.state.best_step,
            stopped_early=self._patience_ended(),
        )
