"""STORE/identity: the images and texts of published builds, so that later builds do not keep them again.

    identity/<build>.<digest>.json                  one small record: the commit
    identity/<build>.<digest>.images.parquet ...    the files it names, never changed: a takedown makes others
    dealt/<build>.<digest>/                         what follows from a commit, by keys: made where it is needed, and
                                                    deleted with its commit (`pipeline.dedup.earlier`)

The files are those that `pipeline.dedup.leaders` wrote by rank: publishing shares them with the build, on one disk by
hard links, and readers take them in batches, column by column. They hold enough to match against, not enough to read
a text.

A build reads the identities of the builds that were published when it was opened, by name (`Build.identities`); names
hold digests, so what it reads cannot change under it. `publish` refuses a build that has not seen all that was
published since, as two builds that run at once would else both keep an image. A build that is published and unchanged
stays as it is, whatever was published after it.

Earlier builds of the same dataset and snapshot are not read: the new build is in their place. Nor are builds that the
newest release leaves out, after a rollback or in a new generation.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from data_specs.storage.whole_files import sha256_of
from pipeline.errors import StoreError
from pipeline.features import feature_id
from pipeline.files.digests import DIGEST, Digests, digests_of
from pipeline.files.folder import Folder
from pipeline.files.parquet import write_parquet
from pipeline.matching.contexts import CONTEXT
from pipeline.matching.image_comparison import ROW, Details
from pipeline.matching.text_rows import FIELDS
from pipeline.store.build import Build
from pipeline.store.commits import FileRef, Record
from pipeline.store.partitions import StageDir
from pipeline.store.store import Store

IMAGE_SCHEMA = pa.schema(
    [
        ("candidate_id", DIGEST),
        ("fetch_id", DIGEST),
        ("sha256", DIGEST),  # a kept image leads itself: this is its image_leader too
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("phash", pa.list_(pa.uint64())),
        ("text_leader", DIGEST),  # of the primary text
        ("split", pa.string()),
        ("context", CONTEXT),  # five 64-bit hashes
    ]
)
"""Kept images by rank. What turned out a placeholder, or is dropped after dedup, is among them: it goes on leading."""

TEXT_SCHEMA = pa.schema([("text", FIELDS), ("split", pa.string())])
"""Texts that lead, in the order in which they began to, each with its pair's split. Digests and hashes only."""

PLACEHOLDER_SCHEMA = pa.schema([("candidate_id", DIGEST)])

SIGNATURES = "signatures.bin"
"""Signatures of the images, one after the other and nothing else: a file to be mapped, of which few are ever read."""

DETAILS = "details.bin"
"""Details of those images that have some (`pipeline.matching.image_comparison`)."""

PARTS = ("images.parquet", SIGNATURES, DETAILS, "texts.parquet", "placeholders.parquet")
"""The files of a commit, by their suffixes in the record of IDENTITY_STAGE."""

DEALT = "dealt"
"""Folder of STORE with what follows from commits; it may be deleted whenever no build runs."""

ATTEMPTS = 10
"""Times that a folder in DEALT is deleted while a build still writes its last file there."""

IDENTITY_STAGE = "dedup.leaders"
"""The stage whose only partition holds what a build publishes here."""

SEMANTIC, SEMANTIC_STAGE = "semantic.vectors", "curate.nearest"
"""One file more of a build with semantic dedup: what it kept, with features (Parquet); and the pass that wrote it."""

IDENTITY_STAGES = (SEMANTIC_STAGE, IDENTITY_STAGE)
"""All stages whose files a build publishes here, last to first: a takedown rewrites them before it publishes again."""


class Published(BaseModel):
    """The identities of one published build; those of other `features` (feature id), or another `sketch`, differ.

    tower: the id of the image tower whose features SEMANTIC holds, if the build has that file.
    """

    model_config = ConfigDict(frozen=True)
    version: Literal[5]  # of the files; raised when their columns change, or what those say
    build: str
    dataset: str
    snapshot: str
    features: str
    sketch: str
    tower: str = ""
    files: dict[str, FileRef]


class Identities:
    """The identities of all published builds."""

    def __init__(self, store: Store) -> None:
        self._store, self._folder = store, store.folder / "identity"

    def names(self) -> list[str]:
        """Names of the commits. Raises StoreError for a STORE of another version."""
        self._store.version()
        return [name for name in self._folder.names() if name.endswith(".json") and not name.startswith(".")]

    def read(self, name: str) -> Published:
        """One commit. Raises StoreError, with what to do, if it is no longer there."""
        data = self._folder.find(name)
        if data is None:
            raise StoreError(self._folder.at(name), "replaced while this build was running; run the same command again")
        try:
            return Published.model_validate_json(data)
        except ValueError:
            raise StoreError(
                self._folder.at(name), "not a record of identities of this version; build with another --store"
            ) from None

    def of(self, build_id: str) -> str:
        """The name of a build's commit; "" if it has not been published."""
        return next(iter(self._all_of(build_id)), "")

    def _all_of(self, build_id: str) -> list[str]:
        """Names of a build's commits: two where a process was killed before it took away the one that it replaced."""
        return [name for name in self.names() if build_of(name) == build_id]

    def before(self, build: Build) -> tuple[str, ...]:
        """Commits that a build is deduplicated against, by (snapshot, build).

        Of its own dataset those of the builds in the newest release, if it continues that generation, but for those
        that it replaces (of the same snapshot); of other datasets those that the spec names in dedup.across.
        """
        dataset, across = build.spec.name, build.spec.dedup.across
        current = self._store.releases(dataset).latest().current
        released = {known.build_id for known in current.builds} if current is not None else set()
        commits = []
        for name in self.names():
            known = self.read(name)
            if known.dataset != dataset:
                reads = across == "all" or known.dataset in across
            elif current is None:  # the first publish was killed before its release
                reads = build.generation == 1
            else:
                reads = current.generation == build.generation and known.build in released
            own = known.build == build.build_id or (known.dataset, known.snapshot) == (dataset, build.snapshot)
            if reads and not own:
                commits.append((known.snapshot, known.build, name))
        return tuple(name for _, _, name in sorted(commits))

    def made_from(self, build: Build) -> list[str]:
        """Commits of the builds that a generation is made from, under the names that takedowns have given them since.

        The build keeps the names that it began with, of which its fingerprints are made.
        """
        return [self.of(own.build_id) or own.identities for own in build.made_from]

    def kept_by(self, build: Build, candidate_id: Digests, part: str) -> npt.NDArray[np.int32]:
        """[N] the number of the build in `made_from` that kept each of distinct candidates, 0 for the oldest one.

        As many as there are builds for a candidate that none kept. part: the file of a commit that lists what its build
        kept; a build without it kept none.
        """
        number = np.full(len(candidate_id), len(build.made_from), np.int32)
        own = np.ascontiguousarray(candidate_id).view("V32").ravel()
        for at, known in enumerate(map(self.read, self.made_from(build))):
            for batch in self.batches(known, part, ["candidate_id"]) if part in known.files else ():
                kept = np.ascontiguousarray(digests_of(batch["candidate_id"])).view("V32").ravel()
                _, rows, _ = np.intersect1d(own, kept, return_indices=True)
                number[rows] = np.minimum(number[rows], at)
        return number

    def batches(self, known: Published, part: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Rows of one of PARTS, or of SEMANTIC where the build has it, in order.

        Raises StoreError if the file is not there or not whole.
        """
        with self._file(known, part) as path, pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=50_000, columns=columns):
                yield pa.Table.from_batches([batch])

    def count(self, known: Published, part: str) -> int:
        """Rows of one of PARTS: no more than the end of its file is read. Raises StoreError as `batches` does."""
        with self._opened(known, part) as file:
            return int(pq.read_metadata(file).num_rows)

    def rows(self, known: Published, part: str, first: int, last: int, columns: Sequence[str]) -> pa.Table:
        """Rows first to last - 1 of one of PARTS; no other row group is read. Raises StoreError as `batches` does."""
        with self._opened(known, part) as stream, pq.ParquetFile(stream) as file:
            sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            ends = np.cumsum(sizes)
            groups = np.flatnonzero((ends > first) & (ends - sizes < last)).tolist()
            before = int(ends[groups[0]] - sizes[groups[0]]) if groups else first
            return file.read_row_groups(groups, columns=columns).slice(first - before, last - first)

    def raw(self, known: Published, part: str, first: int, last: int, width: int) -> npt.NDArray[np.uint8]:
        """[last - first, width] rows of SIGNATURES or DETAILS. Raises StoreError as `batches` does."""
        if self._folder.is_local:
            with self._file(known, part) as path:
                raw = np.fromfile(path, np.uint8, (last - first) * width, offset=first * width)
        else:
            ref, size = known.files[part], (last - first) * width
            raw = np.frombuffer(self._folder.read_range(ref.name, first * width, size), np.uint8)
            if len(raw) != size:
                raise self._not_whole(ref)
        return raw.reshape(last - first, width)

    def raw_at(self, known: Published, part: str) -> Path | None:
        """The file of SIGNATURES or DETAILS; None for a STORE behind a URL."""
        if not self._folder.is_local:
            return None
        with self._file(known, part) as path:
            return path

    def details_before(self, known: Published, image: int) -> int:
        """Number of images before this one that have details: few rows of a large file are read for it."""
        size = known.files[DETAILS].bytes // ROW

        def number(row: int) -> int:
            return int(self.raw(known, DETAILS, row, row + 1, ROW)[0, :8].view("<i8")[0])

        return bisect_left(range(size), image, key=number)

    def derived_folder(self, name: str) -> Folder:
        """Folder of files that are derived from a commit."""
        return self._store.folder / DEALT / name.removesuffix(".json")

    def strays(self) -> list[str]:
        """Folders in STORE/dealt of commits that are no longer there."""
        names = (self._store.folder / DEALT).names()
        commits = {name.removesuffix(".json") for name in self.names()} if names else set()
        return [name for name in names if name not in commits]

    @contextlib.contextmanager
    def _opened(self, known: Published, part: str) -> Iterator[BinaryIO]:
        ref = known.files[part]
        with self._folder.opened(ref.name) as file:
            if file.seek(0, 2) != ref.bytes:
                raise self._not_whole(ref)
            file.seek(0)
            yield file

    def _not_whole(self, ref: FileRef) -> StoreError:
        return StoreError(self._folder.at(ref.name), "missing or incomplete; publish its build again")

    @contextlib.contextmanager
    def _file(self, known: Published, part: str) -> Iterator[Path]:
        ref = known.files[part]
        with self._folder.local(ref.name) as path:
            if not path.exists() or path.stat().st_size != ref.bytes:
                raise self._not_whole(ref)
            yield path

    def check(self, build: Build) -> None:
        """Raise StoreError if what a build is deduplicated against has changed since it began."""
        if not build.stage(IDENTITY_STAGE).partitions():  # `gc` expired it, once it was published
            if self.of(build.build_id):
                return
            raise StoreError(build.out, "gc has deleted its input; build it again in another folder")
        if self.is_released(build) and commit_name(build) in self._all_of(build.build_id):
            return
        now, then = set(self.before(build)), set(build.identities)
        for others, what in (
            (then - now, "has changed since this build started"),
            (now - then, "was published after this build started, so this build has not been deduplicated against it"),
        ):
            if others:
                names = ", ".join(sorted(map(build_of, others)))
                todo = "run wenlan-data build again to resume at dedup"
                raise StoreError(build.build_id, f"{names} {what}; {todo}")

    def is_released(self, build: Build) -> bool:
        """True if later builds read what a build has committed: the newest release lists it.

        True too for a build of another generation than the newest release, to which it cannot come back by itself.
        """
        releases = self._store.releases(build.spec.name)
        current = releases.latest().current
        return current is None or current.generation != build.generation or releases.lists(build.build_id)

    def publish(self, build: Build) -> None:
        """Commit a build's identities, in place of those it had. The caller holds STORE's lock. Raises StoreError."""
        self.check(build)
        self.replace(build)

    def replace(self, build: Build) -> None:
        """Commit without the check of `publish`: a takedown only removes from what the build had published.

        Nothing for a build that `gc` expired: its files are gone, and a takedown cleans STORE's own (`forget`).
        """
        if not build.stage(IDENTITY_STAGE).partitions():
            return
        name, before = commit_name(build), self._all_of(build.build_id)
        if name not in before:
            self._write(name, build)
        for other in before:
            if other != name:
                self._remove(other)

    def _write(self, name: str, build: Build) -> None:
        """Write a build's commit: its files, then the record that names them."""
        record, files = _record(build), {}
        for part, (stage, of_part, suffix) in _sources(build).items():
            with stage.file(of_part, suffix) as path:
                files[part] = of_part.files[suffix].model_copy(update={"name": f"{name.removesuffix('.json')}.{part}"})
                self._folder.share(path, files[part].name)
        known = Published(
            version=5,
            build=build.build_id,
            dataset=build.spec.name,
            snapshot=build.snapshot,
            features=record.info["features"],
            sketch=record.info["sketch"],
            tower=_tower(build),
            files=files,
        )
        self._commit(name, known)

    def withdraw(self, build_id: str) -> None:
        """Take away a build's identities: its dataset is replaced. The caller holds STORE's lock."""
        for name in self._all_of(build_id):
            self._remove(name)

    def forget(self, removed: Callable[[pa.Table], npt.NDArray[np.bool_]]) -> dict[str, str]:
        """Remove images from every commit. removed: a mask over rows (candidate_id, fetch_id, sha256), some at a time.

        Returns the names of the commits that changed, old to new. Texts stay: they are hashes of what was compared.
        The caller holds STORE's lock. What a takedown that was killed has left behind goes, too. Rows of a commit that
        changes are in memory, without their signatures and details.
        """
        renamed = {}
        for name in self.names():
            known, columns = self.read(name), ["candidate_id", "fetch_id", "sha256"]
            masks = [removed(rows) for rows in self.batches(known, "images.parquet", columns)]
            mask = np.concatenate([np.zeros(0, np.bool_), *masks])
            if mask.any():
                images = pa.concat_tables(list(self.batches(known, "images.parquet")))
                renamed[name] = self._rewrite_without(name, known, images, mask)
        for name in self.strays():  # also of commits that a takedown replaced before it was killed
            self._delete_dealt(name)
        self._sweep()
        return renamed

    def _sweep(self) -> None:
        """Delete files that no commit names, of commits that were taken away by a process that was killed then."""
        commits = self.names()
        named = {*commits, *(ref.name for name in commits for ref in self.read(name).files.values())}
        for name in self._folder.names():
            if name not in named and not name.startswith("."):
                self._folder.delete(name)

    def _rewrite_without(self, name: str, known: Published, images: pa.Table, removed: npt.NDArray[np.bool_]) -> str:
        with tempfile.TemporaryDirectory(dir=self._folder.scratch(), prefix=".tmp-") as scratch:
            paths = {part: Path(scratch) / part for part in PARTS}
            flagged = pa.concat_tables([PLACEHOLDER_SCHEMA.empty_table(), *self.batches(known, "placeholders.parquet")])
            with self._file(known, "texts.parquet") as path:
                shutil.copyfile(path, paths["texts.parquet"])
            with self._file(known, SIGNATURES) as signatures, self._file(known, DETAILS) as details:
                write_without(paths, images, signatures, details, flagged, removed)
            if SEMANTIC in known.files:
                paths[SEMANTIC] = Path(scratch) / SEMANTIC
                self._copy_features(known, images["candidate_id"].filter(pa.array(removed)), paths[SEMANTIC])
            digests = {part: sha256_of(path) for part, path in paths.items()}
            new = f"{known.build}.{_digest(digests)}.json"
            files = {}
            for part, path in paths.items():
                ref = FileRef(
                    name=f"{new.removesuffix('.json')}.{part}", bytes=path.stat().st_size, sha256=digests[part]
                )
                self._folder.take(path, ref.name)
                files[part] = ref
        self._commit(new, known.model_copy(update={"files": files}))
        self._remove(name)
        return new

    def _copy_features(self, known: Published, gone: pa.ChunkedArray, path: Path) -> None:
        """Write SEMANTIC without some candidates, batch by batch: a row is a kilobyte or two."""
        with self._file(known, SEMANTIC) as old:
            schema = pq.read_schema(old)
        with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
            for rows in self.batches(known, SEMANTIC):
                writer.write_table(rows.filter(pc.invert(pc.is_in(rows["candidate_id"], gone))), 10_000)

    def _commit(self, name: str, known: Published) -> None:
        """Write the record of a commit, whose files are there."""
        self._folder.write(name, known.model_dump_json(indent=1).encode() + b"\n")

    def _remove(self, name: str) -> None:
        """Delete a commit: its record first, so that new readers do not open it, then what follows from it."""
        known = self.read(name)
        self._folder.delete(name)
        self._delete_dealt(name.removesuffix(".json"))
        for ref in known.files.values():
            self._folder.delete(ref.name)

    def _delete_dealt(self, stem: str) -> None:
        """Delete what follows from a commit that is no longer there.

        A build that began before may write, or take back, a file there meanwhile: then a folder is not empty, or only
        some of its files are deleted.
        """
        dealt, fault = self._store.folder / DEALT, "in use"
        for attempt in range(ATTEMPTS):
            try:
                dealt.delete(stem)
            except OSError as e:
                fault = f"cannot be deleted ({e.strerror or e})"
            if not dealt.exists(stem):
                return
            time.sleep(0.01 * attempt)
        raise StoreError(dealt.at(stem), f"{fault}; run the same command again")


def is_of_now(file: str) -> bool:
    """True if a build with the features of today may read a file in a commit's folder of DEALT; texts count as such."""
    kind, features = [*file.split("."), ""][:2]
    return kind != "images" or features == feature_id()


def commit_name(build: Build) -> str:
    """`<build>.<digest of the files' sha256>.json`."""
    digests = {part: record.files[suffix].sha256 for part, (_, record, suffix) in _sources(build).items()}
    return f"{build.build_id}.{_digest(digests)}.json"


def build_of(name: str) -> str:
    return name.removesuffix(".json").rpartition(".")[0]


def _record(build: Build) -> Record:
    """The record that names a build's files."""
    stage = build.stage(IDENTITY_STAGE)
    return stage.record(stage.partitions()[0])


def _sources(build: Build) -> dict[str, tuple[StageDir, Record, str]]:
    """Source of each file of a build's commit: stage, record and suffix."""
    stage, record = build.stage(IDENTITY_STAGE), _record(build)
    sources = {part: (stage, record, part) for part in PARTS}
    semantic = _semantic(build)
    return sources if semantic is None else {**sources, SEMANTIC: (*semantic, "kept.parquet")}


def _semantic(build: Build) -> tuple[StageDir, Record] | None:
    """The stage of SEMANTIC with its only record; None for a build without semantic dedup."""
    if build.spec.semantic_dedup is None or SEMANTIC_STAGE not in build.fingerprints:
        return None
    stage = build.stage(SEMANTIC_STAGE)
    return next(((stage, record) for record in stage.records()), None)


def _tower(build: Build) -> str:
    semantic = _semantic(build)
    return "" if semantic is None else str(semantic[1].info["tower"])


def _digest(of_parts: Mapping[str, str]) -> str:
    return hashlib.sha256(
        " ".join(of_parts[part] for part in (*PARTS, SEMANTIC) if part in of_parts).encode()
    ).hexdigest()[:12]


def write_without(
    paths: Mapping[str, Path],
    images: pa.Table,
    signatures_file: Path,
    details_file: Path,
    placeholders: pa.Table,
    removed: npt.NDArray[np.bool_],
) -> None:
    """Write images.parquet, signatures.bin, details.bin and placeholders.parquet without the `removed` images, one at
    least. The other arguments: what these files hold, or where they lie, now."""
    signatures = np.memmap(signatures_file, np.uint8, "r").reshape(images.num_rows, -1)
    details = Details.read(details_file)
    remaining = np.flatnonzero(~removed)
    write_parquet(paths["images.parquet"], images.take(pa.array(remaining)))
    with paths[SIGNATURES].open("wb") as f:
        for start in range(0, len(remaining), 10_000):
            f.write(signatures[remaining[start : start + 10_000]].tobytes())
    with paths[DETAILS].open("wb") as f:
        for start in range(0, len(remaining), 10_000):
            details.take(remaining[start : start + 10_000]).shifted(start).write(f)
    ids = images["candidate_id"].filter(pa.array(removed))
    write_parquet(
        paths["placeholders.parquet"], placeholders.filter(pc.invert(pc.is_in(placeholders["candidate_id"], ids)))
    )
