"""The captioner: a Transformer decoder that writes a caption, character by character, on an image's region features.

    regions [B, R, W] -> standardised -> Linear, LayerNorm -> memory of the decoder layers (cross-attention)
    characters so far [B, L] -> embedding + position -> pre-norm decoder layers -> LayerNorm -> scores of the next one

The output layer is the embedding. Its vocabulary is the characters of the captions that it was trained on, folded as
the tokenizers fold them (NFKC), so that a caption is read back without a word segmenter.

Regions of all images have most of their direction in common, and no layer behind could tell the rest apart early in
training: so each of their W numbers has the mean and deviation that it has in the training images taken out.

Beam search keeps the `beams` most probable beginnings of every image; one that has ended stays a beam while the others
go on, and the best ends by probability per character ** `length_power`. So it needs no rule for stopping early.

Limits: the beginnings are computed again at every character (no cache of keys and values): captions are short.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass as checked
from torch import Tensor, nn

from training.config import STRICT, Amount, Count, Dropout, Fraction, Positive, Seed
from training.errors import ConfigError

PAD, BEGIN, END, UNKNOWN = range(4)
"""Ids of marks, which are not characters."""


@checked(frozen=True, config=STRICT)
class CaptionerConfig:
    """Size and training of a captioner."""

    width: Positive = 512
    layers: Positive = 3
    heads: Positive = 8
    ffn: Positive = 2048
    dropout: Dropout = 0.2
    max_characters: Positive = 60
    """Characters of a caption; the rest of a longer one is not learnt."""
    min_count: Positive = 1
    """Times that a character must stand in the training captions to be in the vocabulary."""
    lr: Amount = 3e-4
    weight_decay: Amount = 1e-2
    label_smoothing: Fraction = 0.1
    warmup_share: Fraction = 0.05
    clip: Amount = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    batch_size: Positive = 64
    epochs: Annotated[float, Field(ge=1e-6)] = 30.0
    eval_epochs: Amount = 1.0
    """Epochs between CIDErs on the dev split; 0 for never."""
    dev_images: Positive = 500
    """Images of the dev split that are captioned for it, the first ones."""
    patience: Count = 5
    """Stop after so many CIDErs in a row without a higher one; 0 for never."""
    checkpoint_every: Count = 0
    """Steps; 0 for the best and the last one only."""
    beams: Positive = 5
    length_power: Amount = 1.0
    """Captions compete by log-probability over length ** length_power: 0 prefers short ones."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError("heads", f"the width {self.width} is not a multiple of {self.heads} heads")


def normal_caption(text: str) -> str:
    """Normal form in which captions are learnt and compared: NFKC, runs of spaces as one."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


@dataclass(frozen=True)
class Vocabulary:
    """Characters with an id each, in the order of their ids, after the four marks."""

    characters: str

    @staticmethod
    def of(captions: Iterable[str], min_count: int = 1) -> Vocabulary:
        """The characters that occur in the captions at least so often, sorted."""
        counts: dict[str, int] = {}
        for caption in captions:
            for character in normal_caption(caption):
                counts[character] = counts.get(character, 0) + 1
        return Vocabulary("".join(sorted(c for c, count in counts.items() if count >= min_count)))

    def __len__(self) -> int:
        return len(self.characters) + UNKNOWN + 1

    def encode(self, caption: str, most: int) -> list[int]:
        """BEGIN, the ids of at most `most` characters, END."""
        return [BEGIN, *(self._ids.get(c, UNKNOWN) for c in normal_caption(caption)[:most]), END]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {character: number for number, character in enumerate(self.characters, UNKNOWN + 1)}

    def decode(self, ids: Iterable[int]) -> str:
        """The characters up to END; the marks are left out."""
        text = []
        for number in ids:
            if number == END:
                break
            if number > UNKNOWN:
                text.append(self.characters[number - UNKNOWN - 1])
        return "".join(text)

    def batch(self, captions: Sequence[str], most: int) -> Tensor:
        """Ids [B, L] of captions, padded."""
        rows = [torch.tensor(self.encode(caption, most)) for caption in captions]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


class Decoder(nn.Module):
    """The Transformer decoder over regions of width W."""

    region_mean_W: Tensor
    region_scale_W: Tensor

    def __init__(self, config: CaptionerConfig, region_width: int, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("region_mean_W", torch.zeros(region_width))
        self.register_buffer("region_scale_W", torch.ones(region_width))
        self.project = nn.Linear(region_width, config.width)
        self.memory_norm = nn.LayerNorm(config.width)
        self.characters = nn.Embedding(vocabulary, config.width, padding_idx=PAD)
        self.positions = nn.Embedding(config.max_characters + 1, config.width)
        for embedding in (self.characters, self.positions):
            nn.init.normal_(embedding.weight, std=config.width**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        layer = nn.TransformerDecoderLayer(
            config.width,
            config.heads,
            config.ffn,
            config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerDecoder(layer, config.layers, nn.LayerNorm(config.width))

    def standardise(self, regions_NW: Tensor) -> None:
        """Take mean and deviation of the regions from these ones, of training images."""
        self.region_mean_W.copy_(regions_NW.mean(0))
        deviation_W = regions_NW.std(0, correction=min(1, len(regions_NW) - 1))  # of a single region 0, and not NaN
        self.region_scale_W.copy_(1 / deviation_W.clamp(min=1e-4))

    def forward(self, ids_BL: Tensor, regions_BRW: Tensor, present_BR: Tensor) -> Tensor:
        """Scores [B, L, V] of the character that follows each of `ids_BL`; `present_BR`: which regions exist."""
        length = ids_BL.shape[1]
        places_L = torch.arange(length, device=ids_BL.device)
        x_BLD = self.dropout(self.characters(ids_BL) * self.config.width**0.5 + self.positions(places_L))
        regions_BRW = (regions_BRW - self.region_mean_W) * self.region_scale_W
        later_LL = torch.ones(length, length, dtype=torch.bool, device=ids_BL.device).triu(1)
        out_BLD = self.layers(
            x_BLD,
            self.dropout(self.memory_norm(self.project(regions_BRW))),
            tgt_mask=later_LL,
            tgt_is_causal=True,
            memory_key_padding_mask=~present_BR,
        )
        return F.linear(out_BLD, self.characters.weight)

    def loss(self, ids_BL: Tensor, regions_BRW: Tensor, present_BR: Tensor) -> Tensor:
        """Mean cross entropy of the characters of captions `ids_BL` (BEGIN ... END, padded), smoothed."""
        scores_BLV = self(ids_BL[:, :-1], regions_BRW, present_BR)
        return F.cross_entropy(
            scores_BLV.flatten(0, 1),
            ids_BL[:, 1:].flatten(),
            ignore_index=PAD,
            label_smoothing=self.config.label_smoothing,
        )


@torch.inference_mode()
def beam_search(
    decoder: Decoder, regions_BRW: Tensor, present_BR: Tensor, *, beams: int, length_power: float
) -> list[list[tuple[list[int], float]]]:
    """Captions of each image as ids without marks, each with its log-probability, the best first.

    A caption has one character at least, and at most `max_characters`.
    """
    size, device = len(regions_BRW), regions_BRW.device
    regions, present = regions_BRW.repeat_interleave(beams, 0), present_BR.repeat_interleave(beams, 0)
    ids_BKL = torch.full((size, beams, 1), BEGIN, device=device)
    scores_BK = torch.full((size, beams), -torch.inf, device=device)
    scores_BK[:, 0] = 0.0  # all beams begin alike: only one of them counts
    for place in range(decoder.config.max_characters + 1):
        ended_BK = (ids_BKL == END).any(-1)
        if place and bool(ended_BK.all()):
            break
        log_NV = decoder(ids_BKL.flatten(0, 1), regions, present)[:, -1].float().log_softmax(-1)
        log_BKV = log_NV.view(size, beams, -1)
        log_BKV[..., [PAD, BEGIN, UNKNOWN]] = -torch.inf
        if place == 0:
            log_BKV[..., END] = -torch.inf
        elif place == decoder.config.max_characters:
            only_end = torch.full_like(log_BKV, -torch.inf)
            only_end[..., END] = log_BKV[..., END]
            log_BKV = only_end
        log_BKV[ended_BK] = -torch.inf
        log_BKV[..., PAD][ended_BK] = 0.0  # a caption that has ended goes on as itself
        best_BK, at_BK = (scores_BK[..., None] + log_BKV).flatten(1).topk(beams, dim=-1)
        beam_BK, id_BK = at_BK // log_BKV.shape[-1], at_BK % log_BKV.shape[-1]
        ids_BKL = torch.cat([ids_BKL.gather(1, beam_BK[..., None].expand_as(ids_BKL)), id_BK[..., None]], dim=-1)
        scores_BK = best_BK
    return [
        _rank_captions(ids.tolist(), scores.tolist(), length_power)
        for ids, scores in zip(ids_BKL, scores_BK, strict=True)
    ]


def _rank_captions(
    ids_KL: Sequence[Sequence[int]], scores_K: Sequence[float], length_power: float
) -> list[tuple[list[int], float]]:
    found = []
    for ids, score in zip(ids_KL, scores_K, strict=True):
        if score > -torch.inf:
            caption = [number for number in ids if number > UNKNOWN]
            found.append((score / (len(caption) + 1) ** length_power, caption, score))
    return [(caption, score) for _, caption, score in sorted(found, key=lambda one: -one[0])]
