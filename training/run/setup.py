"""Set-up of a run: data, model and optimiser, and its progress. Every check that can refuse a run is made here.

A run goes on from the newest checkpoint of its own folder, or begins from the towers of another checkpoint, or from the
recipe's weights. Before the data is opened its memory is added up; before a checkpoint is taken over its config and its
data are compared with what was asked for.

Limits: one process; each rank sets itself up alike.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data_specs.shard import ContractError
from training.config import Config
from training.data.index import Dataset, open_dataset
from training.data.loader import Loader, Share
from training.data.tokenizer import Tokenizer, load_tokenizer, with_class
from training.data.transforms import check_decodes
from training.errors import ConfigError, RunError
from training.evaluation.caption_sets import pack_caption_sets
from training.method import distributed
from training.moco import BriVL
from training.objectives import objective_of
from training.outputs import checkpoint
from training.outputs.checkpoint import RunState
from training.run.activations import with_recompute
from training.run.footprint import check_fits
from training.run.optimizer import build_optimizer
from training.run.resume import check_length, check_same, log_changes
from training.weights.two_towers import fill_towers, is_two_towers

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Setup:
    """A run that is ready for its first step, or for the next one.

    `dev`: the dev split, None where no recall is asked for or the data lacks one. `total_steps` counts from the
    run's beginning, `state.step` of them are done.
    """

    config: Config
    device: torch.device
    tokenizer: Tokenizer
    dataset: Dataset
    loader: Loader
    dev: Loader | None
    model: BriVL
    optimizer: torch.optim.AdamW
    state: RunState
    total_steps: int

    @property
    def samples(self) -> int:
        """Samples of the whole run, all epochs together."""
        return math.ceil(self.config.run.epochs * len(self.dataset))

    @property
    def eval_steps(self) -> int:
        """Steps between recalls on the dev split."""
        run = self.config.run
        return run.eval_every or max(1, round(run.eval_epochs * len(self.dataset) / run.batch_size))

    @property
    def end(self) -> int:
        """Position after the last step."""
        return self.state.position + (self.total_steps - self.state.step) * self.config.run.batch_size


def set_up(
    config: Config,
    data: Sequence[str],
    device: torch.device,
    *,
    start: Path | None,
    init: Path | None,
    cache: Path | None,
) -> Setup:
    """Open the data and build the model of a run. `start`: the run's own checkpoint to go on from.

    Raises ConfigError (bad usage, or a run that began otherwise), ContractError (bad data), RunError (no room, or a run
    on other data).
    """
    rank, world = distributed.rank(), distributed.world_size()
    share = Share(config.run.batch_size, rank, world, config.run.accumulate)
    check_fits(config, device, int(os.environ.get("LOCAL_WORLD_SIZE", world)), world)
    config = replace(with_recompute(config, device, world), data=with_class(config.data))
    tokenizer = _tokenizer(config)
    cache_gb = config.data.cache_gb
    dataset = open_dataset(
        pack_caption_sets(data, "train", cache), "train", detector=config.data.detector, cache=cache, cache_gb=cache_gb
    )
    dataset.check_not_empty()
    if config.run.batch_size > len(dataset):
        said = "run.batch_size: %s exceeds the %s training samples; a step uses some of them more than once"
        LOG.warning(said, f"{config.run.batch_size:,}", f"{len(dataset):,}")
    loader = _loader(config, dataset, tokenizer, share, device, train=True)
    dev = None
    if config.run.evaluates:
        # The train split's detector; a plain tar lacks a dev split and must not serve as one, a packed set's own does.
        held_out = pack_caption_sets(data, "dev", cache)
        dev_split = open_dataset(held_out, "dev", detector=dataset.detector, cache=cache, cache_gb=cache_gb)
        if len(dev_split):
            dev = _loader(config, dev_split, tokenizer, share, device, train=False)
        else:
            _log_missing_dev(dev_split)
    model, optimizer, state = _build(config, device, start, init, dataset)
    total_steps = state.step + steps_of(config, len(dataset), state.position)
    return Setup(config, device, tokenizer, dataset, loader, dev, model, optimizer, state, total_steps)


def _log_missing_dev(dev_split: Dataset) -> None:
    """Log that the dev split is missing where there cannot be one; where a manifest promises one, it is a fault.

    Raises ContractError: recalls were asked for, and a run of days would end without one.
    """
    if not sum(dev_split.samples.values()):
        LOG.info("plain tars do not have a dev split: recall is not measured during training")
        return
    try:
        dev_split.check_not_empty()
    except ContractError as e:
        raise ContractError(
            f"{e}; or train without recalls on it: --set run.eval_every=0 --set run.eval_epochs=0"
        ) from None


def steps_of(config: Config, samples: int, position: int = 0) -> int:
    """Steps from `position` to the end of a run over a dataset of so many samples; a run has at least one."""
    remaining = math.ceil(config.run.epochs * samples) - position
    return max(0 if position else 1, math.ceil(remaining / config.run.batch_size))


def _tokenizer(config: Config) -> Tokenizer:
    tokenizer = load_tokenizer(config.data.tokenizer)
    tokens = len(tokenizer.vocabulary)
    if tokens > config.text.vocab_size:
        raise ConfigError("text.vocab_size", f"{config.text.vocab_size} is below the {tokens} tokens of the tokenizer")
    return tokenizer


def _loader(
    config: Config, dataset: Dataset, tokenizer: Tokenizer, share: Share, device: torch.device, *, train: bool
) -> Loader:
    on_gpu, by_device = device.type == "cuda", config.data.decoder == "device"
    if by_device and not on_gpu:
        raise ConfigError("data.decoder", f"'device' decodes on a GPU, and this run's device is {device}")
    if by_device:
        check_decodes(device)
    return Loader(
        dataset,
        config.data,
        tokenizer,
        share,
        seed=config.seed,
        train=train,
        as_released=bool(config.compat),
        decode_on=device if by_device else None,
        pin_memory=on_gpu,
    )


def _first_state(dataset: Dataset) -> RunState:
    digests = dataset.content_digests, dataset.region_digests
    return RunState(0, 0, 0, *digests, dataset.detector, dataset.weights)


def _build(
    config: Config, device: torch.device, start: Path | None, init: Path | None, dataset: Dataset
) -> tuple[BriVL, torch.optim.AdamW, RunState]:
    """Model and optimiser: from the run's own checkpoint, from `init`, or from the recipe; and where the run stands."""
    if config.moco.init_queues and not objective_of(config.moco).has_keys:
        raise ConfigError("moco.init_queues", f"objective {config.moco.objective} does not use queues")
    if config.moco.init_queues and start is None and init is None:
        raise ConfigError("moco.init_queues", "needs a checkpoint with queues; give it with --init")
    torch.manual_seed(config.seed)
    model = BriVL(config, load_weights=start is None and init is None).to(device)
    optimizer = build_optimizer(model, config.optim)
    state = _first_state(dataset)
    if start is not None:
        state = _resume(start, config, model, optimizer, dataset)
    elif init is not None and is_two_towers(init):
        if config.moco.init_queues:
            raise ConfigError("moco.init_queues", f"{init} is a transformers folder, which does not contain queues")
        fill_towers(model, init)
    elif init is not None:
        checkpoint.open_checkpoint(init).load_start(model, config, queues=config.moco.init_queues)
    if config.run.compile:
        model.compile_towers()
    return model, optimizer, state


def _resume(
    folder: Path,
    config: Config,
    model: BriVL,
    optimizer: torch.optim.AdamW,
    dataset: Dataset,
) -> RunState:
    """Fill model and optimiser from a checkpoint of this run. Raises ConfigError, RunError if it is one of another."""
    opened = checkpoint.open_checkpoint(folder)
    check_same(opened.config, config, folder)
    check_length(opened.config, config, opened.state(), len(dataset))
    state, beginning = opened.load_training(model, optimizer), _first_state(dataset)
    for what in ("content_digests", "region_digests", "weights"):
        if getattr(state, what) != getattr(beginning, what):
            raise RunError(str(folder), "was trained on other data, regions or weights of data; choose another --out")
    if distributed.rank() == 0:
        log_changes(state, config.run.batch_size, distributed.world_size())
    return state
