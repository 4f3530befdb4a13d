"""An index folder: immutable files, and one `index.json`, written last, that names them.

    index.json                              IndexFile: what the index is of, its parts, its searches
    img_emb/img_emb_0000.npy                float16 [n, D] unit rows, zeros for a row without an image
    text_emb/text_emb_0000.npy              the same for texts
    metadata/metadata_0000.parquet          ROWS: row i belongs to row i of both
    rows/rows_0000.arrow                    the same rows with their words, memory-mapped by searches
    words/words_r1.sqlite                   full-text index of all rows (words.py)
    approximate/image_r1.faiss              approximate search, in a large index (vectors.py)
    queries/text.onnx, image.onnx           optional: the towers, for queries without torch

The first three folders are clip-retrieval's layout, so that its tools read them. Only the process that holds the lock
(`exclusive`) writes index.json and deletes files; other processes may write the files of a part for it. Parts that
`waiting` names are finished but not searched yet: a killed `embed` goes on behind them. An open index keeps its mapped
files until it looks at index.json again.

Limits: a folder on a local disk, because it is memory-mapped.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator

from data_specs.shard import ContractError, leaves_folder
from data_specs.storage import whole_files

INDEX_VERSION = 2
"""Raised when a file of the folder changes its meaning; a reader reads this version only."""

INDEX = "index.json"

Modality = Literal["image", "text"]
EMBEDDINGS: dict[Modality, str] = {"image": "img_emb", "text": "text_emb"}
"""Folders of the vectors by modality: the names that clip-retrieval knows."""

_KINDS = (*EMBEDDINGS.values(), "metadata", "rows", "words", "approximate")


class IndexFault(ContractError):
    """An index folder cannot be written, opened or searched. The message names the folder or the file."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # additive fields keep the version


class Towers(_Model):
    """Identity of the towers that made the vectors: recipe, and sha256 of `towers.safetensors`; also of a query's."""

    recipe: str
    sha256: str


class Background(_Model):
    """Cosines of unrelated pairs: `shares[i]` of them lie below `cosines[i]`, which ascend."""

    cosines: tuple[float, ...]
    shares: tuple[float, ...]

    @model_validator(mode="after")
    def _can_be_read_off(self) -> Background:
        ascend = bool(self.cosines) and all(low <= high for low, high in pairwise(self.cosines))
        if not ascend or len(self.shares) != len(self.cosines):
            raise ValueError("a background has cosines, which ascend, and as many shares")
        return self

    def score(self, cosines: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Share of the background below each cosine, in [0, 1], by linear interpolation; never falling."""
        shares = np.interp(np.asarray(cosines, np.float64), self.cosines, self.shares, left=0.0, right=1.0)
        return shares.astype(np.float32)

    def rates(self, cosines: npt.ArrayLike, ranked: npt.ArrayLike, rows: int) -> npt.NDArray[np.float64]:
        """False-discovery rates of hits: of all rows at least as near, the share that unrelated ones make by chance.

        rows: searched ones. ranked: the best cosines of all, best first; the rate of a worse one is an upper bound.
        Benjamini and Hochberg, J. R. Stat. Soc. B 57 (1995). Beyond the last share below 1 the tail is exponential.
        """
        best = np.asarray(ranked, np.float64)
        found = np.minimum.accumulate((self._expected_unrelated(best, rows) / np.arange(1, len(best) + 1))[::-1])[::-1]
        own = np.asarray(cosines, np.float64)
        nearer = np.searchsorted(-best, -own, "right")
        beyond = np.minimum(1, self._expected_unrelated(own, rows) / max(1, len(best)))
        within = (own >= best[-1]) if len(best) else np.zeros(own.shape, np.bool_)
        rates: npt.NDArray[np.float64] = np.where(within, np.minimum(1, np.append(found, 1.0)[nearer - 1]), beyond)
        return rates

    def _expected_unrelated(self, cosines: npt.NDArray[np.float64], rows: int) -> npt.NDArray[np.float64]:
        """Number of unrelated rows, of `rows` in all, that are expected to be as near."""
        at, shares = np.array(self.cosines), np.array(self.shares)
        right = 1 - np.interp(cosines, at, shares, left=0.0, right=1.0)
        known = np.flatnonzero(shares < 1)
        if len(known) > 1:
            last = known[-1]
            first = known[max(0, min(np.searchsorted(shares, 0.99), last - 1))]
            steep = np.log((1 - shares[first]) / (1 - shares[last])) / max(at[last] - at[first], 1e-9)
            tail = (1 - shares[last]) * np.exp(-steep * np.maximum(0, cosines - at[last]))
            right = np.where(cosines > at[last], tail, right)
        expected: npt.NDArray[np.float64] = rows * right
        return expected


class IndexInfo(_Model):
    """Description of an index.

    width: D. images, texts: which vectors its parts have. checkpoint: None where the vectors are of another model.
    detector: whose regions the image tower saw. precision: fp32, or bf16 whose features differ in the third digit.
    created_from: names of the input; may grow.
    """

    name: str
    width: int
    images: bool
    texts: bool
    checkpoint: Towers | None = None
    background: Background | None = None
    detector: str = ""
    precision: str = "fp32"
    created_from: tuple[str, ...] = ()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Kinds of vectors that its parts have."""
        return tuple(m for m, present in (("image", self.images), ("text", self.texts)) if present)  # type: ignore[misc]

    def difference(self, other: IndexInfo) -> str:
        """Differences that make `other` another index, in words; a new background or a longer input does not."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in IndexInfo.model_fields)
        return ", ".join(
            f"its {name} is {_describe(own)}, not {_describe(given)}"
            for name, own, given in pairs
            if own != given and name not in ("background", "created_from")
        )


def _describe(value: object) -> str:
    return f"{value.recipe} {value.sha256[:8]}" if isinstance(value, Towers) else repr(value)


class FileEntry(_Model):
    """A file of an index: path relative to its folder, and size."""

    path: str
    bytes: int


class IndexPart(_Model):
    """A part of an index: rows with their vectors. files: by folder (img_emb, text_emb, metadata, rows)."""

    part: int
    rows: int
    files: dict[str, FileEntry]


class IndexFile(_Model):
    """`index.json`.

    revision: grows whenever what is searched changes. waiting: parts of an `embed` that has not ended. left_out: stamps
    (`rows.py`) of input rows that the index does not hold and that are not to be embedded again: unreadable, or removed
    by a takedown. words: None until the index is finished for the first time.
    """

    version: int = INDEX_VERSION
    about: IndexInfo
    rows: int = 0
    revision: int = 0
    words: FileEntry | None = None
    approximate: dict[Modality, FileEntry] = {}
    left_out: tuple[int, ...] = ()
    parts: tuple[IndexPart, ...] = ()
    waiting: tuple[IndexPart, ...] = ()

    def searched(self) -> list[FileEntry]:
        """The files that a search opens."""
        searches = [*self.approximate.values(), *([self.words] if self.words else [])]
        return [*(file for part in self.parts for file in part.files.values()), *searches]

    def files(self) -> list[FileEntry]:
        """All files that belong to the index, index.json aside."""
        return [*self.searched(), *(file for part in self.waiting for file in part.files.values())]


def read_index(folder: Path, unfinished: bool = False) -> IndexFile:
    """Read index.json. Raises IndexFault unless the folder is a finished index of this version.

    unfinished: an index whose first `embed` has not ended is read too.
    """
    path = folder / INDEX
    try:
        index = IndexFile.model_validate_json(path.read_bytes())
    except OSError as e:
        raise IndexFault(f"{path}: cannot be read ({e.strerror}); an index is written by wenlan-train embed") from None
    except ValueError as e:
        problem = " ".join(str(e).split())[:200]
        raise IndexFault(f"{path}: is not the index.json of a search index ({problem})") from None
    if index.version < INDEX_VERSION:
        raise IndexFault(f"{path}: version {index.version} is older than this wenlan reads; delete it and embed again")
    if index.version > INDEX_VERSION:
        newer = f"version {index.version} is newer than this wenlan reads ({INDEX_VERSION})"
        raise IndexFault(f"{path}: {newer}; upgrade wenlan")
    if outside := sorted(file.path for file in index.files() if leaves_folder(file.path)):
        raise IndexFault(f"{path}: names a file outside its folder: {outside[0]}")
    if index.words is None and not unfinished:
        raise IndexFault(f"{folder}: the index is not finished; run the command that writes it again")
    return index


def is_finished(folder: Path) -> bool:
    """True if a folder holds an index that can be searched, or one that cannot be read."""
    try:
        return (folder / INDEX).is_file() and read_index(folder, unfinished=True).words is not None
    except IndexFault:
        return True  # whatever opens it says what is wrong


def write_index(folder: Path, index: IndexFile) -> None:
    """Replace index.json in one step: one part per line."""
    lists = {"parts", "waiting"}
    head = index.model_dump_json(exclude=lists, indent=1).rstrip().removesuffix("}").rstrip()
    for name in sorted(lists):
        parts = ",\n  ".join(part.model_dump_json() for part in getattr(index, name))
        head += f',\n "{name}": [\n  {parts}\n ]' if parts else f',\n "{name}": []'
    with atomic_file(folder / INDEX) as temporary:
        temporary.write_text(f"{head}\n}}\n", encoding="utf-8")


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds the lock of an index: no other process changes it. Raises IndexFault if another process holds it."""
    if not folder.is_dir():
        raise IndexFault(f"{folder}: cannot be opened (no such folder)")
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(whole_files.exclusive(folder, wait_s=0))
        except BlockingIOError:
            todo = "wait until it has ended, or stop it (a stopped embed can be resumed), and run this again"
            raise IndexFault(f"{folder}: another command is writing this index; {todo}") from None
        except OSError as e:
            raise IndexFault(f"{folder}: cannot be opened ({e.strerror})") from None
        yield


def check_path(folder: Path) -> None:
    """Raise IndexFault for a URL."""
    if "://" in str(folder) or re.match(r"[a-z0-9]+:/[^/]", str(folder)):
        raise IndexFault(f"{folder}: an index must be on a local disk; give a path")


def check_sizes(folder: Path, files: list[FileEntry]) -> None:
    """Raise IndexFault for a file that is missing or has another size."""
    for own in files:
        path = folder / own.path
        size = path.stat().st_size if path.is_file() else 0
        if size != own.bytes:
            raise damaged(folder, f"{own.path}: {size:,} bytes, not {own.bytes:,}")


def damaged(folder: Path, problem: object) -> IndexFault:
    """The error for an index whose files are not as they were written."""
    said = getattr(problem, "strerror", None) or " ".join(str(problem).split())[:200]
    return IndexFault(f"{folder}: the index is damaged ({said}); delete it and embed it again")


def sweep(folder: Path, index: IndexFile) -> int:
    """Delete what index.json does not name, left over from a killed command; returns how many files that were."""
    named = {file.path for file in index.files()}
    files = [file for kind in _KINDS for file in folder.glob(f"{kind}/*") if f"{kind}/{file.name}" not in named]
    left = [*files, *folder.glob(".*.tmp")]
    for file in left:
        file.unlink(missing_ok=True)
    return len(files)


def write_file(folder: Path, name: str, write: Callable[[Path], object]) -> FileEntry:
    """Have `write` write a file to a temporary path, which is renamed when it is complete. Raises IndexFault."""
    with atomic_file(folder / name) as temporary:
        write(temporary)
        return FileEntry(path=name, bytes=temporary.stat().st_size)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `path` when the block ends, deleted if it fails. Raises IndexFault."""
    try:
        with whole_files.whole_file(path) as temporary:
            yield temporary
    except OSError as e:
        raise IndexFault(f"{path}: cannot be written ({e.strerror or e})") from e
