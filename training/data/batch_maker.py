"""Conversion of dataset rows to a `Batch`, inside a worker process of the loader.

    row -> text of this epoch -> bytes -> square pixels -> colour -> boxes -> token ids -> padded batch

Text and colour follow from (seed, epoch, sample), so a batch is a function of (dataset, config, span of the stream).

The text of an epoch is drawn by the probabilities of the sample's source kind. Beside the kinds that are stored there
are two that BriVL trained on and that are made of the surrounding text: `easy`, its first 128 characters, and `first`,
its first sentence without the closing mark (training/data/released_rows.py). What a page says under any picture
(查看源网页, 图片来自网络, IMG_1234.jpg) describes none, and is left out with `data.boilerplate_dropout`, unless the
sample has nothing else; a few well-known phrases, not a classifier.

A sample that cannot be decoded keeps its slot with `valid_B` False: nothing after it shifts. A tar that ends early,
regions or an index that do not match end the run. Both travel as values of a `BatchResult`, because torch's DataLoader
would wrap a raised error in a traceback.

Limits: errors of other kinds (a bug) are raised, and torch reports them its way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from data_specs.errors import ContractError
from data_specs.names import DERIVED_KINDS, SOURCE_KINDS
from training.config import DataConfig
from training.data.index import Dataset, RowText, SampleRow
from training.data.order import Mixture, Order, fraction, seed_of
from training.data.released_rows import derived_text
from training.data.shared_memory import Slots, TensorPlace, slot_bytes
from training.data.tokenizer import Tokenizer
from training.data.transforms import (
    UnreadableImage,
    crop_and_flip,
    decode_on_device,
    decode_square,
    input_boxes,
    recolour,
)
from training.records import Batch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """Request for a batch: entries start..stop-1 of the stream, and the slot for the result."""

    start: int
    stop: int
    slot: int


@dataclass(frozen=True, slots=True)
class Corrupt:
    """A sample whose image cannot be decoded."""

    tar: str
    key: str
    problem: str


@dataclass(frozen=True, slots=True)
class SlotBatch:
    """A batch that lies in a slot of shared memory (training/data/shared_memory.py)."""

    slots: Slots
    slot: int
    pieces: tuple[TensorPlace, ...]

    def fetch(self, *, pin_memory: bool = False) -> Batch:
        """The batch in memory of the reader's own."""
        return Batch(*self.slots.read(self.slot, self.pieces, pin_memory=pin_memory))


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Result of a worker: a batch with its corrupt samples, or the error that ends the run."""

    batch: Batch | SlotBatch | None
    corrupt: tuple[Corrupt, ...] = ()
    fatal: str = ""

    def pin_memory(self) -> BatchResult:
        """The same with its batch in page-locked memory; called by torch's DataLoader in a thread of the reader."""
        batch = self.batch
        if isinstance(batch, SlotBatch):
            return replace(self, batch=batch.fetch(pin_memory=True))
        return self if batch is None else replace(self, batch=batch.pin_memory())


_Picture = tuple["Tensor", int, int]
"""uint8 [3, S, S], and the width and height of the file."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """One sample ready to be collated; `valid` is False for a corrupt one, whose image is black."""

    row: SampleRow
    image_3HW: Tensor
    boxes_R4: npt.NDArray[np.float32]
    tokens: list[int]
    text: RowText
    valid: bool


@dataclass(eq=False)
class BatchMaker:
    """Makes batches from spans of the stream: a map-style dataset for torch's DataLoader; index: a `BatchRequest`."""

    dataset: Dataset
    order: Order | Mixture
    config: DataConfig
    tokenizer: Tokenizer
    seed: int
    train: bool
    as_released: bool
    decode_on: torch.device | None
    slots: Slots | None = None
    """Shared memory in which batches are handed over; None without a worker process."""

    def __getitem__(self, turn: BatchRequest) -> BatchResult:
        corrupt: list[Corrupt] = []
        self.dataset.fetch_ahead(*self.order.windows(turn.start))
        try:
            entries = [self.order.entry(at) for at in range(turn.start, turn.stop)]
            there = self._decode_on_device(number for _, number in entries)
            samples = [self._sample(epoch, number, there.get(number), corrupt) for epoch, number in entries]
        except ContractError as e:
            return BatchResult(None, fatal=str(e))
        except OSError as e:
            return BatchResult(None, fatal=f"{e.filename or 'a shard'}: cannot be read ({e.strerror or e})")
        batch = _collate(samples, self.config.max_tokens if self.as_released else 0, self.decode_on)
        if self.slots is None:
            return BatchResult(batch, tuple(corrupt))
        tensors = [getattr(batch, field.name) for field in fields(batch)]
        in_slot = SlotBatch(self.slots, turn.slot, self.slots.write(turn.slot, tensors))
        return BatchResult(in_slot, tuple(corrupt))

    def slot_bytes(self, samples: int) -> int:
        """Most bytes of a slot that a batch of so many samples takes."""
        config = self.config
        # (elements a sample, bytes an element) of images_B3HW, boxes_BR4 with the whole-image box, token_ids_BL; every
        # other field of a Batch is one number per sample, of 8 bytes at most.
        each = [(3 * config.image_size**2, 1), (4 * (config.max_boxes + 1), 4), (config.max_tokens, 8)]
        each += [(1, 8)] * (len(fields(Batch)) - len(each))
        return slot_bytes((samples * elements, size) for elements, size in each)

    def _decode_on_device(self, numbers: Iterable[int]) -> dict[int, _Picture]:
        """Pictures of rows that the device decodes; of the others the CPU says what is wrong."""
        if self.decode_on is None:
            return {}
        files = {}
        for number in numbers:
            with suppress(UnreadableImage):
                files[number] = self.dataset.image(self.dataset.row(number))
        return decode_on_device(files, self.config.image_size, self.decode_on, self.config.max_pixels)

    def _sample(self, epoch: int, number: int, decoded: _Picture | None, corrupt: list[Corrupt]) -> _Sample:
        """Row `number` in an epoch; one that cannot be decoded is added to `corrupt`, and a blank takes its place."""
        row = self.dataset.row(number)
        config = self.config
        text = choose_text(row, config, self.seed, epoch) if self.train else row.texts[0]
        try:
            image, width, height = decoded or decode_square(
                self.dataset.image(row), config.image_size, full=self.as_released, max_pixels=config.max_pixels
            )
            if row.width and (width, height) != (row.width, row.height):
                raise UnreadableImage(f"is {width}x{height}, the index says {row.width}x{row.height}")
        except UnreadableImage as e:
            corrupt.append(Corrupt(row.tar, row.key, str(e)))
            return self._blank(row, text)
        if self.train and (config.color_jitter_p or config.grayscale_p):
            image = self._recolour(image, row, epoch)
        boxes_R4 = input_boxes(row.boxes, width, height, config.image_size, config.max_boxes)
        if self.train and (config.crop_least < 1 or config.flip_p):
            image, boxes_R4 = self._crop_and_flip(image, boxes_R4, row, epoch)
        return _Sample(row, image, boxes_R4, self.tokenizer.encode(text.text, config.max_tokens), text, True)

    def _recolour(self, image: Tensor, row: SampleRow, epoch: int) -> Tensor:
        import torch

        generator = torch.Generator().manual_seed(seed_of("colour", self.seed, epoch, row.candidate_id))
        config = self.config
        return recolour(image, config.color_jitter, config.color_jitter_p, config.grayscale_p, generator)

    def _crop_and_flip(
        self, image: Tensor, boxes_R4: npt.NDArray[np.float32], row: SampleRow, epoch: int
    ) -> tuple[Tensor, npt.NDArray[np.float32]]:
        import torch

        generator = torch.Generator().manual_seed(seed_of("moved", self.seed, epoch, row.candidate_id))
        return crop_and_flip(image, boxes_R4, self.config.crop_least, self.config.flip_p, generator)

    def _blank(self, row: SampleRow, text: RowText) -> _Sample:
        """Substitute for a corrupt sample: a black image, one box, an empty text; no tower may fail on it."""
        import torch

        size = self.config.image_size
        image = torch.zeros(3, size, size, dtype=torch.uint8)
        return _Sample(row, image, input_boxes([], 1, 1, size, 0), self.tokenizer.encode("", 3), text, False)


def _collate(samples: Sequence[_Sample], length: int, device: torch.device | None) -> Batch:
    """Batch of samples, padded to the most boxes and tokens among them, and to `length` tokens; images on `device`."""
    import numpy as np
    import torch

    size = len(samples)
    boxes_BR4 = np.zeros((size, max(len(s.boxes_R4) for s in samples), 4), dtype=np.float32)
    tokens_BL = np.zeros((size, max(length, *(len(s.tokens) for s in samples))), dtype=np.int64)
    for i, sample in enumerate(samples):
        boxes_BR4[i, : len(sample.boxes_R4)] = sample.boxes_R4
        tokens_BL[i, : len(sample.tokens)] = sample.tokens
    height, width = samples[0].image_3HW.shape[1:]
    # Channel last: so they lie in memory after decoding, and so a GPU wants them; the batch is a view of another order.
    images_BHW3 = torch.empty(size, height, width, 3, dtype=torch.uint8, device=device)
    for i, sample in enumerate(samples):
        images_BHW3[i] = sample.image_3HW.permute(1, 2, 0)
    return Batch(
        images_B3HW=images_BHW3.permute(0, 3, 1, 2),
        boxes_BR4=torch.from_numpy(boxes_BR4),
        n_boxes_B=torch.tensor([len(s.boxes_R4) for s in samples]),
        token_ids_BL=torch.from_numpy(tokens_BL),
        n_tokens_B=torch.tensor([len(s.tokens) for s in samples]),
        sample_ids_B=torch.tensor([short_id(s.row.candidate_id) for s in samples]),
        image_ids_B=torch.tensor([short_id(s.row.image_leader) for s in samples]),
        text_ids_B=torch.tensor([short_id(s.text.leader) for s in samples]),
        valid_B=torch.tensor([s.valid for s in samples]),
        sources_B=torch.tensor([SOURCE_KINDS.index(s.row.source_kind) for s in samples]),
    )


def short_id(digest: str) -> int:
    """The first 64 bits of a sha256 in hex, as a signed integer (what a Batch and the queues carry)."""
    return int.from_bytes(bytes.fromhex(digest[:16]), "big", signed=True)


_PHRASES = (
    "查看源网页|查看原图|点击查看大图|点击查看|点击图片|展开全文|阅读全文|图片来自网络|图片来源网络|图片来源于网络|"
    "网络图片|资料图片?|图片加载中|暂无图片|分享图片|untitled|no image|image|图片|图"
)
# No two neighbouring parts take the same characters: else a line of dashes is tried in all ways to share it out.
_BOILERPLATE = re.compile(
    rf"\W*(?:{_PHRASES})\W*"
    r"|(?:\W*(?:img|dsc|image|pic|photo|微信图片|截图))?[\d_\W]*(?:\.(?:jpe?g|png|gif|webp|bmp)\W*)?",
    re.IGNORECASE,
)


def choose_text(row: SampleRow, config: DataConfig, seed: int, epoch: int) -> RowText:
    """The text of a row for one epoch, by the probabilities of its source kind.

    Probabilities are rescaled to the kinds the row has; several texts of one kind share its probability. The first text
    is taken for "primary", for a source kind without probabilities and where none of the kinds is there.
    """
    texts = _informative(row, config.boilerplate_dropout, seed, epoch)
    kinds = config.text_kinds
    weights: Mapping[str, float] = {} if isinstance(kinds, str) else kinds.get(row.source_kind, {})
    offered = [*texts, *_derived(texts, weights)]
    counts = {kind: sum(text.kind == kind for text in offered) for kind in weights}
    shares = [weights.get(text.kind, 0.0) / max(counts.get(text.kind, 1), 1) for text in offered]
    rest = fraction("text", seed, epoch, row.key) * sum(shares)
    for text, share in zip(offered, shares, strict=True):
        rest -= share
        if share and rest < 0:
            return text
    return texts[0]


def is_boilerplate(text: str) -> bool:
    """True if a text is only a boilerplate phrase, a number or a file name."""
    return _BOILERPLATE.fullmatch(text) is not None


def _informative(row: SampleRow, dropout: float, seed: int, epoch: int) -> Sequence[RowText]:
    """The row's texts without boilerplate; all of them where no other remains."""
    if not dropout or len(row.texts) == 1:
        return row.texts
    informative = [
        text
        for number, text in enumerate(row.texts)
        if not is_boilerplate(text.text) or fraction("boilerplate", seed, epoch, row.key, number) >= dropout
    ]
    return informative or row.texts


def _derived(texts: Sequence[RowText], weights: Mapping[str, float]) -> list[RowText]:
    """`easy` and `first` of every surrounding text, where they are asked for, with its leader."""
    wanted = [kind for kind in DERIVED_KINDS if kind in weights]
    surrounding = [text for text in texts if text.kind == "surrounding"]
    return [
        RowText(kind, derived_text(kind, text.text) or text.text, text.leader)
        for text in surrounding
        for kind in wanted
    ]
