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
import pyarrow.compute as pc
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

Faces = Mapping[str, npt.NDArray[np.float32]]
"""Boxes [N, 4] of a sample's faces, by its key: where its image must be a mosaic."""


def first_faults(name: str, faults: list[str]) -> list[str]:
    """Returns the first PER_FILE faults of a file, and a line with the number of the others."""
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
                faults.append(f"{name}: missing column {column.name}")
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
        return empty, [f"{name}: {table.num_rows:,} rows, but {samples:,} in the manifest"]
    nulls = [(i, c) for c in schema.names if table[c].null_count for i in np.flatnonzero(table[c].is_null())]
    return table, [f"{name}: row {i}: no {column}" for i, column in sorted(nulls)[:PER_FILE]]


def row_faults(shard: ShardFiles, rows: list[Row], max_side: int) -> Iterator[str]:
    """Rows of the index that break the contract, the first fault of each. max_side: in pixels, 0 for any."""
    for row in rows:
        if fault := _row_fault(shard.split, row, max_side):
            yield f"{shard.parquet.path}: {fault}"


def _row_fault(split: str, row: Row, max_side: int) -> str:
    key, sides = row["key"], f"{row['width']} x {row['height']}"
    if not re.fullmatch(r"[0-9a-f]{32}", key) or not row["candidate_id"].startswith(key):
        return f"key {key!r} is not the prefix of its candidate_id"
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
        return f"{key}: no text"
    for text in row["texts"]:
        if text is None or text["kind"] not in TEXT_KINDS or not text["text"]:
            return f"{key}: a text is {text!r}"
    if row["width"] < 1 or row["height"] < 1:
        return f"{key}: sides are {sides}"
    if max_side and max(row["width"], row["height"]) > max_side:
        return f"{key}: sides are {sides}, but at most {max_side} in the manifest"
    return ""


def place_faults(shard: ShardFiles, rows: list[Row]) -> Iterator[str]:
    """Finds rows whose members are outside their tar, for a check that does not read the tar."""
    for row in rows:
        for member in MEMBERS.values():
            offset, size = row[f"{member}_offset"], row[f"{member}_size"]
            if offset < 0 or size < 0 or offset + size > shard.tar.bytes:
                place = f"{member} at {offset} + {size} is outside its tar of {shard.tar.bytes:,} bytes"
                yield f"{shard.parquet.path}: {row['key']}: {place}"
                break


def region_faults(path: Path, name: str, rows: list[Row]) -> list[str]:
    """Faults of a file of regions, whose rows must be those of the index, in the same order: the first of each sample.

    All samples are looked at together, R boxes of those whose numbers fit.
    """
    table, faults = read_table(path, name, REGION_SCHEMA, len(rows))
    if faults or not rows:
        return faults
    boxes, scores, labels = (table[column].combine_chunks() for column in ("boxes", "scores", "labels"))
    counts, of_boxes, of_labels = (
        column.value_lengths().to_numpy(zero_copy_only=False) for column in (scores, boxes, labels)
    )
    named = zip(table["key"].to_pylist(), table["sha256"].to_pylist(), strict=True)
    moved = np.array([own != (row["key"], row["sha256"]) for own, row in zip(named, rows, strict=True)])
    lacking = np.zeros(len(rows), np.bool_)
    for column in (boxes, scores, labels):
        if column.flatten().null_count:
            lacking[np.asarray(pc.list_parent_indices(column))[np.asarray(column.flatten().is_null())]] = True
    unfit = (of_boxes != 4 * counts) | (of_labels != counts)
    sound = ~(lacking | moved | unfit)
    boxes_R4, scores_R = (np.asarray(column.filter(sound).flatten()) for column in (boxes, scores))
    boxes_R4, sample_R = boxes_R4.reshape(-1, 4), np.repeat(np.flatnonzero(sound), counts[sound])
    width_R, height_R = (np.array([row[side] for row in rows])[sample_R] for side in ("width", "height"))
    x1, y1, x2, y2 = boxes_R4.T
    outside = ~((x1 >= 0) & (x1 < x2) & (x2 <= width_R) & (y1 >= 0) & (y1 < y2) & (y2 <= height_R))
    follows = np.diff(sample_R, prepend=-1) == 0  # the first score of a sample may be higher than the one before it
    unsorted = ~np.isfinite(scores_R) | (follows & (np.diff(scores_R, prepend=np.float32(0)) > 0))
    found = dict[int, str]()
    for at in np.flatnonzero(~sound).tolist():
        if lacking[at]:
            found[at] = "one of the columns of its regions is empty"
        elif moved[at]:
            found[at] = f"its regions belong to {table['key'][at]}; the files are not in the same order"
        else:
            numbers = f"{of_boxes[at]} box numbers, {counts[at]} scores and {of_labels[at]} labels"
            found[at] = f"{numbers} do not match"
    for at in np.flatnonzero(outside).tolist():
        row = rows[sample_R[at]]
        where = f"is outside the image of {row['width']} x {row['height']}"
        found.setdefault(int(sample_R[at]), f"box {boxes_R4[at].tolist()} {where}")
    for at in np.flatnonzero(unsorted).tolist():
        found.setdefault(int(sample_R[at]), "scores are not finite or not descending")
    return [f"{name}: {rows[at]['key']}: {fault}" for at, fault in sorted(found.items())]


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
                    yield f"{name}: {member.name} is not a regular file"
                    return
                data = file.read()
                fault = _member_fault(suffix, data, row)
                if suffix == "jpg" and row["key"] in faces and not fault:
                    fault = _face_fault(data, row, faces[row["key"]])
                if fault:
                    yield f"{name}: {member.name}: {fault}"
                count += 1
            if count < len(expected):
                yield f"{name}: {count} members, but {len(expected)} in the index"
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as e:
        yield f"{name}: not a tar ({e})"  # tarfile raises the others on headers that contradict themselves


def _place_fault(member: tarfile.TarInfo, number: int, row: Row, suffix: str) -> str:
    """Difference of a member's name, offset or size from the index; "" if none."""
    if not member.isreg() or member.issparse():  # a sparse one of 2 kB may unpack to gigabytes
        return f"{member.name} is not a regular file"
    if member.name != f"{row['key']}.{suffix}":
        return f"member {number} is {member.name}, but {row['key']}.{suffix} in the index"
    column = MEMBERS[suffix]
    if (member.offset_data, member.size) != (row[f"{column}_offset"], row[f"{column}_size"]):
        return f"{member.name} is at offset {member.offset_data}, which differs from the index"
    return ""


def _member_fault(suffix: str, data: bytes, row: Row) -> str:
    """Difference of a member's content from the index; "" if none."""
    if suffix == "txt":
        return "" if data == row["texts"][0]["text"].encode() else "differs from the first text in the index"
    if suffix == "jpg":
        return _image_fault(data, row)
    try:
        sample = decode_sample(data, "the member")
    except ContractError as e:
        return str(e)
    for name in ("candidate_id", "source", "source_kind", "page_url", "image_url", "sha256", "width", "height"):
        if getattr(sample, name) != row[name]:
            return f"{name} is {getattr(sample, name)!r}, but {row[name]!r} in the index"
    same = [(t.kind, t.text) for t in sample.texts] == [(t["kind"], t["text"]) for t in row["texts"]]
    return "" if same else "its texts differ from those in the index"


def _image_fault(data: bytes, row: Row) -> str:
    """Fault of an image that does not decode or differs from the index; "" if none.

    It is decoded whatever its size, since the spec let in what the index states. An image that was fetched in another
    format than JPEG cannot have kept its bytes. A JPEG may have, but grey, CMYK and rotated ones were re-encoded, so
    for JPEGs the bytes prove nothing.
    """
    from pipeline.pictures import decode as pictures

    try:
        picture = pictures.decode(data, max(pictures.MAX_PIXELS, row["width"] * row["height"]))
    except pictures.PictureError as e:
        return f"cannot be decoded ({e})"
    header = picture.header
    if header.format != "jpeg":
        return f"is {header.format}, but stored images must be JPEG"
    if (header.width, header.height) != (row["width"], row["height"]):
        return f"is {header.width} x {header.height}, but {row['width']} x {row['height']} in the index"
    if row["format"] != "jpeg" and hashlib.sha256(data).hexdigest() == row["sha256"]:
        return f"has the bytes that were fetched, although the index says they were {row['format']}"
    return ""


def _face_fault(data: bytes, row: Row, boxes_N4: npt.NDArray[np.float32]) -> str:
    """Fault of an image, which decodes, that shows a face in a box or could hold one beside its pixels; "" if none."""
    from pipeline.pictures import decode as pictures
    from pipeline.pictures.encode import holds_more
    from pipeline.pictures.faces import unblurred

    if hashlib.sha256(data).hexdigest() == row["sha256"]:
        return "contains faces, but its bytes are those that were fetched"
    if holds_more(data):
        return "contains faces, and data other than its pixels, which may show them"
    grey = pictures.luma(data, max(pictures.MAX_PIXELS, row["width"] * row["height"]))
    blocks = unblurred(grey, boxes_N4)
    return f"has faces that are not blurred ({blocks:,} blocks of 8 x 8 pixels)" if blocks else ""
