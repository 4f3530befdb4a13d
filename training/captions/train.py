"""Training of a captioner on the region features of a checkpoint; start at `fit_captioner`.

    features of train and dev, once (training/captions/regions.py) -> steps: a batch of images in an order that follows
    from (seed, epoch), of each one of its captions, cross entropy, AdamW with warm-up and cosine
    -> CIDEr on the dev split every `eval_epochs`; the best is kept, and `patience` of them without a higher one end it

A batch follows from (seed, step), and so do the random numbers of a step: a training that was killed goes on by the
same command as if it had not been.

Limits: one process. The towers are not trained: fine-tune them first (recipe finetune_captions).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data_specs.command.extras import require
from training.captions import checkpoint
from training.captions.checkpoint import Captioner, CaptionerState
from training.captions.decoder import CaptionerConfig
from training.captions.metrics import COCO, cider
from training.captions.regions import CaptionedSplit, open_captioned
from training.config import OptimConfig
from training.data.index import split_weight
from training.data.order import fraction, seed_of
from training.errors import ConfigError, RunError
from training.outputs.atomic_files import write_errors
from training.outputs.checkpoint import BEST, latest
from training.outputs.journal import Journal
from training.run.footprint import used_memory
from training.run.launch import Leave, leave_on_signal, locked_folder
from training.run.optimizer import schedule
from training.weights.load import Loaded, load

LOG = logging.getLogger(__name__)

STANDARD = 2_000
"""Training images, the first ones, by whose regions those of all are standardised."""

LOG_EVERY = 10
"""Steps between two lines of metrics.jsonl."""


def fit_captioner(
    path: Path,
    data: Sequence[str],
    out: Path,
    config: CaptionerConfig,
    *,
    detector: str = "",
    device: str = "auto",
    cache: Path | None = None,
) -> dict[str, Any]:
    """Train a captioner on the train split of `data` and the towers of a checkpoint; resumes a training in `out`.

    Raises ConfigError (bad usage), CheckpointError, ContractError (bad data), InputError, RunError. One line each.
    """
    started = time.monotonic()
    for argument in data:
        name, weight = split_weight(argument)
        if weight is not None:
            advice = f"every image is used once per epoch; leave out {argument.removeprefix(name)}"
            raise ConfigError("--data", f"{argument}: {advice}")
    if config.eval_epochs:
        require(COCO)
    with write_errors(out), locked_folder(out), leave_on_signal() as leave:
        loaded = load(path, device)
        train = open_captioned(loaded, data, "train", cache, detector, leave)
        if train is None:
            raise ConfigError("--data", "contains no samples in its train split")
        dev = open_captioned(loaded, data, "dev", cache, detector, leave) if config.eval_epochs else None
        if dev is None and config.patience and config.eval_epochs:
            LOG.info("no dev split, so no early stopping: training all %g epochs", config.epochs)
        run = _Training(loaded, train, dev and dev.head(config.dev_images), out, config)
        with run.journal() as journal:
            while run.state.step < run.steps and not run.patience_ended():
                run.step(journal)
                asked = leave()
                better = run.evaluate(journal)
                if better or asked or run.is_due():
                    run.save(best=better)
                journal.advance(run.state.step)
                if asked is Leave.STOP and run.state.step < run.steps:
                    problem = f"stopped by a signal; saved, run the same command with --out {out} to resume"
                    raise RunError(f"step {run.state.step}", problem)
        return run.result(time.monotonic() - started)


def write_captions(captioner: Captioner, images: CaptionedSplit, beams: int | None = None) -> list[str]:
    starts = range(0, len(images), 32)
    parts = (images.regions(range(start, min(start + 32, len(images)))) for start in starts)
    return [caption for part in parts for caption, _ in captioner.best(*part, beams)]


class _Training:
    """One training, from its first step, or from its newest checkpoint, to its last."""

    def __init__(
        self, loaded: Loaded, train: CaptionedSplit, dev: CaptionedSplit | None, out: Path, config: CaptionerConfig
    ) -> None:
        self.loaded, self.train, self.dev, self.out, self.config = loaded, train, dev, out, config
        self.device = loaded.device
        torch.manual_seed(config.seed)
        towers = loaded.checkpoint.towers
        captions = [caption for of_image in train.captions for caption in of_image]
        self.captioner = Captioner.begin(config, train.regions_NRW.shape[2], towers, train.digest, captions)
        regions_BRW, present_BR = train.regions(range(min(len(train), STANDARD)))
        self.captioner.decoder.standardise(regions_BRW[present_BR])
        start, self.state = latest(out), CaptionerState()
        if start is not None:
            self.captioner = self._resume(start)
        decoder = self.captioner.decoder.to(self.device)
        decay = {True: list[torch.nn.Parameter](), False: list[torch.nn.Parameter]()}
        for parameter in decoder.parameters():
            decay[parameter.ndim > 1].append(parameter)
        groups = [{"params": some, "weight_decay": config.weight_decay if on else 0.0} for on, some in decay.items()]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))
        if start is not None:
            self.state = checkpoint.read_training(start, self.captioner, self.optimizer)
        self.first = self.state.step
        self.of_epoch = math.ceil(len(train) / config.batch_size)
        self.steps = max(1, math.ceil(config.epochs * self.of_epoch))
        self.eval_steps = max(1, round(config.eval_epochs * self.of_epoch))
        self.loss: float | None = None
        self.epoch, self.order = -1, list[int]()

    def _resume(self, start: Path) -> Captioner:
        """The captioner of the run's own checkpoint. Raises ConfigError, RunError if it began otherwise."""
        saved = checkpoint.read(start)
        different = checkpoint.changes(saved.config, self.config)
        if different:
            listed = ", ".join(f"{key} was {was!r}, is {now!r}" for key, (was, now) in list(different.items())[:3])
            raise ConfigError(str(start), f"the run was started with other settings ({listed}); choose another --out")
        if (saved.towers, saved.data) != (self.captioner.towers, self.train.digest):
            raise RunError(str(start), "was trained on other data, regions or towers; choose another --out")
        return replace(saved, config=self.config)

    def journal(self) -> Journal:
        """The record of the training, in the folder of the run; its config.json is that of the towers."""
        towers = self.loaded.config
        config = replace(towers, run=replace(towers.run, tracker="none"))
        about = {"device": str(self.device), "processes": 1}
        journal = Journal(self.out, self.first, self.steps, config, about=about)
        begin = f"resumes from step {self.first}" if self.first else "begins"
        trained = sum(p.numel() for p in self.captioner.decoder.parameters())
        journal.say(
            f"captioner {begin}: {len(self.train):,} images, {len(self.captioner.vocabulary):,} characters, "
            f"{self.steps} steps of {self.config.batch_size}, {trained:,} trained parameters on {self.device}"
        )
        return journal

    def step(self, journal: Journal) -> None:
        begun, config, step = time.monotonic(), self.config, self.state.step
        rows, captions = self._batch(step)
        regions_BRW, present_BR = (tensor.to(self.device) for tensor in self.train.regions(rows))
        ids_BL = self.captioner.vocabulary.batch(captions, config.max_characters).to(self.device)
        factor = schedule(OptimConfig(warmup_share=config.warmup_share), step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * factor
        torch.manual_seed(seed_of("captioner", config.seed, step))
        decoder = self.captioner.decoder.train()
        loss = decoder.loss(ids_BL, regions_BRW, present_BR)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(decoder.parameters(), config.clip or math.inf))
        if not math.isfinite(norm):
            raise RunError(f"step {step}", "the gradient is not finite; try a lower lr")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state = replace(self.state, step=step + 1)
        if self.state.step % LOG_EVERY == 0 or self.state.step == self.steps:
            self.loss = float(loss.detach())
            seconds = time.monotonic() - begun
            metrics = {"loss": self.loss, "lr": config.lr * factor, "gradient_norm": norm}
            pace = {"samples_per_second": len(rows) / seconds, "waiting_for_data": 0.0}
            metrics |= pace | {"memory_gib": used_memory(self.device) / 2**30}
            journal.write(self.state.step, {"epoch": self.state.step / self.of_epoch, **metrics})

    def _batch(self, step: int) -> tuple[list[int], list[str]]:
        """Images of a step and one caption of each, by the order of its epoch."""
        epoch, inside = divmod(step, self.of_epoch)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(seed_of("captions", self.config.seed, epoch))
            self.order, self.epoch = torch.randperm(len(self.train), generator=generator).tolist(), epoch
        rows = self.order[inside * self.config.batch_size : (inside + 1) * self.config.batch_size]
        captions = []
        for row in rows:
            of_image = self.train.captions[row]
            captions.append(of_image[int(fraction("caption", self.config.seed, epoch, row) * len(of_image))])
        return rows, captions

    def evaluate(self, journal: Journal) -> bool:
        """CIDEr on the dev split, where it is due; whether it is the highest so far."""
        done = self.state.step
        if self.dev is None or (done % self.eval_steps and done != self.steps):
            return False
        value = cider(write_captions(self.captioner, self.dev), self.dev.captions, "characters")
        journal.write(done, {"dev.cider": value})
        if self.state.best_step >= 0 and value <= self.state.best:
            return False
        self.state = replace(self.state, best=value, best_step=done)
        return True

    def patience_ended(self) -> bool:
        """True if so many CIDErs in a row were not above the best."""
        patience, state = self.config.patience, self.state
        return bool(patience) and 0 <= state.best_step <= state.step - patience * self.eval_steps

    def is_due(self) -> bool:
        """True if a checkpoint is to be written after this step."""
        every, done = self.config.checkpoint_every, self.state.step
        return done == self.steps or self.patience_ended() or (every > 0 and done % every == 0)

    def save(self, *, best: bool) -> None:
        towers = self.loaded.checkpoint.folder
        checkpoint.write(self.out, self.captioner, self.optimizer, self.state, towers, best=best)

    def result(self, seconds: float) -> dict[str, Any]:
        """Outcome as JSON values. dev_cider: on the dev split, highest of all; None without a dev split."""
        newest, best = latest(self.out), self.out / "checkpoints" / BEST
        return {
            "out": str(self.out),
            "checkpoint": str(newest),
            "best": str(best if best.exists() else newest),
            "steps": self.state.step,
            "samples": len(self.train),
            "resumed_from": self.first,
            "loss": self.loss,
            "dev_cider": self.state.best if self.state.best_step >= 0 else None,
            "best_step": self.state.best_step,
            "stopped_early": self.patience_ended() and self.state.step < self.steps,
            "seconds": seconds,
        }
