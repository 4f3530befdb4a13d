"""The index folder: what `wenlan-train embed` writes, a search opens, and a takedown rewrites.

    index.json                              IndexFile, written last: a folder without it is no index yet
    img_emb/img_emb_0000.npy                float16 [n, D] unit rows, zeros where a row has no image
    text_emb/text_emb_0000.npy              the same of texts
    metadata/metadata_0000.parquet          ROWS: row i belongs to row i of both
    rows/rows_0000.arrow                    the same rows, memory-mapped by searches
    queries/text.onnx, image.onnx           optional: the towers, for queries without torch
    words/, graph/                          what the word search and the approximate search keep

The first three folders are clip-retrieval's layout, so that its tools and everything that reads it take the folder as
it is. Files never change: a takedown writes new ones under names of their own (`img_emb_0000_r1.npy`), replaces
index.json in one step, and deletes the old ones. Whoever has the index open goes on with what it has mapped, until
`SearchIndex.reload_if_changed`. What index.json does not name is left over from a killed command, and is swept.

Limits: a folder on a local disk, because it is memory-mapped. A part in memory while it is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from data_specs.search import rows as rows_of
from data_specs.shard import ContractError

INDEX_VERSION = 1
"""Raised when a file of the folder changes its meaning; readers refuse a higher one."""

INDEX = "index.json"
UNFINISHED = "_writing"
"""Folder of an index that is being written: about.json, and the record of each committed part."""

Vectors = npt.NDArray[np.float16] | npt.NDArray[np.float32]
"""[n, D] unit rows."""

Modality = Literal["image", "text"]
EMBEDDINGS: dict[Modality, str] = {"image": "img_emb", "text": "text_emb"}
"""Folders of the vectors by modality: the names that clip-retrieval knows."""

_ROW_GROUP = 1_000
_LENGTH = 5e-3
"""How far the length of a vector may be from 1: float16 rounds each number by at most 5e-4 of itself."""


class IndexFault(ContractError):
    """An index folder cannot be written, opened or searched. The message names the folder or the file."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # additive fields keep the version


class Towers(_Model):
    """Which towers made the vectors: recipe, and sha256 of `towers.safetensors`. A query must come from the same."""

    recipe: str
    sha256: str


class Background(_Model):
    """Cosines of pairs that do not belong together: `shares[i]` of them lie below `cosines[i]`, which ascend."""

    cosines: tuple[float, ...]
    shares: tuple[float, ...]

    def score(self, cosines: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Share of the background below each cosine, in [0, 1], by linear interpolation; never falling."""
        shares = np.interp(np.asarray(cosines, np.float64), self.cosines, self.shares, left=0.0, right=1.0)
        return shares.astype(np.float32)


class About(_Model):
    """What an index is of.

    width: D. images, texts: which vectors its parts have. checkpoint: None where the vectors are of another model.
    detector: whose regions the image tower saw. created_from: content_digest of the manifests.
    """

    name: str
    width: int
    images: bool
    texts: bool
    checkpoint: Towers | None = None
    background: Background | None = None
    detector: str = ""
    created_from: tuple[str, ...] = ()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Which vectors there are."""
        return tuple(m for m, present in (("image", self.images), ("text", self.texts)) if present)  # type: ignore[misc]


class File(_Model):
    """A file of the folder: path relative to it, bytes, sha256 in hex."""

    path: str
    bytes: int
    sha256: str


class Part(_Model):
    """Some rows with their vectors.

    files: by folder (img_emb, text_emb, metadata, rows); none where it has no row. token: what it was made of, by which
    whoever wrote it knows it again.
    """

    part: int
    rows: int
    files: dict[str, File]
    token: str = ""


class IndexFile(_Model):
    """`index.json`. revision: grows with each takedown, and when parts are added to a finished index.

    words, graph: files of the two searches, by what they are. empty: tokens of the parts of which no row could be made,
    by number.
    """

    version: int = INDEX_VERSION
    about: About
    rows: int
    parts: tuple[Part, ...]
    empty: dict[int, str] = {}
    revision: int = 0
    words: dict[str, File] = {}
    graph: dict[str, File] = {}
    graph_kind: str = ""

    def named(self) -> set[str]:
        """Paths of all files that belong to the index, index.json aside."""
        files = [file for part in self.parts for file in part.files.values()]
        return {file.path for file in (*files, *self.words.values(), *self.graph.values())}


def read_index(folder: Path) -> IndexFile:
    """Read index.json. Raises IndexFault for a folder that is no index, is not finished, or is of a newer version."""
    path = folder / INDEX
    try:
        text = path.read_bytes()
    except OSError as e:
        if (folder / UNFINISHED).is_dir():
            raise IndexFault(f"{folder}: the index is not finished; run the command that writes it again") from None
        raise IndexFault(f"{path}: cannot be read ({e.strerror}); an index is written by wenlan-train embed") from None
    try:
        index = IndexFile.model_validate_json(text)
    except ValueError as e:
        problem = " ".join(str(e).split())[:200]
        raise IndexFault(f"{path}: is not the index.json of a search index ({problem})") from None
    if index.version > INDEX_VERSION:
        raise IndexFault(
            f"{path}: version {index.version} is newer than this wenlan reads ({INDEX_VERSION}); "
            "upgrade with: pip install -U wenlan"
        )
    return index


class IndexWriter:
    """Writes an index part by part. Any process may add parts of its own; one calls `finish`."""

    def __init__(self, folder: Path, about: About) -> None:
        self.folder, self.about = folder, about

    @staticmethod
    def begin(folder: Path, about: About) -> IndexWriter:
        """Start an index, go on with one whose writer was killed, or add to a finished one, whose dataset has grown.

        While a finished one is added to it can be searched as it was. Raises IndexFault where another index lies there
        or is being written: another name, width, checkpoint, detector or other modalities.
        """
        if "://" in str(folder) or re.match(r"[a-z0-9]+:/[^/]", str(folder)):
            raise IndexFault(f"{folder}: an index is mapped from a local disk; give a path")
        started = folder / UNFINISHED / "about.json"
        try:
            there = _about(started) or (read_index(folder).about if (folder / INDEX).exists() else None)
            if there is None and folder.exists() and any(folder.iterdir()) and not (folder / UNFINISHED).exists():
                raise IndexFault(f"{folder}: is not empty and holds no index; give a new folder")
            if there is not None and (differs := _difference(there, about)):
                raise IndexFault(f"{folder}: holds another index ({differs}); give a new folder")
            _write(started, about.model_dump_json(indent=1).encode())
        except OSError as e:
            raise IndexFault(f"{folder}: cannot be written ({e.strerror or e})") from None
        return IndexWriter(folder, about)

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
        """Commit a part: its files, then one small record. In the place of a part that a finished index has is none.

        rows: columns of ROWS, those that are missing are empty; has_image and has_text may be left out where all rows
        have what the index has. Without a row the part counts as done, and has no files. image_ND, text_ND: float
        [n, D] unit rows, None where the index has none; rows without an image or a text may hold anything, and become
        zeros. token: what the part was made of.
        """
        name = f"{self.folder}: part {part}"
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
        revision = 0 if there is None else there.revision + 1
        files = write_part(self.folder, part, revision, table, kept) if table.num_rows else {}
        record = Part(part=part, rows=table.num_rows, files=files, token=token)
        _write(self.folder / UNFINISHED / f"part-{part:06d}.json", record.model_dump_json().encode())

    def discard(self, part: int) -> None:
        """Forget a part that was committed since the index was begun: nothing is made of it any more."""
        (self.folder / UNFINISHED / f"part-{part:06d}.json").unlink(missing_ok=True)

    def finish(self) -> None:
        """Write index.json. Raises IndexFault when no part was added, or an id is in two parts."""
        if self.is_finished():
            return
        there, parts = self._index(), self._parts()
        whole = tuple(part for _, part in sorted(parts.items()) if part.rows)
        empty = {number: part.token for number, part in sorted(parts.items()) if not part.rows}
        if not whole:
            raise IndexFault(f"{self.folder}: nothing was embedded: the index would have no row")
        index = IndexFile(about=self.about, rows=sum(part.rows for part in whole), parts=whole, empty=empty)
        if there is not None and (there.parts, there.about, there.empty) != (whole, self.about, empty):
            index = index.model_copy(update={"revision": there.revision + 1})
        elif there is not None:
            index = there
        write_index(self.folder, index)
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
        for file in sorted((self.folder / UNFINISHED).glob("part-*.json")):
            part = Part.model_validate_json(file.read_bytes())
            parts[part.part] = part
        return parts


def write_part(
    folder: Path, part: int, revision: int, rows: pa.Table, vectors: Mapping[Modality, Vectors]
) -> dict[str, File]:
    """Write the files of a part under the names of a revision; returns them by folder."""
    stem = f"{part:04d}" + (f"_r{revision}" if revision else "")
    files = {}
    for modality, vector_ND in vectors.items():
        kind = EMBEDDINGS[modality]
        half = np.ascontiguousarray(vector_ND, np.float16)
        files[kind] = _made(folder, f"{kind}/{kind}_{stem}.npy", lambda path, half=half: _save(path, half))  # type: ignore[misc]
    files["metadata"] = _made(
        folder,
        f"metadata/metadata_{stem}.parquet",
        lambda path: pq.write_table(rows, path, compression="zstd", row_group_size=_ROW_GROUP),
    )
    files["rows"] = _made(folder, f"rows/rows_{stem}.arrow", lambda path: rows_of.write_mapped(path, rows))
    return files


def write_index(folder: Path, index: IndexFile) -> None:
    """Replace index.json in one step: one part per line."""
    head = index.model_dump_json(exclude={"parts"}, indent=1).rstrip().removesuffix("}").rstrip()
    parts = ",\n  ".join(part.model_dump_json() for part in index.parts)
    _write(folder / INDEX, f'{head},\n "parts": [\n  {parts}\n ]\n}}\n'.encode())


def sweep(folder: Path, index: IndexFile) -> int:
    """Delete what index.json does not name, in the folders that are an index's own; returns how many files."""
    named, swept = index.named(), 0
    for kind in (*EMBEDDINGS.values(), "metadata", "rows", "words", "graph"):
        for file in (folder / kind).glob("*") if (folder / kind).is_dir() else ():
            if f"{kind}/{file.name}" not in named:
                file.unlink()
                swept += 1
    for left in folder.glob(".tmp-*"):
        left.unlink()
    _remove_folder(folder / UNFINISHED)
    return swept


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
        f"its {name} is {had!r}, not {has!r}" for name, had, has in pairs if had != has and name not in _CHANGING
    )


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


def _save(path: Path, half_ND: npt.NDArray[np.float16]) -> None:
    with path.open("wb") as f:  # given a path, np.save adds a suffix
        np.save(f, half_ND)


def _made(folder: Path, name: str, make: Callable[[Path], object]) -> File:
    """A file that `make` writes to a path, moved to its name when it is whole."""
    with _whole(folder / name) as temporary:
        make(temporary)
        digest = hashlib.sha256()
        with temporary.open("rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
        return File(path=name, bytes=temporary.stat().st_size, sha256=digest.hexdigest())


def _write(path: Path, data: bytes) -> None:
    with _whole(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path to write to; the file appears under its own name when the block ends, and not at all if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    temporary = Path(name)
    try:
        os.fchmod(handle, 0o666 & ~_umask())
        os.close(handle)
        yield temporary
        with temporary.open("rb") as f:
            os.fsync(f.fileno())
        temporary.replace(path)
    except OSError as e:
        raise IndexFault(f"{path}: cannot be written ({e.strerror or e})") from e
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _remove_folder(folder: Path) -> None:
    if folder.is_dir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
