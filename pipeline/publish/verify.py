"""Is a dataset what its manifest says? `verify` gives every fault as one line that names the file and the key.

Quick: every file is there with its size and sha256, no shard lies beside the manifest that it does not name, and the
Parquet files hold what the contract says. Full: every tar is walked member by member against its index and every image
is decoded. Nothing that STORE says was taken down may be inside.

Limits: memory is one shard's index, 16 bytes a sample for the keys and 8 a sample for the image leaders, so that 100
million samples take 2.4 GB. Two leaders that share their first 64 bits count as one.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_specs.shard import (
    REGION_SCHEMA,
    SHARD_SCHEMA,
    SPLITS,
    ContractError,
    FileDigest,
    Manifest,
    ShardFiles,
    content_digest,
    decode_sample,
    parse_manifest,
)
from pipeline.errors import StoreError
from pipeline.files.folder import Folder, file_sha256
from pipeline.store.store import Store
from pipeline.store.takedowns import Takedowns

Uint64s = npt.NDArray[np.uint64]
PER_FILE = 20
"""Faults named of one file; the rest of them is counted."""


def verify(folder: str | Path, quick: bool = False, store: str = "") -> list[str]:
    """Faults of a dataset, one line each; empty if it is sound. `folder` holds manifest.json, or is the build's folder.

    What STORE says was taken down must not be inside: the STORE of the build's folder, or `store`.
    Raises ContractError where there is no manifest that can be read, or it is of a newer version.
    """
    place = Folder(str(folder))
    if not place.exists("manifest.json") and place.exists("shards/manifest.json"):
        if not store and place.exists("build.json"):
            store = str(place.read_json("build.json").get("store", ""))
        place = place / "shards"
    try:
        manifest = parse_manifest(place.read("manifest.json"), place.at("manifest.json"))
    except StoreError as e:
        raise ContractError(f"{e}; a build without a manifest is not a dataset") from None
    seen = _Seen(Store(store).takedowns() if store else Takedowns())
    faults = [*_totals(manifest), *_strays(place, manifest)]
    for shard in manifest.shards:
        faults += _shard(place, manifest, shard, quick, seen)
    return faults + seen.faults()


@dataclass
class _Seen:
    """What must hold across shards: keys once, an image cluster in one split only; and what must not be in any."""

    takedowns: Takedowns
    keys: list[npt.NDArray[np.void]] = field(default_factory=list)
    leaders: dict[str, list[Uint64s]] = field(default_factory=dict)

    def add(self, split: str, rows: list[dict[str, Any]]) -> None:
        keys = b"".join(bytes.fromhex(row["key"]) for row in rows)
        self.keys.append(np.frombuffer(keys, dtype="V16"))
        leaders = np.array([int(row["image_leader"][:16], 16) for row in rows], dtype=np.uint64)
        self.leaders.setdefault(split, []).append(np.unique(leaders))

    def faults(self) -> list[str]:
        found = []
        if self.keys:
            keys, counts = np.unique(np.concatenate(self.keys), return_counts=True)
            twice = [bytes(key).hex() for key in keys[counts > 1][:PER_FILE]]
            found += [f"{key}: this key is there more than once" for key in twice]
        merged = {split: np.unique(np.concatenate(parts)) for split, parts in self.leaders.items()}
        for i, a in enumerate(SPLITS):
            for b in SPLITS[i + 1 :]:
                if a in merged and b in merged:
                    both = np.intersect1d(merged[a], merged[b])[:PER_FILE]
                    found += [f"image_leader {int(leader):016x}...: is in {a} and in {b}" for leader in both]
        return found


def _totals(manifest: Manifest) -> Iterator[str]:
    counted = Counter[str]()
    for shard in manifest.shards:
        counted[shard.split] += shard.samples
    for split in SPLITS:
        if counted[split] != manifest.samples.get(split, 0):
            said = manifest.samples.get(split, 0)
            yield f"manifest.json: its {split} shards hold {counted[split]:,} samples, it says {said:,}"
    if content_digest(manifest.shards) != manifest.content_digest:
        yield "manifest.json: content_digest does not follow from the tars it names"
    paths = Counter(file.path for shard in manifest.shards for file in _files(shard))
    for path, times in paths.items():
        if times > 1:
            yield f"manifest.json: names {path} {times} times"
        if path.startswith("/") or "://" in path or ".." in path.split("/"):
            yield f"manifest.json: path {path!r} leaves the shard folder"


def _strays(place: Folder, manifest: Manifest) -> Iterator[str]:
    named = {file.path for shard in manifest.shards for file in _files(shard)}
    for name in place.names():
        if re.fullmatch(rf"({'|'.join(SPLITS)})-\d+\.(tar|parquet)", name) and name not in named:
            yield f"{name}: lies in the folder, but the manifest does not name it"


def _files(shard: ShardFiles) -> list[FileDigest]:
    return [shard.tar, shard.parquet, *shard.regions.values()]


def _shard(place: Folder, manifest: Manifest, shard: ShardFiles, quick: bool, seen: _Seen) -> list[str]:
    """Faults of one shard. Content is looked at only where size and sha256 hold: a damaged file has one fault."""
    if any(".." in file.path.split("/") or file.path.startswith("/") or "://" in file.path for file in _files(shard)):
        return []  # named by _totals; nothing outside the folder is opened
    faults = {file.path: _digest_fault(place, file) for file in _files(shard)}
    found = [fault for fault in faults.values() if fault]
    missing = [detector for detector in manifest.detectors if detector not in shard.regions]
    found += [f"{shard.tar.path}: has no regions of {detector}" for detector in missing]
    if faults[shard.parquet.path]:
        return found
    with place.local(shard.parquet.path) as path:
        rows, problems = _read(path, shard.parquet.path, SHARD_SCHEMA, shard.samples)
    found += problems
    if problems:
        return found
    problems = list(_row_faults(shard, rows, manifest.images.max_side if manifest.images else 0))
    found += _capped(shard.parquet.path, problems)
    if problems:
        return found
    seen.add(shard.split, rows)
    gone = [row["key"] for row in rows if seen.takedowns.holds(row)] if seen.takedowns else []
    found += _capped(shard.parquet.path, [f"{shard.parquet.path}: {key}: was taken down" for key in gone])
    for file in shard.regions.values():
        if not faults[file.path]:
            found += _regions(place, file.path, rows, shard.samples)
    if not quick and not faults[shard.tar.path]:
        with place.local(shard.tar.path) as path:
            found += _capped(shard.tar.path, list(_tar_faults(path, shard.tar.path, rows)))
    return found


def _digest_fault(place: Folder, file: FileDigest) -> str:
    if not place.exists(file.path):
        return f"{file.path}: is missing"
    with place.local(file.path) as path:
        size = path.stat().st_size
        if size != file.bytes:
            return f"{file.path}: has {size:,} bytes, the manifest says {file.bytes:,}"
        digest = file_sha256(path)
    return "" if digest == file.sha256 else f"{file.path}: sha256 is {digest}, the manifest says {file.sha256}"


def _capped(name: str, faults: list[str]) -> list[str]:
    more = [f"{name}: and {len(faults) - PER_FILE:,} more faults"] if len(faults) > PER_FILE else []
    return faults[:PER_FILE] + more


def _read(path: Path, name: str, schema: pa.Schema, samples: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a Parquet file and its faults."""
    table, faults = _table(path, name, schema, samples)
    return table.to_pylist(), faults


def _table(path: Path, name: str, schema: pa.Schema, samples: int) -> tuple[pa.Table, list[str]]:
    """A Parquet file and its faults. More columns are allowed: additive fields keep the version."""
    none = schema.empty_table()
    try:
        found = pq.read_schema(path)
        faults = []
        for column in schema:
            at = found.get_field_index(column.name)
            if at < 0:
                faults.append(f"{name}: column {column.name} is missing")
            elif found.field(at).type != column.type:
                faults.append(f"{name}: column {column.name} is {found.field(at).type}, not {column.type}")
        if faults:
            return none, faults
        table = pq.read_table(path, columns=schema.names)
    except (OSError, pa.ArrowException) as e:
        return none, [f"{name}: cannot be read as Parquet ({str(e).splitlines()[0]})"]
    if table.num_rows != samples:
        return none, [f"{name}: has {table.num_rows:,} rows, the manifest says {samples:,}"]
    empty = [(i, c) for c in schema.names if table[c].null_count for i in np.flatnonzero(table[c].is_null())]
    return table, [f"{name}: row {i} has no {column}" for i, column in sorted(empty)[:PER_FILE]]


def _row_faults(shard: ShardFiles, rows: list[dict[str, Any]], max_side: int) -> Iterator[str]:
    name = shard.parquet.path
    for row in rows:
        key = row["key"]
        if not re.fullmatch(r"[0-9a-f]{32}", key) or not row["candidate_id"].startswith(key):
            yield f"{name}: key {key!r} is not the beginning of its candidate_id"
        elif not re.fullmatch(r"[0-9a-f]{64}", row["sha256"]):
            yield f"{name}: {key}: sha256 is {row['sha256']!r}"
        elif not re.fullmatch(r"[0-9a-f]{64}", row["image_leader"]):
            yield f"{name}: {key}: image_leader is {row['image_leader']!r}"
        elif row["split"] != shard.split:
            yield f"{name}: {key}: split is {row['split']!r} in a shard of {shard.split}"
        elif not row["texts"]:
            yield f"{name}: {key}: has no text"
        elif row["width"] < 1 or row["height"] < 1:
            yield f"{name}: {key}: sides are {row['width']} x {row['height']}"
        elif max_side and max(row["width"], row["height"]) > max_side:
            yield f"{name}: {key}: sides are {row['width']} x {row['height']}, the manifest says {max_side} at most"


def _regions(place: Folder, name: str, rows: list[dict[str, Any]], samples: int) -> list[str]:
    with place.local(name) as path:
        table, problems = _table(path, name, REGION_SCHEMA, samples)
    if problems or _are_sound(table, rows):
        return problems
    regions = table.to_pylist()
    faults = [fault for row, entry in zip(rows, regions, strict=True) if (fault := _region_fault(row, entry))]
    return _capped(name, [f"{name}: {fault}" for fault in faults])


def _are_sound(table: pa.Table, rows: list[dict[str, Any]]) -> bool:
    """Whether regions have none of the faults of `_region_fault`, all samples at once."""
    for name in ("key", "sha256"):
        if table[name].to_pylist() != [row[name] for row in rows]:
            return False
    boxes, scores, labels = (table[name].combine_chunks() for name in ("boxes", "scores", "labels"))
    counts = scores.value_lengths().to_numpy(zero_copy_only=False)
    if not (boxes.value_lengths().to_numpy(zero_copy_only=False) == 4 * counts).all():
        return False
    if not (labels.value_lengths().to_numpy(zero_copy_only=False) == counts).all():
        return False
    x1, y1, x2, y2 = boxes.flatten().to_numpy(zero_copy_only=False).reshape(-1, 4).T
    width, height = (np.repeat([row[side] for row in rows], counts) for side in ("width", "height"))
    found = scores.flatten().to_numpy(zero_copy_only=False)
    first = np.repeat(np.cumsum(counts) - counts, counts) == np.arange(len(found))
    rising = np.diff(found, prepend=np.float32(0)) > 0
    inside = (x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)
    return bool(inside.all() and np.isfinite(found).all() and not (rising & ~first).any())


def _region_fault(row: dict[str, Any], entry: dict[str, Any]) -> str:
    """What is wrong with the boxes of one sample, "" if nothing is."""
    key = row["key"]
    if entry["key"] != key or entry["sha256"] != row["sha256"]:
        return f"{key}: its regions are those of {entry['key']}; the files are not in the same order"
    scores, labels = np.array(entry["scores"], np.float32), np.array(entry["labels"], np.int32)
    if len(entry["boxes"]) != 4 * len(scores) or len(labels) != len(scores):
        return f"{key}: {len(entry['boxes'])} box numbers, {len(scores)} scores and {len(labels)} labels do not fit"
    boxes_R4 = np.array(entry["boxes"], np.float32).reshape(-1, 4)
    x1, y1, x2, y2 = boxes_R4.T
    inside = (x1 >= 0) & (x1 < x2) & (x2 <= row["width"]) & (y1 >= 0) & (y1 < y2) & (y2 <= row["height"])
    if not inside.all():
        box = boxes_R4[int(np.argmin(inside))].tolist()
        return f"{key}: box {box} does not lie in an image of {row['width']} x {row['height']}"
    if not np.isfinite(scores).all() or (np.diff(scores) > 0).any():
        return f"{key}: scores are not finite and descending"
    return ""


def _tar_faults(path: Path, name: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    """Walk the tar as any reader does and hold each member against the index."""
    expected = [(row, what) for row in rows for what in ("jpg", "txt", "json")]
    try:
        with tarfile.open(path, "r:") as tar:
            at = 0
            for member in tar:
                if at >= len(expected):
                    yield f"{name}: member {member.name} is not in the index"
                    return
                row, what = expected[at]
                if member.name != f"{row['key']}.{what}":
                    yield f"{name}: member {at} is {member.name}, the index says {row['key']}.{what}"
                    return
                column = {"jpg": "image", "txt": "text", "json": "json"}[what]
                if (member.offset_data, member.size) != (row[f"{column}_offset"], row[f"{column}_size"]):
                    yield f"{name}: {member.name} lies at {member.offset_data}, not where the index says"
                    return
                file = tar.extractfile(member)
                if file is None:
                    yield f"{name}: {member.name} is not a plain file"
                    return
                fault = _member_fault(what, file.read(), row)
                if fault:
                    yield f"{name}: {member.name}: {fault}"
                at += 1
            if at < len(expected):
                yield f"{name}: ends after {at} members, the index has {len(expected)}"
    except tarfile.TarError as e:
        yield f"{name}: is not a tar ({e})"


def _member_fault(what: str, data: bytes, row: dict[str, Any]) -> str:
    if what == "txt":
        return "" if data == row["texts"][0]["text"].encode() else "is not the first text of the index"
    if what == "jpg":
        return _image_fault(data, row)
    try:
        sample = decode_sample(data, "the member")
    except ContractError as e:
        return str(e)
    for name in ("candidate_id", "source", "source_kind", "page_url", "image_url", "sha256", "width", "height"):
        if getattr(sample, name) != row[name]:
            return f"{name} is {getattr(sample, name)!r}, the index says {row[name]!r}"
    same = [(t.kind, t.text) for t in sample.texts] == [(t["kind"], t["text"]) for t in row["texts"]]
    return "" if same else "its texts are not those of the index"


def _image_fault(data: bytes, row: dict[str, Any]) -> str:
    """Decode one image, whatever its size: what the index says was let in by the spec. Another format than JPEG cannot
    have kept its bytes; a JPEG may have, but grey, CMYK and turned ones were re-encoded and prove nothing."""
    from pipeline.pictures import decode as pictures

    try:
        picture = pictures.decode(data, max(pictures.MAX_PIXELS, row["width"] * row["height"]))
    except pictures.PictureError as e:
        return f"does not decode ({e})"
    found = picture.header
    if found.format != "jpeg":
        return f"is {found.format}, stored images are JPEG"
    if (found.width, found.height) != (row["width"], row["height"]):
        return f"is {found.width} x {found.height}, the index says {row['width']} x {row['height']}"
    if row["format"] != "jpeg" and hashlib.sha256(data).hexdigest() == row["sha256"]:
        return f"is said to have been {row['format']}, but its bytes are those that were fetched"
    return ""
