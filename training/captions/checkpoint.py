"""Checkpoints of a captioner: a checkpoint of its towers with files beside them, so every reader of towers can read it.

    OUT/checkpoints/step-00000200/
      config.json, vocab.txt, towers.safetensors   those of the checkpoint that it writes on (linked, or copied), and
      tokenizer.json, background.safetensors       these, where it has them
      captioner.json           its config, its characters, what it was trained on
      captions.txt             the distinct training captions, one a line: the gallery of the retrieval baseline
      captioner.safetensors    the decoder
      captioner_training.safetensors, captioner_state.json    what going on takes
      checkpoint.json          the index, written last
    OUT/checkpoints/best       link to the one with the highest CIDEr on the dev split

Limits: those of training/outputs/checkpoint.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from data_specs.storage.whole_files import link
from training.captions.decoder import CaptionerConfig, Decoder, Vocabulary, beam_search
from training.config import read_record
from training.data.tokenizer import JSON_FILE
from training.errors import CheckpointError, ConfigError, first_line
from training.outputs import checkpoint
from training.outputs.atomic_files import VerifiedFolder, atomic_folder, write_tensors
from training.outputs.background import BACKGROUND_FILE
from training.outputs.checkpoint import TOWERS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ABOUT, CAPTIONS, WEIGHTS = "captioner.json", "captions.txt", "captioner.safetensors"
_TRAINING, _STATE = "captioner_training.safetensors", "captioner_state.json"
_CONFIG = TypeAdapter(CaptionerConfig)


@dataclass(frozen=True, slots=True)
class CaptionerState:
    """Progress of a captioner's training: steps, highest CIDEr on the dev split and its step (-1 before the first)."""

    step: int = 0
    best: float = 0.0
    best_step: int = -1


@dataclass(frozen=True)
class Captioner:
    """A decoder with everything needed to write captions.

    towers: sha256 of the towers that it reads regions of. data: digest of the images and the towers' config that it was
    trained on. captions: the distinct training captions.
    """

    config: CaptionerConfig
    vocabulary: Vocabulary
    region_width: int
    towers: str
    data: str
    captions: tuple[str, ...]
    decoder: Decoder

    @staticmethod
    def begin(config: CaptionerConfig, region_width: int, towers: str, data: str, captions: Sequence[str]) -> Captioner:
        """A captioner with random weights for the characters of these captions. Raises ConfigError if none is left."""
        distinct = tuple(dict.fromkeys(" ".join(caption.split()) for caption in captions))
        vocabulary = Vocabulary.of(captions, config.min_count)
        if not vocabulary.characters:
            raise ConfigError("min_count", f"no character occurs {config.min_count} times in the training captions")
        decoder = Decoder(config, region_width, len(vocabulary))
        return Captioner(config, vocabulary, region_width, towers, data, distinct, decoder)

    def best(self, regions_BRW: Tensor, present_BR: Tensor, beams: int | None = None) -> list[tuple[str, float]]:
        """The best caption of each image, and its log-probability. beams: 1 for greedy search, None for its own."""
        device, training = self.decoder.region_mean_W.device, self.decoder.training
        found = beam_search(
            self.decoder.eval(),
            regions_BRW.to(device),
            present_BR.to(device),
            beams=beams or self.config.beams,
            length_power=self.config.length_power,
        )
        self.decoder.train(training)
        return [(self.vocabulary.decode(ids), score) for (ids, score), *_ in found]


def write(
    run: Path,
    captioner: Captioner,
    optimizer: torch.optim.Optimizer,
    state: CaptionerState,
    towers: Path,
    *,
    best: bool = False,
) -> Path:
    """Write `run/checkpoints/step-N` atomically; it and the best are kept, the others removed. `towers`: the folder of
    the checkpoint whose towers come along."""
    folder = run / "checkpoints" / f"step-{state.step:08d}"
    about = {
        "captioner": _CONFIG.dump_python(captioner.config, mode="json"),
        "characters": captioner.vocabulary.characters,
        "region_width": captioner.region_width,
        "towers": captioner.towers,
        "data": captioner.data,
    }
    others = [name for name in (JSON_FILE, BACKGROUND_FILE) if (towers / name).is_file()]
    with atomic_folder(folder) as temporary:
        for name in (*TOWERS, *others):
            link(towers / name, temporary / name)
        (temporary / ABOUT).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (temporary / CAPTIONS).write_text("".join(f"{text}\n" for text in captioner.captions), encoding="utf-8")
        (temporary / _STATE).write_text(json.dumps(asdict(state), indent=1) + "\n", encoding="utf-8")
        write_tensors(temporary / WEIGHTS, captioner.decoder.state_dict())
        write_tensors(temporary / _TRAINING, checkpoint.moments_of(captioner.decoder, optimizer))
    checkpoint.remove_old(folder, 1, best=best)
    return folder


def read(folder: Path) -> Captioner:
    """The captioner in a checkpoint's folder. Raises CheckpointError if it is missing or damaged."""
    sealed = VerifiedFolder.open(folder, (ABOUT, CAPTIONS, WEIGHTS))
    if ABOUT not in sealed.files:
        raise CheckpointError(str(folder), "contains no captioner; train one with wenlan-train fit-captioner")
    about, name = sealed.object(ABOUT), str(folder / ABOUT)
    captions = tuple(sealed.text(CAPTIONS).split("\n")[:-1])
    try:
        config = read_record(_CONFIG, about["captioner"], "captioner", separator=".")
        vocabulary = Vocabulary(str(about["characters"]))
        width, towers, data = int(about["region_width"]), str(about["towers"]), str(about["data"])
        decoder = Decoder(config, width, len(vocabulary))
        decoder.load_state_dict(sealed.tensors(WEIGHTS))
    except (ConfigError, KeyError, TypeError, ValueError, RuntimeError) as e:
        raise CheckpointError(name, f"not a valid captioner.json ({first_line(e)})") from None
    return Captioner(config, vocabulary, width, towers, data, captions, decoder)


def read_training(folder: Path, captioner: Captioner, optimizer: torch.optim.Optimizer) -> CaptionerState:
    """Restore the optimiser of a captioner and return the progress of its training. Raises CheckpointError."""
    sealed = VerifiedFolder.open(folder)
    tensors = sealed.tensors(_TRAINING)
    checkpoint.fill_moments(captioner.decoder, optimizer, tensors, str(folder / _TRAINING))
    try:
        return read_record(TypeAdapter(CaptionerState), sealed.object(_STATE), str(folder / _STATE))
    except ConfigError as e:
        raise CheckpointError(e.subject, e.problem) from None


def changes(saved: CaptionerConfig, asked: CaptionerConfig) -> dict[str, tuple[Any, Any]]:
    """Keys that a resumed training must not change but does, with old and new values."""
    free = {"beams", "length_power", "patience", "checkpoint_every", "eval_epochs", "dev_images"}
    before, now = (_CONFIG.dump_python(one, mode="json") for one in (saved, asked))
    return {key: (before[key], now[key]) for key in before if key not in free and before[key] != now[key]}
