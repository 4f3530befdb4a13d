"""Stage shard: packs the kept pairs into tars with their Parquet index and regions, under final names.

What a shard contains follows from the dataset and not from how many workers packed it: `pipeline.stages._boundaries`
says which rows it holds, `pipeline.pictures.encode` how and at what size an image is stored; tars are
byte-reproducible (`pipeline.files.tars`). Offsets are noted and sha256 taken while packing, so no tar is ever read
again.

Files have fixed names (`train-000000.tar`), which two fingerprints share. So before any task runs the driver removes
the manifest first and then whatever belongs to another fingerprint (`begin`): a reader sees no manifest, hence no
dataset, until `publish` has written a new one.

Limits: a shard's rows and index are held in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_specs.build import BuildSpec
from data_specs.shard import (
    KEY_LENGTH,
    MANIFEST,
    PAIR_SCORE,
    REGION_SCHEMA,
    SCHEMA_VERSION,
    SHARD_SCHEMA,
    Sample,
    canonical_json,
    encode_sample,
)
from pipeline.detectors import detector_ids, face_detector
from pipeline.detectors._boxes import UNSEEN, boxes_of
from pipeline.errors import OURS, StageError, evidence
from pipeline.files.tars import HashedFile, TarWriter
from pipeline.pictures.encode import Boxes, as_stored, scaled_boxes, stored_sides
from pipeline.processes import pulse
from pipeline.rows.decisions import DECISION_SCHEMA, DropReason
from pipeline.rows.records import text_of
from pipeline.stages import _boundaries
from pipeline.store.build import Build, Pass, PassFile, Stage
from pipeline.store.commits import DECISIONS, Attempt, Record
from pipeline.store.images import read_images, records_between
from pipeline.store.pairs import SURVIVORS, survivors

PACKED = ("tar", "parquet", DECISIONS)
"""Suffixes of a shard's files that do not depend on its regions."""


def packed_files(spec: BuildSpec) -> tuple[str, ...]:
    """PACKED, and the boxes of the faces that are blurred in the tar.

    They stay with it: where the detector's cache was pruned, another machine might find a face a pixel beside.
    """
    faces = face_detector(spec)
    return (*PACKED, f"regions/{faces.detector_id}") if faces else PACKED


JSON_COLUMNS = ("candidate_id", "source", "source_kind", "page_url", "image_url", "sha256")
INDEX_COLUMNS = ("image_leader", "split", "format", "fetched_at", "text_rank")
"""Columns that go from kept rows to the index as they are; JSON_COLUMNS also into KEY.json."""
PACK_COLUMNS = [*JSON_COLUMNS, "width", "height", "fetch_id", "texts"]
"""Columns of a row that packing needs."""
COLUMNS = [*JSON_COLUMNS, *INDEX_COLUMNS, "width", "height", "order_key", "fetch_id", "texts", "text_leaders"]


def token(build: Build) -> Any:
    """Everything that shapes a shard beside its inputs."""
    options, faces = build.spec.shards, face_detector(build.spec)
    hidden = "" if faces is None else faces.detector_id
    return [SCHEMA_VERSION, options.jpeg_quality, options.max_side, options.reencode, hidden]


def partitions(build: Build) -> list[str]:
    """`train-000000`, ..."""
    return _boundaries.names(build)


def begin(build: Build) -> None:
    """Deletes what another fingerprint wrote, the manifest first."""
    from pipeline.publish import dataset, release

    stage = build.stage("shard")
    if stage.folder.exists(MANIFEST):
        todo = "publish that build, or roll back to a release without it"
        with build.store.lock():
            dataset.withdraw(build, f"{build.out}, whose shards it lists, is being rebuilt; {todo}")
    release.withdraw(stage.folder)
    stage.retire(set(_boundaries.names(build)), _reusable(build))


def run_partition(build: Build, partition: str) -> None:
    """Pack one shard. Raises StageError for an image that is not there or not the one that was measured.

    One that was measured but cannot be stored is a Decision, and in none of the shard's files. A shard of such pictures
    alone has its decisions and no tar.
    """
    cut = _boundaries.read(build, partition)
    stage = build.stage("shard")
    rows = _read_rows(build, cut)
    earlier = _earlier_record(build, partition, rows)
    if earlier and earlier.counts["dropped"]:
        ids = stage.at(earlier.fingerprint).table(earlier, columns=["candidate_id"])["candidate_id"]
        rows = rows.filter(pc.is_in(rows["candidate_id"], ids.combine_chunks()))
    with stage.attempt(partition) as attempt, ThreadPoolExecutor(1) as thread:
        kept = {suffix: earlier.files[suffix] for suffix in packed_files(build.spec)} if earlier else {}
        paths = {
            detector_id: attempt.path(f"regions/{detector_id}", final=f"regions/{detector_id}/{partition}.parquet")
            for detector_id in detector_ids(build.spec)
            if f"regions/{detector_id}" not in kept
        }
        regions = [thread.submit(_write_regions, build, detector_id, rows, path) for detector_id, path in paths.items()]
        stored, counts = (rows, earlier.counts) if earlier else _write_shard(build, partition, rows, attempt)
        for task in regions:
            task.result()
        info = {"split": cut.split, "packing": _packing(build)}
        if not stored.num_rows:  # readers of tars refuse one without a sample
            with stage.attempt(partition) as undecodable:
                decisions = attempt.path(DECISIONS, final=_decisions_of(partition)).read_bytes()
                undecodable.path(DECISIONS, final=_decisions_of(partition)).write_bytes(decisions)
                undecodable.commit({**counts, "bytes": 0}, info)
            return
        if stored.num_rows < rows.num_rows:
            for detector_id, path in paths.items():
                _write_regions(build, detector_id, stored, path)
        attempt.commit(counts, info, kept)
    if earlier:
        stage.at(earlier.fingerprint).delete_record(partition)


def _write_shard(build: Build, partition: str, rows: pa.Table, attempt: Attempt) -> tuple[pa.Table, dict[str, int]]:
    """Write the tar, its index and the decisions of one shard, PACKED; returns its rows and the counts.

    No index where none of the pictures can be stored.
    """
    tar = attempt.path("tar", final=f"{partition}.tar")
    with HashedFile(tar) as file:
        places, reencoded, faults = _pack(build, rows, file)
    attempt.hashed("tar", file.sha256)
    stored, decisions = rows, _kept_decisions(rows)
    if faults:
        mask = np.ones(rows.num_rows, np.bool_)
        mask[list(faults)] = False
        stored = rows.filter(pa.array(mask)).combine_chunks()
        decisions = pa.concat_tables([_kept_decisions(stored), _unreadable_decisions(rows, faults)])
    if stored.num_rows:
        path = attempt.path("parquet", final=f"{partition}.parquet")
        pq.write_table(_index(build, stored, places), path, compression="zstd", row_group_size=1_000)
    path = attempt.path(DECISIONS, final=_decisions_of(partition))
    pq.write_table(decisions, path, compression="zstd")
    counts = {"seen": rows.num_rows, "kept": stored.num_rows, "dropped": len(faults), "reencoded": reencoded}
    return stored, {**counts, "bytes": tar.stat().st_size}


def _decisions_of(partition: str) -> str:
    """Name of the file of a shard's decisions."""
    return f"_decisions/{partition}.parquet"


def _packing(build: Build) -> str:
    """Digest of all that a shard's tar, index and decisions follow from: everything but the regions."""
    pairs = [build.fingerprints[name] for name in (*SURVIVORS, _boundaries.NAME) if name in build.passes]
    value = [STAGE.main.version, pairs, token(build)]
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _earlier_record(build: Build, partition: str, rows: pa.Table) -> Record | None:
    """The record of a shard that only lacks other regions: a second detector rewrites no image.

    A record of other rows is deleted, since the files that it names are written over.
    """
    stage = build.stage("shard")
    for other in stage.of_other_fingerprints():
        if partition in other.partitions():
            record = other.record(partition)
            if record.info.get("packing") == _packing(build) and stage.has_files(record, packed_files(build.spec)):
                packed = other.table(record, DECISIONS, ["id"])["id"].to_pylist()
                if set(packed) == set(rows["candidate_id"].to_pylist()):
                    return record
                other.delete_record(partition)
    return None


def _reusable(build: Build) -> Callable[[Record], Set[str]]:
    """Files of another fingerprint's shard that this build takes over: all but the regions, if it packs alike.

    None of a shard without a sample, which costs nothing to make again.
    """
    packing, suffixes = _packing(build), set(packed_files(build.spec))
    return lambda record: suffixes if record.info.get("packing") == packing and "tar" in record.files else set()


def _read_rows(build: Build, cut: _boundaries.Cut) -> pa.Table:
    columns = COLUMNS if build.spec.pair_score is None else [*COLUMNS, PAIR_SCORE.name]
    tables = []
    for partition, low, high in cut.runs:
        rows = survivors(build, partition, columns)
        tables.append(rows.filter(pc.field("split") == cut.split).slice(low, high - low))
    return pa.concat_tables(tables).combine_chunks()


def _pack(build: Build, rows: pa.Table, file: HashedFile) -> tuple[dict[str, list[int]], int, dict[int, str]]:
    """Write the tar; returns offset and size of each member by column of SHARD_SCHEMA, how many were re-encoded, and
    evidence, by the number of its row, of each picture that was measured but cannot be stored.
    """
    reencoded, kinds, faults = 0, ("image", "text", "json"), dict[int, str]()
    places: dict[str, list[int]] = {f"{kind}_{what}": [] for kind in kinds for what in ("offset", "size")}
    notes = [(places[f"{kind}_offset"].append, places[f"{kind}_size"].append) for kind in kinds]
    options, max_pixels = build.spec.shards, build.spec.fetch.max_pixels
    writer = TarWriter(file)
    pulse.expect(rows.num_rows)
    faces = _face_boxes(build, rows)
    for number, (row, data) in enumerate(_with_images(build, rows.select(PACK_COLUMNS).to_pylist())):
        pulse.advance()
        if faces is not None and faces[number] is None:
            faults[number] = f"faces could not be detected: {row['image_url']}"
            continue
        try:
            hidden = None if faces is None else faces[number]
            image = as_stored(data, options, (row["width"], row["height"]), max_pixels, hidden)
            members = encode_sample(_sample(row, options.max_side), image)
        except OURS:
            raise
        except Exception as e:
            faults[number] = f"was measured but cannot be stored as a JPEG: {evidence(e, row['image_url'])}"
            continue
        reencoded += image is not data
        for (name, member), (at, size) in zip(members, notes, strict=True):
            at(writer.add(name, member))
            size(len(member))
    writer.close()
    return places, reencoded, faults


def _face_boxes(build: Build, rows: pa.Table) -> list[Boxes | None] | None:
    """Boxes [N, 4] of the faces of each row's stored picture, None for one at which the detector could not look; None
    for all where the spec keeps faces as they are.
    """
    detector = face_detector(build.spec)
    if detector is None:
        return None
    found = boxes_of(regions := _region_rows(build, detector.detector_id, rows))
    of_rows = (found[sha256] for sha256 in regions["sha256"].to_pylist())
    return [None if (labels == UNSEEN).any() else boxes for boxes, _, labels in of_rows]


def _with_images(build: Build, rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bytes | memoryview]]:
    """Rows with their image as fetched. Rows are in order of their order key, as `read_images` returns images."""
    images = read_images(build, [row["fetch_id"] for row in rows])
    image = None
    for row in rows:
        if image is None or image.fetch_id != row["fetch_id"]:
            image = next(images, None)
        if image is None or image.fetch_id != row["fetch_id"]:
            raise StageError(row["image_url"], "was measured but is missing from the tars of the fetch stage")
        if hashlib.sha256(image.data).hexdigest() != row["sha256"]:
            raise StageError(row["image_url"], f"its bytes in the fetch stage no longer match sha256 {row['sha256']}")
        yield row, image.data


def _sample(row: dict[str, Any], max_side: int) -> Sample:
    """The Sample that a row of DEDUP_SCHEMA becomes."""
    width, height = stored_sides(row["width"], row["height"], max_side)
    texts = tuple(text_of(text) for text in row["texts"])
    return Sample(**{name: row[name] for name in JSON_COLUMNS}, width=int(width), height=int(height), texts=texts)


def _index(build: Build, rows: pa.Table, places: dict[str, list[int]]) -> pa.Table:
    """The index of a shard, SHARD_SCHEMA, and PAIR_SCORE where the spec asks for scores."""
    width, height = stored_sides(rows["width"].to_numpy(), rows["height"].to_numpy(), build.spec.shards.max_side)
    texts, leaders = rows["texts"].combine_chunks(), rows["text_leaders"].combine_chunks()
    flat = texts.flatten()
    entries = pa.StructArray.from_arrays(
        [flat.field("kind"), flat.field("text"), leaders.flatten()], ["kind", "text", "text_leader"]
    )
    columns = {
        **{name: rows[name] for name in (*JSON_COLUMNS, *INDEX_COLUMNS)},
        **places,
        "key": pc.utf8_slice_codeunits(rows["candidate_id"], 0, KEY_LENGTH),
        "width": width,
        "height": height,
        "texts": pa.ListArray.from_arrays(pc.subtract(texts.offsets, texts.offsets[0]), entries),
    }
    arrays = {field.name: columns[field.name] for field in SHARD_SCHEMA}
    index = pa.table({n: pa.array(c) if isinstance(c, list | np.ndarray) else c for n, c in arrays.items()}).cast(
        SHARD_SCHEMA
    )
    return index if build.spec.pair_score is None else index.append_column(PAIR_SCORE, rows[PAIR_SCORE.name])


def _write_regions(build: Build, detector_id: str, rows: pa.Table, path: Path) -> None:
    pq.write_table(_region_rows(build, detector_id, rows), path, compression="zstd", row_group_size=1_000)


def _region_rows(build: Build, detector_id: str, rows: pa.Table) -> pa.Table:
    """REGION_SCHEMA of one shard, in its order, from detect's files. Raises StageError if a sample lacks an entry."""
    stage, wanted = build.stage("detect"), rows["sha256"].combine_chunks()
    keys, names = rows["order_key"], ["sha256", "boxes", "scores", "labels"]
    is_wanted = pc.field("sha256").isin(wanted)
    detected = pa.concat_tables(
        stage.table(record, f"{detector_id}.parquet", names, is_wanted).select(names)
        for record in records_between(stage, keys[0].as_py(), keys[-1].as_py())
    ).combine_chunks()
    places = pc.index_in(wanted, detected["sha256"].combine_chunks())
    if places.null_count:
        row = rows.slice(pc.index(pc.is_null(places), True).as_py(), 1).to_pylist()[0]
        raise StageError(row["image_url"], f"no entry of detector {detector_id} for {row['sha256']}")
    table = detected.take(places)
    columns = {name: table[name].combine_chunks() for name in names}
    if build.spec.shards.max_side:
        columns["boxes"] = _scale_boxes(columns["boxes"], rows, build.spec.shards.max_side)
    key = pc.utf8_slice_codeunits(rows["candidate_id"], 0, KEY_LENGTH)
    return pa.table({"key": key, **columns}).cast(REGION_SCHEMA)


def _scale_boxes(boxes: pa.ListArray, rows: pa.Table, max_side: int) -> pa.ListArray:
    """Converts boxes from pixels of the fetched pictures to pixels of the stored ones."""
    fetched = rows["width"].to_numpy(), rows["height"].to_numpy()
    counts = boxes.value_lengths().to_numpy(zero_copy_only=False) // 4
    sides = (np.repeat(np.stack(pair, 1), counts, axis=0) for pair in (fetched, stored_sides(*fetched, max_side)))
    scaled = scaled_boxes(boxes.flatten().to_numpy().reshape(-1, 4), *sides)
    offsets = pc.subtract(boxes.offsets, boxes.offsets[0])
    return pa.ListArray.from_arrays(offsets, pa.array(scaled.reshape(-1), pa.float32()))


def _kept_decisions(rows: pa.Table) -> pa.Table:
    """A Decision for each row: kept to the end; the evidence says if its primary text is a fallback."""
    count, better = rows.num_rows, rows["text_rank"]
    fixed = {"subject": "candidate", "stage": "shard", "kept": True, "reason": "", "duplicate_of": ""}
    note = pc.binary_join_element_wise("its text is a fallback; better ones removed:", better.cast(pa.string()), " ")
    first = pc.struct_field(pc.list_element(rows["texts"], 0), "text")
    columns = {
        **{name: pa.repeat(value, count) for name, value in fixed.items()},
        **{name: rows[name] for name in ("fetch_id", "source", "page_url")},
        "evidence": pc.if_else(pc.greater(better, 0), note, ""),
        "id": rows["candidate_id"],
        "url": pc.utf8_slice_codeunits(rows["image_url"], 0, 2000),
        "text": pc.utf8_slice_codeunits(first, 0, 200),
        "reasons": pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), pa.array([], pa.string())),
    }
    return pa.table({name: columns[name] for name in DECISION_SCHEMA.names}).cast(DECISION_SCHEMA)


def _unreadable_decisions(rows: pa.Table, faults: dict[int, str]) -> pa.Table:
    """A Decision for each row whose picture cannot be stored, by its number."""
    decisions = _kept_decisions(rows.take(pa.array(list(faults))).combine_chunks()).to_pylist()
    reason = DropReason.UNREADABLE.value
    dropped = [
        {**row, "kept": False, "reason": reason, "reasons": [reason], "evidence": fault[:300]}
        for row, fault in zip(decisions, faults.values(), strict=True)
    ]
    return pa.Table.from_pylist(dropped, schema=DECISION_SCHEMA)


STAGE = Stage(
    name="shard",
    zh="打包",
    folder="shards",
    passes=(
        _boundaries.PASS,
        Pass(
            name="shard",
            over=partitions,
            reads=(_boundaries.NAME, "fetch", *SURVIVORS, "detect"),
            run=run_partition,
            token=token,
            version=2,
            begin=begin,
            files=(
                PassFile("tar", kind="shards"),
                PassFile("parquet", SHARD_SCHEMA, "key", kind="shards"),
                PassFile("regions/*", REGION_SCHEMA, kind="shards"),
            ),
        ),
    ),
    fixed_names=True,
    expires=False,
)
