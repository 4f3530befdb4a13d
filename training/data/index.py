"""Datasets: manifests and plain tars, opened as one numbered list of rows.

A dataset is a tuple of shards, each with an index that is memory-mapped (training/data/index_cache.py), so that the
memory of a process grows neither with the pixels nor with the number of samples. Images are read by offset (`pread`),
which makes row 9,000,000 as cheap as row 0: resume needs no replay. Remote tars are read from copies
(training/data/tar_cache.py).

A sample is in a dataset once: where two arguments name the same shard, as a release and a build of it do, it belongs to
the last of them, and so does a plain tar. So `RELEASE@9 BUILD@1` mixes what the build brought, weighted, with what the
release held before.

Limits: sizes of tars are checked, their sha256 is not (`wenlan-data verify` does that): at the start, or in a dataset
of more than `AT_START` shards when one is first read. A plain tar lacks splits: it is all train, or all of what is
evaluated.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
import posixpath
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec

from data_specs.release import open_manifest
from data_specs.shard import SPLITS, ContractError, Manifest, Split
from data_specs.storage.object_store import StorageError, reason, storage_errors
from training.config import DataConfig
from training.data.index_cache import (
    COLUMNS,
    GRID,
    Shard,
    check_regular,
    index_plain_tar,
    is_as_indexed,
    read_index,
    shard_of,
    without_grid_id,
)
from training.data.plain_tars import plain_tars_of
from training.data.tar_cache import TarCache
from training.errors import ConfigError

AT_START = 4096
"""Shards up to which all are looked at and indexed when a dataset is opened, so that what is wrong with one is said
before the first step. Of more shards each is when it is first read."""

MOST_WEIGHT = 1_000_000_000
"""Largest weight of a part of a mixture; far beyond what the shares of 1/1024 tell apart, and its sums are finite."""

_LOOKS = 16
"""Shards that are looked at at once: a file in a bucket answers after tens of milliseconds."""

_OPEN_FILES = 64
_OPEN_TABLES = 256


@dataclass(frozen=True, slots=True)
class RowText:
    """One text of a row; `leader` is the sha256 in hex of the leader of its text cluster."""

    kind: str
    text: str
    leader: str


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One sample of a dataset, without its pixels.

    `width` and `height` are 0 when unknown (plain tars). `boxes` is a flat list of R x 4 numbers in pixels of the
    stored image, best first, or None where the dataset is used without regions.
    """

    tar: str
    key: str
    candidate_id: str
    source_kind: str
    width: int
    height: int
    texts: tuple[RowText, ...]
    image_leader: str
    image_offset: int
    image_size: int
    boxes: Sequence[float] | None


@dataclass(frozen=True, slots=True)
class _OpenedShards:
    """Shards of one manifest, or of one argument's plain tars, with the digests that a checkpoint names.

    name: what it is in messages; samples: what each split holds by the manifest.
    """

    name: str
    samples: dict[Split, int]
    shards: list[Shard]
    digest: str
    regions: str
    weight: float | None = None


class Dataset:
    """Rows of one split of one or several releases, numbered 0 .. len - 1 in order of the arguments and shards."""

    def __init__(
        self, opened: Sequence[_OpenedShards], split: Split, detector: str, copies: TarCache | None = None
    ) -> None:
        self.name = ", ".join(o.name for o in opened)
        """Names of the opened datasets, for messages."""
        self.split = split
        self.samples = {name: sum(o.samples.get(name, 0) for o in opened) for name in SPLITS}
        """Samples of each split by the manifests; of plain tars none."""
        self.detector = detector
        """Detector whose boxes the rows carry; `grid` when boxes are to be computed."""
        self.content_digests = tuple(o.digest for o in opened)
        self.region_digests = tuple(o.regions for o in opened)
        mixed = any(o.weight for o in opened)
        parts = [o for o in opened if (any(shard.rows for shard in o.shards) if mixed else o.shards)]
        self.parts = tuple(tuple(shard.rows for shard in o.shards) for o in parts)
        """Samples of each shard of each argument; of a mixture without those that are empty."""
        self.weights = tuple(o.weight or 1.0 for o in parts) if mixed else ()
        """Weights by which the parts are mixed; empty where they follow one after the other."""
        self._copies = copies
        self._shards = [shard for o in parts for shard in o.shards]
        self._ends = list(itertools.accumulate(shard.rows for shard in self._shards))
        self._of_tar = {shard.tar: number for number, shard in enumerate(self._shards)}
        self._tables: OrderedDict[Path, Any] = OrderedDict()
        self._files: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples of each shard, in order."""
        return tuple(shard.rows for shard in self._shards)

    @property
    def tars(self) -> tuple[str, ...]:
        """Path or URL of each shard's tar, in order."""
        return tuple(shard.tar for shard in self._shards)

    @property
    def has_regions(self) -> bool:
        """True if boxes were joined from files; if not, they are the grid."""
        return any(shard.regions is not None for shard in self._shards)

    def row(self, number: int) -> SampleRow:
        """Row by number. Reads from the mapped index only. Raises IndexError."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        at = bisect.bisect_right(self._ends, number)
        shard = self._shards[at] = self._shards[at].with_index()
        inside = number - (self._ends[at] - shard.rows)
        record = self._table(shard.index).slice(inside, 1).to_pylist()[0]
        return SampleRow(
            tar=shard.tar,
            texts=tuple(RowText(t["kind"], t["text"], t["text_leader"]) for t in record["texts"]),
            boxes=self.boxes(number),
            **{name: record[name] for name in _ROW_COLUMNS},
        )

    def boxes(self, number: int) -> Sequence[float] | None:
        at = bisect.bisect_right(self._ends, number)
        shard = self._shards[at] = self._shards[at].with_index()
        if shard.regions is None:
            return None
        boxes: Sequence[float] = self._table(shard.regions)["boxes"][
            number - (self._ends[at] - shard.rows)
        ].values.to_numpy()
        return boxes

    def ids(self, shard: int) -> list[str]:
        """The candidate ids of a shard's samples, in order."""
        self._shards[shard] = self._shards[shard].with_index()
        ids: list[str] = read_index(self._shards[shard].index)["candidate_id"].to_pylist()
        return ids

    def leaders(self) -> Iterator[tuple[Any, Any]]:
        """Shard by shard the image leaders of its samples and the leaders of all their texts: Arrow arrays of hex."""
        for number, shard in enumerate(self._shards):
            shard = self._shards[number] = shard.with_index()
            table = read_index(shard.index)
            yield table["image_leader"], table["texts"].combine_chunks().flatten().field("text_leader")

    def image(self, row: SampleRow) -> bytes:
        """Bytes of a row's image member. Raises ContractError when the tar ends before them."""
        data = self._read(row)
        if len(data) != row.image_size:
            raise ContractError(f"{row.tar}: ends before the image of {row.key}; the tar is truncated or was replaced")
        return data

    def fetch_ahead(self, here: Sequence[int], later: Sequence[int]) -> None:
        """Start fetching the remote tars of these shards in the background, those of `here` first."""
        shards = [self._shards[number] for number in (*here, *later)]
        if self._copies is not None:
            self._copies.fetch_ahead((s.tar, s.size, s.index.name) for s in shards if "://" in s.tar)

    def check_not_empty(self) -> None:
        """Raise ContractError, with advice, if the split is empty."""
        if len(self):
            return
        counts = ", ".join(f"{name} {count:,}" for name, count in self.samples.items())
        todo = "there is nothing to train on"
        if self.split != "train":
            todo = f"the dataset is too small for its shards.{self.split}_share: raise that in the spec (pictures that "
            todo += "are already in it keep their split), or wait until the dataset has grown"
        raise ContractError(f"{self.name}: no samples in the {self.split} split ({counts}); {todo}")

    def check_window(self, window_shards: int, *, mixed: bool = False) -> None:
        """Raise ConfigError if the copies of two windows of remote shards would not fit the bound.

        mixed: the parts are read by turns, each with a window of its own.
        """
        needed, first = 0, 0
        for count in map(len, self.parts) if mixed else (len(self._shards),):
            sizes = (shard.size for shard in self._shards[first : first + count] if "://" in shard.tar)
            needed += sum(sorted(sizes, reverse=True)[: 2 * window_shards])
            first += count
        if self._copies is not None and needed > self._copies.limit:
            each = f" of each of {len(self.parts)} parts" if mixed else ""
            raise ConfigError(
                "data.cache_gb",
                f"{self._copies.limit / 1e9:g} GB is too small for two windows of {window_shards} shards{each} "
                f"({needed / 1e9:.3g} GB); raise it or lower data.window_shards",
            )

    def _read(self, row: SampleRow) -> bytes:
        remote = "://" in row.tar
        if remote and self._copies is None:
            fs, path = fsspec.core.url_to_fs(row.tar)
            with storage_errors(row.tar):
                data: bytes = fs.cat_file(path, start=row.image_offset, end=row.image_offset + row.image_size)
            return data
        handle = self._files.get(row.tar)
        if handle is None:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            handle = self._files[row.tar] = self._open(row.tar)
        self._files.move_to_end(row.tar)
        return os.pread(handle, row.image_size, row.image_offset)

    def _open(self, tar: str) -> int:
        shard = self._shards[self._of_tar[tar]]
        if "://" in tar:
            assert self._copies is not None
            return self._copies.open(tar, shard.size, shard.index.name)
        try:
            handle = os.open(tar, os.O_RDONLY | os.O_NONBLOCK)  # a pipe in its place would be waited for
        except OSError as e:
            raise ContractError(f"{tar}: cannot be read ({e.strerror})") from None
        if not is_as_indexed(shard, os.fstat(handle).st_size):
            os.close(handle)
            raise ContractError(
                f"{tar}: was changed or replaced after it was indexed; put the earlier file back and run the same "
                "command again, because a training goes on with other data only in another --out"
            )
        return handle

    def _table(self, path: Path) -> Any:
        table = self._tables.get(path)
        if table is None:
            if len(self._tables) >= _OPEN_TABLES:
                self._tables.popitem(last=False)
            table = self._tables[path] = read_index(path)
        self._tables.move_to_end(path)
        return table

    def close(self) -> None:
        """Close the open tars; the dataset reopens them when needed."""
        while self._files:
            os.close(self._files.popitem()[1])


_ROW_COLUMNS = [name for name in COLUMNS if name not in ("texts", "sha256")]


def split_of_dataset(split: str) -> Split:
    """Checks that a dataset can have a split of this name. Raises ConfigError for one that only benchmarks have."""
    for name in SPLITS:
        if name == split:
            return name
    raise ConfigError("--split", f"{split}: datasets have only the splits {', '.join(SPLITS)}")


def default_cache() -> Path:
    """Folder of the indexes: $XDG_CACHE_HOME/wenlan/index, or ~/.cache/wenlan/index."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "wenlan" / "index"


def open_dataset(
    data: Sequence[str],
    split: Split,
    *,
    detector: str = "",
    cache: Path | None = None,
    cache_gb: float = DataConfig.cache_gb,
    plain_tars: bool = True,
) -> Dataset:
    """Open manifests (file, folder or URL) and plain tars (`x-{000..099}.tar`, `x-*.tar`, a folder) as one dataset.

    `NAME@WEIGHT` mixes: where any argument has a weight, samples come from the arguments in the proportion of their
    weights (1 by default), each in epochs of its own.

    `detector`: whose regions to join; "" takes the first that a manifest names, or else the grid.
    `plain_tars=False` leaves plain tars out: they lack splits, so they must not serve as a dev split.

    Raises ContractError: bad or newer manifest, missing or short tar, Parquet or regions that do not match (in a
    dataset of more than AT_START shards when such a shard is first read). One line that names the file. A split without
    samples is not an error: the dataset is empty.
    """
    cache = default_cache() if cache is None else cache
    cache.mkdir(parents=True, exist_ok=True)
    parts = [split_weight(argument) for argument in data]
    named = [(name, plain_tars_of(name), weight) for name, weight in parts]
    tars = [(names, weight) for _, names, weight in named if names is not None]
    manifests = [(*_manifest(name), weight) for name, names, weight in named if names is None]
    if not detector:
        detector = next((m.detectors[0] for _, m, _ in manifests if m.detectors), GRID)
        detector = GRID if tars else detector
    detector = without_grid_id(detector)
    opened = [
        replace(_open_manifest(path, manifest, split, detector, cache), weight=weight)
        for path, manifest, weight in manifests
    ]
    opened = _without_repeats(opened)
    if sum(len(o.shards) for o in opened) <= AT_START:
        with ThreadPoolExecutor(_LOOKS, thread_name_prefix="shards") as pool:
            opened = [replace(o, shards=list(pool.map(Shard.with_index, o.shards))) for o in opened]
    if tars and plain_tars:
        if detector != GRID:
            raise ContractError(
                f"{tars[0][0][0]}: a plain tar does not contain regions of {detector!r}; use --detector grid with eval "
                "and embed, --set data.detector=grid with fit"
            )
        if not any(weight for _, weight in tars):
            tars = [([name for names, _ in tars for name in names], None)]
        opened += _without_repeats([replace(_open_tars(names, cache), weight=weight) for names, weight in tars])
    copies = TarCache(cache / "tars", int(cache_gb * 1e9)) if cache_gb else None
    return Dataset(opened, split, detector, copies)


def _without_repeats(opened: Sequence[_OpenedShards]) -> list[_OpenedShards]:
    """Keeps a shard in the last part only that names it: equal Parquet files hold the same samples."""
    seen: set[Path] = set()
    parts = []
    for part in reversed(opened):
        parts.append(replace(part, shards=[shard for shard in part.shards if shard.index not in seen]))
        seen.update(shard.index for shard in part.shards)
    return parts[::-1]


def split_weight(argument: str) -> tuple[str, float | None]:
    """An argument's name and, after a last @, its weight."""
    name, at, weight = argument.rpartition("@")
    if not at or not re.fullmatch(r"\d+(\.\d+)?", weight):
        return argument, None
    if not float(weight):
        raise ConfigError("--data", f"{argument}: has weight 0; leave it out instead")
    if float(weight) > MOST_WEIGHT:
        raise ConfigError("--data", f"{argument}: the largest weight is {MOST_WEIGHT:,}")
    return name, float(weight)


def manifest_of(argument: str) -> tuple[str, Manifest]:
    """The path and the content of the manifest that an argument of `open_dataset` names. Raises ContractError."""
    return _manifest(split_weight(argument)[0])


def _manifest(name: str) -> tuple[str, Manifest]:
    """The path and the content of the manifest of a build or a release; `name` as `open_manifest` takes it."""
    refusals = list[str]()

    def read(path: str) -> bytes:
        try:
            return read_file(path)
        except FileNotFoundError as e:
            if (cause := e.__cause__) is not None and getattr(cause, "status", 0) not in (404, 410):
                refusals.append(reason(cause))  # fsspec calls whatever a web server answers, or does not, so
            raise
        except (ContractError, OSError):
            raise
        except Exception as e:  # fsspec: an unknown protocol, a missing package, or what the client of one raises
            raise ContractError(f"{name}: cannot be opened ({reason(e)})") from None

    try:
        return open_manifest(name, read)
    except StorageError as e:
        raise ContractError(f"{name}: {e.strerror}") from None
    except FileNotFoundError:
        raise ContractError(f"{name}: {_missing_reason(name, refusals)}") from None
    except OSError as e:
        raise ContractError(f"{name}: cannot be read ({reason(e)})") from None
    except RecursionError:
        raise ContractError(f"{name}: not a JSON manifest (nested too deeply)") from None


def _missing_reason(name: str, refusals: Sequence[str]) -> str:
    """Reason why a place lacks a manifest, and advice. refusals: what its server said, if it has one."""
    if refusals:
        return f"cannot be read ({refusals[0]}); check the address and its permissions"
    if "://" in name:
        return "manifest.json, latest.json and shards/manifest.json are missing; give the address of a published build"
    return "no manifest.json there; give one, or its folder: a build has it once it is published"


def read_file(path: str) -> bytes:
    """Content of a file, path or URL. Raises ContractError for what is not a regular file, OSError."""
    check_regular(path)
    with storage_errors(path), fsspec.open(path, "rb") as file:
        return bytes(file.read())


def _open_manifest(path: str, manifest: Manifest, split: Split, detector: str, cache: Path) -> _OpenedShards:
    if detector != GRID and detector not in manifest.detectors:
        known = ", ".join(manifest.detectors) or "none"
        advice = "name one of them or grid, by --detector in eval and embed, by --set data.detector= in fit"
        raise ContractError(f"{path}: no regions of detector {detector!r}; it has: {known}; {advice}")
    base = posixpath.dirname(path)
    shards = [
        shard_of(manifest.folder_of(files, base), path, files, detector, cache) for files in manifest.of_split(split)
    ]
    joined = [
        f"{f.regions[detector].path} {f.regions[detector].sha256}" for f in manifest.shards if detector in f.regions
    ]
    regions = hashlib.sha256("\n".join(sorted(joined)).encode()).hexdigest() if joined else GRID
    named = f"{path}: release {manifest.release} of dataset {manifest.dataset}" if manifest.dataset else path
    return _OpenedShards(named, dict(manifest.samples), shards, manifest.content_digest, regions)


def _open_tars(tars: Sequence[str], cache: Path) -> _OpenedShards:
    """Plain tars; their digest is that of their samples' ids, images and texts in order.

    Not of the ids alone: img2dataset calls the samples of every dataset alike.
    """
    shards = list({shard.index: shard for shard in (index_plain_tar(tar, cache) for tar in tars)}.values())
    content = hashlib.sha256()
    for shard in shards:
        table = read_index(shard.index)
        texts = table["texts"].combine_chunks()
        ids, leaders = table["candidate_id"].to_pylist(), texts.flatten().field("text_leader").to_pylist()
        for column in (ids, table["sha256"].to_pylist(), texts.value_lengths().to_pylist(), leaders):
            content.update("\n".join([str(len(column)), *map(str, column)]).encode())
    return _OpenedShards(tars[0], {}, shards, content.hexdigest(), GRID)
