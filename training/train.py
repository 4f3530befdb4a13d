"""The training loop: read it and you know what a run does.

One step: take this rank's micro-batches of the global batch at `position` -> forward against the queues as they were,
backward (training/accumulate.py) -> mean of the gradients over the ranks -> clip -> optimiser -> key towers and queues
move. A step whose gradient is not finite changes nothing but its count. Random numbers of a step follow from (seed,
step, rank), the data from (seed, position): a run that was killed and started again by the same command gives the
losses it would have given.

Limits: gradients are exchanged once, after the last micro-step, without overlap; dropout differs between world sizes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_specs.shard import ContractError
from training import checkpoint, distributed
from training.accumulate import backward
from training.checkpoint import RunState
from training.config import Config, to_dict
from training.data import Loader, Share
from training.errors import ConfigError, TrainingError
from training.evaluate import Retrieval, embed, retrieval
from training.flops import Meter
from training.index import Dataset, open_dataset
from training.journal import Journal, read_metrics
from training.launch import average_gradients, device_of, exact_float32, keep_memory, process_group, total
from training.moco import BriVL, StepOutput
from training.optimizer import build_optimizer, schedule
from training.order import seed_of
from training.records import Batch
from training.tokenizer import load_tokenizer

LOG = logging.getLogger(__name__)

MAX_NON_FINITE = 10
"""Non-finite steps in a row after which the run stops."""

_COLLAPSED = 0.02
"""Spread of features below which all samples look alike (1 is the most)."""

_FREE_TO_CHANGE = {
    "run.device",
    "run.accumulate",
    "run.recompute",
    "run.compile",
    "run.checkpoint_every",
    "run.keep_last",
    "run.eval_every",
    "run.log_every",
    "data.num_workers",
}
"""Keys that a resumed run may set otherwise, because the result does not depend on them."""

_CHANGED_ALOUD = {"moco.queue_size"}
"""Keys that a resumed run may set otherwise although it does: the checkpoint adapts, and says so in the log."""


@dataclass(frozen=True)
class FitResult:
    """What a run did. `seconds` and `samples_per_second` are of this process only; recall is of the dev split."""

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

    def to_json(self) -> dict[str, Any]:
        """JSON object of the same names."""
        return asdict(self)


def fit(
    config: Config, data: Sequence[str], out: Path, *, init: Path | None = None, cache: Path | None = None
) -> FitResult:
    """Train by `config` on the train split of `data` into the folder `out`; go on where `out` has a checkpoint.

    `init`: a checkpoint whose towers to begin from (a new run only). Every rank calls it alike.

    Raises ConfigError (bad usage), ContractError (bad data), TrainingError (the run failed). One line each.
    """
    device = device_of(config.run.device)
    if device.type == "cpu":
        keep_memory()
    exact_float32(device)
    config = _obeying(config, checkpoint.latest(out) or init)
    with process_group(device):
        run = _Run(config, data, out, device, init, cache)
        return run.go()


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
        out.mkdir(parents=True, exist_ok=True)
        self.tokenizer = load_tokenizer(config.data.tokenizer)
        if len(self.tokenizer.vocabulary) > config.text.vocab_size:
            raise ConfigError(
                "text.vocab_size", f"{config.text.vocab_size} is below the {len(self.tokenizer.vocabulary)} tokens"
            )
        self.dataset = open_dataset(data, "train", detector=config.data.detector, cache=cache)
        if not len(self.dataset):
            raise ContractError(f"{data[0]}: no samples in the train split")
        self.loader = self._loader(self.dataset, train=True)
        self.dev = self._dev_loader(data, cache) if config.run.eval_every else None
        self.samples = math.ceil(config.run.epochs * len(self.dataset))
        self.total_steps = max(1, math.ceil(self.samples / config.run.batch_size))
        self.state = RunState(0, 0, 0, self.dataset.content_digests, self.dataset.region_digests, self.dataset.detector)
        self._build(init)

    def _loader(self, dataset: Dataset, *, train: bool) -> Loader:
        pin = self.device.type == "cuda"
        return Loader(
            dataset,
            self.config.data,
            self.tokenizer,
            self.share,
            seed=self.config.seed,
            train=train,
            pad_tokens=bool(self.config.compat),
            pin_memory=pin,
        )

    def _dev_loader(self, data: Sequence[str], cache: Path | None) -> Loader | None:
        dev = open_dataset(data, "dev", detector=self.dataset.detector, cache=cache, plain_tars=False)
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
            _check_same(opened.config, config, newest)
            state = opened.load_training(self.model, self.optimizer)
            if (state.content_digests, state.region_digests) != (self.state.content_digests, self.state.region_digests):
                raise TrainingError(str(newest), "was trained on other data or regions; choose another --out")
            self.state = state
        elif init is not None:
            checkpoint.open_checkpoint(init).load_start(self.model)
        if config.run.compile:
            self.model.compile_towers()
        self.meter = Meter(config, self.device)

    def go(self) -> FitResult:
        """The loop."""
        run, started, first = self.config.run, time.monotonic(), self.state.step
        dev: Retrieval | None = None
        self.model.train()
        with Journal(self.out, first, self.total_steps, silent=self.rank > 0) as journal:
            journal.say(self._opening())
            if first == 0 and self.config.moco.prefill and self.model.has_keys:
                self._prefill()
            batches = self.loader.batches(self.state.position, self.total_steps * run.batch_size)
            failures = 0
            for step in range(first, self.total_steps):
                begun = time.monotonic()
                loaded = [next(batches) for _ in range(run.accumulate)]
                waited = time.monotonic() - begun
                valid = sum(int(batch.valid_B.sum()) for batch in loaded)  # before a GPU has to be waited for
                micros = [batch.to(self.device, non_blocking=True) for batch in loaded]
                # After the batches are there: torch's DataLoader draws a number of its own when it starts.
                torch.manual_seed(seed_of("step", self.config.seed, step, self.rank))
                outputs, norm = self._step(micros, valid, step)
                failures = failures + 1 if norm is None else 0
                if failures > MAX_NON_FINITE:
                    raise TrainingError(f"step {step}", f"{failures} steps in a row with a gradient that is not finite")
                self._moved(skipped=norm is None)
                done, last = self.state.step, self.state.step == self.total_steps
                loss = None
                if last or done % run.log_every == 0:
                    seconds = time.monotonic() - begun
                    metrics = self._metrics(outputs, norm, waited, seconds) | self.meter.metrics(micros, seconds)
                    loss = metrics["loss"]
                    journal.write(done, metrics)
                if self.dev is not None and (last or done % run.eval_every == 0):
                    dev = retrieval(embed(self.model, self.dev.once(), self.device, run.precision))
                    journal.write(done, _flat("dev", dev.to_json()))
                if last or (run.checkpoint_every and done % run.checkpoint_every == 0):
                    self._save()
                journal.advance(done, loss)
        return self._result(first, time.monotonic() - started, dev)

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

    def _step(self, micros: Sequence[Batch], valid: int, step: int) -> tuple[list[StepOutput], float | None]:
        """One optimiser step; the norm of its gradient, or None when that is not finite and nothing was moved.

        `valid`: samples of this rank that could be read.
        """
        factor = schedule(self.config.optim, self.state.position, self.samples)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        statistics = [b.clone() for b in self.model.statistics()]
        samples = max(total(valid, self.device), 1) / self.world
        outputs = backward(self.model, micros, samples, self._autocast)
        average_gradients(self.parameters)
        clip = self.config.optim.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, clip))
        finite = math.isfinite(norm)  # the same on every rank: the gradients are
        if finite:
            self.optimizer.step()
            self.model.after_step(outputs, step)
        else:
            for now, before in zip(self.model.statistics(), statistics, strict=True):
                now.copy_(before)  # a forward has moved them, perhaps to NaN, and the average would take that along
        self.optimizer.zero_grad(set_to_none=True)
        return outputs, norm if finite else None

    def _moved(self, *, skipped: bool) -> None:
        state = asdict(self.state)
        state |= {
            "step": self.state.step + 1,
            "position": self.state.position + self.config.run.batch_size,
            "skipped": self.state.skipped + skipped,
        }
        self.state = RunState(**state)

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
        found |= self.model.queue_health(self.state.step)
        self._warn_of_collapse(found)
        return {
            "position": self.state.position,
            "epoch": self.state.position / len(self.dataset),
            "lr": float(self.optimizer.param_groups[-1]["lr"]),
            "gradient_norm": math.nan if norm is None else norm,
            "skipped": self.state.skipped,
            "corrupt": self.loader.corrupt,
            "samples_per_second": self.config.run.batch_size / seconds,
            "waiting_for_data": waited / seconds,
            **found,
        }

    def _warn_of_collapse(self, metrics: dict[str, float]) -> None:
        """Only once the queue is full: before that features of a fresh model may well look alike."""
        if metrics.get("text_queue_fill", 1.0) < 1:
            return
        for name in ("image_spread", "text_spread"):
            if metrics.get(name, 1.0) < _COLLAPSED:
                LOG.warning("step %d: %s is %.4f: features have collapsed", self.state.step, name, metrics[name])

    def _save(self) -> None:
        """Rank 0 writes; all others have the same state and wait."""
        if self.rank == 0:
            checkpoint.clean(self.out)
            checkpoint.save(
                self.out, self.model, self.optimizer, self.config, self.tokenizer, self.state, self.config.run.keep_last
            )
        if self.world > 1:
            torch.distributed.barrier()

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
        )


def _obeying(config: Config, start: Path | None) -> Config:
    """The config with `compat` of the checkpoint that the run begins from: its weights mean nothing without it."""
    if start is None:
        return config
    compat = checkpoint.open_checkpoint(start).config.compat
    if compat != config.compat:
        LOG.info("%s: compat is %r, and this run keeps to it", start, compat)
    return replace(config, compat=compat)


def _check_same(saved: Config, asked: Config, folder: Path) -> None:
    """A run goes on only as what it began as. Raises ConfigError naming the keys that differ."""
    before, now = _flat("", to_dict(saved)), _flat("", to_dict(asked))
    may = _FREE_TO_CHANGE | _CHANGED_ALOUD
    keys = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k) and k not in may)
    if keys:
        changes = ", ".join(f"{k} was {before.get(k)!r}, is {now.get(k)!r}" for k in keys[:3])
        raise ConfigError(str(folder), f"the run began otherwise ({changes}); use the same recipe or another --out")


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots."""
    if not isinstance(value, dict):
        return {name: value}
    flat: Iterator[dict[str, Any]] = (_flat(f"{name}.{key}" if name else str(key), item) for key, item in value.items())
    return {key: item for part in flat for key, item in part.items()}
