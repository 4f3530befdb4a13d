"""Checks the content of one shard's files against the contract: rows of the index, regions, members of the tar.

For `pipeline.publish.verify`. A fault is one line that begins with the name of the file.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_specs.shard import (
    MEMBERS,
    REGION_SCHEMA,
    SOURCE_KINDS,
    TEXT_KINDS,
    ContractError,
    ShardFiles,
    decode_sample,
)
from pipeline.files.parquet import read_parquet

PER_FILE = 20
"""Faults listed per file; beyond that they are counted."""

Row = dict[str, Any]
"""A row of SHARD_SCHEMA."""

Faces = Mapping[str, npt.NDArray[np.float32]]
"""Boxes [N, 4] of a sample's faces, by its key: where its image must be a mosaic."""


def capped(name: str, faults: list[str]) -> list[str]:
    """The first PER_FILE faults of a file, and how many more there are."""
    more = [f"{name}: and {len(faults) - PER_FILE:,} more faults"] if len(faults) > PER_FILE else []
    return faults[:PER_FILE] + more


def read_table(path: Path, name: str, schema: pa.Schema, samples: int) -> tuple[pa.Table, list[str]]:
    """Returns the columns of `schema` in a Parquet file, and its faults. Other columns are ignored: additive fields
    keep the version. With faults in the schema or the number of rows the table is empty."""
    empty = schema.empty_table()
    try:
        actual = pq.read_schema(path)
        faults = []
        for column in schema:
            at = actual.get_field_index(column.name)
            if at < 0:
                faults.append(f"{name}: column {column.name} is missing")
            elif actual.field(at).type != column.type:
                faults.append(f"{name}: column {column.name} is {actual.field(at).type}, not {column.type}")
        if faults:
            return empty, faults
        table = read_parquet(path, schema.names)
        table.validate(full=True)  # lists that point outside their values, text that is not UTF-8
    except (OSError, pa.ArrowException) as e:
        lines = str(e).splitlines() or [type(e).__name__]
        return empty, [f"{name}: cannot be read as Parquet ({lines[0]})"]
    if table.num_rows != samples:
        return empty, [f"{name}: has {table.num_rows:,} rows, the manifest says {samples:,}"]
    nulls = [(i, c) for c in schema.names if table[c].null_count for i in np.flatnonzero(table[c].is_null())]
    return table, [f"{name}: row {i} has no {column}" for i, column in sorted(nulls)[:PER_FILE]]


def row_faults(shard: ShardFiles, rows: list[Row], max_side: int) -> Iterator[str]:
    """Rows of the index that break the contract, the first fault of each. max_side: in pixels, 0 for any."""
    for row in rows:
        if fault := _row_fault(shard.split, row, max_side):
            yield f"{shard.parquet.path}: {fault}"


def _row_fault(split: str, row: Row, max_side: int) -> str:
    key, sides = row["key"], f"{row['width']} x {row['height']}"
    if not re.fullmatch(r"[0-9a-f]{32}", key) or not row["candidate_id"].startswith(key):
        return f"key {key!r} is not the beginning of its candidate_id"
    if not re.fullmatch(r"[0-9a-f]{64}", row["candidate_id"]):
        return f"{key}: candidate_id is {row['candidate_id']!r}"
    if row["source_kind"] not in SOURCE_KINDS:
        return f"{key}: source_kind is {row['source_kind']!r}"
    for name in ("sha256", "image_leader"):
        if not re.fullmatch(r"[0-9a-f]{64}", row[name]):
            return f"{key}: {name} is {row[name]!r}"
    if row["split"] != split:
        return f"{key}: split is {row['split']!r} in a shard of {split}"
    if not row["texts"]:
        return f"{key}: has no text"
    for text in row["texts"]:
        if text is None or text["kind"] not in TEXT_KINDS or not text["text"]:
            return f"{key}: a text is {text!r}"
    if row["width"] < 1 or row["height"] < 1:
        return f"{key}: sides are {sides}"
    if max_side and max(row["width"], row["height"]) > max_side:
        return f"{key}: sides are {sides}, the manifest says {max_side} at most"
    return ""


def place_faults(shard: ShardFiles, rows: list[Row]) -> Iterator[str]:
    """Rows whose members would lie outside their tar: for a check that does not walk the tar."""
    for row in rows:
        for member in MEMBERS.values():
            offset, size = row[f"{member}_offset"], row[f"{member}_size"]
            if offset < 0 or size < 0 or offset + size > shard.tar.bytes:
                place = f"{member} is at {offset} + {size}, outside its tar of {shard.tar.bytes:,} bytes"
                yield f"{shard.parquet.path}: {row['key']}: {place}"
                break


def region_faults(path: Path, name: str, rows: list[Row]) -> list[str]:
    """Faults of a file of regions, whose rows must be those of the index, in the same order."""
    table, faults = read_table(path, name, REGION_SCHEMA, len(rows))
    if faults or _regions_are_sound(table, rows):
        return faults
    regions = table.to_pylist()
    pairs = zip(rows, regions, strict=True)
    return [f"{name}: {fault}" for row, entry in pairs if (fault := _region_fault(row, entry))]


def _regions_are_sound(table: pa.Table, rows: list[Row]) -> bool:
    """Whether no sample has a fault that `_region_fault` would name; all samples at once, since most files are sound.

    R is the number of boxes of all samples together; boxes are flattened, four numbers each.
    """
    for name in ("key", "sha256"):
        if table[name].to_pylist() != [row[name] for row in rows]:
            return False
    boxes, scores, labels = (table[name].combine_chunks() for name in ("boxes", "scores", "labels"))
    if any(column.flatten().null_count for column in (boxes, scores, labels)):
        return False
    counts = scores.value_lengths().to_numpy(zero_copy_only=False)  # boxes of each sample [samples]
    if not (boxes.value_lengths().to_numpy(zero_copy_only=False) == 4 * counts).all():
        return False
    if not (labels.value_lengths().to_numpy(zero_copy_only=False) == counts).all():
        return False
    x1, y1, x2, y2 = boxes.flatten().to_numpy(zero_copy_only=False).reshape(-1, 4).T
    width, height = (np.repeat([row[side] for row in rows], counts) for side in ("width", "height"))
    inside = (x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)
    scores_R = scores.flatten().to_numpy(zero_copy_only=False)
    # cumsum - counts is the position of each sample's first box: there a score may be higher than the one before it
    first = np.repeat(np.cumsum(counts) - counts, counts) == np.arange(len(scores_R))
    rising = np.diff(scores_R, prepend=np.float32(0)) > 0
    return bool(inside.all() and np.isfinite(scores_R).all() and not (rising & ~first).any())


def _region_fault(row: Row, entry: dict[str, Any]) -> str:
    """The first fault of one sample's boxes; "" if there is none."""
    key = row["key"]
    if any(None in entry[name] for name in ("boxes", "scores", "labels")):
        return f"{key}: a number of its regions is missing"
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


def faces_of(path: Path) -> Faces:
    """The boxes of a sound file of regions, of samples that have any."""
    table = read_parquet(path, ["key", "boxes"])
    rows = zip(table["key"].to_pylist(), table["boxes"].to_pylist(), strict=True)
    return {key: np.array(boxes, np.float32).reshape(-1, 4) for key, boxes in rows if boxes}


def tar_faults(path: Path, name: str, rows: list[Row], faces: Faces) -> Iterator[str]:
    """Walk a tar as any reader does and compare each member with the index; stops where the two run apart."""
    expected = [(row, suffix) for row in rows for suffix in MEMBERS]
    count = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if count >= len(expected):
                    yield f"{name}: member {member.name} is not in the index"
                    return
                row, suffix = expected[count]
                if fault := _place_fault(member, count, row, suffix):
                    yield f"{name}: {fault}"
                    return
                file = tar.extractfile(member)
                if file is None:
                    yield f"{name}: {member.name} is not a plain file"
                    return
                data = file.read()
                fault = _member_fault(suffix, data, row)
                if suffix == "jpg" and row["key"] in faces and not fault:
                    fault = _face_fault(data, row, faces[row["key"]])
                if fault:
                    yield f"{name}: {member.name}: {fault}"
                count += 1
            if count < len(expected):
                yield f"{name}: ends after {count} members, the index has {len(expected)}"
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as e:
        yield f"{name}: is not a tar ({e})"  # tarfile raises the others on headers that contradict themselves


def _place_fault(member: tarfile.TarInfo, number: int, row: Row, suffix: str) -> str:
    """Whether a member has the name, offset and size that the index states; "" if it has."""
    if not member.isreg() or member.issparse():  # a sparse one of 2 kB may unpack to gigabytes
        return f"{member.name} is not a plain file"
    if member.name != f"{row['key']}.{suffix}":
        return f"member {number} is {member.name}, the index says {row['key']}.{suffix}"
    column = MEMBERS[suffix]
    if (member.offset_data, member.size) != (row[f"{column}_offset"], row[f"{column}_size"]):
        return f"{member.name} is at offset {member.offset_data}, not where the index says"
    return ""


def _member_fault(suffix: str, data: bytes, row: Row) -> str:
    """Whether a member's content is what the index says of it; "" if it is."""
    if suffix == "txt":
        return "" if data == row["texts"][0]["text"].encode() else "is not the first text of the index"
    if suffix == "jpg":
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


def _image_fault(data: bytes, row: Row) -> str:
    """Whether an image decodes and is what the index says of it; "" if so.

    It is decoded whatever its size, since the spec let in what the index states. An image that was fetched in another
    format than JPEG cannot have kept its bytes. A JPEG may have, but grey, CMYK and rotated ones were re-encoded, so
    for JPEGs the bytes prove nothing.
    """
    from pipeline.pictures import decode as pictures

    try:
        picture = pictures.decode(data, max(pictures.MAX_PIXELS, row["width"] * row["height"]))
    except pictures.PictureError as e:
        return f"does not decode ({e})"
    header = picture.header
    if header.format != "jpeg":
        return f"is {header.format}, stored images are JPEG"
    if (header.width, header.height) != (row["width"], row["height"]):
        return f"is {header.width} x {header.height}, the index says {row['width']} x {row['height']}"
    if row["format"] != "jpeg" and hashlib.sha256(data).hexdigest() == row["sha256"]:
        return f"was fetched as {row['format']} by the index, but its bytes are those that were fetched"
    return ""


def _face_fault(data: bytes, row: Row, boxes_N4: npt.NDArray[np.float32]) -> str:
    """Whether an image, which decodes, shows a face in one of the boxes, or could hold one beside its pixels."""
    from pipeline.pictures import decode as pictures
    from pipeline.pictures.encode import holds_more
    from pipeline.pictures.faces import unblurred

    if hashlib.sha256(data).hexdigest() == row["sha256"]:
        return "holds faces, but its bytes are those that were fetched"
    if holds_more(data):
        return "holds faces, and something beside its pixels, which may show them"
    grey = pictures.luma(data, max(pictures.MAX_PIXELS, row["width"] * row["height"]))
    blocks = unblurred(grey, boxes_N4)
    return f"has faces that are not blurred ({blocks:,} blocks of 8 x 8 pixels)" if blocks else ""
