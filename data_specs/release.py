"""Releases: the versions of a named dataset that grows build by build.

    STORE/datasets/NAME/000001.json     a Manifest over the shards of all builds of the dataset, never changed
    STORE/datasets/NAME/000001/         its card, croissant.json and the shard lists of wids
    STORE/datasets/NAME/latest.json     Latest: which release is the newest

A release copies nothing: its shards stay in the folders of their builds. Whatever reads a manifest reads a release:
`open_manifest` takes a manifest, a latest.json, or a folder with either.

A build and the release with it become visible in one step, although they are two files in two places. `latest.json`
names the coming release as pending, with the digest of the build's manifest. Writing that manifest makes both visible:
a pending release counts if, and only if, the manifest that it waits for is there.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

from data_specs.names import LATEST as LATEST
from data_specs.shard import (
    MANIFEST,
    SCHEMA_VERSION,
    ContractError,
    Manifest,
    Split,
    parse_manifest,
    unsafe_place_reason,
)

SHARDS = "shards"
"""Folder of a build in which its dataset lies, with the manifest."""

Read = Callable[[str], bytes]
"""Reads the file at a path or URL. Raises FileNotFoundError or another OSError."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # additive fields keep the version


class BuildName(_Model):
    """A build of a release as `latest.json` names it. samples: those of all splits."""

    build_id: str
    snapshot: str
    samples: int


class ReleaseName(_Model):
    """A release as `latest.json` names it.

    manifest: its file beside latest.json; sha256: of that file. builds: oldest first.
    """

    release: int
    manifest: str = Field(pattern=r"^\d+\.json$")  # no path: it leads nowhere else
    sha256: str
    generation: int
    builds: tuple[BuildName, ...]
    samples: dict[Split, int]


class Pending(_Model):
    """A release that becomes the newest with the manifest of its last build.

    commit: path or URL of that manifest. commit_sha256: of its bytes.
    """

    release: ReleaseName
    commit: str
    commit_sha256: str


class Latest(_Model):
    """`latest.json`.

    current: the newest release, None before the first. withdrawn: why it must not be read at the moment (a takedown is
    at work in its shards), "" otherwise.
    """

    schema_version: int = SCHEMA_VERSION
    dataset: str
    current: ReleaseName | None = None
    pending: Pending | None = None
    withdrawn: str = ""

    def without_pending(self, read: Read) -> Latest:
        """This record without `pending`, which has become the current release or never will."""
        if self.pending is None:
            return self
        current = self.pending.release if self._is_committed(self.pending, read) else self.current
        return self.model_copy(update={"current": current, "pending": None})

    @staticmethod
    def _is_committed(pending: Pending, read: Read) -> bool:
        try:
            return hashlib.sha256(read(pending.commit)).hexdigest() == pending.commit_sha256
        except FileNotFoundError:
            return False


def parse_latest(data: bytes | str, name: str, own: bool = False) -> Latest:
    """Read a latest.json; `name` is its path or URL, for error messages. Raises ContractError.

    own: it is trusted, and may lead anywhere.
    """
    try:
        raw = json.loads(data)
        version = raw["schema_version"]
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ContractError(
                f"{name}: schema version {version} is newer than this wenlan reads ({SCHEMA_VERSION}); upgrade wenlan"
            )
        latest = Latest.model_validate(raw)
        if latest.pending is not None and not own and (why := unsafe_place_reason(latest.pending.commit, name)):
            raise ContractError(f"{name}: {why}")
        return latest
    except ContractError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as e:
        raise ContractError(f"{name}: not a valid latest.json ({' '.join(str(e).split())[:200]})") from None


def open_manifest(place: str, read: Read) -> tuple[str, Manifest]:
    """The manifest at `place`, and its own path or URL.

    place: a manifest, a latest.json, or a folder that holds one of them, itself or in `shards/`, as a build does.
    Raises ContractError for anything else, for a dataset without a release, and for one that a takedown has withdrawn;
    whatever else `read` raises.
    """
    names = (MANIFEST, LATEST, f"{SHARDS}/{MANIFEST}")
    for path in [place] if place.endswith(".json") else [posixpath.join(place, name) for name in names]:
        try:
            data = read(path)
        except FileNotFoundError:
            continue
        if posixpath.basename(path) != LATEST:
            return path, parse_manifest(data, path)
        return _open_current(path, parse_latest(data, path), read)
    raise FileNotFoundError(place)


def _open_current(path: str, latest: Latest, read: Read) -> tuple[str, Manifest]:
    """The manifest of the release that a latest.json names, and its path."""
    if latest.withdrawn:
        raise ContractError(f"{path}: dataset {latest.dataset} is withdrawn: {latest.withdrawn}")
    current = latest.without_pending(read).current
    if current is None:
        raise ContractError(f"{path}: dataset {latest.dataset} is not released yet")
    manifest = posixpath.join(posixpath.dirname(path), current.manifest)
    data = read(manifest)
    if hashlib.sha256(data).hexdigest() != current.sha256:
        raise ContractError(f"{manifest}: its sha256 differs from the one in {path}")
    return manifest, parse_manifest(data, manifest)
