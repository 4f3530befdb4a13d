"""Rewrites shards without what is taken down: staged next to the dataset, then moved into place together.

Samples that stay are copied member by member as they are, so that only what is removed changes a tar; a sample that
loses borrowed texts is re-encoded. Shards keep their names, hence the move, which the caller makes while there is no
manifest. Killed while it moves, `staged` still names the shards that wait, and `move_staged` goes on.

Limits: one process, a shard on the local disk.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_specs.shard import decode_sample, encode_sample
from data_specs.storage.whole_files import sha256_of
from pipeline.files.tars import BLOCK, TarWriter, padded
from pipeline.store.build import Build
from pipeline.store.commits import DECISIONS, FileRef, Record
from pipeline.store.partitions import StageDir
from pipeline.takedown.rewrite import Removal, scratch
from pipeline.takedown.rewrite_partitions import borrowed_texts

STAGED = "_forget"
"""Folder in shards/ in which new shards wait."""


def stage_shards(build: Build, removal: Removal) -> list[str]:
    """Rewrite the shards with removed content, next to the dataset; returns their names."""
    borrowed = borrowed_texts(build, removal)
    stage, names = build.stage("shard"), []
    for record in build.packed():
        index = stage.table(record, "parquet")
        stays = pc.invert(removal.mask(index)).to_pylist()
        ids, own = (index[name].to_pylist() for name in ("candidate_id", "texts"))
        texts = [borrowed.remaining_texts(name, its_texts) for name, its_texts in zip(ids, own, strict=True)]
        if not all(stays) or any(stay is not None for stay in texts):
            _stage_shard(stage, record, index, removal, stays, texts)
            names.append(record.partition)
    return names


def _stage_shard(
    stage: StageDir, record: Record, index: pa.Table, removal: Removal, stays: list[bool], texts: list[list[int] | None]
) -> None:
    place = stage.folder / STAGED / record.partition
    files, counts = dict(record.files), dict(record.counts)
    with scratch(stage) as path:
        with stage.file(record, "tar") as source:
            rows = _repack(source, path("tar"), index, stays, texts)
        _write(path("parquet"), pa.Table.from_pylist(rows, schema=index.schema))
        mask = pa.array(stays)
        for suffix in record.files:
            if suffix.startswith("regions/"):
                _write(path(suffix), stage.table(record, suffix).filter(mask))
        decisions = removal.blanked(stage.table(record, DECISIONS))
        if decisions is not None:
            _write(path(DECISIONS), decisions)
        removed = [] if rows else [files.pop(suffix).name for suffix in record.files if suffix != DECISIONS]
        for suffix in [suffix for suffix in files if path(suffix).exists()]:
            local, name = path(suffix), files[suffix].name
            files[suffix] = FileRef(name=name, bytes=local.stat().st_size, sha256=sha256_of(local))
            place.take(local, name)
    counts |= {"kept": len(rows), "dropped": counts["seen"] - len(rows), "bytes": files["tar"].bytes if rows else 0}
    new = _not_taken_over(record).model_copy(update={"files": files, "counts": counts})
    value = {"record": new.model_dump(mode="json"), "removed": removed}
    (stage.folder / STAGED).write_json(f"{record.partition}.json", value)


def _not_taken_over(record: Record) -> Record:
    """The same, of a shard that a spec with other detectors packs again.

    Behind a sample that is removed all rows move up, so that the shard of this name begins and ends elsewhere.
    """
    return record.model_copy(update={"info": {k: v for k, v in record.info.items() if k != "packing"}})


def _write(path: Path, table: pa.Table) -> None:
    """Write a Parquet file as the stage `shard` does."""
    pq.write_table(table, path, compression="zstd", row_group_size=1_000)


def _repack(
    source: Path, target: Path, index: pa.Table, stays: list[bool], texts: list[list[int] | None]
) -> list[dict[str, Any]]:
    """Copy a tar's samples that stay, member by member as they are; returns their rows with the new offsets."""
    rows = []
    with source.open("rb") as f, target.open("wb") as out:
        writer = TarWriter(out)
        for row, stays_here, stay in zip(index.to_pylist(), stays, texts, strict=True):
            if not stays_here:
                continue
            if stay is None:
                start, end = row["image_offset"] - BLOCK, row["json_offset"] + row["json_size"]
                f.seek(start)
                shift = writer.copy(f.read(padded(end) - start)) - start
                for what in ("image", "text", "json"):
                    row[f"{what}_offset"] += shift
            else:
                _mended(f, writer, row, stay)
            rows.append(row)
        writer.close()
    return rows


def _mended(f: Any, writer: TarWriter, row: dict[str, Any], stay: list[int]) -> None:
    """One sample with fewer texts; its row is changed accordingly."""
    f.seek(row["image_offset"])
    image = f.read(row["image_size"])
    f.seek(row["json_offset"])
    sample = decode_sample(f.read(row["json_size"]), row["key"])
    row["texts"] = [row["texts"][i] for i in stay]
    members = encode_sample(replace(sample, texts=tuple(sample.texts[i] for i in stay)), image)
    for (name, data), what in zip(members, ("image", "text", "json"), strict=True):
        row[f"{what}_offset"], row[f"{what}_size"] = writer.add(name, data), len(data)


def staged(build: Build) -> list[str]:
    """Shards that wait to be moved into place."""
    names = (build.shards / STAGED).names() if "shard" in build.fingerprints else []
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


def sweep_scratch(build: Build) -> None:
    """Delete what killed attempts left beside shards and report: it may hold what is taken down, and is never read.

    In the folders of other stages `StageDir.sweep` does that.
    """
    for stage in build.stages.values():
        folder = build.folder / stage.folder
        for name in folder.names() if stage.fixed_names else ():
            if name.startswith(".tmp-"):
                folder.delete(name)


def move_staged(build: Build) -> None:
    """Move new shards into place and commit them. The caller has removed the manifest."""
    if "shard" not in build.fingerprints:
        return
    stage = build.stage("shard")
    place = stage.folder / STAGED
    for record in stage.records():
        if "packing" in record.info:
            stage.write_record(_not_taken_over(record))
    for partition in staged(build):
        waiting = place.read_json(f"{partition}.json")
        record = Record.model_validate(waiting["record"])
        for ref in record.files.values():
            if place.exists(f"{partition}/{ref.name}"):
                stage.folder.move(f"{STAGED}/{partition}/{ref.name}", ref.name)
        for name in waiting["removed"]:
            stage.folder.delete(name)
        stage.write_record(record)
        place.delete(f"{partition}.json")
    stage.compact_again()
    stage.folder.delete(STAGED)
