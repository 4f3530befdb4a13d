"""STORE: what outlives a build: caches, identities, takedowns, and where builds lie.

Limits: STORE's lock is a file lock, good for one machine or a shared disk that honours flock; on an object store it is
one of `data_specs.storage.store_lock`, whose limits it has.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_specs.release import LATEST
from pipeline.errors import StoreError
from pipeline.files.folder import Folder, noted_in, place_in, place_of, root_of
from pipeline.store.cache import Cache
from pipeline.store.releases import Releases
from pipeline.store.takedowns import Takedowns, merged

WAIT_S = 60.0
"""Seconds to wait for another publisher."""

PAIR_FEATURES = "pair-"
"""With it begin the names of the caches of features of images and texts (`pipeline.curate._towers`)."""

STORE_VERSION = 3
"""3: one record for each folder in which a build was begun, published or not."""


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
        return Releases(self.folder / f"datasets/{dataset}")

    def datasets(self) -> list[Releases]:
        found = map(self.releases, (self.folder / "datasets").names())
        return [releases for releases in found if releases.folder.exists(LATEST)]

    def takedowns(self) -> Takedowns:
        """All takedowns: content that no build may hold."""
        folder = self.folder / "forgotten"
        names = [name for name in folder.names() if name.endswith(".json") and not name.startswith(".")]
        return merged([folder.read_json(name) for name in names])

    def forgotten_revision(self) -> str:
        """Digest of the takedowns that a build reads."""
        return self.takedowns().revision

    @functools.cached_property
    def root(self) -> str:
        """The folder in which STORE lies. Places below it are noted relative to it, so that both can be moved."""
        return root_of(self.url)

    def relative_place(self, place: str) -> str:
        """Returns a path or URL as STORE notes it: relative to `root` if it lies below."""
        return noted_in(self.root, place)

    def resolve_place(self, noted: str) -> str:
        """Returns the path or URL that STORE noted."""
        return place_in(self.root, noted)

    def begin(self, out: str, noted: Mapping[str, str]) -> None:
        """Note a build that begins, before it writes anything that a takedown must reach. A published one stays so.

        noted: its build_id, name and snapshot.
        """
        before = self._find(out)
        if before is None or before["build_id"] != noted["build_id"]:
            self._note(out, noted, None, "")

    def register(self, out: str, noted: Mapping[str, str], revision: int) -> None:
        """Note that a build is published, for `forget` and `gc`. The caller holds the lock."""
        before = self._find(out)
        if before is not None and (before["build_id"], before["revision"]) == (noted["build_id"], revision):
            same = [entry for entry in self.known_builds() if entry["build_id"] == noted["build_id"]]
            if same[-1]["published_at"] == before["published_at"]:  # published again, and nowhere else since
                return
        self._note(out, noted, revision, datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"))

    def unregister(self, build_id: str, out: str) -> None:
        """Take back that a build is published in a folder, which stays noted. The caller holds the lock."""
        before = self._find(out)
        if before is not None and before["build_id"] == build_id:
            self._write({**before, "revision": None, "published_at": ""})

    def relocate(self, known: Mapping[str, Any], out: str) -> None:
        """Note that a build lies in another folder now. known: one of `known_builds`. The caller holds the lock."""
        now = {name: value for name, value in known.items() if name != "noted_in"} | {"out": self.relative_place(out)}
        self._write(now)
        if (before := known["noted_in"].rpartition("/")[2]) != self._record_of(out).rpartition("/")[2]:
            self.folder.delete(f"builds/{before}")

    def relocate_crawls(self, moved: Callable[[str], str]) -> None:
        """Correct where the last crawl of each site lies. moved: where a path or URL lies now."""
        crawled = self.folder / "crawled"
        for name in (name for name in crawled.names() if name.endswith(".json") and not name.startswith(".")):
            known = crawled.read_json(name)
            places = {what: self.relative_place(moved(self.resolve_place(known[what]))) for what in ("warc", "table")}
            if known | places != known:
                crawled.write_json(name, known | places)

    def drop(self, out: str) -> None:
        """Delete the record of a folder, whose build is no longer there."""
        self.folder.delete(self._record_of(out))

    def unreachable(self, out: str) -> str:
        """The advice on a build that STORE knows, and that is not in its folder."""
        words, at = shlex.quote(out), f"--store {shlex.quote(self.url)}"
        return (
            "the folder is gone, or its disk is not mounted; mount its disk or restore it, and run the same command "
            f"again; if it was moved, run wenlan-data store move {words} NEW {at}; if it was deleted on purpose, "
            f"wenlan-data store delete {words} {at}"
        )

    def known_builds(self) -> list[dict[str, Any]]:
        """All builds that were ever begun and not deleted since, oldest snapshot first, one for each folder.

        build_id, name and snapshot: of the build that began there last. out: its folder. revision: None where it is not
        published. published_at: when it was, "" for one that is not. noted_in: the record's file. Of a build that was
        published in several folders the newest publish comes last.
        """
        folder = self.folder / "builds"
        names = [name for name in folder.names() if name.endswith(".json") and name[0] != "."]
        records = [{**folder.read_json(name), "noted_in": folder.at(name)} for name in names]
        entries = [{**record, "out": self.resolve_place(record["out"])} for record in records]
        return sorted(entries, key=lambda entry: (entry["snapshot"], entry["build_id"], entry["published_at"]))

    def registered(self) -> list[dict[str, Any]]:
        """Published builds, as `known_builds` describes them."""
        return [entry for entry in self.known_builds() if entry["revision"] is not None]

    def _find(self, out: str) -> dict[str, Any] | None:
        record: dict[str, Any] | None = self.folder.find_json(self._record_of(out), None)
        return record

    def _note(self, out: str, noted: Mapping[str, str], revision: int | None, published_at: str) -> None:
        self._write({**noted, "out": self.relative_place(out), "revision": revision, "published_at": published_at})

    def _write(self, record: dict[str, Any]) -> None:
        self.folder.write_json(self._record_of(self.resolve_place(record["out"])), record)

    def _record_of(self, out: str) -> str:
        """The file of a folder's record: the same for each path that leads there, also after a move with STORE."""
        return f"builds/{hashlib.sha256(self.relative_place(place_of(out)).encode()).hexdigest()[:16]}.json"

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
        with self.folder.locked(WAIT_S, lambda held: StoreError(path, f"{held} {later}")):
            yield

    def must_exist(self) -> None:
        """Raise StoreError for a missing store: upkeep must not create one at a mistyped address."""
        if not self.version():
            raise StoreError(self.url, "not a STORE (no store.json); check the address: a build creates its STORE")

    def check(self) -> None:
        """Create the store; refuse one of another version."""
        if not self.version():
            self.folder.write_json("store.json", {"version": STORE_VERSION})

    def version(self) -> int:
        """STORE_VERSION, or 0 if nothing is there. Raises StoreError for another version."""
        record = self.folder.find_json("store.json", {"version": 0})
        try:
            version = int(record["version"])
        except (KeyError, TypeError, ValueError):
            raise StoreError(self.folder.at("store.json"), "not the record of a STORE") from None
        if version > STORE_VERSION:
            raise StoreError(self.url, f"has version {version}, but this wenlan supports {STORE_VERSION}; upgrade")
        if 0 < version < STORE_VERSION:
            what = f"has version {version}, which did not note every build"
            raise StoreError(self.url, f"{what}; build into a new STORE")
        return version
