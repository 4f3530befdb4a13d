"""A checkpoint of a model and its optimiser as they are, as a step of a run leaves it."""

from __future__ import annotations

from pathlib import Path

import torch

from training.config import Config
from training.data.tokenizer import Tokenizer
from training.moco import BriVL
from training.outputs.checkpoint import RunState, parts_of, write


def save(
    run: Path,
    model: BriVL,
    optimizer: torch.optim.Optimizer,
    config: Config,
    tokenizer: Tokenizer,
    state: RunState,
    keep_last: int,
) -> Path:
    return write(run, parts_of(model, optimizer), config, tokenizer, state, keep_last)
