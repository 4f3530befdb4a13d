"""Builds that people move or delete. `wenlan-data store move OLD NEW` and `wenlan-data store delete BUILD`.

STORE has a record of every folder in which a build was begun: a takedown that does not reach one of them fails, and so
does a publish whose release would list one that is not there. These commands correct the records, the releases, and
what else STORE and builds note about where builds lie.

Limits: checkpoints and indexes of training note where shards were when they were made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from data_specs.shard import Manifest
from pipeline.errors import StoreError
from pipeline.files.folder import Folder, place_of
from pipeline.publish import card, dataset
from pipeline.store import build_json
from pipeline.store.build import Stages
from pipeline.store.identities import Identities
from pipeline.store.store import Store
from pipeline.takedown.known_builds import names_outside


def delete(store: Store, stages: Stages, out: str) -> dict[str, Any]:
    """Delete a build: its identities, its place in the next release, its folder, and its record in STORE.

    In this order, so that a kill leaves what the same call finishes. A folder that is gone already, or holds a build of
    another STORE by now, is left as it is. Returns the record, and "deleted": whether there was a folder.

    Raises StoreError, and changes nothing, for a folder that STORE does not know, or that holds files without a
    readable build.json; and for one in which a command is running.
    """
    [known] = _known_below(store, out, exactly=True)
    build_id, folder, is_ours = known["build_id"], Folder(known["out"]), False
    if not build_json.read(folder) and names_outside(store, folder):
        todo = f"restore {build_json.NAME}, or delete the folder, and run the same command again"
        raise StoreError(folder.url, f"holds files that are not a readable build; nothing was changed; {todo}")
    with store.lock():
        if known["revision"] is not None and not dataset.lies_elsewhere(store, build_id, (folder / "shards").url):
            Identities(store).withdraw(build_id)
            dataset.leave_out(store, build_id, "was deleted")
    if build_json.read(folder):
        build = build_json.reopen(known["out"], stages)
        is_ours = place_of(build.store.url) == place_of(store.url)
        if is_ours:
            with build_json.sole_owner(build):
                for name in sorted(names_outside(store, folder), key=build_json.NAME.__eq__):  # that one last
                    folder.delete(name)
    store.drop(known["out"])
    return {**known, "deleted": is_ours}


def move(store: Store, old: str, new: str) -> dict[str, Any]:
    """Correct what is noted about builds after their folder, or a folder above them, was moved from `old` to `new`.

    The records of STORE come last, so that the same call finishes what was killed. Returns {"builds": their folders
    now, "releases": numbers of the releases that were corrected, by dataset}.

    Raises StoreError, and changes nothing, if STORE knows no build below `old`, one of them is not below `new`, or
    still is where it was.
    """
    entries, moved = _known_below(store, old), _moves(old, new)
    for entry in entries:
        _check_moved(entry, moved(entry["out"]))

    def files_beside(release: Manifest) -> Mapping[str, bytes]:  # they name the places of its shards
        return card.release_files(dataset.spec_of(release.builds[-1].out), release)

    with store.lock():
        for known in store.known_builds():
            folder = Folder(moved(known["out"]))
            with contextlib.suppress(StoreError):  # it cannot be read, which other commands say
                if build_json.read(folder):
                    build_json.relocate(folder, moved, store.url if known in entries else "")
        releases = {own.dataset: own.relocate(moved, files_beside) for own in store.datasets()}
        store.relocate_crawls(moved)
        store.fetched().change(lambda rows: _relocated(store, rows, moved))
        for entry in entries:
            store.relocate(entry, moved(entry["out"]))
    return {"builds": [moved(entry["out"]) for entry in entries], "releases": releases}


def _moves(old: str, new: str) -> Callable[[str], str]:
    """Returns a function: the place of a path or URL after `old` was moved to `new`, the same if it is not below it."""
    target, above = Folder(new).url, tuple(dict.fromkeys((Folder(old).url, place_of(old))))

    def new_place(place: str) -> str:
        if not place or f"{place}/".startswith(f"{target}/"):  # of a call that was killed
            return place
        for spelled in (place, place_of(place)):
            for one in above:
                if f"{spelled}/".startswith(f"{one}/"):
                    return f"{target}{spelled[len(one) :]}"
        return place

    return new_place


def _check_moved(known: Mapping[str, Any], now: str) -> None:
    """Raise StoreError if a build is not in its new folder alone."""
    out, build_id = known["out"], known["build_id"]
    if build_json.read(Folder(now)).get("build_id") != build_id:
        raise StoreError(now, f"does not contain {build_id}, which lay in {out}; nothing was changed")
    if place_of(out) != place_of(now) and build_json.read(Folder(out)).get("build_id") == build_id:
        raise StoreError(out, f"still contains {build_id}; delete this copy, or keep it; nothing was changed")


def _relocated(store: Store, rows: pa.Table, moved: Callable[[str], str]) -> pa.Table | None:
    """Rows of STORE/fetched with the places of their tars now; None if none of them has moved."""
    tars = rows["tar"].combine_chunks().dictionary_encode()
    now = [tar and store.relative_place(moved(store.resolve_place(tar))) for tar in tars.dictionary.to_pylist()]
    if now == tars.dictionary.to_pylist():
        return None
    column = pa.array(now, rows.schema.field("tar").type).take(tars.indices)
    return rows.set_column(rows.column_names.index("tar"), rows.schema.field("tar"), column)


def _known_below(store: Store, place: str, exactly: bool = False) -> list[dict[str, Any]]:
    """Records of STORE about the builds in a folder, or about the one build that it is. Raises StoreError for none."""
    spelled = {Folder(place).url, place_of(place)}
    above = tuple(f"{one}/" for one in spelled)
    found = [
        known
        for known in store.known_builds()
        if {known["out"], place_of(known["out"])} & spelled or (not exactly and known["out"].startswith(above))
    ]
    if not found:
        hint = "builds below the folder in which it lies may be moved with it"
        raise StoreError(Folder(place).url, f"no build that STORE {store.url} knows; {hint}")
    return found
