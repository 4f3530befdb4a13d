"""The training loop; `_Run.go` shows a whole run.

One step: take this rank's micro-batches of the global batch at `position` -> forward against the queues as they were,
backward -> mean of the gradients over the ranks -> clip -> optimiser -> key towers and queues move
(training/run/step.py). Random numbers of a step follow from (seed, step, rank), the data from (seed, position): a run
that was killed and started again by the same command has the losses that it would have had.

Between two steps the ranks agree on whether any of them was asked to leave: to save because a machine may go or the
last checkpoint is old, or to save and end (SIGTERM, Ctrl-C). A run is the only one that writes into its folder, all
its ranks begin from one checkpoint, and they are compared before their state is saved (training/run/agreement.py).

Limits: those of a step. Recall on the dev split is computed by all ranks while training stands still.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.config import Config
from training.device import prepare_device
from training.errors import RunError
from training.evaluation.evaluate import retrieval
from training.evaluation.features import embed
from training.evaluation.retrieval import Retrieval
from training.method import distributed
from training.outputs import checkpoint
from training.outputs.atomic_files import write_errors
from training.outputs.journal import Journal, read_metrics
from training.outputs.saver import Saver
from training.outputs.trackers import Tracker
from training.records import Batch
from training.run.agreement import Agreement, locked_run, on_all_ranks, stop
from training.run.flops import Meter
from training.run.footprint import used_memory
from training.run.health import Health
from training.run.launch import Leave, LeaveSignal, ending_with_parent, leave_on_signal, process_group, under_torchrun
from training.run.resume import flatten, with_saved_compat
from training.run.setup import Setup, set_up
from training.run.step import Stepper, StepResult

MAX_NON_FINITE = 10
"""Non-finite steps in a row after which the run stops."""


@dataclass(frozen=True)
class FitResult:
    """Outcome of a run. `seconds` and `samples_per_second` are of this process only; recall is of the dev split.

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


def fit(
    config: Config,
    data: Sequence[str],
    out: Path,
    *,
    init: Path | None = None,
    cache: Path | None = None,
    leave_signal: LeaveSignal | None = None,
    tracker: Tracker | None = None,
    save: bool = True,
) -> FitResult:
    """Train by `config` on the train split of `data` into the folder `out`; resume from a checkpoint in `out`.

    `init`: a checkpoint whose towers to begin from (a new run only). `leave_signal`: asked after every step, instead of
    SIGTERM and Ctrl-C, whether to save and whether to end. `tracker`: receives the metrics beside the one that the
    config names. `save=False` writes no checkpoint. Every rank calls it alike.

    Raises ConfigError (bad usage), ContractError (bad data), CheckpointError, RunError (the run failed). One line each.
    """
    device = prepare_device(config.run.device)
    with (
        ending_with_parent(under_torchrun()),
        write_errors(out),
        process_group(device),
        locked_run(out, config.run.mirror) as start,
        nullcontext(leave_signal) if leave_signal is not None else leave_on_signal() as signal,
    ):

        def set_up_rank() -> Setup:
            resolved = with_saved_compat(config, start or init)
            return set_up(resolved, data, device, start=start, init=init, cache=cache)

        setup = on_all_ranks(set_up_rank)
        return _Run(setup, out, start, tracker).go(signal, save=save)


class _Run:
    """One process of one run, from its first step to the last checkpoint."""

    def __init__(self, setup: Setup, out: Path, start: Path | None, tracker: Tracker | None = None) -> None:
        self.setup, self.out, self.tracker = setup, out, tracker
        self.config, self.device, self.model = setup.config, setup.device, setup.model
        self.rank, self.world = distributed.rank(), distributed.world_size()
        self.state, self.first = setup.state, setup.state.step
        self.stepper = Stepper(setup)
        self.agreement = Agreement(setup)
        self.agreement.before_first_step(start)
        self.meter = Meter(setup.config, setup.device)
        self.health = Health(setup.model, setup.config, setup.samples)
        self.recall: Retrieval | None = None
        self.failures = 0
        self.saved = time.monotonic()

    def go(self, leave_signal: LeaveSignal, *, save: bool) -> FitResult:
        """The loop: to the last step, until recall no longer rises, or until the run is asked to leave."""
        started, leave = time.monotonic(), Leave.NO
        self.model.train()
        with self._journal() as journal, self._saver(save) as saver, self._profiler() as profiler:
            journal.say(self._opening_line())
            self._prefill()
            self._restore_probe()
            batches = self.setup.loader.batches(self.state.position, self.setup.end)
            while leave is not Leave.STOP and self.state.step < self.setup.total_steps and not self._patience_ended():
                begun = time.monotonic()
                loaded = [next(batches) for _ in range(self.config.run.accumulate)]
                waited = time.monotonic() - begun
                valid = sum(int(batch.valid_B.sum()) for batch in loaded)  # before a GPU has to be waited for
                valid, leave = self.agreement.before_step(self.state, valid, max(leave_signal(), self._save_if_old()))
                step = self.stepper.step(loaded, self.state, valid)
                self._count_step(step)
                if self._due(self.config.run.log_every, leave):
                    journal.write(self.state.step, self._metrics(step, waited, time.monotonic() - begun))
                better = self._evaluate(journal)
                if leave or better or self._checkpoint_due(leave) or self._patience_ended():
                    if save:
                        self.agreement.before_checkpoint(self.state)
                    self._save(saver, journal, best=better)
                journal.advance(self.state.step)
                if profiler is not None:
                    profiler.step()
            if saver is not None:
                saver.wait()
        if self.world > 1:
            torch.distributed.barrier()
        if leave is Leave.STOP and self.state.step < self.setup.total_steps:
            problem = f"stopped by a signal; saved, run the same command with --out {self.out} to resume"
            stop(RunError(f"step {self.state.step}", problem))
        return self._result(time.monotonic() - started)

    def _due(self, every: int, leave: Leave) -> bool:
        """True if what is done every so many steps (0: at the end only) is to be done after this one."""
        last = self.state.step == self.setup.total_steps or leave is Leave.STOP
        return last or (every > 0 and self.state.step % every == 0)

    def _checkpoint_due(self, leave: Leave) -> bool:
        """True if a checkpoint by steps is due, or by minutes the end of an epoch has come."""
        run, position = self.config.run, self.state.position
        before, now = (int(self.setup.loader.epochs(at)["epoch"]) for at in (position - run.batch_size, position))
        return self._due(run.checkpoint_steps, leave) or (run.checkpoint_minutes > 0 and before < now)

    def _save_if_old(self) -> Leave:
        """Request to SAVE if the last checkpoint is too old. Of several ranks the first clock decides for all."""
        minutes = self.config.run.checkpoint_minutes
        return Leave.SAVE if minutes and time.monotonic() - self.saved >= 60 * minutes else Leave.NO

    def _count_step(self, step: StepResult) -> None:
        """Move the run's state on by one step. Raises RunError after too many that were skipped in a row."""
        self.failures = self.failures + 1 if step.skipped else 0
        if self.failures > MAX_NON_FINITE:
            problem = f"{self.failures} steps in a row with a gradient that is not finite"
            stop(RunError(f"step {self.state.step}", problem))
        self.health.record_step(self.state.step, step.micros, step.outputs)
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            position=self.state.position + self.config.run.batch_size,
            skipped=self.state.skipped + step.skipped,
            batch_size=self.config.run.batch_size,
            world_size=self.world,
        )

    def _evaluate(self, journal: Journal) -> bool:
        """Recall on the dev split, where it is due; whether it counts for `best` and is to be kept as such."""
        done, run = self.state.step, self.config.run
        if self.setup.dev is None or (done != self.setup.total_steps and done % self.setup.eval_steps):
            return False
        self.recall = retrieval(embed(self.model, self.setup.dev.once(), self.device, run.precision))
        journal.write(done, flatten("dev", self.recall.to_json()))
        if self.state.best_step >= 0 and self.recall.mean_recall <= self.state.best:
            return False
        self.state = replace(self.state, best=self.recall.mean_recall, best_step=done)
        return run.keep_best

    def _save(self, saver: Saver | None, journal: Journal, *, best: bool) -> None:
        if saver is not None:
            saver.save(self.model, self.setup.optimizer, self.state, best=best)
        self.saved = time.monotonic()
        journal.draw()

    def _patience_ended(self) -> bool:
        run, state = self.config.run, self.state
        if not run.patience or state.best_step < 0:
            return False
        return (state.step - state.best_step) // self.setup.eval_steps >= run.patience

    def _prefill(self) -> None:
        moco = self.config.moco
        if self.first == 0 and moco.prefill and self.model.has_keys and not moco.init_queues:
            begin = -self.stepper.prefill_steps * self.config.run.batch_size
            self.stepper.prefill(self.setup.loader.batches(begin, 0))

    def _restore_probe(self) -> None:
        """Staleness is measured again from where it was, so that a resumed run has the metrics of one that was not."""
        batch_size = self.config.run.batch_size

        def read(ago: int) -> Batch:
            begin = self.state.position - ago * batch_size
            return next(self.setup.loader.batches(begin, begin + batch_size))

        if self.first and self.state.batch_size == batch_size:
            self.health.restore_probe(self.first, read)

    def _journal(self) -> Journal:
        about = {"device": str(self.device), "processes": self.world, "host": platform.node(), "pid": os.getpid()}
        total, silent = self.setup.total_steps, self.rank > 0
        return Journal(self.out, self.first, total, self.config, about=about, silent=silent, tracker=self.tracker)

    def _saver(self, save: bool) -> AbstractContextManager[Saver | None]:
        if save and self.rank == 0:
            return Saver(self.out, self.config, self.setup.tokenizer)
        return nullcontext()

    def _profiler(self) -> AbstractContextManager[Any]:
        """torch's profiler over `run.profile_steps` steps after the first three, on rank 0."""
        steps = self.config.run.profile_steps
        if not steps or self.rank:
            return nullcontext()
        folder = self.out / "profile"
        folder.mkdir(exist_ok=True)
        path = str(folder / f"steps-{self.first + 3:08d}.json")
        return torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=2, warmup=1, active=steps, repeat=1),
            on_trace_ready=lambda profiler: profiler.export_chrome_trace(path),
            profile_memory=True,
        )

    def _opening_line(self) -> str:
        begin = f"resumes from step {self.first}" if self.first else "begins"
        trained = sum(p.numel() for p in self.stepper.parameters)
        return (
            f"{self.config.recipe} {begin}: {len(self.setup.dataset)} samples, {self.setup.total_steps} steps of "
            f"{self.config.run.batch_size}, {trained:,} trained parameters, {self.world} process(es) on {self.device}"
        )

    def _metrics(self, step: StepResult, waited: float, seconds: float) -> dict[str, float]:
        """Metrics of the step just done: means over ranks and micro-steps, the health of the queues, and the pace."""
        names = sorted(step.outputs[0].metrics)
        loss = torch.stack([o.loss.detach().float() for o in step.outputs]).sum()  # the losses of micro-steps add up
        values = [torch.stack([o.metrics[n].detach().float() for o in step.outputs]).mean() for n in names]
        vector: Tensor = torch.stack([loss, *values])
        distributed.average_([vector])
        means = dict(zip(["loss", *names], vector.tolist(), strict=True))
        health = self.health.metrics(self.state.step, self.state.position, step.outputs, means)
        # Counting takes seconds the first time, and the others write nothing.
        counted = {} if self.rank else self.meter.metrics(step.micros, seconds)
        return {
            "position": self.state.position,
            **self.setup.loader.epochs(self.state.position),
            "lr": step.lr,
            "gradient_norm": math.nan if step.norm is None else step.norm,
            "skipped": self.state.skipped,
            "corrupt": self.setup.loader.corrupt,
            "samples_per_second": self.config.run.batch_size / seconds,
            "waiting_for_data": waited / seconds,
            "memory_gib": used_memory(self.device) / 2**30,
            **means,
            **health,
            **counted,
        }

    def _result(self, seconds: float) -> FitResult:
        logged = [line for line in read_metrics(self.out) if "loss" in line]
        return FitResult(
            out=str(self.out),
            checkpoint=str(checkpoint.latest(self.out)),
            steps=self.state.step,
            position=self.state.position,
            samples=len(self.setup.dataset),
            resumed_from=self.first,
            loss=logged[-1]["loss"] if logged else None,
            skipped=self.state.skipped,
            corrupt=self.setup.loader.corrupt,
            seconds=seconds,
            samples_per_second=(self.state.step - self.first) * self.config.run.batch_size / seconds,
            world_size=self.world,
            device=str(self.device),
            dev=self.recall.to_json() if self.recall is not None else None,
            best_step=self.state.best_step,
            stopped_early=self._patience_ended(),
        )
