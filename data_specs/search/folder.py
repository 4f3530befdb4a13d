"""The files of an index folder: index.json, what it names, and how files come and go.

Files never change: a takedown writes new ones under names of their own (`img_emb_0000_r1.npy`), replaces index.json in
one step, and deletes the old ones. Whoever has the index open goes on with what it has mapped, until it looks again.
What index.json does not name is left over from a killed command, and is swept.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator

from data_specs.shard import ContractError, leaves_folder

INDEX_VERSION = 1
"""Raised when a file of the folder changes its meaning; readers refuse a higher one."""

INDEX = "index.json"
UNFINISHED = "_writing"
"""Folder of an index that is being written: about.json, and the record of each committed part."""

_TAKEDOWNS = "takedowns"
"""Within UNFINISHED: a value that each takedown replaces."""

Vectors = npt.NDArray[np.float16] | npt.NDArray[np.float32]
"""[n, D] unit rows."""

Modality = Literal["image", "text"]
EMBEDDINGS: dict[Modality, str] = {"image": "img_emb", "text": "text_emb"}
"""Folders of the vectors by modality: the names that clip-retrieval knows."""


class IndexFault(ContractError):
    """An index folder cannot be written, opened or searched. The message names the folder or the file."""


class TakenDown(IndexFault):
    """What was to be added was read before a takedown, and may hold what it took: it is to be read again."""


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

    def least(self, score: float) -> float:
        """The least cosine, to float32, that has at least a score; 2 where none has."""
        low, high = np.float32(-1.0), np.float32(2.0)
        if float(self.score(low)) >= score:
            return -2.0  # rounding may take a cosine a little below -1
        while float(middle := np.float32((low + high) / 2)) not in (float(low), float(high)):
            low, high = (low, middle) if float(self.score(middle)) >= score else (middle, high)
        return float(high)


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

    empty: tokens of the parts of which there is no row, by number. words, approximate: files of those searches, where
    they are.
    """

    version: int = INDEX_VERSION
    about: About
    rows: int
    parts: tuple[Part, ...]
    empty: dict[int, str] = {}
    revision: int = 0
    words: File | None = None
    approximate: dict[Modality, File] = {}

    def files(self) -> Iterator[File]:
        """All files that belong to the index, index.json aside."""
        for part in self.parts:
            yield from part.files.values()
        yield from self.approximate.values()
        yield from () if self.words is None else (self.words,)

    def named(self) -> set[str]:
        """Their paths."""
        return {file.path for file in self.files()}


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
    if outside := sorted(path for path in index.named() if leaves_folder(path)):
        raise IndexFault(f"{path}: names a file outside of its folder: {outside[0]}")
    return index


def write_index(folder: Path, index: IndexFile) -> None:
    """Replace index.json in one step: one part per line."""
    head = index.model_dump_json(exclude={"parts"}, indent=1).rstrip().removesuffix("}").rstrip()
    parts = ",\n  ".join(part.model_dump_json() for part in index.parts)
    write_file(folder / INDEX, f'{head},\n "parts": [\n  {parts}\n ]\n}}\n'.encode())


def takedowns(folder: Path) -> str:
    """Another value after each takedown from now on, of an index that there is or that is being written.

    Asked for before what is to be added is read: `IndexWriter.begin` takes it.
    """
    if (folder / INDEX).exists():
        (folder / UNFINISHED).mkdir(exist_ok=True)
    return taken_down(folder)


def taken_down(folder: Path) -> str:
    """The value of the last takedown that whoever writes the index must know of; "" where there was none."""
    try:
        return (folder / UNFINISHED / _TAKEDOWNS).read_text(encoding="ascii")
    except OSError:
        return ""


def note_takedown(folder: Path) -> None:
    """Let whoever adds to the index know that what it has read before now may hold what is taken down."""
    if (folder / UNFINISHED).is_dir():
        write_file(folder / UNFINISHED / _TAKEDOWNS, uuid.uuid4().hex.encode())


def is_begun(folder: Path) -> bool:
    """Whether an index is written here for the first time: there are parts of it at most."""
    return not (folder / INDEX).exists() and (folder / UNFINISHED / "about.json").exists()


def parts_of(folder: Path) -> list[Part]:
    """Parts of an index, and those that wait to be added to it. Raises IndexFault for what is no index."""
    there = () if is_begun(folder) else read_index(folder).parts
    return [*there, *(part for part in waiting(folder).values() if part.rows)]


@contextlib.contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """For as long as the block runs no other process rewrites the index. Raises IndexFault if one does."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as e:
        raise IndexFault(f"{folder}: cannot be opened ({e.strerror})") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise IndexFault(f"{folder}: another command rewrites this index; run this one again when it is done") from None
    finally:
        os.close(handle)


def check_parts(folder: Path) -> None:
    """Raise IndexFault for a file of a part, or of one that waits, that is not there or has not its size."""
    for part in parts_of(folder):
        for own in part.files.values():
            path = folder / own.path
            size = path.stat().st_size if path.is_file() else 0
            if size != own.bytes and part in parts_of(folder):  # a takedown deletes files too
                raise damaged(folder, f"{own.path}: {size:,} bytes, not {own.bytes:,}")


def damaged(folder: Path, problem: str) -> IndexFault:
    """What is to be raised for an index whose files are not as they were written."""
    return IndexFault(f"{folder}: the index is damaged ({problem}); delete it and embed it again")


def waiting(folder: Path) -> dict[Path, Part]:
    """Parts that are committed and not yet in index.json, by the file of their record."""
    return {
        file: Part.model_validate_json(file.read_bytes()) for file in sorted((folder / UNFINISHED).glob("part-*.json"))
    }


def sweep(folder: Path, index: IndexFile | None) -> int:
    """Delete what belongs neither to the index nor to a part that waits; returns how many files that were."""
    named = (set() if index is None else index.named()) | {
        file.path for part in waiting(folder).values() for file in part.files.values()
    }
    swept = 0
    for kind in (*EMBEDDINGS.values(), "metadata", "rows", "words", "approximate"):
        for file in (folder / kind).iterdir() if (folder / kind).is_dir() else ():
            if f"{kind}/{file.name}" not in named:
                file.unlink(missing_ok=True)
                swept += 1
    for left in folder.glob(".tmp-*"):
        left.unlink(missing_ok=True)
    return swept


def made(folder: Path, name: str, make: Callable[[Path], object]) -> File:
    """A file that `make` writes to a path, moved to its name when it is whole."""
    with whole(folder / name) as temporary:
        make(temporary)
        digest = hashlib.sha256()
        with temporary.open("rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
        return File(path=name, bytes=temporary.stat().st_size, sha256=digest.hexdigest())


def write_file(path: Path, data: bytes) -> None:
    with whole(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
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


def remove_folder(folder: Path) -> None:
    if folder.is_dir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
