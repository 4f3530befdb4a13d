"""Opens the builds that STORE knows. Unreadable ones are listed with what to do, and do not stop the work.

A removal from all builds does the others, fails in the end, and reaches that one when it is run again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from data_specs.shard import ContractError
from pipeline.errors import StoreError
from pipeline.files.folder import Folder, place_of
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.releases import Releases
from pipeline.store.stage import Stages
from pipeline.store.store import Store

_AGAIN = "mount its disk or restore it, and run the same command again"


def left_out(out: str, fault: Exception, todo: str = _AGAIN) -> str:
    """The line about a build that cannot be read. todo: what to do about it."""
    return f"{out}: was left out, since it cannot be read ({fault}); {todo}"


def registered(store: Store, stages: Stages) -> tuple[list[Build], list[str]]:
    """Published builds, oldest snapshot first, each folder once; and a line for each one that cannot be read."""
    return opened(store, store.registered(), stages)


def opened(store: Store, entries: Iterable[Mapping[str, Any]], stages: Stages) -> tuple[list[Build], list[str]]:
    """The builds of these entries of `Store.registered`, each folder once; and a line for each one that cannot be
    read."""
    builds, faults, noted = dict[str, Build](), dict[str, str](), defaultdict[str, list[str]](list)
    for known in entries:
        try:
            builds[place_of(known["out"])] = _opened(store, known, stages)
        except StoreError as e:
            noted[known["out"]].append(known["noted_in"])
            gone = f"if it was deleted on purpose, delete {', '.join(noted[known['out']])}"
            faults[known["out"]] = left_out(known["out"], e, f"{_AGAIN}; {gone}")
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


def unregistered(store: Store, stages: Stages) -> tuple[list[Build], list[str]]:
    """Builds that are not published: begun, held by a gate, with nothing new, or of a publish that was killed (which
    the newest release has); and a line for each one that cannot be read, and for each dataset whose release cannot be
    read. Folders that are not there are left out: a release names its own where it is made again.
    """
    damaged = damaged_releases(store)
    sound = [releases for releases in store.datasets() if releases.dataset not in damaged]
    newest = [release for releases in sound if (release := releases.newest()) is not None]
    outs = dict.fromkeys([*(own.out for release in newest for own in release.builds if own.out), *store.begun()])
    registered_there = {place_of(entry["out"]) for entry in store.registered()}
    builds, faults = list[Build](), list(damaged.values())
    for out in (out for out in outs if place_of(out) not in registered_there):
        try:
            noted = build_json.read(Folder(out)).get("store")
            if isinstance(noted, str) and place_of(noted) == place_of(store.url):
                builds.append(build_json.reopen(out, stages))
        except StoreError as e:
            faults.append(left_out(out, e))
    return builds, faults


def _opened(store: Store, known: Mapping[str, Any], stages: Stages) -> Build:
    build = build_json.reopen(known["out"], stages)
    if place_of(build.store.url) != place_of(store.url):
        raise StoreError(build.out, f"contains a build of another STORE, {build.store.url}")
    return build
