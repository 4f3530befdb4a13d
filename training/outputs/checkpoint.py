"""Checkpoints: a folder of plain files that is either whole or not there.

    OUT/checkpoints/step-00000200/
      config.json            the resolved recipe, tokenizer, detector, digests of data and regions
      vocab.txt              the tokenizer's vocabulary, one token per line
      tokenizer.json         the tokenizer, where it is neither of characters nor a BERT's
      towers.safetensors     the query towers: all that eval, embed and export read
      key_towers.safetensors, queues.safetensors, optimizer.safetensors (by parameter name), state.json
      background.safetensors what scores are measured against, where it was calibrated (training/outputs/background.py)
      released.safetensors   instead of the last three in an imported one: what only an export needs
      checkpoint.json        version, and bytes and sha256 of each file above; written last
    OUT/checkpoints/best     link to the one with the highest recall on the dev split, which is kept

The folder is filled under a temporary name, flushed, and renamed: a killed run leaves a temporary folder that the next
one removes, never half a checkpoint. Tensors that query and key towers share (frozen layers) are stored once. No file
is a pickle, so reading a stranger's checkpoint runs no code of theirs.

Limits: those of training/outputs/atomic_files.py, which writes folders and verifies them before they are read;
training/outputs/saver.py copies to other machines.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from training.config import Config, from_dict, read_record, to_dict
from training.data.tokenizer import (
    JSON_FILE,
    VOCAB_FILE,
    JsonTokenizer,
    Tokenizer,
    from_vocabulary,
    is_code,
    json_tokenizer,
    load_tokenizer,
    vocabulary_text,
)
from training.errors import CheckpointError, ConfigError
from training.outputs.atomic_files import INDEX, VerifiedFolder, atomic_folder, write_tensors
from training.outputs.background import BACKGROUND_FILE, Background

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from training.moco import BriVL

LOG = logging.getLogger(__name__)

QUEUES_FILE = "queues.safetensors"
"""The queues, and a learned temperature and bias."""

OPTIMIZER_FILE = "optimizer.safetensors"

RELEASED_FILE = "released.safetensors"
"""Tensors of a released checkpoint that no module of ours uses, by their names there."""

BEST = "best"
"""Name of a link beside the checkpoints of a run, to the one with the highest recall on the dev split."""

TOWERS = ("config.json", "vocab.txt", "towers.safetensors")
"""Files that a checkpoint must have to be used. The others are needed to go on with its training."""

STEP_FOLDER = re.compile(r"step-(\d{8,})")
CONFIG_FILE = "config.json"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, slots=True)
class RunState:
    """Progress of a run: optimiser steps done, samples consumed, non-finite steps skipped; and its data.

    `weights`: of a mixture's parts, empty without one. `best`: the highest mean recall on the dev split so far, and the
    step that had it, -1 before the first. `batch_size` and `world_size` are those of the last step, 0 if unknown.
    """

    step: int
    position: int
    skipped: int
    content_digests: tuple[str, ...]
    region_digests: tuple[str, ...]
    detector: str
    weights: tuple[float, ...] = ()
    best: float = 0.0
    best_step: int = -1
    batch_size: int = 0
    world_size: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: index checked, config and tokenizer read; tensors are read on demand."""

    sealed: VerifiedFolder
    config: Config
    tokenizer: Tokenizer
    detector: str

    @property
    def folder(self) -> Path:
        return self.sealed.folder

    @property
    def towers(self) -> str:
        """sha256 of the query towers; only features of equal towers are comparable."""
        return self.sealed.files["towers.safetensors"]

    def has_file(self, file: str) -> bool:
        """True if it has a file: an imported one lacks queues and optimiser."""
        return file in self.sealed.files

    def background(self) -> Background | None:
        """Distribution that scores are measured against; None in a checkpoint without it. Raises CheckpointError."""
        if not self.has_file(BACKGROUND_FILE) or not (self.folder / BACKGROUND_FILE).is_file():
            return None
        return Background.from_tensors(self.tensors(BACKGROUND_FILE), str(self.folder / BACKGROUND_FILE))

    def load_towers(self, model: BriVL) -> None:
        """Fill the query towers, and make the key towers copies of them. Raises CheckpointError."""
        self._fill_queries(model, self.tensors("towers.safetensors"))

    def _fill_queries(self, model: BriVL, tensors: Mapping[str, Tensor]) -> None:
        from training.method.key_towers import update_average
        from training.moco import QUERY_PREFIXES

        self._fill(model, tensors, QUERY_PREFIXES, set())
        if model.has_keys:
            update_average(model.image_key, model.image_query.trunk, 0.0)
            update_average(model.text_key, model.text_query.trunk, 0.0)

    def load_start(self, model: BriVL, config: Config | None = None, *, queues: bool = False) -> None:
        """Initialise a new run: fill the query towers, and the key towers if the checkpoint contains them.

        `config`: the model's, where its towers may be frozen up to another stage (training/outputs/init_tensors.py).
        `queues`: the queues as well, in the model's size; their keys are then as old as before at step 0. Raises
        CheckpointError, also if they are missing.
        """
        from training.moco import KEY_PREFIXES, QUEUE_PREFIXES
        from training.outputs.init_tensors import key_tensors, query_tensors

        saved, now = self.tensors("towers.safetensors"), config or self.config
        self._fill_queries(model, query_tensors(saved, self.config, model, now))
        keys = self.tensors("key_towers.safetensors") if self.has_file("key_towers.safetensors") else {}
        if keys and any(name.startswith(KEY_PREFIXES) for name in model.state_dict()):
            renamed = key_tensors(keys, saved, self.config, model, now)
            self._fill(model, renamed, KEY_PREFIXES, set(model.shared_tensors()))
        if queues:
            if not self.has_file(QUEUES_FILE) or not keys:
                raise CheckpointError(str(self.folder), "contains no queues; leave out moco.init_queues")
            self._fill(model, self._queues(model), QUEUE_PREFIXES, set())
            steps = self.state().step
            for queue in (model.image_queue, model.text_queue):
                queue.entered_K.sub_(steps)  # steps of a run that has ended; what enters next does so in step 0

    def tensors(self, file: str) -> dict[str, Tensor]:
        """All tensors of one of its files, checked. Raises CheckpointError."""
        return self.sealed.tensors(file)

    def load_training(self, model: BriVL, optimizer: torch.optim.Optimizer) -> RunState:
        """Fill towers, key towers, queues and optimiser, and return the run's progress. Raises CheckpointError.

        Queues of another size than the model's are laid out again: their newest keys are kept. That is logged.
        """
        from training.moco import KEY_PREFIXES, QUEUE_PREFIXES

        self.load_towers(model)
        self._fill(model, self.tensors("key_towers.safetensors"), KEY_PREFIXES, set(model.shared_tensors()))
        self._fill(model, self._queues(model), QUEUE_PREFIXES, set())
        fill_moments(model, optimizer, self.tensors(OPTIMIZER_FILE), str(self.folder / OPTIMIZER_FILE))
        return self.state()

    def state(self) -> RunState:
        """Progress of the run when it was saved. Raises CheckpointError."""
        try:
            return read_record(TypeAdapter(RunState), self.sealed.object("state.json"), str(self.folder / "state.json"))
        except ConfigError as e:
            raise CheckpointError(e.subject, e.problem) from None

    def _queues(self, model: BriVL) -> dict[str, Tensor]:
        tensors = self.tensors(QUEUES_FILE)
        for name in ("image_queue", "text_queue") if model.has_keys else ():
            saved = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
            queue = getattr(model, name)
            sizes = {v.shape[0] if v.ndim else 0 for k, v in saved.items() if k != "cursor"}
            if saved.keys() != queue.state_dict().keys() or len(sizes) > 1 or sizes == {queue.size}:
                continue  # as it should be, or no queue: `_fill` says so
            if saved["keys_KD"].shape[1:] != queue.keys_KD.shape[1:]:
                continue
            queue.load_saved(saved)
            LOG.warning(
                "%s: %s had %d slots and has %d now; its newest keys are kept", self.folder, name, *sizes, queue.size
            )
            tensors |= {f"{name}.{k}": v for k, v in queue.state_dict().items()}
        return tensors

    def _fill(self, model: BriVL, tensors: Mapping[str, Tensor], prefixes: tuple[str, ...], shared: set[str]) -> None:
        wanted = {k: v for k, v in model.state_dict().items() if k.startswith(prefixes) and k not in shared}
        wrong = sorted(set(wanted) ^ set(tensors))
        wrong += [k for k, v in wanted.items() if k in tensors and tensors[k].shape != v.shape]
        if wrong:
            raise CheckpointError(
                str(self.folder), f"does not match this model: {len(wrong)} tensors differ, first {wrong[0]}"
            )
        model.load_state_dict(tensors, strict=False)


Parts = Mapping[str, Mapping[str, "Tensor"]]
"""File name without its suffix -> the tensors in it, by name."""


def parts_of(model: BriVL, optimizer: torch.optim.Optimizer, *, copied: bool = False) -> Parts:
    """All tensors of a checkpoint. `copied`: as they are now, on the CPU, whatever the next step does to them."""
    from training.moco import KEY_PREFIXES, QUERY_PREFIXES, QUEUE_PREFIXES

    shared = set(model.shared_tensors())
    tensors = {k: v for k, v in model.state_dict().items() if k not in shared}
    parts = {
        "towers": {k: v for k, v in tensors.items() if k.startswith(QUERY_PREFIXES)},
        "key_towers": {k: v for k, v in tensors.items() if k.startswith(KEY_PREFIXES)},
        "queues": {k: v for k, v in tensors.items() if k.startswith(QUEUE_PREFIXES)},
        "optimizer": moments_of(model, optimizer),
    }
    return {name: {k: _copy_of(v) for k, v in part.items()} for name, part in parts.items()} if copied else parts


def moments_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as MOMENT/PARAMETER."""
    return {
        f"{moment}/{name}": optimizer.state[parameter][moment]
        for name, parameter in module.named_parameters()
        for moment in _MOMENTS
        if moment in optimizer.state.get(parameter, {})
    }


def fill_moments(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], subject: str
) -> None:
    """The inverse of `moments_of`. Raises CheckpointError naming `subject`."""
    import torch

    for name, parameter in module.named_parameters():
        state = {m: tensors[f"{m}/{name}"] for m in _MOMENTS if f"{m}/{name}" in tensors}
        shapes = dict.fromkeys(_MOMENTS[:2], parameter.shape) | {"step": torch.Size()}
        if state and {m: t.shape for m, t in state.items()} != shapes:
            raise CheckpointError(subject, f"{name} has a different shape")
        if state:
            optimizer.state[parameter] = {m: _with_layout_of(parameter, t) for m, t in state.items()}


def _copy_of(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.clone() if tensor.device.type == "cpu" else tensor.cpu()


def write(
    run: Path,
    parts: Parts,
    config: Config,
    tokenizer: Tokenizer,
    state: RunState,
    keep_last: int,
    *,
    best: bool = False,
) -> Path:
    """Write `run/checkpoints/step-N` atomically and return its path; `best`: let `run/checkpoints/best` name it.

    The `keep_last` newest are kept, and the best; the others are removed.
    """
    folder = run / "checkpoints" / f"step-{state.step:08d}"
    described = {name: getattr(state, name) for name in ("content_digests", "region_digests", "detector")}
    with atomic_folder(folder) as temporary:
        _write_description(temporary, config, tokenizer, described)
        (temporary / "state.json").write_text(json.dumps(asdict(state), indent=1) + "\n", encoding="utf-8")
        for name, part in parts.items():
            write_tensors(temporary / f"{name}.safetensors", part)
    remove_old(folder, keep_last, best=best)
    return folder


def remove_old(folder: Path, keep_last: int, *, best: bool) -> None:
    """Let `best` name the checkpoint just written, if it is that; remove all but the newest ones and the best."""
    link = folder.with_name(BEST)
    if best:
        name_best(folder)
    kept = link.resolve().name if link.exists() else ""
    for old in folders(folder.parent.parent)[:-keep_last]:
        if old.name != kept:
            shutil.rmtree(old)


def name_best(folder: Path) -> None:
    """Let `best` beside a checkpoint name it."""
    fresh = folder.with_name(f".{BEST}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(folder.name)
    fresh.replace(folder.with_name(BEST))


def save_imported(
    folder: Path,
    config: Config,
    tokenizer: Tokenizer,
    towers: Mapping[str, Tensor],
    key_towers: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    about: Mapping[str, str],
) -> None:
    """Write foreign weights as a checkpoint without queues and optimiser: `folder` itself, atomically.

    It is measured in float32, as its own library computes it, whatever its recipe trains in. An earlier checkpoint
    there is replaced. Raises CheckpointError when the folder holds anything else.
    """
    if folder.exists() and not (folder / INDEX).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise CheckpointError(str(folder), "already exists and is not an imported checkpoint; choose another --out")
    config = replace(config, run=replace(config.run, precision="fp32"))
    described = {"content_digests": [], "region_digests": [], "detector": config.data.detector, **about}
    with atomic_folder(folder) as temporary:
        _write_description(temporary, config, tokenizer, described)
        parts = {"towers.safetensors": towers, "key_towers.safetensors": key_towers, RELEASED_FILE: kept}
        for name, part in parts.items():
            if part or part is towers:
                write_tensors(temporary / name, part)


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run's folder, or None."""
    every = folders(run)
    return every[-1] if every else None


def clean(run: Path) -> None:
    """Remove the temporary folders of killed runs, and folders that they had moved aside and replaced."""
    there = run / "checkpoints"
    replaced = (aside for aside in there.glob(".step-*.before") if (there / aside.stem.removeprefix(".")).exists())
    for path in (*there.glob(".step-*.tmp"), *replaced):
        shutil.rmtree(path, ignore_errors=True)


def _write_description(folder: Path, config: Config, tokenizer: Tokenizer, about: Mapping[str, Any]) -> None:
    described = {"config": to_dict(config), "tokenizer": VOCAB_FILE, **about}
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / VOCAB_FILE).write_text(vocabulary_text(tokenizer), encoding="utf-8")
    if isinstance(tokenizer, JsonTokenizer):
        (folder / JSON_FILE).write_text(tokenizer.content, encoding="utf-8")


def open_checkpoint(path: Path, needed: Collection[str] | None = None) -> Checkpoint:
    """Open a checkpoint folder, or the newest one of a run's folder. `needed`: the files that must be there, or all.

    Raises CheckpointError with one sentence on a file (a pickle above all), a foreign folder, one of a
    newer version, and files that are missing, cut or changed.
    """
    if path.is_file():
        raise CheckpointError(str(path), "a file, but a checkpoint is a folder; pickle files (.pt, .pth) are not read")
    folder = path if (path / INDEX).is_file() else latest(path)
    if folder is None:
        foreign = (path / CONFIG_FILE).is_file() and any(path.glob("*.safetensors"))
        advice = f"; for a transformers folder run wenlan-train import-transformers {path} --out DIR" if foreign else ""
        raise CheckpointError(str(path), f"not a wenlan checkpoint: it contains no {INDEX}{advice}")
    sealed = VerifiedFolder.open(folder, needed)
    described = sealed.object(CONFIG_FILE)
    try:
        config = from_dict(described["config"], str(folder / CONFIG_FILE))
        detector = str(described["detector"])
    except KeyError as e:
        raise CheckpointError(str(folder / CONFIG_FILE), f"lacks {e}") from None
    except ConfigError as e:
        raise CheckpointError(e.subject, e.problem) from None
    if JSON_FILE in sealed.files:
        return Checkpoint(sealed, config, json_tokenizer(sealed.text(JSON_FILE), str(folder / JSON_FILE)), detector)
    content, name = sealed.text(VOCAB_FILE), config.data.tokenizer
    if not is_code(name):
        return Checkpoint(sealed, config, from_vocabulary(content.split("\n")[:-1], str(folder / VOCAB_FILE)), detector)
    if vocabulary_text(tokenizer := load_tokenizer(name)) != content:
        raise CheckpointError(
            str(folder / VOCAB_FILE),
            f"{name} has another vocabulary now; install the version that the checkpoint was trained with",
        )
    return Checkpoint(sealed, config, tokenizer, detector)


def _with_layout_of(parameter: Tensor, saved: Tensor) -> Tensor:
    """A moment in its parameter's memory format: the fused optimiser walks both as plain memory."""
    import torch

    if saved.shape != parameter.shape:
        return saved.to(parameter.device)  # the step count
    return torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False).copy_(saved)


def folders(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    whole = [p for p in (run / "checkpoints").glob("step-*") if STEP_FOLDER.fullmatch(p.name) and (p / INDEX).exists()]
    return sorted(whole, key=step_of)


def folders_without_index(run: Path) -> list[Path]:
    """Folders of a run that are named like checkpoints but lack an index."""
    named = [path for path in (run / "checkpoints").glob("step-*") if STEP_FOLDER.fullmatch(path.name)]
    return sorted(path for path in named if not (path / INDEX).exists())


def step_of(folder: Path) -> int:
    """Step of a checkpoint's folder by its name, step-N."""
    return int(folder.name.partition("-")[2])
