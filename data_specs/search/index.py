"""The index folder: what `wenlan-train embed` writes, a search opens, and a takedown rewrites.

    index.json                              IndexFile, written last: a folder without it is no index yet
    img_emb/img_emb_0000.npy                float16 [n, D] unit rows, zeros where a row has no image
    text_emb/text_emb_0000.npy              the same of texts
    metadata/metadata_0000.parquet          ROWS: row i belongs to row i of both
    rows/rows_0000.arrow                    the same rows, memory-mapped by searches
    queries/text.onnx, image.onnx           optional: the towers, for queries without torch
    words/words.sqlite                      the inverted index of `words.py`
    approximate/image.faiss                 of an index that is large: `approximate.py`

The first three folders are clip-retrieval's layout, so that its tools and everything that reads it take the folder as
it is.

Limits: a folder on a local disk, because it is memory-mapped. A part in memory while it is written.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_specs.extras import require
from data_specs.search import approximate, words
from data_specs.search import rows as rows_of
from data_specs.search.folder import (
    EMBEDDINGS,
    INDEX,
    UNFINISHED,
    About,
    Background,
    File,
    IndexFault,
    IndexFile,
    Modality,
    Part,
    TakenDown,
    Towers,
    Vectors,
    damaged,
    made,
    read_index,
    remove_folder,
    sole_owner,
    sweep,
    taken_down,
    waiting,
    write_file,
    write_index,
)
from data_specs.search.scan import Stack

__all__ = ["About", "Background", "IndexFault", "IndexWriter", "Modality", "Towers", "read_index"]

NEEDED = ("rjieba",)
"""Packages of the extra `search` that cut the words of a part."""

_ROW_GROUP = 1_000
_LENGTH = 5e-3
"""How far the length of a vector may be from 1: float16 rounds each number by at most 5e-4 of itself."""


class IndexWriter:
    """Writes an index part by part. Any process may add parts of its own; one calls `finish`."""

    def __init__(self, folder: Path, about: About, since: str) -> None:
        self.folder, self.about, self._since = folder, about, since

    @staticmethod
    def begin(folder: Path, about: About, since: str | None = None) -> IndexWriter:
        """Start an index, go on with one whose writer was killed, or add to a finished one, whose dataset has grown.

        While a finished one is added to it can be searched as it was. since: `takedowns` of the folder before what is
        added was read; None: now. After another takedown `add` and `finish` raise TakenDown, so that nothing comes in
        that was read before it. Raises IndexFault where another index lies there or is being written: another name,
        width, checkpoint, detector or other modalities.
        """
        if "://" in str(folder) or re.match(r"[a-z0-9]+:/[^/]", str(folder)):
            raise IndexFault(f"{folder}: an index is mapped from a local disk; give a path")
        for package in NEEDED:  # rather than when the first part is ready
            require(package)
        started = folder / UNFINISHED / "about.json"
        try:
            there = _about(started) or (read_index(folder).about if (folder / INDEX).exists() else None)
            if there is None and folder.exists() and any(folder.iterdir()) and not (folder / UNFINISHED).exists():
                raise IndexFault(f"{folder}: is not empty and holds no index; give a new folder")
            if there is not None and (differs := _difference(there, about)):
                raise IndexFault(f"{folder}: holds another index ({differs}); give a new folder")
            write_file(started, about.model_dump_json(indent=1).encode())
        except OSError as e:
            raise IndexFault(f"{folder}: cannot be written ({e.strerror or e})") from None
        return IndexWriter(folder, about, taken_down(folder) if since is None else since)

    def is_finished(self) -> bool:
        """Whether there is an index, and nothing is being added to it."""
        return (self.folder / INDEX).exists() and not (self.folder / UNFINISHED / "about.json").exists()

    def done(self) -> set[int]:
        """Numbers of the parts that are committed."""
        return set(self.parts())

    def parts(self) -> dict[int, str]:
        """The token of each part that is committed, by its number."""
        return {number: part.token for number, part in sorted(self._parts().items())}

    def add(
        self, part: int, rows: pa.Table, image_ND: Vectors | None, text_ND: Vectors | None, token: str = ""
    ) -> None:
        """Commit a part: its files, then one small record. A finished index keeps its parts: new ones have new numbers.

        rows: columns of ROWS, those that are missing are empty; has_image and has_text may be left out where all rows
        have what the index has. Without a row the part counts as done, and has no files. image_ND, text_ND: float
        [n, D] unit rows, None where the index has none; rows without an image or a text may hold anything, and become
        zeros. token: what the part was made of. Raises TakenDown.
        """
        name = f"{self.folder}: part {part}"
        self._check_takedowns()
        if self.is_finished():
            raise IndexFault(f"{name}: the index is finished; begin it again to add to it")
        there = self._index()
        if there is not None and (part in there.empty or any(part == other.part for other in there.parts)):
            raise IndexFault(f"{name}: the index has one of this number; a new part needs a new number")
        vectors: dict[Modality, Vectors | None] = {"image": image_ND, "text": text_ND}
        table = _with_flags(rows, vectors, self.about, name)
        kept = {
            m: _unit_rows(v, table[f"has_{m}"].to_numpy(), self.about.width, f"{name}: {m}")
            for m, v in vectors.items()
            if v is not None
        }
        if len(kept) == 2:
            table = _with_similarity(table, kept["image"], kept["text"])
        files: dict[str, File] = {}
        try:
            if table.num_rows:
                mapped = rows_of.mapped_form(table, words.cut_rows(table))
                files = write_part(self.folder, part, _revision_after(there), mapped, kept)
            record = Part(part=part, rows=table.num_rows, files=files, token=token)
            write_file(self.folder / UNFINISHED / f"part-{part:06d}.json", record.model_dump_json().encode())
        except IndexFault:
            self._check_takedowns()  # which sweeps what no record names yet
            raise
        try:
            self._check_takedowns()  # after the record: a takedown that has not seen it is seen here
        except TakenDown:
            self.discard(part)
            for file in files.values():
                (self.folder / file.path).unlink(missing_ok=True)
            raise

    def _check_takedowns(self) -> None:
        if taken_down(self.folder) != self._since:
            raise TakenDown(f"{self.folder}: a takedown has changed it meanwhile; run the same command again")

    def discard(self, part: int) -> None:
        """Forget a part that was committed since the index was begun: nothing is made of it any more."""
        (self.folder / UNFINISHED / f"part-{part:06d}.json").unlink(missing_ok=True)

    def finish(self, approximate: bool | None = None) -> None:
        """Write what the searches need, and index.json.

        approximate: whether the index gets an approximate search beside the exact one; None: if it is large.
        Raises IndexFault when no part was added, or an id is in two parts, and TakenDown.
        """
        if self.is_finished():
            return
        with sole_owner(self.folder):
            self._check_takedowns()
            self._finish(approximate)

    def _finish(self, approximate: bool | None) -> None:
        there, committed = self._index(), self._parts()
        parts = tuple(part for _, part in sorted(committed.items()) if part.rows)
        empty = {number: part.token for number, part in sorted(committed.items()) if not part.rows}
        if not parts:
            raise IndexFault(f"{self.folder}: nothing was embedded: the index would have no row")
        if there is not None and (there.parts, there.empty) == (parts, empty):  # nothing was added
            write_index(self.folder, there.model_copy(update={"about": self.about}))
            remove_folder(self.folder / UNFINISHED)
            sweep(self.folder, there)
            return
        tables = [read_part(self.folder, part) for part in parts]
        _check_ids(self.folder, parts, tables)
        rows, revision = sum(part.rows for part in parts), _revision_after(there)
        index = IndexFile(about=self.about, rows=rows, parts=parts, empty=empty, revision=revision)
        index = index.model_copy(
            update={
                "words": write_words(self.folder, revision, tables),
                "approximate": _write_approximate(self.folder, index, tables, approximate),
            }
        )
        write_index(self.folder, index)
        remove_folder(self.folder / UNFINISHED)
        sweep(self.folder, index)

    def _index(self) -> IndexFile | None:
        """The finished index that is added to."""
        return read_index(self.folder) if (self.folder / INDEX).exists() else None

    def _parts(self) -> dict[int, Part]:
        """Committed parts by number: those of the finished index, and those that were added since."""
        there, parts = self._index(), dict[int, Part]()
        if there is not None:
            parts = {part.part: part for part in there.parts}
            parts |= {number: Part(part=number, rows=0, files={}, token=token) for number, token in there.empty.items()}
        return parts | {part.part: part for part in waiting(self.folder).values()}


def read_part(folder: Path, part: Part) -> pa.Table:
    """The rows of a part, memory-mapped. Raises IndexFault."""
    own = part.files["rows"]
    try:
        return rows_of.read_mapped(folder / own.path)
    except (OSError, pa.ArrowInvalid) as e:
        raise damaged(folder, f"{own.path}: {getattr(e, 'strerror', None) or ' '.join(str(e).split())[:200]}") from None


def read_metadata(folder: Path, part: Part, columns: Sequence[str]) -> pa.Table:
    """Columns of the rows of a part, as its Parquet file has them. Raises IndexFault."""
    own = part.files["metadata"]
    try:
        table = pq.read_table(folder / own.path, columns=list(columns))
        table.validate(full=True)  # what a damaged page is unpacked to may be no text
    except (OSError, ValueError, pa.ArrowException) as e:
        raise damaged(folder, f"{own.path}: {getattr(e, 'strerror', None) or ' '.join(str(e).split())[:200]}") from None
    return table


def write_part(
    folder: Path, part: int, revision: int, mapped: pa.Table, vectors: Mapping[Modality, Vectors]
) -> dict[str, File]:
    """Write the files of a part under the names of a revision; returns them by folder."""
    stem = f"{part:04d}{_suffix(revision)}"
    files = {}
    for modality, vector_ND in vectors.items():
        kind = EMBEDDINGS[modality]
        half = np.ascontiguousarray(vector_ND, np.float16)
        files[kind] = made(folder, f"{kind}/{kind}_{stem}.npy", functools.partial(_save, half))
    rows = rows_of.plain_form(mapped)
    files["metadata"] = made(
        folder,
        f"metadata/metadata_{stem}.parquet",
        lambda path: pq.write_table(rows, path, compression="zstd", row_group_size=_ROW_GROUP),
    )
    files["rows"] = made(folder, f"rows/rows_{stem}.arrow", lambda path: rows_of.write_mapped(path, mapped))
    return files


def write_words(folder: Path, revision: int, tables: Sequence[pa.Table]) -> File:
    """Write the inverted index over all parts."""
    texts = (table[rows_of.WORDS].to_pylist() for table in tables)
    return made(folder, f"words/words{_suffix(revision)}.sqlite", lambda path: words.write(path, texts))


def _write_approximate(
    folder: Path, index: IndexFile, tables: Sequence[pa.Table], wanted: bool | None
) -> dict[Modality, File]:
    files: dict[Modality, File] = {}
    for modality in index.about.modalities:
        paths = [folder / part.files[EMBEDDINGS[modality]].path for part in index.parts]
        stack = Stack([np.load(path, mmap_mode="r") for path in paths], index.about.width)
        present = np.flatnonzero(np.concatenate([table[f"has_{modality}"].to_numpy() for table in tables]))
        large = 2 * index.about.width * len(present) >= approximate.FROM
        if (large if wanted is None else wanted) and len(present) >= approximate.LEAST:
            make = functools.partial(approximate.write, stack=stack, present=present.astype(np.int64))
            files[modality] = made(folder, f"approximate/{modality}{_suffix(index.revision)}.faiss", make)
    return files


def _check_ids(folder: Path, parts: Sequence[Part], tables: Sequence[pa.Table]) -> None:
    """Raises IndexFault where an id is in two parts."""
    hashes = np.concatenate([rows_of.numbers(table, "id_hash") for table in tables])
    order = np.argsort(hashes, kind="stable")
    twice = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    if len(twice):
        starts = np.cumsum([0, *(part.rows for part in parts)])
        rows = order[twice[0] : twice[0] + 2]
        of = np.searchsorted(starts, rows, "right") - 1
        name = tables[of[0]]["id"][int(rows[0] - starts[of[0]])].as_py()
        raise IndexFault(f"{folder}: id {name} is in parts {parts[of[0]].part} and {parts[of[1]].part}")


def _suffix(revision: int) -> str:
    return f"_r{revision}" if revision else ""


def _revision_after(there: IndexFile | None) -> int:
    """The revision of what is written now: files of the one that is there must not change."""
    return 0 if there is None else there.revision + 1


def _about(started: Path) -> About | None:
    try:
        return About.model_validate_json(started.read_bytes())
    except FileNotFoundError:
        return None


_CHANGING = ("background", "created_from")
"""What may differ where an index is gone on with: a checkpoint is calibrated later, a dataset grows."""


def _difference(there: About, about: About) -> str:
    """What two differ in that makes them another index, in words."""
    pairs = ((name, getattr(there, name), getattr(about, name)) for name in About.model_fields)
    return ", ".join(
        f"its {name} is {_said(had)}, not {_said(has)}"
        for name, had, has in pairs
        if had != has and name not in _CHANGING
    )


def _said(value: object) -> str:
    return f"{value.recipe} {value.sha256[:8]}" if isinstance(value, Towers) else repr(value)


def _with_flags(rows: pa.Table, vectors: dict[Modality, Vectors | None], about: About, name: str) -> pa.Table:
    """The whole table of a part. Raises IndexFault where rows and vectors do not fit each other or the index."""
    table = rows
    for modality, vector_ND in vectors.items():
        wanted = modality in about.modalities
        if (vector_ND is not None) != wanted:
            raise IndexFault(f"{name}: {modality} vectors are {'missing' if wanted else 'none of this index'}")
        if vector_ND is not None and vector_ND.shape != (rows.num_rows, about.width):
            raise IndexFault(f"{name}: {modality} vectors {list(vector_ND.shape)}, not {[rows.num_rows, about.width]}")
        if f"has_{modality}" not in rows.column_names:
            table = table.append_column(f"has_{modality}", pa.array(np.full(rows.num_rows, wanted)))
    return rows_of.complete(table, name)


def _unit_rows(vector_ND: Vectors, present_N: rows_of.Flags, width: int, name: str) -> npt.NDArray[np.float32]:
    """The vectors as float32, zeros where there is none. Raises IndexFault for what is no unit vector."""
    whole = np.where(present_N[:, None], vector_ND.astype(np.float32), np.float32(0))
    length_N = np.linalg.norm(whole, axis=1)
    wrong = np.flatnonzero(present_N & ~(np.abs(length_N - 1) <= _LENGTH))  # NaN is wrong too
    if len(wrong):
        raise IndexFault(
            f"{name}: row {wrong[0]} has length {length_N[wrong[0]]:.4g}; vectors of an index have length 1"
        )
    return whole


def _with_similarity(table: pa.Table, image_ND: Vectors, text_ND: Vectors) -> pa.Table:
    both = table["has_image"].to_numpy() & table["has_text"].to_numpy()
    cosines = np.einsum("nd,nd->n", image_ND, text_ND)
    at = table.column_names.index("similarity")
    return table.set_column(at, "similarity", pa.array(cosines, pa.float32(), mask=~both))


def _save(half_ND: npt.NDArray[np.float16], path: Path) -> None:
    with path.open("wb") as f:  # given a path, np.save adds a suffix
        np.save(f, half_ND)
