"""Builds that people deleted: takes them out of STORE. `wenlan-data store delete BUILD`.

STORE has a record of every folder in which a build was begun, and a takedown that does not reach one of them fails. So
a build is deleted by this command, or reported to it afterwards.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import StoreError
from pipeline.files.folder import Folder, place_of
from pipeline.publish import dataset
from pipeline.store import build_json
from pipeline.store.identities import Identities
from pipeline.store.stage import Stages
from pipeline.store.store import Store


def delete(store: Store, stages: Stages, out: str) -> dict[str, Any]:
    """Delete a build: its identities, its place in the next release, its folder, and its record in STORE.

    In this order, so that a kill leaves what the same call finishes. A folder that is gone already, or holds a build of
    another STORE by now, is left as it is. Returns the record, and "deleted": whether there was a folder.

    Raises StoreError for a folder that STORE does not know, or in which a command is running.
    """
    [known] = _known_below(store, out, exactly=True)
    build_id, shards = known["build_id"], Folder(known["out"]) / "shards"
    with store.lock():
        if known["revision"] is not None and not dataset.lies_elsewhere(store, build_id, shards.url):
            Identities(store).withdraw(build_id)
            dataset.leave_out(store, build_id, "was deleted")
    folder, is_ours = Folder(known["out"]), False
    if build_json.read(folder):
        build = build_json.reopen(known["out"], stages)
        is_ours = place_of(build.store.url) == place_of(store.url)
        if is_ours:
            with build_json.sole_owner(build):
                for name in folder.names():
                    if place_of(folder.at(name)) != place_of(store.url):
                        folder.delete(name)
    store.drop(known["out"])
    return {**known, "deleted": is_ours}


def _known_below(store: Store, place: str, exactly: bool = False) -> list[dict[str, Any]]:
    """What STORE knows of the builds in a folder, or of the one build that it is. Raises StoreError for none."""
    spelled = {Folder(place).url, place_of(place)}
    above = tuple(f"{one}/" for one in spelled)
    found = [
        known
        for known in store.known()
        if {known["out"], place_of(known["out"])} & spelled or (not exactly and known["out"].startswith(above))
    ]
    if not found:
        raise StoreError(Folder(place).url, f"no build that STORE {store.url} knows")
    return found
