"""Difference between two datasets: samples added, removed and changed, reasons to drop, and the options of the specs.

A dataset is a build or a release. Samples are matched by key, which a candidate keeps across builds. A sample has
changed if its image, its texts or its split differ. Both datasets must be published. Reasons and specs are read from
the builds' folders; where those are not given, these parts are empty.

Limits: each list names at most NAMED keys; its count covers all.
"""

from __future__ import annotations

from typing import Any

from data_specs.shard import Manifest
from pipeline.report import drift
from pipeline.store.dataset import Dataset
from pipeline.store.frames import Frames
from pipeline.store.sql import Tables

NAMED = 1_000
"""Keys that a list names."""


def diff(a: str, b: str) -> dict[str, Any]:
    """The difference from dataset A to dataset B. Raises ContractError if one of them is not a dataset."""
    old, new = Dataset.open(a), Dataset.open(b)
    pairs = "samples AS a JOIN b.samples AS b USING (key)"
    texts = "list_transform({}.texts, lambda text: struct_pack(kind := text.kind, text := text.text))"
    with Tables(Frames.of_dataset(old), {"b": Frames.of_dataset(new)}) as tables:
        changed = {
            "image": _count_keys(tables, f"SELECT key FROM {pairs} WHERE a.sha256 <> b.sha256"),
            "texts": _count_keys(tables, f"SELECT key FROM {pairs} WHERE {texts.format('a')} <> {texts.format('b')}"),
            "split": _count_keys(tables, f"SELECT key FROM {pairs} WHERE a.split <> b.split"),
        }
        added = _count_keys(tables, "SELECT key FROM b.samples ANTI JOIN samples USING (key)")
        removed = _count_keys(tables, "SELECT key FROM samples ANTI JOIN b.samples USING (key)")
        present = tables.row("SELECT (SELECT count(*) FROM samples) AS a, (SELECT count(*) FROM b.samples) AS b")
    equal = old.manifest.content_digest == new.manifest.content_digest
    return {
        "a": _identity(old.manifest, present["a"]),
        "b": _identity(new.manifest, present["b"]),
        "same": equal and not any(keys["count"] for keys in changed.values()),
        "added": added,
        "removed": removed,
        "changed": changed,
        "shards": _shards(old.manifest, new.manifest),
        "reasons": drift.reason_changes(_reasons(old), _reasons(new)),
        "spec": changes(_spec(old), _spec(new)),
    }


def _count_keys(tables: Tables, keys: str) -> dict[str, Any]:
    """Counts the keys that a query finds, and lists the first of them."""
    return tables.row(f"SELECT count(*) AS count, coalesce(min(key, {NAMED}), []) AS keys FROM ({keys})")


def _identity(manifest: Manifest, present: int) -> dict[str, Any]:
    """Fields that identify a dataset. present: samples that are there. An earlier release lists those that were taken
    down since too, which are neither added nor removed."""
    samples = sum(manifest.samples.values())
    return {
        "build_id": manifest.build_id,
        "revision": manifest.revision,
        "content_digest": manifest.content_digest,
        "samples": samples,
        "taken_down": samples - present,
    }


def _reasons(dataset: Dataset) -> dict[str, int]:
    """Number of candidates by reason to drop; "" for kept ones. Empty without a report."""
    report = None if dataset.build is None else drift.read(dataset.build.url)
    return {} if report is None else drift.reasons_of(report)


def _spec(dataset: Dataset) -> Any:
    """The spec of a dataset's build as JSON; empty without the build's folder."""
    build = dataset.build
    return build.read_json("build.json")["spec"] if build and build.exists("build.json") else {}


def _shards(a: Manifest, b: Manifest) -> dict[str, list[str]]:
    """Paths of tars that were added, removed or changed."""
    old, new = ({shard.name: shard.tar.sha256 for shard in m.shards} for m in (a, b))
    return {
        "added": sorted(set(new) - set(old)),
        "removed": sorted(set(old) - set(new)),
        "changed": sorted(path for path in set(old) & set(new) if old[path] != new[path]),
    }


def changes(a: Any, b: Any, path: str = "") -> list[dict[str, Any]]:
    """Differences of two JSON values: path, before, now. Ignores `base` of a spec, the folder that it was in."""
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
