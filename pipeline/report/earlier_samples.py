"""Samples of earlier builds that known candidates, or duplicates across builds, are copies of.

The identities that the new build was compared with name the earlier build. The sample itself is read from that build's
shards, if they are accessible.

Limits: a look-up reads one column of the identities of every build of the dataset, and of the shards of the builds
found, piece by piece.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import KEY_LENGTH, ContractError
from pipeline.errors import StoreError
from pipeline.files.digests import DIGEST
from pipeline.rows.records import sha256_hex
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.dataset import Dataset
from pipeline.store.frames import Frames
from pipeline.store.identities import Identities, build_of

_COLUMNS = ["candidate_id", "source", "page_url", "image_url", "sha256", "texts", "image_offset", "image_size"]


@dataclass(frozen=True)
class Holder:
    """The build that holds a sample: its dataset, the sample's key, BUILD ("" if STORE does not know it), and the
    newest release, if that has the build; 0 otherwise. dropped: why the build stored no such sample after all, where a
    stage after dedup dropped it and the build is accessible: it goes on leading there, and is in no shard."""

    build_id: str
    dataset: str
    snapshot: str
    key: str
    out: str
    release: int
    dropped: str = ""


def holders(build: Build, candidate_ids: Collection[str]) -> dict[str, Holder]:
    """Earlier builds that hold these candidates, by candidate_id; without candidates that no build holds."""
    result = dict[str, Holder]()
    wanted = pa.array([bytes.fromhex(name) for name in sorted(candidate_ids)], DIGEST)
    if not candidate_ids:
        return result
    identities, folders = (
        Identities(build.store),
        {known["build_id"]: known["out"] for known in build.store.registered()},
    )
    existing = set(identities.names())
    for name in build.identities:
        name = name if name in existing else identities.of(build_of(name))  # a takedown renames what it changes
        if not name:
            continue
        identity = identities.read(name)
        current = build.store.releases(identity.dataset).latest().current
        listed = current is not None and any(own.build_id == identity.build for own in current.builds)
        release = current.release if current is not None and listed else 0
        for table in identities.batches(identity, "images.parquet", ["candidate_id"]):
            for row in table.filter(pc.is_in(table["candidate_id"], wanted))["candidate_id"].to_pylist():
                candidate_id = row.hex()
                fields = (identity.build, identity.dataset, identity.snapshot, candidate_id[:KEY_LENGTH])
                result[candidate_id] = Holder(*fields, folders.get(identity.build, ""), release)
    return result


def with_drops(build: Build, held: Mapping[str, Holder]) -> dict[str, Holder]:
    """Returns `held` with `dropped` from the decisions of the builds that are accessible."""
    updated, names = dict(held), list(build.stages)
    later = set(names[names.index("dedup") + 1 :])
    for out, build_id in sorted({(holder.out, holder.build_id) for holder in held.values() if holder.out}):
        ids = pa.array(sorted(name for name, holder in held.items() if holder.build_id == build_id), pa.string())
        try:
            holding = build_json.reopen(out, build.stages)
            frames = Frames.of(holding).batches("decisions", filters=pc.field("id").isin(ids) & ~pc.field("kept"))
            rows = [row for batch in frames for row in batch.to_pylist()] if holding.build_id == build_id else []
        except (ContractError, StoreError, OSError):
            continue  # its folder is gone, or is being rewritten
        for row in rows:
            if row["stage"] in later:
                reason = f"{row['stage']}: {row['reason']}" + (f", {row['evidence']}" if row["evidence"] else "")
                updated[row["id"]] = replace(updated[row["id"]], dropped=reason)
    return updated


def samples(held: Mapping[str, Holder]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """(row, stored JPEG) of the held samples whose build is accessible. Rows are as those of kept candidates in the
    decisions, with `sha256`."""
    by_build: dict[tuple[str, str], list[str]] = {}
    for candidate_id, holder in held.items():
        by_build.setdefault((holder.out, holder.build_id), []).append(candidate_id)
    for (out, build_id), candidate_ids in sorted(by_build.items()):
        try:
            dataset = Dataset.open(out) if out else None
        except ContractError:
            dataset = None  # its folder is gone, or is being rewritten
        if dataset is not None and dataset.manifest.build_id == build_id:
            yield from _samples_of(dataset, sorted(candidate_ids))


def _samples_of(dataset: Dataset, candidate_ids: Iterable[str]) -> Iterator[tuple[dict[str, Any], bytes]]:
    wanted = pc.field("candidate_id").isin(pa.array(candidate_ids, pa.string()))
    frames = Frames.of_dataset(dataset)
    for (folder, shard), part in zip(frames.shards, frames.parts("samples"), strict=True):
        try:
            for row in part.table(_COLUMNS, wanted).to_pylist():
                yield _decision_row(row), folder.read_range(shard.tar.path, row["image_offset"], row["image_size"])
        except (OSError, StoreError):
            continue  # a shard that is gone: `verify` says so, a report only shows less


def _decision_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a shard's table as the decision that kept it."""
    same = {name: row[name] for name in ("source", "page_url", "sha256")}
    fate: dict[str, Any] = {"stage": "shard", "kept": True, "reason": "", "reasons": [], "evidence": ""}
    ids = {"subject": "candidate", "id": row["candidate_id"], "fetch_id": sha256_hex(row["image_url"])}
    return {**ids, **same, **fate, "url": row["image_url"], "text": row["texts"][0]["text"], "duplicate_of": ""}
