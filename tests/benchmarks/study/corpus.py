"""Pictures and texts of the study as tensors: what a run trains on, and the galleries on which it is measured.

A training pair is a drawing of a training style and a text of its emoji, drawn anew in every epoch: half of the time
its name, else its name and one of its keywords, or as another of CAPTIONS says. Which pair comes at which place
follows from the seed alone, so every arm sees the same pairs in the same order, whatever its batch.

    gallery      drawings                                        texts
    style        val styles, one gallery each                    names of the training emoji that the style draws
    names        training styles, emoji held out (val)           their names
    train        one training style, training emoji              their names
    dev          the dev style                                   names of the training emoji that it draws
    dev_names    training styles, emoji held out (dev)           their names

Two drawings of one emoji, and two texts with one name, are false negatives for each other: they have the same id, and
are masked in every arm alike.

Limits: characters that no training text has are [UNK].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tests.benchmarks.study.drawings import Emoji
from tests.benchmarks.study.features import StyleFeatures
from tests.benchmarks.study.split import part_of
from training.data.order import Order
from training.data.tokenizer import SPECIAL, CharTokenizer
from training.records import Batch

MAX_TOKENS = 16
"""Tokens of a text with its marks; what is longer is cut."""

_COMMA = "，"
"""Between name and keyword; no name has one."""

Ids = npt.NDArray[np.int64]
Captions = Literal["half", "name", "keyword"]
"""Text of a training pair: the name, half of the time with a keyword after it; the name alone; name and keyword."""


@dataclass(frozen=True)
class Pictures:
    """Drawings by number of their style and row in its file, and the number of each one's emoji. All of shape [N]."""

    style_N: Ids
    row_N: Ids
    emoji_N: Ids

    def __len__(self) -> int:
        return len(self.emoji_N)

    def take(self, which: Ids | slice) -> Pictures:
        """The chosen ones."""
        return Pictures(self.style_N[which], self.row_N[which], self.emoji_N[which])


@dataclass(frozen=True)
class Gallery:
    """Drawings and the emoji whose names are the candidates; every drawing shows one of them."""

    name: str
    pictures: Pictures
    emoji_M: Ids

    def by_style(self) -> list[Gallery]:
        """The gallery of each style alone: one drawing of each name."""
        return [Gallery(self.name, own, np.unique(own.emoji_N)) for own in _by_style(self.pictures)]


class Corpus:
    """All pictures and texts. The order of `emoji` and `styles` gives both their numbers."""

    def __init__(self, emoji: Sequence[Emoji], styles: Sequence[StyleFeatures]) -> None:
        self.emoji, self.styles = tuple(emoji), tuple(styles)
        self.part = tuple(part_of(e.code) for e in self.emoji)
        number = {e.code: i for i, e in enumerate(self.emoji)}
        drawn = [
            (s, r, number[code])
            for s, features in enumerate(self.styles)
            for r, code in enumerate(features.codes)
            if code in number
        ]
        self.pictures = Pictures(*np.asarray(drawn, np.int64).reshape(-1, 3).T)
        self._name_id = {e.name: i for i, e in enumerate(self.emoji)}

    @cached_property
    def tokenizer(self) -> CharTokenizer:
        """One token per character of the training texts."""
        trained = (e for e, part in zip(self.emoji, self.part, strict=True) if part == "train")
        characters = {c for e in trained for text in (e.name, *e.keywords) for c in text.lower()} | {_COMMA}
        return CharTokenizer((*SPECIAL, *sorted(characters)))

    def select(self, emoji: str, style: str) -> Pictures:
        """Drawings of the emoji of one part in the styles of one part."""
        of_emoji = np.array([part == emoji for part in self.part])
        of_style = np.array([features.style.part == style for features in self.styles])
        return self.pictures.take(
            np.flatnonzero(of_emoji[self.pictures.emoji_N] & of_style[self.pictures.style_N]).astype(np.int64)
        )

    @cached_property
    def galleries(self) -> tuple[Gallery, ...]:
        """All galleries, those of the table above; one called `style` for each val style."""
        seen, largest = self.select("train", "train"), 0
        if len(seen):
            largest = int(np.bincount(seen.style_N).argmax())
        named = [
            *(("style", one) for one in _by_style(self.select("train", "val"))),
            ("names", self.select("val", "train")),
            ("train", seen.take(np.flatnonzero(seen.style_N == largest).astype(np.int64))),
            *(("dev", one) for one in _by_style(self.select("train", "dev"))),
            ("dev_names", self.select("dev", "train")),
        ]
        named = [(name, pictures) for name, pictures in named if len(pictures)]
        return tuple(Gallery(name, pictures, np.unique(pictures.emoji_N)) for name, pictures in named)

    def batch(self, pictures: Pictures, texts: Sequence[str]) -> Batch:
        """Pairs as the model takes them; the pixels are the features' (see `cells`)."""
        size = len(pictures)
        images = cells(self._rows(pictures))
        boxes_R4 = cell_boxes(images.shape[-1])
        ids_BL, length_B = self.tokens(texts)
        return Batch(
            images_B3HW=images,
            boxes_BR4=boxes_R4.expand(size, -1, -1),
            n_boxes_B=torch.full((size,), len(boxes_R4)),
            token_ids_BL=ids_BL,
            n_tokens_B=length_B,
            sample_ids_B=torch.from_numpy(pictures.style_N * 1_000_000 + pictures.row_N),
            image_ids_B=torch.from_numpy(pictures.emoji_N),
            text_ids_B=torch.tensor([self._name_id[text.partition(_COMMA)[0]] for text in texts]),
            valid_B=torch.ones(size, dtype=torch.bool),
        )

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids [B, L], padded with 0, and their numbers [B]."""
        ids = [self._encoded(text) for text in texts]
        length_B = torch.tensor([len(x) for x in ids])
        ids_BL = torch.zeros(len(ids), int(length_B.max()), dtype=torch.int64)
        for row_L, x in zip(ids_BL, ids, strict=True):
            row_L[: len(x)] = torch.tensor(x)
        return ids_BL, length_B

    @lru_cache(maxsize=100_000)  # noqa: B019  a process has one corpus
    def _encoded(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, MAX_TOKENS)

    def _rows(self, pictures: Pictures) -> npt.NDArray[np.float32]:
        """Features [N, R, C] from the mapped files, in the order of the pictures."""
        out = np.empty((len(pictures), *self.styles[0].regions_NRC.shape[1:]), np.float32)
        for s in np.unique(pictures.style_N):
            mine = pictures.style_N == s
            out[mine] = self.styles[s].regions_NRC[pictures.row_N[mine]]
        return out


def cells(regions_BRC: npt.NDArray[np.float32]) -> Tensor:
    """Features of R regions as a map of one row and R columns [B, C, 1, R]."""
    return torch.from_numpy(regions_BRC).transpose(1, 2).unsqueeze(2)


def cell_boxes(columns: int) -> Tensor:
    """Boxes [R, 4] that are the cells of such a map: pooled with one sample each they return its columns."""
    return torch.tensor([(float(i), 0.0, float(i + 1), 1.0) for i in range(columns)])


class Stream:
    """The training pairs in the order of one seed: entry g is the same pair for every arm."""

    def __init__(self, corpus: Corpus, seed: int, *, shuffled: bool = False, captions: Captions = "half") -> None:
        """`shuffled` gives every picture the texts of another picture's emoji, once and for all."""
        self._corpus, self._seed = corpus, seed
        self._names_alone = {"half": 0.5, "name": 1.0, "keyword": 0.0}[captions]
        self.pictures = corpus.select("train", "train")
        self._order = Order([len(self.pictures)], seed, 1)
        told = self.pictures.emoji_N
        self._told_N = np.random.default_rng((seed, 1)).permutation(told) if shuffled else told

    def __len__(self) -> int:
        """Pairs of an epoch."""
        return len(self.pictures)

    def batch(self, position: int, size: int) -> Batch:
        """Entries position .. position + size - 1; negative ones are what a run that began before would have seen."""
        entries = [self._order.entry(position + i) for i in range(size)]
        rows = np.array([row for _, row in entries], np.int64)
        texts = [self._text(epoch, row) for epoch, row in entries]
        return self._corpus.batch(self.pictures.take(rows), texts)

    def _text(self, epoch: int, row: int) -> str:
        emoji: Emoji = self._corpus.emoji[self._told_N[row]]
        draw = float(self._draws(epoch)[row])
        if draw < self._names_alone or not emoji.keywords:
            return emoji.name
        place = (draw - self._names_alone) / (1 - self._names_alone)
        return f"{emoji.name}{_COMMA}{emoji.keywords[int(place * len(emoji.keywords))]}"

    @lru_cache(maxsize=4)  # noqa: B019  lives as long as its run
    def _draws(self, epoch: int) -> npt.NDArray[np.float64]:
        return np.random.default_rng((self._seed, 2, epoch + (1 << 20))).random(len(self.pictures))


def _by_style(pictures: Pictures) -> list[Pictures]:
    return [pictures.take(np.flatnonzero(pictures.style_N == s).astype(np.int64)) for s in np.unique(pictures.style_N)]
