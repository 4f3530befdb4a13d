"""STORE: what outlives a build: caches, identities, takedowns, and where builds lie.

Limits: STORE's lock is a file lock, good for one machine or a shared disk that honours flock; on an object store it is
one of `data_specs.storage.store_lock`, whose limits it has.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_specs.storage.store_lock import LockedError, locked
from pipeline.errors import StoreError
from pipeline.files.folder import Folder, place_of
from pipeline.store.cache import Cache
from pipeline.store.releases import Releases, datasets
from pipeline.store.takedowns import Takedowns, merged

if TYPE_CHECKING:
    from pipeline.store.build import Build


WAIT_S = 60.0
"""Seconds to wait for another publisher."""

PAIR_FEATURES = "pair-"
"""With it begin the names of the caches of features of images and texts (`pipeline.curate._towers`)."""

STORE_VERSION = 2
"""2: identities are columns under a record (`pipeline.store.identities`); those of 1 are refused there."""


@dataclass(frozen=True)
class Store:
    """STORE: what outlives a build. Nothing but `publish` writes identities; all builds may add to the caches."""

    url: str

    @property
    def folder(self) -> Folder:
        return Folder(self.url)

    def fetched(self) -> Cache:
        return Cache(self.folder / "fetched", "fetch_id")

    def features(self, feature_id: str) -> Cache:
        return Cache(self.folder / f"features/{feature_id}", "sha256")

    def regions(self, detector_id: str) -> Cache:
        return Cache(self.folder / f"regions/{detector_id}", "sha256")

    def releases(self, dataset: str) -> Releases:
        """The releases of a dataset, by its name."""
        return Releases(self.folder / f"datasets/{dataset}")

    def datasets(self) -> list[Releases]:
        """The releases of every dataset that has one."""
        return datasets(self.folder / "datasets")

    def takedowns(self) -> Takedowns:
        """All takedowns: content that no build may hold."""
        folder = self.folder / "forgotten"
        names = [name for name in folder.names() if name.endswith(".json") and not name.startswith(".")]
        return merged([folder.read_json(name) for name in names])

    def forgotten_revision(self) -> str:
        """Digest of the takedowns that a build reads."""
        return self.takedowns().revision

    def begin(self, build: Build) -> None:
        """Note where a build lies, so that `forget` reaches it before it is published, and if it never is."""
        place = hashlib.sha256(place_of(build.out).encode()).hexdigest()[:16]
        self.folder.write_json(f"begun/{place}.json", {"out": build.out})

    def begun(self) -> list[str]:
        """Folders in which a build was begun; many may be gone by now."""
        folder = self.folder / "begun"
        return [folder.read_json(name)["out"] for name in folder.names() if name.endswith(".json") and name[0] != "."]

    def register(self, build: Build, revision: int) -> None:
        """Record the location of a published build, for `forget` and `gc`. The caller holds the lock.

        A build that was published in another folder before is known in both: the other one may still be there.
        """
        name, where = f"{build.build_id}.json", {"out": build.out, "revision": revision}
        entry = {"build_id": build.build_id, "name": build.spec.name, "snapshot": build.snapshot, **where}
        before = (self.folder / "builds").find_json(name, entry)
        if place_of(before["out"]) != place_of(build.out):
            self.folder.write_json(f"builds/{_apart(before)}", before)
        self.folder.write_json(f"builds/{name}", entry)
        self._delete(build.build_id, build.out, but=name)

    def unregister(self, build_id: str, out: str) -> None:
        """Take back what `register` noted of a build in one folder. The caller holds the lock."""
        self._delete(build_id, out)

    def _delete(self, build_id: str, out: str, but: str = "") -> None:
        """Delete the entries of a build in one folder, but for that of a name."""
        place = place_of(out)
        for name, entry in list(self._entries(f"{build_id}.")):  # over S3 those of others would be a request each
            if name != but and entry["build_id"] == build_id and place_of(entry["out"]) == place:
                self.folder.delete(f"builds/{name}")

    def registered(self) -> list[dict[str, Any]]:
        """Published builds, oldest snapshot first: build_id, name, snapshot, out, revision; noted_in: its file.

        One entry for each folder that a build was published in, however it was spelled (`place_of`); the last is that
        of its newest publish.
        """
        noted = [{**entry, "noted_in": self.folder.at(f"builds/{name}")} for name, entry in self._entries()]
        often = Counter(entry["build_id"] for entry in noted)
        places = dict[tuple[str, str], dict[str, Any]]()
        for entry in noted:  # the disk is asked only where there may be another spelling
            key = entry["build_id"], place_of(entry["out"]) if often[entry["build_id"]] > 1 else ""
            places.pop(key, None)  # of two entries of a folder the later place counts
            places[key] = entry
        return sorted(places.values(), key=lambda entry: (entry["snapshot"], entry["build_id"]))

    def _entries(self, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """Names and contents of what `register` noted; of one build the newest comes last, as its name does.

        prefix: with which the names begin.
        """
        folder = self.folder / "builds"
        for name in folder.names():
            if name.endswith(".json") and name[0] != "." and name.startswith(prefix):
                yield name, folder.read_json(name)

    def caches(self) -> Iterator[tuple[str, Cache]]:
        """Every cache there is, with its place in STORE."""
        yield "fetched", self.fetched()
        for kind, one in (("features", self.features), ("regions", self.regions)):
            for name in (self.folder / kind).names():
                if not name.startswith("."):
                    yield f"{kind}/{name}", one(name)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold STORE's lock. Raises StoreError after WAIT_S seconds, naming the lock file."""
        self.check()
        path, later = self.folder.at("_lock"), f"for more than {WAIT_S:g} s; try again when it is done"
        if not self.folder.is_local:
            with contextlib.ExitStack() as held:
                try:
                    held.enter_context(locked(path, WAIT_S))
                except LockedError as e:
                    raise StoreError(path, f"{e.strerror} {later}") from None
                yield
            return
        with self.folder.lock_file() as f:
            for _ in range(round(WAIT_S * 10)):
                try:
                    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.1)
            else:
                raise StoreError(path, f"held by another publish {later}")
            yield

    def must_exist(self) -> None:
        """Raise StoreError for a missing store: upkeep must not create one at a mistyped address."""
        if not self.version():
            raise StoreError(self.url, "not a STORE (no store.json); check the address: a build creates its STORE")

    def check(self) -> None:
        """Create the store or raise its version; refuse one of a newer version."""
        if self.version() != STORE_VERSION:
            self.folder.write_json("store.json", {"version": STORE_VERSION})

    def version(self) -> int:
        """The version of what is there, 0 if nothing is. Raises StoreError for a newer one."""
        record = self.folder.find_json("store.json", {"version": 0})
        try:
            version = int(record["version"])
        except (KeyError, TypeError, ValueError):
            raise StoreError(self.folder.at("store.json"), "not the record of a STORE") from None
        if version > STORE_VERSION:
            raise StoreError(self.url, f"has version {version}, but this wenlan supports {STORE_VERSION}; upgrade")
        return version


def _apart(entry: dict[str, Any]) -> str:
    """The file of a folder that a build was published in before it was published in another one."""
    return f"{entry['build_id']}.{hashlib.sha256(entry['out'].encode()).hexdigest()[:8]}.json"
