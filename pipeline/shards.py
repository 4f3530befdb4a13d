"""Stage `shard`: rows that were kept become tars, their Parquet index and their regions, under final names.

Shard k of a split holds rows [k * N, (k + 1) * N) of what was kept of that split, so what a shard contains follows
from the dataset and not from how many workers packed it. Tars are byte-reproducible: one ustar header with fixed owner,
mode and time for each member, and nothing after the data but the two empty blocks that end a tar. Offsets are noted
while packing, so no tar is ever read again to index it. Upright three-component JPEGs are copied as fetched; the rest
is re-encoded.

Files have fixed names (`train-000000.tar`), which two fingerprints share. So `partitions`, which the driver calls once
before any task runs, removes the manifest first and then whatever belongs to another fingerprint: a reader sees no
manifest, hence no dataset, until `publish` has written a new one.

Limits: names in a ustar tar have at most 100 bytes (a key and its suffix have 37), members at most 8 GiB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_specs.shard import REGION_SCHEMA, SCHEMA_VERSION, SHARD_SCHEMA, SPLITS, Sample, canonical_json, encode_sample
from pipeline import screen
from pipeline.detectors import detectors_of
from pipeline.errors import StageError
from pipeline.images import read_images, records_between
from pipeline.records import Decision, decision_rows, text_of
from pipeline.store import DECISIONS, Attempt, Build, Record

VERSION = 1
INPUTS: tuple[str, ...] = ("screen", "detect")

BLOCK = 512
PUBLISHED = ("manifest.json", "README.md", "croissant.json", "openlineage.json", *(f"{split}.json" for split in SPLITS))
"""Files that `release.publish` writes into the shard folder; the manifest is what makes it a dataset."""

PACKED = ("tar", "parquet", DECISIONS)
"""Suffixes of a shard's files that do not depend on its regions."""

SAME = ("candidate_id", "source", "source_kind", "page_url", "image_url", "sha256", "width", "height")
MORE = ("image_leader", "split", "format", "fetched_at")
"""Columns that go from kept rows to the index as they are."""
COLUMNS = [*SAME, *MORE, "order_key", "fetch_id", "texts", "text_leaders"]


def token(build: Build) -> Any:
    """What shapes a shard beside its inputs."""
    options = build.spec.shards
    return [SCHEMA_VERSION, options.samples_per_shard, options.jpeg_quality]


def partitions(build: Build) -> list[str]:
    """`train-000000`, ...; clears away what another fingerprint left, the manifest first."""
    names = [name for name, _ in _plan(build)]
    _clear(build, set(names))
    return names


def run_partition(build: Build, partition: str) -> None:
    """Pack one shard. Raises StageError for an image that is not there or not the one that was measured."""
    split, start = dict(_plan(build))[partition]
    stage = build.stage("shard")
    rows = _rows(build, split, start, build.spec.shards.samples_per_shard)
    before = _packed_before(build, partition)
    with stage.attempt(partition) as attempt:
        counts = before.counts if before else _write(build, partition, rows, attempt)
        for detector_id in detector_ids(build):
            path = attempt.path(f"regions/{detector_id}", final=f"regions/{detector_id}/{partition}.parquet")
            pq.write_table(_regions(build, detector_id, rows), path, compression="zstd", row_group_size=1_000)
        kept = {suffix: before.files[suffix] for suffix in PACKED} if before else {}
        attempt.commit(counts, {"split": split, "packing": _packing(build)}, kept)
    if before:
        stage.folder.delete(f"_records/{before.fingerprint[:16]}/{partition}.json")


def _write(build: Build, partition: str, rows: list[dict[str, Any]], attempt: Attempt) -> dict[str, int]:
    """Write the tar, its index and the decisions of one shard, PACKED; gives what was counted."""
    tar = attempt.path("tar", final=f"{partition}.tar")
    index, reencoded = _pack(build, rows, tar)
    path = attempt.path("parquet", final=f"{partition}.parquet")
    pq.write_table(index, path, compression="zstd", row_group_size=1_000)
    path = attempt.path(DECISIONS, final=f"_decisions/{partition}.parquet")
    pq.write_table(decision_rows([_kept(row) for row in rows]), path, compression="zstd")
    counts = {"seen": len(rows), "kept": len(rows), "dropped": 0, "reencoded": reencoded}
    return {**counts, "bytes": tar.stat().st_size}


def _packing(build: Build) -> str:
    """Digest of all that a shard's tar, index and decisions follow from: everything but the regions."""
    value = [VERSION, build.fingerprints["screen"], token(build)]
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _packed_before(build: Build, partition: str) -> Record | None:
    """The record of a shard that only lacks other regions: a second detector rewrites no image."""
    stage = build.stage("shard")
    for fingerprint, packing in _others(build):
        other = replace(stage, fingerprint=fingerprint)
        if packing == _packing(build) and partition in other.partitions():
            record = other.record(partition)
            if all(s in record.files and stage.folder.exists(record.files[s].name) for s in PACKED):
                return record
    return None


def _others(build: Build) -> list[tuple[str, str]]:
    """(fingerprint as folders are named by it, packing) of what else has records here."""
    stage, found = build.stage("shard"), []
    for name in (stage.folder / "_records").names():
        records = replace(stage, fingerprint=name).records() if name != stage.fingerprint[:16] else []
        if records:
            found.append((name, str(records[0].info.get("packing", ""))))
    return found


def detector_ids(build: Build) -> list[str]:
    """Ids of the spec's detectors, in its order: the first is the default of a training."""
    return [detector.detector_id for detector in detectors_of(build.spec)]


def packed(build: Build) -> list[Record]:
    """Records of the shards that hold a sample: a takedown may have left nothing of one but its decisions."""
    return [record for record in build.stage("shard").records() if "tar" in record.files]


def _plan(build: Build) -> list[tuple[str, tuple[str, int]]]:
    """(partition, (split, first row)) of every shard."""
    per_shard, records = build.spec.shards.samples_per_shard, screen.survivors(build).records()
    plan: list[tuple[str, tuple[str, int]]] = []
    for split in SPLITS:
        rows = sum(record.counts[split] for record in records)
        plan += [(f"{split}-{k:06d}", (split, first)) for k, first in enumerate(range(0, rows, per_shard))]
    return plan


def _clear(build: Build, names: set[str]) -> None:
    """Remove, in this order: what `publish` wrote, other fingerprints' records, and files no record of ours names.

    Killed at any point, a later call goes on: nothing that is left looks finished.
    """
    stage = build.stage("shard")
    folder, ours = stage.folder, stage.fingerprint[:16]
    for name in (*PUBLISHED, "_stage.json"):
        folder.delete(name)
    reusable = {name for name, packing in _others(build) if packing == _packing(build)}
    for name in (folder / "_records").names():
        if name != ours and name not in reusable:
            folder.delete(f"_records/{name}")
    for name in set(stage.partitions()) - names:
        folder.delete(f"_records/{ours}/{name}.json")
    known = {ref.name for record in stage.records() for ref in record.files.values()}
    for name in reusable:
        for partition in stage.partitions():  # done already
            folder.delete(f"_records/{name}/{partition}.json")
        left = replace(stage, fingerprint=name).records()
        known |= {record.files[s].name for record in left for s in PACKED if s in record.files}
    places = ["", "_decisions/", *(f"regions/{detector}/" for detector in (folder / "regions").names())]
    for place in places:
        for name in (folder / place.rstrip("/") if place else folder).names():
            if name not in ("_records", "_decisions", "regions") and place + name not in known:
                folder.delete(place + name)


def _rows(build: Build, split: str, start: int, count: int) -> list[dict[str, Any]]:
    """Rows [start, start + count) of a split, over the partitions; only row groups that hold them are read."""
    stage, rows, at = screen.survivors(build), list[dict[str, Any]](), 0
    for record in stage.records():
        low, high = max(0, start - at), min(record.counts[split], start + count - at)
        if low < high:
            with stage.file(record, f"{split}.parquet") as path:
                rows += _between(path, low, high)
        at += record.counts[split]
    return rows


def _between(path: Path, low: int, high: int) -> list[dict[str, Any]]:
    """Rows [low, high) of a Parquet file."""
    with pq.ParquetFile(path) as file:
        groups, first, at = [], 0, 0
        for i in range(file.num_row_groups):
            size = file.metadata.row_group(i).num_rows
            if at + size <= low:
                first = at + size
            elif at < high:
                groups.append(i)
            at += size
        table = file.read_row_groups(groups, columns=COLUMNS)
    rows: list[dict[str, Any]] = table.slice(low - first, high - low).to_pylist()
    return rows


@dataclass
class TarWriter:
    """Writes a tar whose bytes follow from its members alone: ustar, mode 0644, owner 0, time 0."""

    file: BinaryIO
    offset: int = field(default=0)

    def add(self, name: str, data: bytes) -> int:
        """Append one member; returns the offset of its data in the tar."""
        self.file.write(ustar_header(name, len(data)))
        at = self.offset + BLOCK
        self.file.write(data)
        self.file.write(bytes(-len(data) % BLOCK))
        self.offset = at + len(data) + -len(data) % BLOCK
        return at

    def copy(self, members: bytes) -> int:
        """Append whole members as another tar holds them, headers and padding included; returns where they begin."""
        assert len(members) % BLOCK == 0
        self.file.write(members)
        self.offset += len(members)
        return self.offset - len(members)

    def close(self) -> None:
        """End the archive: two empty blocks."""
        self.file.write(bytes(2 * BLOCK))


def ustar_header(name: str, size: int) -> bytes:
    """The header block of a member: what tarfile writes for it, in a tenth of the time, and in every version of Python
    (which have written the empty device numbers in two ways).

    POSIX.1-1988 ustar: name 100, mode 8, uid 8, gid 8, size 12, mtime 12, checksum 8, type 1, then magic and zeros.
    """
    field = name.encode("ascii")
    assert len(field) <= 100
    assert size < 8 << 30
    head = b"%b0000644\0000000000\0000000000\000%011o\000%011o\000" % (field.ljust(100, b"\0"), size, 0)
    return b"%b%06o\0 %b" % (head, sum(head) + _REST_SUM, _REST)


_REST = (b"0" + bytes(100) + b"ustar\00000").ljust(BLOCK - 156, b"\0")
_REST_SUM = sum(_REST) + 8 * ord(" ")  # the checksum's own field counts as spaces


def _pack(build: Build, rows: list[dict[str, Any]], tar: Path) -> tuple[pa.Table, int]:
    """Write the tar; returns its index (SHARD_SCHEMA) and how many images were re-encoded."""
    index, reencoded = [], 0
    with tar.open("wb") as file:
        writer = TarWriter(file)
        for row, data in _with_images(build, rows):
            image = _stored(build, row, data)
            reencoded += image != data
            sample = sample_of(row)
            entry = _index_row(row, sample)
            for (name, member), what in zip(encode_sample(sample, image), ("image", "text", "json"), strict=True):
                entry[f"{what}_offset"], entry[f"{what}_size"] = writer.add(name, member), len(member)
            index.append(entry)
        writer.close()
    return pa.Table.from_pylist(index, schema=SHARD_SCHEMA), reencoded


def _with_images(build: Build, rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Rows with their image as fetched. Rows are in order of their order key, as `read_images` gives images."""
    images = read_images(build, [row["fetch_id"] for row in rows])
    image = None
    for row in rows:
        if image is None or image.fetch_id != row["fetch_id"]:
            image = next(images, None)
        if image is None or image.fetch_id != row["fetch_id"]:
            raise StageError(row["image_url"], "was measured, but its bytes are not in the tars of the fetch stage")
        if hashlib.sha256(image.data).hexdigest() != row["sha256"]:
            raise StageError(row["image_url"], f"its bytes in the fetch stage are no longer those of {row['sha256']}")
        yield row, image.data


def _stored(build: Build, row: dict[str, Any], data: bytes) -> bytes:
    """JPEG bytes to store, always of three components. Raises StageError that names the URL.

    Grey and CMYK JPEGs are re-encoded although they are JPEGs: Ray Data stacks images into one column and fails on the
    first grey one (an array of two dimensions), and several decoders refuse CMYK.
    """
    from pipeline import pictures

    options = build.spec
    if is_plain_jpeg(data):
        return data
    try:
        image = pictures.to_jpeg(data, options.shards.jpeg_quality, options.fetch.max_pixels)
        if components_of(image) == 3:
            return image
        return pictures.encode_jpeg(
            pictures.decode(image, options.fetch.max_pixels).pixels, options.shards.jpeg_quality
        )
    except pictures.PictureError as e:
        raise StageError(row["image_url"], f"was measured, but cannot be stored as a JPEG: {e}") from e


def is_plain_jpeg(data: bytes) -> bool:
    """Whether bytes are a JPEG that is stored as it is, told from its markers alone: three components, and no segment
    that could turn the picture or make it another format (EXIF, XMP, Adobe, MPF ...). Where False, ask Pillow.
    """
    if data[:2] != b"\xff\xd8":
        return False
    at, components = 2, 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # the scan begins
            return components == 3
        if marker in (0xC0, 0xC1, 0xC2) and at + 10 <= len(data):
            components = data[at + 9]
        elif marker not in _PLAIN and not (marker == 0xE2 and data[at + 4 : at + 15] == b"ICC_PROFILE"):
            return False
        at += 2 + length
    return False


_PLAIN = frozenset([0xE0, 0xDB, 0xC4, 0xDD, 0xFE])
"""Markers of JFIF, tables, restarts and comments."""


def components_of(jpeg: bytes) -> int:
    """Number of colour components of a JPEG, from its frame header (ITU-T T.81, B.2.2); 0 if there is none."""
    at = 2
    while at + 10 <= len(jpeg) and jpeg[at] == 0xFF:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte before a marker
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return jpeg[at + 9]
        else:
            at += 2 + length
    return 0


def sample_of(row: dict[str, Any]) -> Sample:
    """The Sample that a row of DEDUP_SCHEMA becomes."""
    return Sample(
        candidate_id=row["candidate_id"],
        source=row["source"],
        source_kind=row["source_kind"],
        page_url=row["page_url"],
        image_url=row["image_url"],
        sha256=row["sha256"],
        width=row["width"],
        height=row["height"],
        texts=tuple(text_of(text) for text in row["texts"]),
    )


def _index_row(row: dict[str, Any], sample: Sample) -> dict[str, Any]:
    texts = [
        {"kind": text["kind"], "text": text["text"], "text_leader": leader}
        for text, leader in zip(row["texts"], row["text_leaders"], strict=True)
    ]
    return {"key": sample.key, "texts": texts, **{name: row[name] for name in (*SAME, *MORE)}}


def _regions(build: Build, detector_id: str, rows: list[dict[str, Any]]) -> pa.Table:
    """REGION_SCHEMA of one shard, in its order, from detect's files. Raises StageError where a sample has no entry."""
    stage = build.stage("detect")
    wanted = pa.array(sorted({row["sha256"] for row in rows}), pa.string())
    found: dict[str, dict[str, Any]] = {}
    if rows:
        for record in records_between(stage, rows[0]["order_key"], rows[-1]["order_key"]):
            table = stage.table(record, f"{detector_id}.parquet", filters=pc.field("sha256").isin(wanted))
            found.update({entry["sha256"]: entry for entry in table.to_pylist()})
    regions = []
    for row in rows:
        entry = found.get(row["sha256"])
        if entry is None:
            raise StageError(row["image_url"], f"detector {detector_id} has no entry for {row['sha256']}")
        regions.append({"key": sample_of(row).key, **{n: entry[n] for n in ("sha256", "boxes", "scores", "labels")}})
    return pa.Table.from_pylist(regions, schema=REGION_SCHEMA)


def _kept(row: dict[str, Any]) -> Decision:
    return Decision(
        subject="candidate",
        id=row["candidate_id"],
        fetch_id=row["fetch_id"],
        source=row["source"],
        page_url=row["page_url"],
        url=row["image_url"][:2000],
        stage="shard",
        kept=True,
        text=row["texts"][0]["text"][:200],
    )
