"""Two datasets beside each other: samples added, removed and changed, reasons that moved, what the specs say otherwise.

Samples are matched by key, which a candidate keeps across builds. One has changed if its image, its texts or its split
are not what they were. Both must be published; their builds' folders tell of reasons and specs, and where only the
shard folder is at hand those parts are empty.

Limits: memory is 32 bytes a sample of both. At most NAMED keys of each list are given; the counts are of all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_specs.shard import ContractError, Manifest, canonical_json, parse_manifest
from pipeline.files.folder import Folder

NAMED = 1_000
ASPECTS = ("image", "texts", "split")
_COLUMNS = ["key", "sha256", "texts", "split"]

Uint64s = npt.NDArray[np.uint64]


def diff(a: str, b: str) -> dict[str, Any]:
    """What B has that A has not, and so on. Raises ContractError where one is no dataset."""
    old, new = _Dataset.open(a), _Dataset.open(b)
    mine, theirs = old.samples(), new.samples()
    added, removed = _without(theirs.keys, mine.keys), _without(mine.keys, theirs.keys)
    changed = _changed(mine, theirs)
    return {
        "a": old.about(),
        "b": new.about(),
        "same": bool(
            old.manifest.content_digest == new.manifest.content_digest and not any(map(len, changed.values()))
        ),
        "added": _named(added),
        "removed": _named(removed),
        "changed": {aspect: _named(keys) for aspect, keys in changed.items()},
        "shards": _shards(old.manifest, new.manifest),
        "reasons": moved(old.reasons(), new.reasons()),
        "spec": changes(old.spec(), new.spec()),
    }


@dataclass(frozen=True)
class _Samples:
    """Keys in order, and 64 bits of a hash of each aspect [N, 3]."""

    keys: npt.NDArray[np.void]
    aspects: Uint64s


@dataclass(frozen=True)
class _Dataset:
    shards: Folder
    build: Folder | None
    manifest: Manifest

    @staticmethod
    def open(place: str) -> _Dataset:
        folder = Folder(place)
        inside = folder.exists("shards/manifest.json")
        shards = folder / "shards" if inside else folder
        if not shards.exists("manifest.json"):
            raise ContractError(f"{shards.at('manifest.json')}: is not there; only what is published can be compared")
        manifest = parse_manifest(shards.read("manifest.json"), shards.at("manifest.json"))
        return _Dataset(shards, folder if inside else None, manifest)

    def about(self) -> dict[str, Any]:
        said = self.manifest
        return {
            "build_id": said.build_id,
            "revision": said.revision,
            "content_digest": said.content_digest,
            "samples": sum(said.samples.values()),
        }

    def samples(self) -> _Samples:
        keys, aspects = [np.zeros(0, "V16")], [np.zeros((0, len(ASPECTS)), np.uint64)]
        for shard in self.manifest.shards:
            with self.shards.local(shard.parquet.path) as path, pq.ParquetFile(path) as file:
                for batch in file.iter_batches(20_000, columns=_COLUMNS):
                    keys.append(np.frombuffer(bytes.fromhex("".join(batch["key"].to_pylist())), "V16"))
                    aspects.append(_aspects(batch))
        names = np.concatenate(keys)
        order = np.argsort(names)
        return _Samples(names[order], np.concatenate(aspects)[order])

    def reasons(self) -> dict[str, int]:
        """Candidates by reason, "" for kept ones."""
        if self.build is None or not self.build.exists("report/report.json"):
            return {}
        report = self.build.read_json("report/report.json")
        return {"": report["totals"]["kept"], **{r["name"]: r["count"] for r in report["reasons"]}}

    def spec(self) -> Any:
        return self.build.read_json("build.json")["spec"] if self.build and self.build.exists("build.json") else {}


def _aspects(batch: pa.RecordBatch) -> Uint64s:
    image = [name[:16] for name in batch["sha256"].to_pylist()]
    texts = [_hash([[t["kind"], t["text"]] for t in own]) for own in batch["texts"].to_pylist()]
    split = [_hash(name) for name in batch["split"].to_pylist()]
    rows = [[int(value, 16) for value in row] for row in zip(image, texts, split, strict=True)]
    return np.array(rows, np.uint64).reshape(-1, len(ASPECTS))


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()[:16]


def _without(these: npt.NDArray[np.void], those: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    return these[~np.isin(these, those)]


def _changed(a: _Samples, b: _Samples) -> dict[str, npt.NDArray[np.void]]:
    keys, mine, theirs = np.intersect1d(a.keys, b.keys, assume_unique=True, return_indices=True)
    other = a.aspects[mine] != b.aspects[theirs]
    return {aspect: keys[other[:, i]] for i, aspect in enumerate(ASPECTS)}


def _named(keys: npt.NDArray[np.void]) -> dict[str, Any]:
    return {"count": len(keys), "keys": [bytes(key).hex() for key in keys[:NAMED]]}


def _shards(a: Manifest, b: Manifest) -> dict[str, list[str]]:
    """Tars by what became of them."""
    old, new = ({shard.tar.path: shard.tar.sha256 for shard in m.shards} for m in (a, b))
    return {
        "added": sorted(set(new) - set(old)),
        "removed": sorted(set(old) - set(new)),
        "changed": sorted(path for path in set(old) & set(new) if old[path] != new[path]),
    }


def moved(a: dict[str, int], b: dict[str, int]) -> list[dict[str, Any]]:
    """Share of all candidates by reason ("kept" among them) in A and B, the largest move first; counts beside."""
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
    """Where two JSON values differ: path, before, now. `base` of a spec, the folder it lay in, does not count."""
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
