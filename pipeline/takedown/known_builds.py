"""Opens the builds that STORE knows. Unreadable ones are listed with what to do, and do not stop the work.

A removal from all builds does the others, fails in the end, and reaches that one when it is run again.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from data_specs.shard import ContractError
from pipeline.errors import StoreError
from pipeline.files.folder import Folder, place_of
from pipeline.store import build_json
from pipeline.store.build import Build, Stages
from pipeline.store.releases import Releases
from pipeline.store.store import Store

_AGAIN = "mount its disk or restore it, and run the same command again"


def left_out(out: str, fault: Exception, todo: str = _AGAIN) -> str:
    """The line about a build that cannot be read. todo: what to do about it."""
    return f"{out}: was left out, since it cannot be read ({fault}); {todo}"


def opened(
    store: Store, stages: Stages, entries: Iterable[Mapping[str, Any]] | None = None
) -> tuple[list[Build], list[str]]:
    """The builds that STORE knows, published or not, oldest snapshot first, each folder once; and a line for each one
    that cannot be read.

    entries: some of `Store.known_builds`.
    """
    builds, faults = dict[str, Build](), dict[str, str]()
    for known in store.known_builds() if entries is None else entries:
        out = known["out"]
        try:
            build = build_json.reopen(out, stages)
        except StoreError as e:
            gone = not Folder(out).names()
            faults[out] = f"{out}: was left out: {store.unreachable(out)}" if gone else left_out(out, e)
            continue
        if place_of(build.store.url) == place_of(store.url):
            builds[place_of(out)] = build
        else:
            delete = f"wenlan-data store delete {shlex.quote(out)} --store {shlex.quote(store.url)}"
            todo = f"run the same command there; to take it out of this STORE, run {delete}"
            faults[out] = f"{out}: was left out: contains a build of another STORE, {build.store.url}; {todo}"
    return list(builds.values()), list(faults.values())


def damaged_releases(store: Store) -> dict[str, str]:
    """A line for each dataset whose newest release cannot be read, by its name: what changes no reader may see.

    Builds of such a dataset are left out of what is done: readers could not be kept from their shards meanwhile.
    """
    faults = dict[str, str]()
    for releases in store.datasets():
        try:
            releases.newest()
        except (StoreError, ContractError) as e:
            faults[releases.dataset] = release_left_out(releases, e)
    return faults


def release_left_out(releases: Releases, fault: Exception) -> str:
    """The line about a dataset whose releases cannot be read."""
    todo = "restore that file, and run the same command again"
    return f"dataset {releases.dataset}: was left out, since its release cannot be read ({fault}); {todo}"


def names_outside(store: Store, folder: Folder) -> list[str]:
    """Names of what lies in a folder, without that in which STORE lies."""
    place = f"{place_of(store.url)}/"
    return [name for name in folder.names() if not place.startswith(f"{place_of(folder.at(name))}/")]
