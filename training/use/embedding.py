"""Embedding of runs of a source's rows: decoded in worker processes, through the towers in large batches.

    rows of a run -> entries -> boxes (given, a detector's, or the grid) -> pixels, token ids    in worker processes
                  -> towers, in float32 -> one Embedded per run, in the order of the runs        here

Rows that cannot be read are named in the log (the first MOST_NAMED), counted, and left out: they stop nothing. A batch
holds as many pictures as PIXELS allows for their size; one too large for a GPU's memory is halved until it fits. Of
texts alone those of like length go together, and their order is restored. At most a few batches per worker process, and
the features of one run, are in memory.

Limits: pictures are of one size, that of the recipe.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_specs.shard import ContractError
from training.data.batch_maker import SlotBatch
from training.data.loader import in_workers
from training.data.shared_memory import Slots, slot_bytes
from training.data.transforms import UnreadableImage, grid_boxes
from training.errors import RunError
from training.records import Batch
from training.use.detector import Detector, ProcessLocalDetector
from training.use.sources import Entry, MixedSource, Source
from training.weights.load import Boxes, Loaded, OpenedImage

if TYPE_CHECKING:
    from torch import Tensor

    from training.towers.tower import Modality

LOG = logging.getLogger(__name__)

PIXELS = {"cpu": 32 * 224 * 224, "cuda": 256 * 224 * 224}
"""Pixels of the pictures of a batch, by the kind of device."""

TOKENS = {"cpu": 4_096, "cuda": 65_536}
"""Tokens of the texts of a batch, padding included, without pictures."""

MOST = 1_024
"""Rows of a batch."""

MOST_NAMED = 50
"""Rows that cannot be read that are named one by one."""

Features = npt.NDArray[np.float32]

Done = Callable[[int], None]
"""Receives, after each batch, the number of rows done with it."""


@dataclass(frozen=True, slots=True)
class EmbeddedRun:
    """An embedded run: the readable rows with their unit features [n, D], if any.

    rows: columns of data_specs.search.rows.ROWS. read: which rows of the run they are.
    """

    rows: pa.Table
    image_ND: Features | None
    text_ND: Features | None
    read: npt.NDArray[np.bool_]

    @property
    def unreadable(self) -> int:
        """Number of rows that were left out."""
        return int(np.count_nonzero(~self.read))


@dataclass(frozen=True, slots=True)
class _Fact:
    """Facts about a row that was read. boxes: those that the tower has seen, flat; None for the whole picture."""

    problem: str
    sha256: str = ""
    size: int = 0
    width: int = 0
    height: int = 0
    boxes: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class _BatchRequest:
    """Rows of a batch, and the slot of shared memory that takes it."""

    rows: Sequence[int]
    slot: int


@dataclass(frozen=True, slots=True)
class _BatchResult:
    """Result of a worker: a batch of the readable rows, if any, facts of every row, or the error that ends the work."""

    batch: Batch | SlotBatch | None
    facts: tuple[_Fact, ...]
    fatal: str = ""


class _RowReader:
    """Reads rows and makes batches of them, in a worker process."""

    slots: Slots | None = None

    def __init__(self, loaded: Loaded, source: Source, detector: ProcessLocalDetector | None) -> None:
        self._loaded, self._source, self._detector = loaded, source, detector

    def __getitem__(self, turn: _BatchRequest) -> _BatchResult:
        try:
            entries = self._source.entries(turn.rows)
        except ContractError as e:
            return _BatchResult(None, (), str(e))
        except OSError as e:
            return _BatchResult(None, (), f"{e.filename or 'a file'}: cannot be read ({e.strerror or e})")
        try:
            boxes = self._boxes(entries)
        except RunError as e:  # of a worker process torch would make a traceback of it
            return _BatchResult(None, (), str(e))
        read = [self._read(entry, of_entry) for entry, of_entry in zip(entries, boxes, strict=True)]
        facts = tuple(fact for fact, _ in read)
        sound = [(entry, opened) for entry, (fact, opened) in zip(entries, read, strict=True) if not fact.problem]
        if not sound:
            return _BatchResult(None, facts)
        batch = self._batch([entry for entry, _ in sound], [opened for _, opened in sound])
        if self.slots is None:
            return _BatchResult(batch, facts)
        tensors = [getattr(batch, name).contiguous() for name in _sent_fields()]  # blanks of a Batch are expanded
        return _BatchResult(SlotBatch(self.slots, turn.slot, self.slots.write(turn.slot, tensors)), facts)

    def slot_bytes(self, rows: int) -> int:
        """Bytes that a batch of so many rows takes at most in a slot."""
        config = self._loaded.config
        pixels = 3 * config.data.image_size**2 if self._source.has_images else 1
        each = [(pixels, 1), (4 * (config.data.max_boxes + 1), 4), (config.data.max_tokens, 8)]
        each += [(1, 8)] * (len(_sent_fields()) - len(each))
        return slot_bytes((rows * elements, size) for elements, size in each)

    def _boxes(self, entries: Sequence[Entry]) -> list[Boxes | None]:
        """Boxes of each entry: its own, or those that the detector makes now."""
        boxes = [entry.boxes for entry in entries]
        if self._detector is None:
            return boxes
        lacking = [n for n, e in enumerate(entries) if e.content is not None and e.boxes is None and not e.problem]
        contents = [content for n in lacking if (content := entries[n].content) is not None]
        for number, made in zip(lacking, self._detector.detect(contents) if contents else [], strict=True):
            boxes[number] = made[: self._loaded.config.data.max_boxes]
        return boxes

    def _read(self, entry: Entry, boxes: Boxes | None) -> tuple[_Fact, OpenedImage | None]:
        if entry.problem or entry.content is None:
            return _Fact(entry.problem and f"{entry.name}: {entry.problem}"), None
        try:
            opened = self._loaded.open_image(entry.content, boxes)
            sides = opened.width, opened.height
            if entry.sides not in (None, sides):
                raise UnreadableImage(f"is {sides}, its row says {entry.sides}")
        except UnreadableImage as e:
            return _Fact(f"{entry.name}: {e}"), None
        most = self._loaded.config.data.max_boxes
        seen = grid_boxes(opened.width, opened.height, most) if boxes is None else boxes[:most]
        whole = boxes is None and len(seen) == 1  # one cell is the whole picture, not a part of it
        flat = None if whole else np.asarray(seen, np.float32).reshape(-1)
        digest = hashlib.sha256(entry.content).hexdigest()
        return _Fact("", digest, len(entry.content), opened.width, opened.height, flat), opened

    def _batch(self, entries: Sequence[Entry], opened: Sequence[OpenedImage | None]) -> Batch:
        batch = self._loaded.text_batch([entry.text or "" for entry in entries])
        pictures = [one for one in opened if one is not None]
        if not pictures:
            return batch
        of_images = self._loaded.opened_batch(pictures)
        return replace(of_images, token_ids_BL=batch.token_ids_BL, n_tokens_B=batch.n_tokens_B)


def _sent_fields() -> list[str]:
    """Fields of a Batch that a worker sends: `sources_B` is None here, and is the last one."""
    return [field.name for field in fields(Batch) if field.name != "sources_B"]


def embed_runs(
    loaded: Loaded,
    source: Source,
    runs: Iterable[Sequence[int]],
    detector: Detector | None = None,
    *,
    workers: int | None = None,
    done: Done = lambda rows: None,
) -> Iterator[EmbeddedRun]:
    """Embeds runs of rows, in their order. detector: makes the boxes of pictures without; None for the grid.

    Raises ContractError for what ends the work: a tar that is cut, a detector that fails.
    """
    listed = list(runs)
    if not listed:
        return
    if isinstance(source, MixedSource):
        for own, of_own in groupby(map(source.source_of, listed), key=lambda pair: pair[0]):
            for part in embed_runs(loaded, own, [run for _, run in of_own], detector, workers=workers, done=done):
                yield _with_missing_vectors(part, source)
        return
    count = workers_for(loaded) if workers is None else workers
    running = ProcessLocalDetector(detector) if detector is not None and source.has_images else None
    reader, most = _RowReader(loaded, source, running), _rows_at_once(loaded, source)
    turns = (partial(_BatchRequest, batch) for run in listed for batch in _batches(loaded, source, run, most))
    pinned = loaded.device.type == "cuda"
    nice = 0 if pinned else loaded.config.data.worker_nice
    longest = min(most, max(map(len, listed)))
    made = in_workers(reader, turns, count, reader.slot_bytes(longest), nice=nice)
    embedder = _Embedder(loaded, source, pinned)
    try:
        for run in listed:
            yield embedder.embed_run(run, made, _batches(loaded, source, run, most), done)
    finally:
        made.close()  # type: ignore[attr-defined]  # the worker processes end, and fill their detectors' caches
        if running is not None:
            running.close()


def _with_missing_vectors(part: EmbeddedRun, source: Source) -> EmbeddedRun:
    """Adds zeros for the vectors that rows of other sources have and this run lacks."""
    vectors = {"image": part.image_ND, "text": part.text_ND}
    [shape] = {own.shape for own in vectors.values() if own is not None}
    rows = part.rows
    for name, own in vectors.items():
        if getattr(source, f"has_{name}s"):
            rows = rows.append_column(f"has_{name}", pa.array(np.full(len(rows), own is not None)))
            vectors[name] = np.zeros(shape, np.float32) if own is None else own
    return replace(part, rows=rows, image_ND=vectors["image"], text_ND=vectors["text"])


def workers_for(loaded: Loaded) -> int:
    """Worker processes that decode: as many as the recipe says; with a GPU, all cores that the towers leave free."""
    if loaded.device.type == "cpu":
        return loaded.config.data.num_workers
    return max(loaded.config.data.num_workers, min(16, (os.cpu_count() or 2) - 1))


def _rows_at_once(loaded: Loaded, source: Source) -> int:
    """Rows of a batch: as many pictures of this size as PIXELS allows; of texts alone it depends on their length."""
    if not source.has_images:
        return MOST
    pixels = PIXELS.get(loaded.device.type, PIXELS["cpu"])
    return max(1, min(MOST, pixels // loaded.config.data.image_size**2))


def _batches(loaded: Loaded, source: Source, run: Sequence[int], most: int) -> list[Sequence[int]]:
    """The rows of a run in batches: in order, or, of texts alone, those of like length together, shortest first."""
    if source.has_images:
        return [run[start : start + most] for start in range(0, len(run), most)]
    tokens = TOKENS.get(loaded.device.type, TOKENS["cpu"])
    sizes_N = source.sizes(run)
    batches: list[Sequence[int]] = []
    batch: list[int] = []
    for number in np.argsort(sizes_N, kind="stable").tolist():
        # a token is a byte at least, and there are [CLS] and [SEP]; the last of a batch is its longest
        longest = min(int(sizes_N[number]) + 2, loaded.config.data.max_tokens)
        if batch and (len(batch) >= most or (len(batch) + 1) * longest > tokens):
            batches.append(batch)
            batch = []
        batch.append(run[number])
    return [*batches, batch] if batch else batches


class _Embedder:
    """Computes the features of batches, and puts them together by run."""

    def __init__(self, loaded: Loaded, source: Source, pinned: bool) -> None:
        self._loaded, self._source, self._pinned = loaded, source, pinned
        self._named = 0

    def embed_run(
        self, run: Sequence[int], made: Iterator[_BatchResult], batches: Sequence[Sequence[int]], done: Done
    ) -> EmbeddedRun:
        place = {row: number for number, row in enumerate(run)}
        width, count = int(self._loaded.config.moco.feature_dim), len(run)
        image_ND = np.zeros((count, width), np.float32) if self._source.has_images else None
        text_ND = np.zeros((count, width), np.float32) if self._source.has_texts else None
        facts: list[_Fact | None] = [None] * count
        for rows in batches:
            one = next(made)
            if one.fatal:
                raise ContractError(one.fatal)
            sound = []
            for row, fact in zip(rows, one.facts, strict=True):
                facts[place[row]] = fact
                if fact.problem:
                    self._log_unreadable(fact.problem)
                else:
                    sound.append(place[row])
            if one.batch is not None:
                batch = one.batch.fetch(pin_memory=self._pinned) if isinstance(one.batch, SlotBatch) else one.batch
                batch = batch.to(self._loaded.device, non_blocking=self._pinned)
                if image_ND is not None:
                    image_ND[sound] = self._features(batch, "image").cpu().numpy()
                if text_ND is not None:
                    text_ND[sound] = self._features(batch, "text").cpu().numpy()
            done(len(rows))
        read = np.array([fact is not None and not fact.problem for fact in facts], np.bool_)
        table = _with_facts(self._source.table(run), facts, self._source.has_images)
        kept = [None if x is None else x[read] for x in (image_ND, text_ND)]
        return EmbeddedRun(table.filter(pa.array(read)), kept[0], kept[1], read)

    def _log_unreadable(self, problem: str) -> None:
        self._named += 1
        if self._named <= MOST_NAMED:
            LOG.warning("left out: %s", problem)
        if self._named == MOST_NAMED:
            LOG.warning("further rows that are left out are counted, but not listed")

    def _features(self, batch: Batch, modality: Modality) -> Tensor:
        """Features [B, D] of a batch, float32; of its halves where the device lacks memory for all at once."""
        import torch

        try:
            return self._loaded.encode(modality, batch)
        except torch.OutOfMemoryError:
            if len(batch) < 2:
                raise
        half = len(batch) // 2  # beside the except: what its error holds of the tower's memory is free by now
        parts = [self._features(batch.rows(*span), modality) for span in ((0, half), (half, len(batch)))]
        return torch.cat(parts)


def _with_facts(table: pa.Table, facts: Sequence[_Fact | None], has_images: bool) -> pa.Table:
    """The table of a run with what became known of its rows."""
    if not has_images:
        return table
    known = [fact or _Fact("not read") for fact in facts]
    digests = [fact.sha256 for fact in known]
    where = [
        place and {**place, "sha256": fact.sha256, "size": place["size"] or fact.size}
        for place, fact in zip(table["where"].to_pylist(), known, strict=True)
    ]
    columns: dict[str, Any] = {name: table[name] for name in table.column_names}
    for name in ("sha256", "image_leader"):  # of bytes that no dataset tells
        columns.setdefault(name, digests)
    columns["where"] = where
    columns["width"] = pa.array([fact.width for fact in known], pa.int32())
    columns["height"] = pa.array([fact.height for fact in known], pa.int32())
    columns["boxes"] = pa.array([[] if f.boxes is None else f.boxes for f in known], pa.list_(pa.float32()))
    return pa.table(columns)
