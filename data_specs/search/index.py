"""Writing an index: parts are added, searched from `finish` on, and rows are removed by updates and takedowns.

    write_part      the files of a part, in any process
    IndexWriter     the one process that commits parts and finishes; holds the lock
    remove          a takedown: rows leave every file

Finishing and removing are one step: parts that lose rows are written again without them, then the full-text table and
the approximate search over all parts, then index.json names the new files and what it no longer names is deleted.
Killed before index.json, the index is as it was; killed after it, files are left over. The same command finishes both.

Limits: a part in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_specs.command.extras import require
from data_specs.search import rows as rows_of
from data_specs.search import vectors, words
from data_specs.search.folder import (
    EMBEDDINGS,
    INDEX,
    Background,
    FileEntry,
    IndexFault,
    IndexFile,
    IndexInfo,
    IndexPart,
    Modality,
    Towers,
    check_path,
    check_sizes,
    damaged,
    exclusive,
    read_index,
    sweep,
    write_file,
    write_index,
)
from data_specs.search.rows import Flags

__all__ = ["Background", "IndexFault", "IndexInfo", "IndexWriter", "Modality", "Towers", "read_index"]

Vectors = npt.NDArray[np.float16] | npt.NDArray[np.float32]
"""[n, D] unit rows."""

Stamps = npt.NDArray[np.uint64]

IsRemoved = Callable[[pa.Table], Flags]
"""[n] which rows of a part are removed; the table has the columns of MAPPED."""

Stay = Callable[[pa.Table], dict[int, list[int]]]
"""Rows of a part that stay but lose some of `texts`: which texts stay, as indices, the first always among them."""

NEEDED = ("rjieba", "numkong")
"""Packages of the extra `search`, asked for before anything is written."""

_ROW_GROUP = 1_000
_LENGTH = 5e-3
"""Largest distance of a vector's length from 1: float16 rounds each number by at most 5e-4 of itself."""


@dataclass(frozen=True)
class RemovalCounts:
    """Counts of what a takedown removes from an index. swept: files left over from a killed command."""

    rows: int
    texts: int
    parts: int
    revision: int
    swept: int


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of an index that may not exist yet. No takedown of it runs meanwhile, so that what is read within
    the block is what the last one left. Raises IndexFault."""
    check_path(folder)
    for package in NEEDED:
        require(package)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise IndexFault(f"{folder}: cannot be written ({e.strerror or e})") from None
    with exclusive(folder):
        try:
            yield
        finally:
            if is_new:
                with suppress(OSError):
                    folder.rmdir()  # nothing was written


class IndexWriter:
    """Writes an index part by part, in a folder that is `locked`."""

    def __init__(self, folder: Path, index: IndexFile) -> None:
        self.folder, self.index = folder, index

    @staticmethod
    @contextmanager
    def begin(folder: Path, about: IndexInfo) -> Iterator[IndexWriter]:
        """Start an index, resume one whose writer was killed, or add to a finished one; locked within the block.

        A finished index can be searched as it was until `finish`. Raises IndexFault where another index lies there
        (another name, width, checkpoint, detector or other modalities), or another process writes it.
        """
        with locked(folder):
            yield IndexWriter.start(folder, about)

    @staticmethod
    def start(folder: Path, about: IndexInfo) -> IndexWriter:
        """`begin`, for a caller that has the folder `locked`."""
        if not (folder / INDEX).exists():
            if any(file for file in folder.iterdir() if not file.name.startswith(".tmp-")):
                raise IndexFault(f"{folder}: is not empty and does not contain an index; give a new folder")
            write_index(folder, IndexFile(about=about))
        index = read_index(folder, unfinished=True)
        if differs := index.about.difference(about):
            raise IndexFault(f"{folder}: contains another index ({differs}); give a new folder")
        check_sizes(folder, index.files())
        sweep(folder, index)
        return IndexWriter(folder, index.model_copy(update={"about": about}))

    @property
    def next_part(self) -> int:
        return 1 + max((part.part for part in self._parts), default=-1)

    @property
    def _parts(self) -> tuple[IndexPart, ...]:
        return tuple(sorted((*self.index.parts, *self.index.waiting), key=lambda part: part.part))

    def stamps(self) -> Stamps:
        """Stamps of the rows that the index has, and of those that are left out."""
        of_parts = [read_part(self.folder, part)["stamp"].to_numpy() for part in self._parts]
        return np.concatenate([np.array(self.index.left_out, np.uint64), *of_parts])

    def commit(self, part: IndexPart | None, left_out: Iterable[int] = ()) -> None:
        """Commit a part, which survives a kill and waits for `finish`. None if none of its rows could be read."""
        waiting = (*self.index.waiting, *([part] if part else []))
        left = tuple(sorted({*self.index.left_out, *left_out}))
        self.index = self.index.model_copy(update={"waiting": waiting, "left_out": left})
        write_index(self.folder, self.index)

    def add(self, rows: pa.Table, image_ND: Vectors | None, text_ND: Vectors | None) -> None:
        """Write and commit the next part."""
        self.commit(write_part(self.folder, self.index.about, self.next_part, rows, image_ND, text_ND))

    def finish(self, wanted: Stamps | None = None, approximate: bool | None = None) -> int:
        """Make all parts searchable in one step; returns how many rows were removed.

        wanted: stamps of what the input holds now; other rows leave the index. None: all stay. approximate: whether the
        index gets an approximate search; None: if it is large, or has one. Raises IndexFault if it would be empty, or
        an id is there twice.
        """

        def is_removed(table: pa.Table) -> Flags:
            stamps = table["stamp"].to_numpy()
            return np.zeros(len(stamps), np.bool_) if wanted is None else ~np.isin(stamps, wanted)

        parts, losses = _rewrite_parts(self.folder, self.index, self._parts, is_removed, None, False)
        if not parts and self.index.words is None:
            raise IndexFault(f"{self.folder}: nothing was embedded: the index would be empty")
        if wanted is not None:
            left = np.array(self.index.left_out, np.uint64)
            kept = tuple(left[np.isin(left, wanted)].tolist())
            self.index = self.index.model_copy(update={"left_out": kept})
        if parts != self.index.parts or self.index.words is None:
            self.index = _with_searches(self.folder, self.index, parts, approximate)
        write_index(self.folder, self.index)
        sweep(self.folder, self.index)
        return sum(int(np.count_nonzero(loss.gone)) for loss in losses)


def remove(folder: Path, is_removed: IsRemoved, stay: Stay | None = None, dry_run: bool = False) -> RemovalCounts:
    """Remove rows, and texts of rows, from an index, finished or not. dry_run: changes nothing, and counts.

    Rows that were removed do not come back by an `embed` of the same input. Raises IndexFault for what is not an index,
    and for one that another process writes.
    """
    with exclusive(folder):
        index = read_index(folder, unfinished=True)
        swept = 0 if dry_run else sweep(folder, index)
        parts, losses = _rewrite_parts(folder, index, index.parts, is_removed, stay, dry_run)
        waiting, of_waiting = _rewrite_parts(folder, index, index.waiting, is_removed, stay, dry_run)
        every = [loss for loss in (*losses, *of_waiting) if loss]
        revision = index.revision + bool(every)
        if every and not dry_run:
            left = {*index.left_out, *(stamp for loss in every for stamp in loss.stamps if stamp)}
            index = index.model_copy(update={"left_out": tuple(sorted(left))})
            after = _with_searches(folder, index, parts, None) if any(losses) else index
            after = after.model_copy(update={"waiting": waiting, "revision": revision})
            write_index(folder, after)
            swept += sweep(folder, after)
        rows = int(sum(np.count_nonzero(loss.gone) for loss in every))
        return RemovalCounts(rows, sum(len(loss.stay) for loss in every), len(every), revision, swept)


# --- parts


def write_part(
    folder: Path, about: IndexInfo, number: int, rows: pa.Table, image_ND: Vectors | None, text_ND: Vectors | None
) -> IndexPart | None:
    """Write the files of a part; None without rows.

    rows: columns of ROWS and `stamp`, those that are missing are empty; has_image and has_text may be left out where
    all rows have what the index has. image_ND, text_ND: float [n, D] unit rows, None where the index lacks them; rows
    without an image or a text may hold anything, and become zeros. Raises IndexFault for what does not fit the index.
    """
    name = f"{folder}: part {number}"
    given: dict[Modality, Vectors | None] = {"image": image_ND, "text": text_ND}
    table = _with_flags(rows, given, about, name)
    if not table.num_rows:
        return None
    whole = {m: _unit_rows(v, table[f"has_{m}"].to_numpy(), f"{name}: {m}") for m, v in given.items() if v is not None}
    if len(whole) == 2:
        table = _with_similarity(table, whole["image"], whole["text"])
    return _write_files(folder, number, "", rows_of.with_words(table, words.cut_rows(table)), whole)


def read_part(folder: Path, part: IndexPart) -> pa.Table:
    """The rows of a part with the columns of MAPPED, memory-mapped. Raises IndexFault."""
    own = part.files["rows"]
    check_sizes(folder, [own])
    try:
        return rows_of.read_mapped(folder / own.path)
    except (OSError, pa.ArrowInvalid) as e:
        raise damaged(folder, f"{own.path}: {e}") from None


def _write_files(
    folder: Path, number: int, suffix: str, rows: pa.Table, whole: Mapping[Modality, Vectors]
) -> IndexPart:
    stem = f"{number:04d}{suffix}"
    files = {}
    for modality, vector_ND in whole.items():
        kind = EMBEDDINGS[modality]
        half = np.ascontiguousarray(vector_ND, np.float16)
        files[kind] = write_file(folder, f"{kind}/{kind}_{stem}.npy", functools.partial(_save, half))
    plain = rows.select(rows_of.ROWS.names)
    files["metadata"] = write_file(
        folder,
        f"metadata/metadata_{stem}.parquet",
        lambda path: pq.write_table(plain, path, compression="zstd", row_group_size=_ROW_GROUP),
    )
    files["rows"] = write_file(folder, f"rows/rows_{stem}.arrow", lambda path: rows_of.write_mapped(path, rows))
    return IndexPart(part=number, rows=rows.num_rows, files=files)


def _save(half_ND: npt.NDArray[np.float16], path: Path) -> None:
    with path.open("wb") as f:  # given a path, np.save adds a suffix
        np.save(f, half_ND)


def _with_flags(rows: pa.Table, given: Mapping[Modality, Vectors | None], about: IndexInfo, name: str) -> pa.Table:
    """The complete table of a part. Raises IndexFault where rows and vectors do not fit each other or the index."""
    table = rows
    for modality, vector_ND in given.items():
        wanted = modality in about.modalities
        if (vector_ND is not None) != wanted:
            raise IndexFault(f"{name}: {modality} vectors are {'missing' if wanted else 'not expected'}")
        if vector_ND is not None and vector_ND.shape != (rows.num_rows, about.width):
            raise IndexFault(f"{name}: {modality} vectors {list(vector_ND.shape)}, not {[rows.num_rows, about.width]}")
        if f"has_{modality}" not in rows.column_names:
            table = table.append_column(f"has_{modality}", pa.array(np.full(rows.num_rows, wanted)))
    return rows_of.complete(table, name)


def _unit_rows(vector_ND: Vectors, present_N: Flags, name: str) -> npt.NDArray[np.float32]:
    """The vectors as float32, zeros where one is missing. Raises IndexFault for what is not a unit vector."""
    whole = np.where(present_N[:, None], vector_ND.astype(np.float32), np.float32(0))
    length_N = np.linalg.norm(whole, axis=1)
    wrong = np.flatnonzero(present_N & ~(np.abs(length_N - 1) <= _LENGTH))  # NaN is wrong too
    if len(wrong):
        problem = f"row {wrong[0]} has length {length_N[wrong[0]]:.4g}; vectors of an index have length 1"
        raise IndexFault(f"{name}: {problem}")
    return whole


def _with_similarity(table: pa.Table, image_ND: Vectors, text_ND: Vectors) -> pa.Table:
    both = table["has_image"].to_numpy() & table["has_text"].to_numpy()
    cosines = np.einsum("nd,nd->n", image_ND, text_ND)
    at = table.column_names.index("similarity")
    return table.set_column(at, "similarity", pa.array(cosines, pa.float32(), mask=~both))


# --- changes


@dataclass(frozen=True)
class _Loss:
    """Rows and texts that one part loses. stamps: of the rows that go."""

    gone: Flags
    stay: dict[int, list[int]]
    stamps: tuple[int, ...]

    def __bool__(self) -> bool:
        return bool(self.gone.any() or self.stay)


def _rewrite_parts(
    folder: Path, index: IndexFile, parts: Sequence[IndexPart], is_removed: IsRemoved, stay: Stay | None, dry_run: bool
) -> tuple[tuple[IndexPart, ...], list[_Loss]]:
    """Parts without what they lose, written beside those that they replace; and what each of `parts` loses."""
    kept, losses = list[IndexPart](), list[_Loss]()
    for part in parts:
        table = read_part(folder, part)
        gone_n = np.asarray(is_removed(table), np.bool_)
        texts = {} if stay is None else {row: own for row, own in stay(table).items() if not gone_n[row]}
        loss = _Loss(gone_n, texts, tuple(table["stamp"].to_numpy()[gone_n].tolist()))
        losses.append(loss)
        if not loss or dry_run:
            kept.append(part)
        elif not gone_n.all():
            whole: dict[Modality, Vectors] = {
                m: np.load(folder / part.files[EMBEDDINGS[m]].path, mmap_mode="r")[~gone_n]
                for m in index.about.modalities
            }
            rest = _with_texts(table, texts).filter(pa.array(~gone_n)).combine_chunks()
            kept.append(_write_files(folder, part.part, f"_r{index.revision + 1}", rest, whole))
    return tuple(kept), losses


def _with_texts(table: pa.Table, stay: Mapping[int, Sequence[int]]) -> pa.Table:
    """Rows with those texts only that stay, and the words of these."""
    if not stay:
        return table
    columns: dict[str, list[object]] = {name: table[name].to_pylist() for name in ("texts", "words")}
    for row, stays in stay.items():
        texts: list[object] = columns["texts"][row]  # type: ignore[assignment]
        columns["texts"][row] = [texts[i] for i in stays]
    for name in columns:
        field = rows_of.MAPPED.field(name)
        table = table.set_column(table.column_names.index(name), field, pa.array(columns[name], field.type))
        for row in stay if name == "texts" else ():
            columns["words"][row] = words.cut_rows(table.slice(row, 1))[0]
    return table


def _with_searches(folder: Path, index: IndexFile, parts: tuple[IndexPart, ...], approximate: bool | None) -> IndexFile:
    """The index of these parts, with the searches over all of them written. Raises IndexFault for an id there twice."""
    tables = [read_part(folder, part) for part in parts]
    table = pa.concat_tables([rows_of.MAPPED.empty_table(), *tables])
    if pc.count_distinct(table["id"]).as_py() != table.num_rows:
        counts = table["id"].value_counts()
        twice = next(one["values"] for one in counts.to_pylist() if one["counts"] > 1)
        raise IndexFault(f"{folder}: id {twice} occurs twice")
    revision = index.revision + 1
    text = (word for part in tables for word in part["words"].to_pylist())
    files: dict[Modality, FileEntry] = {}
    for modality in index.about.modalities:
        paths = [folder / part.files[EMBEDDINGS[modality]].path for part in parts]
        stack = vectors.Stack([np.load(path, mmap_mode="r") for path in paths], index.about.width)
        present = np.flatnonzero(rows_of.flags(table[f"has_{modality}"])).astype(np.int64)
        large = 2 * index.about.width * len(present) >= vectors.FROM or modality in index.approximate
        if (large if approximate is None else approximate) and len(present) >= vectors.LEAST:
            write = functools.partial(vectors.write_approximate, stack=stack, present=present)
            files[modality] = write_file(folder, f"approximate/{modality}_r{revision}.faiss", write)
    return IndexFile(
        about=index.about,
        rows=table.num_rows,
        revision=revision,
        words=write_file(folder, f"words/words_r{revision}.sqlite", lambda path: words.write(path, text)),
        approximate=files,
        left_out=index.left_out,
        parts=parts,
    )
