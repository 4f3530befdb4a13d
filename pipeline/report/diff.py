"""Difference between two datasets: samples added, removed and changed, reasons to drop, and the options of the specs.

A dataset is a build or a release. Samples are matched by key, which a candidate keeps across builds. A sample has
changed if its image, its texts or its split differ. Both datasets must be published. Reasons and specs are read from
the builds' folders; where those are not given, these parts are empty.

Limits: memory is 32 bytes per sample of both datasets. Each list names at most NAMED keys; its count covers all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_specs.shard import Manifest, canonical_json
from pipeline.store.dataset import Dataset
from pipeline.store.frames import Frames

NAMED = 1_000
"""Keys that a list names."""
ASPECTS = ("image", "texts", "split")
_COLUMNS = ["key", "sha256", "texts", "split"]

Uint64s = npt.NDArray[np.uint64]


def diff(a: str, b: str) -> dict[str, Any]:
    """The difference from dataset A to dataset B. Raises ContractError if one of them is no dataset."""
    old, new = Dataset.open(a), Dataset.open(b)
    before, after = _read_samples(old), _read_samples(new)
    added, removed = _without(after.keys, before.keys), _without(before.keys, after.keys)
    changed = _changed(before, after)
    return {
        "a": _identity(old.manifest),
        "b": _identity(new.manifest),
        "same": bool(
            old.manifest.content_digest == new.manifest.content_digest and not any(map(len, changed.values()))
        ),
        "added": _named(added),
        "removed": _named(removed),
        "changed": {aspect: _named(keys) for aspect, keys in changed.items()},
        "shards": _shards(old.manifest, new.manifest),
        "reasons": moved(_reasons(old), _reasons(new)),
        "spec": changes(_spec(old), _spec(new)),
    }


@dataclass(frozen=True)
class _Samples:
    """Keys in ascending order [N], and a 64-bit hash of each of ASPECTS [N, 3]."""

    keys: npt.NDArray[np.void]
    aspects: Uint64s


def _identity(manifest: Manifest) -> dict[str, Any]:
    """What identifies a dataset."""
    return {
        "build_id": manifest.build_id,
        "revision": manifest.revision,
        "content_digest": manifest.content_digest,
        "samples": sum(manifest.samples.values()),
    }


def _read_samples(dataset: Dataset) -> _Samples:
    """All samples of a dataset, from the Parquet of every shard."""
    keys, aspects = [np.zeros(0, "V16")], [np.zeros((0, len(ASPECTS)), np.uint64)]
    for batch in Frames.of_dataset(dataset).batches("samples", _COLUMNS, rows=20_000):
        # KEY is 32 hexadecimal digits: 16 bytes, compared as one opaque value
        keys.append(np.frombuffer(bytes.fromhex("".join(batch["key"].to_pylist())), "V16"))
        aspects.append(_aspects(batch))
    all_keys = np.concatenate(keys)
    order = np.argsort(all_keys)
    return _Samples(all_keys[order], np.concatenate(aspects)[order])


def _reasons(dataset: Dataset) -> dict[str, int]:
    """Number of candidates by reason to drop; "" for kept ones. Empty without a report."""
    if dataset.build is None or not dataset.build.exists("report/report.json"):
        return {}
    report = dataset.build.read_json("report/report.json")
    return reasons_of(report)


def reasons_of(report: dict[str, Any]) -> dict[str, int]:
    """Number of candidates by reason to drop, in a report.json; "" for kept ones, "known" for those held already."""
    totals = report["totals"]
    known = {"known": totals["known"]} if totals.get("known") else {}  # an older wenlan knew no such fate
    return {"": totals["kept"], **known, **{r["name"]: r["count"] for r in report["reasons"]}}


def _spec(dataset: Dataset) -> Any:
    """The spec of a dataset's build as JSON; empty without the build's folder."""
    build = dataset.build
    return build.read_json("build.json")["spec"] if build and build.exists("build.json") else {}


def _aspects(batch: pa.RecordBatch) -> Uint64s:
    """A 64-bit hash (16 hexadecimal digits) of each of ASPECTS, for each row [N, 3]."""
    image = [sha256[:16] for sha256 in batch["sha256"].to_pylist()]
    texts = [_hash([[t["kind"], t["text"]] for t in own]) for own in batch["texts"].to_pylist()]
    split = [_hash(split) for split in batch["split"].to_pylist()]
    rows = [[int(value, 16) for value in row] for row in zip(image, texts, split, strict=True)]
    return np.array(rows, np.uint64).reshape(-1, len(ASPECTS))


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()[:16]


def _without(keys: npt.NDArray[np.void], others: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    return keys[~np.isin(keys, others)]


def _changed(a: _Samples, b: _Samples) -> dict[str, npt.NDArray[np.void]]:
    """Keys of the samples in both whose aspect differs, by aspect."""
    keys, rows_a, rows_b = np.intersect1d(a.keys, b.keys, assume_unique=True, return_indices=True)
    differs = a.aspects[rows_a] != b.aspects[rows_b]  # [keys, 3]
    return {aspect: keys[differs[:, i]] for i, aspect in enumerate(ASPECTS)}


def _named(keys: npt.NDArray[np.void]) -> dict[str, Any]:
    return {"count": len(keys), "keys": [bytes(key).hex() for key in keys[:NAMED]]}


def _shards(a: Manifest, b: Manifest) -> dict[str, list[str]]:
    """Paths of tars that were added, removed or changed."""
    old, new = ({shard.name: shard.tar.sha256 for shard in m.shards} for m in (a, b))
    return {
        "added": sorted(set(new) - set(old)),
        "removed": sorted(set(old) - set(new)),
        "changed": sorted(path for path in set(old) & set(new) if old[path] != new[path]),
    }


def moved(a: dict[str, int], b: dict[str, int]) -> list[dict[str, Any]]:
    """Counts and shares of each reason among all candidates in A and B, the largest change of share first.

    a, b: candidates by reason, "" for kept ones, which are listed as "kept". Empty if either has none.
    """
    total_a, total_b = sum(a.values()), sum(b.values())
    if not total_a or not total_b:
        return []
    rows = []
    for name in a.keys() | b.keys():
        before, now = a.get(name, 0), b.get(name, 0)
        share_a, share_b = before / total_a, now / total_b
        rows.append(
            {"name": name or "kept", "before": before, "now": now, "share_before": share_a, "share_now": share_b}
        )
    return sorted(rows, key=lambda row: (-abs(row["share_now"] - row["share_before"]), row["name"]))


def changes(a: Any, b: Any, path: str = "") -> list[dict[str, Any]]:
    """Where two JSON values differ: path, before, now. Ignores `base` of a spec, the folder that it was in."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            change
            for name in sorted(a.keys() | b.keys())
            if path or name != "base"
            for change in changes(a.get(name), b.get(name), f"{path}.{name}" if path else name)
        ]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [c for i, (x, y) in enumerate(zip(a, b, strict=True)) for c in changes(x, y, f"{path}[{i}]")]
    return [] if a == b else [{"path": path, "before": a, "now": b}]
