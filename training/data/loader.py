"""Batches of a dataset for one process, in an order that can be resumed anywhere.

A step's global batch is entries position .. position + B - 1 of `Order`; micro-step m is its m-th contiguous slice,
and rank r takes the r-th part of that slice, so that keys enter the queues in the order of the stream. A batch is a
function of (dataset, config, position) alone, whatever the number of ranks, worker processes or restarts
(training/data/batch_maker.py makes them).

A corrupt sample is named in one log line. Beyond 16 of them, or one in a thousand, the run stops and names the tars.

Limits: every rank counts its own corrupt samples, from zero after a resume.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from data_specs.shard import ContractError
from training.config import DataConfig
from training.data.batch_maker import BatchMaker, BatchRequest, Corrupt, SlotBatch
from training.data.index import Dataset
from training.data.order import Mixture, Order
from training.data.shared_memory import Slots
from training.data.tokenizer import Tokenizer
from training.data.transforms import import_decoders
from training.device import keep_memory
from training.errors import ConfigError, RunError
from training.records import Batch

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger(__name__)

_AHEAD = 2
"""Batches that a worker is ahead of the reader."""

_NAMED = 3
"""Tars that the last line of a run with too many corrupt samples names."""


@dataclass(frozen=True, slots=True)
class Share:
    """This process's part of every global batch, and the number of its micro-batches."""

    batch_size: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % (self.world_size * self.accumulate):
            raise ConfigError(
                "run.batch_size",
                f"{self.batch_size} cannot be divided among {self.world_size} ranks x {self.accumulate} micro-steps",
            )

    @property
    def micro(self) -> int:
        return self.batch_size // (self.world_size * self.accumulate)

    def spans(self, position: int) -> list[tuple[int, int]]:
        """[start, stop) of this rank's micro-batches of the global batch at `position`."""
        # The batch is `accumulate` slices of micro * world_size entries; of each slice rank r takes the r-th part, so
        # that micro-step m of all ranks, in rank order, is the m-th slice whatever the number of ranks.
        slices = range(position, position + self.batch_size, self.micro * self.world_size)
        starts = [start + self.rank * self.micro for start in slices]
        return [(start, start + self.micro) for start in starts]


def _start_worker(worker: int, *, nice: int) -> None:
    """First call in a new worker process: keep memory, as a step on the CPU does, and lower the worker's priority.

    A step of several threads stands still while one of them waits for a core: a worker that takes one costs all.
    Terminals and schedulers signal a whole process group: the process that reads the batches decides what it means, and
    needs those under way for its checkpoint.
    """
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    Thread(target=_end_with_reader, daemon=True).start()
    with suppress(OSError):
        os.nice(nice)


def _end_with_reader() -> None:
    """Ends a worker at a SIGTERM from the process that reads, which ends its workers so at its own exit."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


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
        pin_memory: bool = False,
    ) -> None:
        dataset.check_not_empty()
        self.share = share
        mixed = train and bool(dataset.weights)
        dataset.check_window(config.window_shards, mixed=mixed)
        self._order: Order | Mixture = Order(dataset.shard_sizes, seed, config.window_shards, shuffle=train)
        if mixed:
            self._order = Mixture(dataset.parts, dataset.weights, seed, config.window_shards)
        self._maker = BatchMaker(dataset, self._order, config, tokenizer, seed, train, as_released, decode_on)
        self._workers = config.num_workers
        self._nice = config.worker_nice
        self._pin = pin_memory
        self._limit = max(16, len(dataset) // 1000)
        self._corrupt: set[tuple[str, str]] = set()  # tar and key
        if train and not dataset.has_regions:
            LOG.info("no detector regions: boxes are a grid over the image, plus the whole image")

    def epochs(self, position: int) -> dict[str, float]:
        """Epochs done at a position: of the dataset, and of each part of a mixture."""
        if isinstance(self._order, Order):
            return {"epoch": position / len(self._order)}
        of_parts = self._order.epochs(position)
        return {"epoch": position / len(self._order)} | {f"epoch.{i}": epochs for i, epochs in enumerate(of_parts)}

    @property
    def corrupt(self) -> int:
        """Number of corrupt samples that this process has found."""
        return len(self._corrupt)

    def batches(self, position: int, stop: int | None = None) -> Iterator[Batch]:
        """This rank's micro-batches of the global batches that begin at `position`, at + B, ... and before `stop`.

        Any position, negative ones included; without `stop` it never ends. Yields share.accumulate batches per step.
        Raises RunError past the limit of corrupt samples, ContractError on a broken shard.
        """

        def spans() -> Iterator[tuple[int, int]]:
            at = position
            while stop is None or at < stop:
                yield from self.share.spans(at)
                at += self.share.batch_size

        return self._load(spans())

    def __iter__(self) -> Iterator[Batch]:
        return self.once()

    def once(self) -> Iterator[Batch]:
        """Yields every sample once, in order, in batches of share.micro, every world_size-th of them for this rank."""
        size, total = self.share.micro, len(self._order)
        starts = range(self.share.rank * size, total, self.share.world_size * size)
        return self._load((start, min(start + size, total)) for start in starts)

    def spread(self, samples: int) -> Iterator[Batch]:
        """Yields about `samples` samples (all, if there are fewer), in batches evenly spread over the order."""
        size, total = self.share.micro, len(self._order)
        count = -(-samples // size)
        if count * size >= total:
            return self.once()
        return self._load((start, start + size) for start in (i * total // count for i in range(count)))

    def _load(self, spans: Iterator[tuple[int, int]]) -> Iterator[Batch]:
        room = self._maker.slot_bytes(self.share.micro)
        nice = 0 if self._pin else self._nice  # a step on a GPU needs no core
        turns = (partial(BatchRequest, *span) for span in spans)
        for made in in_workers(self._maker, turns, self._workers, room, nice=nice, pin_memory=self._pin):
            for sample in made.corrupt:
                self._count(sample)
            if made.batch is None:
                raise ContractError(made.fatal)
            yield made.batch.fetch() if isinstance(made.batch, SlotBatch) else made.batch

    def _count(self, sample: Corrupt) -> None:
        if (sample.tar, sample.key) in self._corrupt:
            return
        self._corrupt.add((sample.tar, sample.key))
        LOG.warning("corrupt sample left out: %s: %s: %s", sample.tar, sample.key, sample.problem)
        if len(self._corrupt) > self._limit:
            tars = Counter(tar for tar, _ in self._corrupt)
            listed = ", ".join(f"{count} of {tar}" for tar, count in tars.most_common(_NAMED))
            more = f" and {len(tars) - _NAMED} other tars" if len(tars) > _NAMED else ""
            raise RunError(
                "data",
                f"{len(self._corrupt)} corrupt samples, more than {self._limit}: {listed}{more}; are they damaged?",
            )


M = TypeVar("M", covariant=True)
T = TypeVar("T", contravariant=True)


class Maker(Protocol[T, M]):
    """Interface of a maker of batches in worker processes: `slots` is the shared memory that holds them."""

    slots: Slots | None

    def __getitem__(self, turn: T, /) -> M: ...


def in_workers(
    maker: Maker[T, M],
    turns: Iterable[Callable[[int], T]],
    workers: int,
    room: int,
    *,
    nice: int = 0,
    pin_memory: bool = False,
) -> Iterator[M]:
    """Yields what `maker` makes of each turn, in order, by so many forked processes (0: in this one).

    turns: each makes the turn from the number of the slot in which its batch is handed over. room: bytes of a slot. At
    most _AHEAD batches per worker are made ahead of the reader, who must fetch each before the next one.
    """
    from torch.utils.data import DataLoader

    import_decoders()
    maker = copy(maker)
    # Asked for and not read are at most _AHEAD batches per worker, and the one that is being read.
    count = _AHEAD * workers + 1
    if workers:
        maker.slots = Slots(count, room)
    loader: Any = DataLoader(
        maker,  # type: ignore[arg-type]
        batch_size=None,
        sampler=(turn(number % count) for number, turn in enumerate(turns)),
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=partial(_start_worker, nice=nice),
        collate_fn=_identity,
        pin_memory=pin_memory,
    )
    yield from loader
