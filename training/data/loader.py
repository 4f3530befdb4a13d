"""Shards -> batches: which samples, which of their texts, which pixels, in an order that can be taken up anywhere.

A step's global batch is entries position .. position + B - 1 of `Order`; micro-step m is its m-th contiguous slice,
and rank r takes the r-th part of that slice, so that keys enter the queues in the order of the stream. Text and colour
follow from (seed, epoch, sample), so a batch is a function of (dataset, config, position) alone, whatever the number
of ranks, worker processes or restarts.

A sample that cannot be decoded keeps its slot with `valid_B` False: nothing after it shifts. It is named in one log
line, and beyond `max_corrupt` of them the run stops and names the tars. A tar that ends early, regions or an index
that do not match stop it at once.

Limits: every rank counts its own corrupt samples, from zero after a resume.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from data_specs.shard import SOURCE_KINDS, ContractError
from training.config import DataConfig
from training.data.colour import recolour
from training.data.index import Dataset, Row, RowText
from training.data.order import Mixture, Order, seed_of
from training.data.slots import Piece, Slots, room
from training.data.text_choice import choose_text
from training.data.tokenizer import Tokenizer
from training.data.transforms import UnreadableImage, input_boxes, picture, prepare
from training.errors import ConfigError, TrainingError
from training.records import Batch
from training.run.launch import keep_memory

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

LOG = logging.getLogger(__name__)

_AHEAD = 2
"""Batches that a worker is ahead of the reader."""

_NAMED = 3
"""Tars that the last line of a run with too many corrupt samples names."""


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of every global batch this process works on, and in how many micro-batches."""

    batch_size: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % (self.world_size * self.accumulate):
            raise ConfigError(
                "run.batch_size",
                f"{self.batch_size} cannot be shared by {self.world_size} ranks x {self.accumulate} micro-steps",
            )

    @property
    def micro(self) -> int:
        """Samples of one micro-batch."""
        return self.batch_size // (self.world_size * self.accumulate)

    def spans(self, position: int) -> list[tuple[int, int]]:
        """[start, stop) of this rank's micro-batches of the global batch at `position`."""
        slices = range(position, position + self.batch_size, self.micro * self.world_size)
        starts = [start + self.rank * self.micro for start in slices]
        return [(start, start + self.micro) for start in starts]


@dataclass(frozen=True, slots=True)
class _Sample:
    row: Row
    image: Tensor
    boxes: npt.NDArray[np.float32]
    tokens: list[int]
    text: RowText
    valid: bool


@dataclass(frozen=True, slots=True)
class _Corrupt:
    tar: str
    key: str
    problem: str


@dataclass(frozen=True, slots=True)
class _Lying:
    """A batch in a slot."""

    slots: Slots
    slot: int
    pieces: tuple[Piece, ...]

    def fetch(self, *, pin_memory: bool = False) -> Batch:
        return Batch(*self.slots.read(self.slot, self.pieces, pin_memory=pin_memory))


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a worker hands over: errors travel as values, because torch would wrap a raised one in a traceback."""

    batch: Batch | _Lying | None
    corrupt: tuple[_Corrupt, ...] = ()
    fatal: str = ""

    def pin_memory(self) -> _Loaded:
        """Called by torch's DataLoader in a thread of the reader."""
        batch = self.batch
        if isinstance(batch, _Lying):
            return replace(self, batch=batch.fetch(pin_memory=True))
        return self if batch is None else replace(self, batch=batch.pin_memory())


@dataclass(frozen=True, slots=True)
class _Turn:
    """One batch that is asked for, and the slot in which it is to be handed over."""

    start: int
    stop: int
    slot: int


class _Maker:
    """Spans of the stream to batches; what runs inside the worker processes."""

    slots: Slots | None = None
    """Where batches are laid for the reader; none where there is no worker process."""

    def __init__(
        self,
        dataset: Dataset,
        order: Order | Mixture,
        config: DataConfig,
        tokenizer: Tokenizer,
        seed: int,
        train: bool,
        as_released: bool,
        decode_on: torch.device | None,
    ) -> None:
        self._dataset = dataset
        self._order = order
        self._config = config
        self._tokenizer = tokenizer
        self._seed = seed
        self._train = train
        self._as_released = as_released
        self._decode_on = decode_on
        self._length = config.max_tokens if as_released else 0

    def __getitem__(self, turn: _Turn) -> _Loaded:
        corrupt: list[_Corrupt] = []
        self._dataset.ahead(*self._order.windows(turn.start))
        try:
            samples = [self._sample(*self._order.entry(at), corrupt) for at in range(turn.start, turn.stop)]
        except ContractError as e:
            return _Loaded(None, fatal=str(e))
        except OSError as e:
            return _Loaded(None, fatal=f"{e.filename or 'a shard'}: cannot be read ({e.strerror or e})")
        batch = _collate(samples, self._length)
        if self.slots is None:
            return _Loaded(batch, tuple(corrupt))
        tensors = [getattr(batch, field.name) for field in fields(batch)]
        lying = _Lying(self.slots, turn.slot, self.slots.write(turn.slot, tensors))
        return _Loaded(lying, tuple(corrupt))

    def room(self, samples: int) -> int:
        """Bytes that a batch of so many samples takes at most in a slot."""
        config = self._config
        each = [(3 * config.image_size**2, 1), (4 * (config.max_boxes + 1), 4), (config.max_tokens, 8)]
        each += [(1, 8)] * (len(fields(Batch)) - len(each))
        return room((samples * elements, size) for elements, size in each)

    def _sample(self, epoch: int, number: int, corrupt: list[_Corrupt]) -> _Sample:
        row = self._dataset.row(number)
        config = self._config
        text = choose_text(row, config, self._seed, epoch) if self._train else row.texts[0]
        try:
            data = self._dataset.image(row)
            image, width, height = picture(data, config.image_size, full=self._as_released, device=self._decode_on)
            if row.width and (width, height) != (row.width, row.height):
                raise UnreadableImage(f"is {width}x{height}, the index says {row.width}x{row.height}")
        except UnreadableImage as e:
            corrupt.append(_Corrupt(row.tar, row.key, str(e)))
            return self._blank(row, text)
        if self._train and (config.color_jitter_p or config.grayscale_p):
            image = self._recolour(image, row, epoch)
        boxes = input_boxes(row.boxes, width, height, config.image_size, config.max_boxes)
        return _Sample(row, image, boxes, self._tokenizer.encode(text.text, config.max_tokens), text, True)

    def _recolour(self, image: Tensor, row: Row, epoch: int) -> Tensor:
        import torch

        generator = torch.Generator().manual_seed(seed_of("colour", self._seed, epoch, row.candidate_id))
        config = self._config
        return recolour(image, config.color_jitter, config.color_jitter_p, config.grayscale_p, generator)

    def _blank(self, row: Row, text: RowText) -> _Sample:
        """What fills the slot of a corrupt sample: a black image, one box, an empty text; no tower may fail on it."""
        import torch

        size = self._config.image_size
        image = torch.zeros(3, size, size, dtype=torch.uint8)
        return _Sample(row, image, input_boxes([], 1, 1, size, 0), self._tokenizer.encode("", 3), text, False)


def _collate(samples: Sequence[_Sample], length: int = 0) -> Batch:
    """Batch of samples, padded to the most boxes and tokens among them, and to `length` tokens at least."""
    import numpy as np
    import torch

    size = len(samples)
    boxes = np.zeros((size, max(len(s.boxes) for s in samples), 4), dtype=np.float32)
    tokens = np.zeros((size, max(length, *(len(s.tokens) for s in samples))), dtype=np.int64)
    for i, sample in enumerate(samples):
        boxes[i, : len(sample.boxes)] = sample.boxes
        tokens[i, : len(sample.tokens)] = sample.tokens
    height, width = samples[0].image.shape[1:]
    images_BHW3 = torch.empty(size, height, width, 3, dtype=torch.uint8)  # as they lie in memory, and as a GPU wants it
    for i, sample in enumerate(samples):
        images_BHW3[i] = sample.image.permute(1, 2, 0)
    return Batch(
        images_B3HW=images_BHW3.permute(0, 3, 1, 2),
        boxes_BR4=torch.from_numpy(boxes),
        n_boxes_B=torch.tensor([len(s.boxes) for s in samples]),
        token_ids_BL=torch.from_numpy(tokens),
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


def _begin(worker: int, *, nice: int) -> None:
    """In a new worker process: keep memory, as a step on the CPU does, and let that step go first.

    A step of several threads stands still while one of them waits for a core: a worker that takes one costs all.
    """
    keep_memory()
    with suppress(OSError):
        os.nice(nice)


def _identity(value: Any) -> Any:
    return value


class Loader:
    """Batches of one dataset for one process.

    `train=True`: shuffled, texts by probability, colours changed. Otherwise in order, primary texts, as they are.
    `share` says which part of each global batch is this process's. `as_released` decodes every picture at full size and
    pads every text to `max_tokens`: a text tower that does not mask its padding needs it, or a caption would depend on
    its neighbours. `decode_on` is the GPU that decodes, in this process: no workers then. Raises ConfigError when the
    batch cannot be cut evenly, ContractError when the dataset is empty.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: DataConfig,
        tokenizer: Tokenizer,
        share: Share,
        *,
        seed: int,
        train: bool,
        as_released: bool = False,
        decode_on: torch.device | None = None,
        max_corrupt: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        if not len(dataset):
            raise ContractError("no samples in this split of the data")
        self.share = share
        dataset.check_window(config.window_shards)
        self._order: Order | Mixture = Order(dataset.shard_sizes, seed, config.window_shards, shuffle=train)
        if train and dataset.weights:
            self._order = Mixture(dataset.parts, dataset.weights, seed, config.window_shards)
        self._maker = _Maker(dataset, self._order, config, tokenizer, seed, train, as_released, decode_on)
        self._workers = config.num_workers
        self._nice = config.worker_nice
        self._pin = pin_memory
        self._limit = max(16, len(dataset) // 1000) if max_corrupt is None else max_corrupt
        self._corrupt: set[tuple[str, str]] = set()  # tar and key
        if train and not dataset.has_regions:
            LOG.info("no detector's regions: boxes are a grid of the image and the whole image")

    def epochs(self, position: int) -> dict[str, float]:
        """How often the dataset, or each part of a mixture, has been gone through at a position."""
        if isinstance(self._order, Order):
            return {"epoch": position / len(self._order)}
        found = self._order.epochs(position)
        return {"epoch": position / len(self._order)} | {f"epoch.{i}": epochs for i, epochs in enumerate(found)}

    @property
    def corrupt(self) -> int:
        """Corrupt samples met so far by this process."""
        return len(self._corrupt)

    def batches(self, position: int, stop: int | None = None) -> Iterator[Batch]:
        """This rank's micro-batches of the global batches that begin at `position`, at + B, ... and before `stop`.

        Any position, negative ones included; without `stop` there is no end. Yields share.accumulate batches a step.
        Raises TrainingError past the limit of corrupt samples, ContractError on a broken shard.
        """

        def spans() -> Iterator[tuple[int, int]]:
            at = position
            while stop is None or at < stop:
                yield from self.share.spans(at)
                at += self.share.batch_size

        return self._load(spans())

    def once(self) -> Iterator[Batch]:
        """Every sample once, in order, in batches of share.micro, every world_size-th of them for this rank."""
        size, total = self.share.micro, len(self._order)
        starts = range(self.share.rank * size, total, self.share.world_size * size)
        return self._load((start, min(start + size, total)) for start in starts)

    def _load(self, spans: Iterator[tuple[int, int]]) -> Iterator[Batch]:
        from torch.utils.data import DataLoader

        prepare()
        maker = copy(self._maker)
        # Asked for and not read are at most _AHEAD batches a worker, and the one that is being read.
        count = _AHEAD * self._workers + 1
        if self._workers:
            maker.slots = Slots(count, maker.room(self.share.micro))
        loader: Any = DataLoader(
            maker,  # type: ignore[arg-type]
            batch_size=None,
            sampler=(_Turn(*span, number % count) for number, span in enumerate(spans)),
            num_workers=self._workers,
            prefetch_factor=_AHEAD if self._workers else None,
            multiprocessing_context="fork" if self._workers else None,
            worker_init_fn=partial(_begin, nice=0 if self._pin else self._nice),  # a step on a GPU needs no core
            collate_fn=_identity,
            pin_memory=self._pin,
        )
        for loaded in loader:
            for found in loaded.corrupt:
                self._count(found)
            if loaded.batch is None:
                raise ContractError(loaded.fatal)
            yield loaded.batch.fetch() if isinstance(loaded.batch, _Lying) else loaded.batch

    def _count(self, found: _Corrupt) -> None:
        if (found.tar, found.key) in self._corrupt:
            return
        self._corrupt.add((found.tar, found.key))
        LOG.warning("corrupt sample left out: %s: %s: %s", found.tar, found.key, found.problem)
        if len(self._corrupt) > self._limit:
            tars = Counter(tar for tar, _ in self._corrupt)
            listed = ", ".join(f"{count} of {tar}" for tar, count in tars.most_common(_NAMED))
            more = f" and {len(tars) - _NAMED} other tars" if len(tars) > _NAMED else ""
            raise TrainingError(
                "data", f"{len(self._corrupt)} corrupt samples, more than {self._limit}: {listed}{more}; damaged?"
            )
