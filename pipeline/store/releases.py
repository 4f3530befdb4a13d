"""STORE/datasets/NAME: the releases of one dataset (`data_specs.release`), as files.

`pipeline.publish.dataset` decides what a release consists of; this module numbers them, writes them, and makes one
visible. Readers need no lock; a writer holds STORE's. On an object store `latest.json` is written besides on the
condition that it is as it was read: a writer that has lost the lock does not overwrite another one's release.

What it reads is STORE's own and leads wherever builds of STORE lie; others follow a release to few places alone
(`data_specs.shard.unsafe_place_reason`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from data_specs.release import LATEST, BuildName, Latest, Pending, ReleaseName, parse_latest
from data_specs.shard import FROM_RELEASE, Manifest, parse_manifest, pretty_manifest
from pipeline.errors import StoreError
from pipeline.files.folder import Folder, noted_in, read_url, root_of


@dataclass(frozen=True)
class Releases:
    """The releases of the dataset in a folder."""

    folder: Folder

    @property
    def dataset(self) -> str:
        return self.folder.url.rpartition("/")[2]

    def latest(self) -> Latest:
        """The newest release now; for a dataset without releases, a Latest without one. Raises ContractError."""
        return self._parsed(self.folder.find(LATEST))

    def numbers(self) -> list[int]:
        """Numbers of the releases whose manifests are kept, oldest first."""
        current = self.latest().current
        named = (int(n[:-5]) for n in self.folder.names() if n.endswith(".json") and n[:-5].isdigit())
        return sorted(number for number in named if current is not None and number <= current.release)

    def read(self, number: int = 0) -> Manifest:
        """The manifest of a release, by default of the newest. Raises StoreError for a missing release."""
        current = self.latest().current
        number = number or (current.release if current else 0)
        numbers = self.numbers()
        if number not in numbers:
            known = ", ".join(map(str, numbers)) or "none"
            raise StoreError(self.folder.url, f"no release {number} of dataset {self.dataset}; releases: {known}")
        name = file_name(number)
        return parse_manifest(self.folder.read(name), self.folder.at(name), own=True)

    def newest(self) -> Manifest | None:
        """The manifest of the newest release, withdrawn or not; None before the first."""
        return self.read() if self.latest().current is not None else None

    def last_generation(self) -> int:
        """The highest number of a generation, whether or not the newest release is of it."""
        return max((self.folder.read_json(file_name(number))["generation"] for number in self.numbers()), default=0)

    def lists(self, build_id: str) -> bool:
        """True if the newest release has a build."""
        current = self.latest().current
        return current is not None and any(own.build_id == build_id for own in current.builds)

    def other_samples(self, generation: int, snapshot: str, among: Collection[str]) -> int:
        """Number of samples that the dataset holds besides a build of this generation and snapshot.

        among: ids of the builds that STORE knows; others were replaced since.
        """
        current = self.latest().current
        if current is None or current.generation != generation:
            return 0
        return sum(own.samples for own in current.builds if own.snapshot != snapshot and own.build_id in among)

    def prepare(self, manifest: Manifest, files: Callable[[Manifest], Mapping[str, bytes]]) -> ReleaseName:
        """Write a release's manifest, and the files beside it, where no reader looks yet.

        Builds below the folder in which STORE lies are named relative to each of these, so that all of it can be moved.
        files: contents by name, of a manifest with the places that they name.
        """
        data = pretty_manifest(_with_places(manifest, self._relative_place))
        for name, content in files(self._as_seen_beside(manifest)).items():
            self.folder.write(f"{manifest.release:06d}/{name}", content)
        self.folder.write(file_name(manifest.release), data)
        return ReleaseName(
            release=manifest.release,
            manifest=file_name(manifest.release),
            sha256=hashlib.sha256(data).hexdigest(),
            generation=manifest.generation,
            builds=tuple(
                BuildName(build_id=own.build_id, snapshot=own.snapshot, samples=sum(own.samples.values()))
                for own in manifest.builds
            ),
            samples=manifest.samples,
        )

    def await_commit(self, release: ReleaseName, commit: str, data: bytes) -> None:
        """Let a prepared release become the newest in the moment in which `data` is written to the file `commit`."""
        pending = Pending(release=release, commit=commit, commit_sha256=hashlib.sha256(data).hexdigest())
        self._change(lambda latest: latest.model_copy(update={"pending": pending}))

    def finish_pending(self) -> None:
        """Names the newest release plainly, so that readers need not look whether a pending one was committed."""
        self._change(lambda latest: latest)

    def make_newest(self, release: ReleaseName) -> None:
        """Let a prepared release be the newest, and end a withdrawal."""
        self._change(lambda _: Latest(dataset=self.dataset, current=release))

    def withdraw(self, why: str) -> None:
        """Withdraw the dataset from readers by name, since its shards are being rewritten; `make_newest` ends it."""
        if self.latest().current is not None:
            self._change(lambda latest: latest.model_copy(update={"withdrawn": why}))

    def relocate(self, moved: Callable[[str], str], files: Callable[[Manifest], Mapping[str, bytes]]) -> list[int]:
        """Correct the places of builds that were moved in all releases that are kept; returns their numbers.

        moved: where a path or URL lies now. files: the files beside a manifest. Readers are told meanwhile; a kill
        leaves what the same call finishes.
        """
        self._relocate_pending(moved)
        before = self.latest()
        releases = {number: self.read(number) for number in self.numbers()}
        now = {number: _with_places(release, moved) for number, release in releases.items()}
        changed = [number for number in releases if now[number] != releases[number]]
        if before.current is None or not (changed or before.withdrawn == _MOVING):
            return []
        if not before.withdrawn:
            self.withdraw(_MOVING)
        names = {number: self.prepare(now[number], files) for number in {*changed, before.current.release}}
        newest = names[before.current.release]
        withdrawn = "" if before.withdrawn == _MOVING else before.withdrawn
        self._change(lambda latest: latest.model_copy(update={"current": newest, "withdrawn": withdrawn}))
        return changed

    def _relocate_pending(self, moved: Callable[[str], str]) -> None:
        """The same for a manifest that a killed publish has waited for: whether it is there decides what is newest."""
        data, version = self.folder.read_version(LATEST) or (None, None)
        latest = parse_latest(data, self.folder.at(LATEST), own=True) if data is not None else None
        if latest is not None and latest.pending is not None:
            pending = latest.pending.model_copy(update={"commit": moved(latest.pending.commit)})
            self._write(latest.model_copy(update={"pending": pending}), version)

    def _relative_place(self, place: str) -> str:
        """A path or URL as a manifest notes it."""
        if not place:
            return ""
        noted = noted_in(root_of(self.folder.url.removesuffix(f"/datasets/{self.dataset}")), place)
        return noted if noted.startswith("/") or "://" in noted else f"{FROM_RELEASE}{noted}"

    def _as_seen_beside(self, manifest: Manifest) -> Manifest:
        """A manifest with the folders of shards as files one folder further down name them."""
        noted = {own.build_id: self._relative_place(own.folder) for own in manifest.builds}
        down = {name: f"../{place}" if place.startswith(FROM_RELEASE) else place for name, place in noted.items()}
        builds = (own.model_copy(update={"folder": down[own.build_id]}) for own in manifest.builds)
        return manifest.model_copy(update={"builds": tuple(builds)})

    def _parsed(self, data: bytes | None) -> Latest:
        if data is None:
            return Latest(dataset=self.dataset)
        return parse_latest(data, self.folder.at(LATEST), own=True).without_pending(read_url)

    def _change(self, change: Callable[[Latest], Latest]) -> None:
        """Rewrite latest.json, from what it says now. Raises StoreError if another process writes it meanwhile."""
        data, version = self.folder.read_version(LATEST) or (None, None)
        self._write(change(self._parsed(data)), version)

    def _write(self, latest: Latest, version: str | None) -> None:
        text = json.dumps(latest.model_dump(mode="json"), indent=1, ensure_ascii=False)
        self.folder.replace(LATEST, text.encode() + b"\n", version)


_MOVING = "its builds were moved; if no command is running, run wenlan-data store move again"


def _with_places(release: Manifest, moved: Callable[[str], str]) -> Manifest:
    """Returns a release with the present places of its builds."""
    builds = (
        own.model_copy(update={"folder": moved(own.folder), "out": moved(own.out)}) if own.out else own
        for own in release.builds
    )
    return release.model_copy(update={"builds": tuple(builds)})


def file_name(number: int) -> str:
    return f"{number:06d}.json"
