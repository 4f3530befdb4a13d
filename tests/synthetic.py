"""A small build folder, made by hand through the store's face: records, tars and tables of all stages up to detect.

What the stages would leave for a web site and a table with pictures of mixed formats, and candidates that were dropped
at every stage. It is written without the stages, so that shard, report and publish are tested on their own, and the
truth (`FATES`, `formats`) is known beforehand.
"""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_specs.build import BuildSpec
from data_specs.shard import REGION_SCHEMA, SPLITS, Text
from pipeline.detectors import detectors_of
from pipeline.features._rows import measure_image
from pipeline.pictures import decode as pictures
from pipeline.rows.decisions import Decision, DropReason, drop
from pipeline.rows.records import (
    DEDUP_SCHEMA,
    FEATURE_SCHEMA,
    FETCH_SCHEMA,
    PAIR_SCHEMA,
    Candidate,
    candidate_rows,
    order_key,
    order_range,
    sha256_hex,
)
from pipeline.stages import STAGES
from pipeline.store import build_json
from pipeline.store.build import Build, passes_of
from pipeline.store.commits import ROWS_DIGEST, rows_digest
from pipeline.store.identities import DETAILS, IMAGE_SCHEMA, PLACEHOLDER_SCHEMA, SIGNATURES, TEXT_SCHEMA
from pipeline.store.store import Store

FORMATS = ("jpeg", "grey jpeg", "cmyk jpeg", "rotated jpeg", "png", "alpha png", "palette png", "gif", "webp", "bmp")
"""Formats of the kept pictures, in turn."""

FATES: dict[str, dict[str, int]] = {
    "extract": {"data_uri": 3, "no_text": 2},
    "admit": {"text_too_short": 4, "boilerplate": 2, "forgotten": 1},
    "fetch": {"http_status": 2, "opt_out": 1},
    "measure": {"corrupt_image": 1},
    "filter": {"image_too_small": 3},
    "dedup": {"same_image": 3, "near_image": 2},
    "detect": {},
}
"""How many candidates are dropped, by stage and reason."""

KEPT = 30
PARTITIONS = 2
WORDS = ("红色的花", "海边的日落", "一只小猫在睡觉", "番茄炒蛋的做法", "北京故宫的角楼", "山上的雪和云", "老式蒸汽火车")


@dataclass(frozen=True)
class Item:
    """One candidate, its bytes (b"" if never fetched), and where it ends: (stage, reason), ("shard", "") if kept."""

    candidate: Candidate
    data: bytes
    stage: str
    reason: str
    leader: str = ""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def encode(format: str, seed: int, size: tuple[int, int]) -> bytes:
    """A picture with a recognisable pattern in one of FORMATS."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse, "RGB").resize(size, Image.Resampling.BICUBIC)
    out, options = io.BytesIO(), dict[str, Any]()
    kind = {"rotated jpeg": "jpeg"}.get(format, format.split()[-1])
    if format == "grey jpeg":
        image = image.convert("L")
    elif format == "cmyk jpeg":
        image = image.convert("CMYK")
    elif format == "rotated jpeg":
        exif = Image.Exif()
        exif[274] = 6
        options["exif"] = exif.tobytes()
    elif format == "alpha png":
        image.putalpha(Image.linear_gradient("L").resize(size))
    elif format == "palette png":
        image = image.quantize(64)
    elif format == "gif":
        options |= {"save_all": True, "append_images": [image.rotate(180)], "duration": 100}
    image.save(out, kind, **options)
    return out.getvalue()


def spec(**options: Any) -> BuildSpec:
    """The spec of the synthetic build."""
    return BuildSpec.model_validate(
        {
            "name": "synthetic",
            "description": "Made by a test.",
            "licence": "public domain",
            "contact": "owner@example.org",
            "sources": [
                {"kind": "site", "name": "pages", "source_kind": "news", "start": ["https://pages.example/"]},
                {
                    "kind": "url_table",
                    "name": "table",
                    "source_kind": "library",
                    "path": "table.csv",
                    "columns": {"texts": {"caption": "text"}},
                },
            ],
            "shards": {"samples_per_shard": 8, "dev_share": 0.1, "val_share": 0.1},
            "filters": [{"name": "text_length", "min_chars": 2}],
            **options,
        }
    )


@functools.cache
def items() -> tuple[Item, ...]:
    """All candidates of the build with their fates."""
    items = []
    for i in range(KEPT):
        data = encode(FORMATS[i % len(FORMATS)], i, (160 + 7 * i, 120 + 5 * (i % 9)))
        items.append(Item(_candidate(i), data, "shard", ""))
    number = KEPT
    for stage, reasons in FATES.items():
        for reason, count in reasons.items():
            for _ in range(count):
                data, leader = b"", ""
                if stage == "measure":
                    data = items[0].data[:200]
                elif stage == "filter":
                    data = encode("png", number, (20, 20))
                elif stage == "dedup":
                    data = items[0].data if reason == "same_image" else encode("jpeg", 1, (150, 110))
                    leader = items[0 if reason == "same_image" else 1].candidate.candidate_id
                items.append(Item(_candidate(number), data, stage, reason, leader))
                number += 1
    return tuple(items)


def _candidate(i: int) -> Candidate:
    table = i % 3 == 0
    page = "" if table else f"https://www.pages.example/{i // 4}.html"
    texts = (Text("caption", f"{WORDS[i % len(WORDS)]}，第{i}幅"), Text("alt", f"图{i}"))
    return Candidate(
        source="table" if table else "pages",
        source_kind="library" if table else "news",
        origin=str(i) if table else page,
        page_url=page,
        image_url=f"https://img{i % 2}.example/{i}",
        texts=texts[: 1 + i % 2],
        row=i,
    )


def make(
    folder: Path, *, out: str = "build", snapshot: str = "2024-01-01", part: tuple[int, int] = (0, 1), **options: Any
) -> tuple[Build, tuple[Item, ...]]:
    """Write the build below `folder`; everything up to detect is committed. part: (i, n), every n-th candidate."""
    own = spec(**options)
    build = Build(
        stages=STAGES,
        spec=own,
        out=str(folder / out),
        store=Store(str(folder / "store")),
        build_id=f"synthetic-{snapshot}-00000000",
        snapshot=snapshot,
        fingerprints={
            name: hashlib.sha256(f"{name} {options}".encode()).hexdigest() for name in passes_of(STAGES, own)
        },
    )
    everything = tuple(item for item in items() if item.candidate.row % part[1] == part[0])
    with build.stage("crawl").attempt("pages") as attempt:
        attempt.decide([_lost_page(i) for i in range(2)])
        attempt.commit({"seen": 12, "kept": 10, "dropped": 2})
    entered = list(everything)
    for stage in FATES:
        remaining = [item for item in entered if item.stage != stage]
        for partition in _ranges():
            here = [item for item in entered if _within(item, partition)]
            _write(build, stage, partition, here)
        entered = remaining
    _lead(build, entered)
    build_json.note(build)
    return build, everything


def _lost_page(i: int) -> Decision:
    url = f"https://www.pages.example/lost{i}.html"
    return Decision("capture", sha256_hex(url), "", "pages", url, url, "crawl", False, "http_status", ("http_status",))


def _ranges() -> list[str]:
    return [f"{i:05d}-of-{PARTITIONS:05d}" for i in range(PARTITIONS)]


def _within(item: Item, partition: str) -> bool:
    low, high = order_range(int(partition[:5]), PARTITIONS)
    return low <= order_key(item.candidate.fetch_id, 0) < high


def _write(build: Build, stage: str, partition: str, entered: list[Item]) -> None:
    kept = [item for item in entered if item.stage != stage]
    counts, info = dict[str, int](), dict[str, Any]()
    with build.stage(stage).attempt(partition) as attempt:
        attempt.decide([_drop(item) for item in entered if item.stage == stage])
        if stage in ("extract", "admit"):
            attempt.write_table("parquet", candidate_rows([item.candidate for item in kept], build.spec.seed))
        elif stage == "fetch":
            attempt.write_table("parquet", _fetch(attempt.path("tar"), entered))
        elif stage == "measure":
            rows = {item.sha256: _features(item) for item in kept}
            attempt.write_table("parquet", pa.Table.from_pylist(list(rows.values()), schema=FEATURE_SCHEMA))
        elif stage == "filter":
            attempt.write_table("parquet", _dedup(kept, build.spec.seed).select(PAIR_SCHEMA.names))
        elif stage == "dedup":
            rows = _dedup(kept, build.spec.seed)
            pq.write_table(rows, attempt.path("parquet"), row_group_size=5)
            counts = {split: sum(split_of(item) == split for item in kept) for split in SPLITS}
            info = {ROWS_DIGEST: rows_digest(rows["candidate_id"].to_pylist())}
        elif stage == "detect":
            for detector in detectors_of(build.spec):
                attempt.write_table(f"{detector.detector_id}.parquet", _regions(kept))
        attempt.commit({"seen": len(entered), "kept": len(kept), "dropped": len(entered) - len(kept), **counts}, info)


def _lead(build: Build, kept: list[Item]) -> None:
    """What `publish` hands to STORE."""
    rows = [
        {
            "candidate_id": bytes.fromhex(item.candidate.candidate_id),
            "fetch_id": bytes.fromhex(item.candidate.fetch_id),
            "sha256": bytes.fromhex(item.sha256),
            "split": split_of(item),
        }
        for item in kept
    ]
    looks = [_features(item)["signature"] for item in kept]
    with build.stage("dedup.leaders").attempt("all") as attempt:
        attempt.write_table("images.parquet", pa.Table.from_pylist(rows, schema=IMAGE_SCHEMA))
        attempt.path(SIGNATURES).write_bytes(b"".join(looks))
        attempt.path(DETAILS).write_bytes(b"")
        attempt.write_table("texts.parquet", TEXT_SCHEMA.empty_table())
        attempt.write_table("placeholders.parquet", PLACEHOLDER_SCHEMA.empty_table())
        attempt.commit({"pairs": len(kept)}, {"features": "as made", "sketch": "as made"})


def _drop(item: Item) -> Decision:
    reason = DropReason(item.reason)
    return drop(item.candidate, item.stage, reason, f"{reason.value}, as made", duplicate_of=item.leader)


def _fetch(tar: Path, entered: list[Item]) -> pa.Table:
    """Write the tar by the standard library; offsets are read back from it."""
    got = {item.candidate.fetch_id: item for item in entered if item.data}
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as file:
        for fetch_id, item in sorted(got.items()):
            member = tarfile.TarInfo(fetch_id)
            member.size = len(item.data)
            file.addfile(member, io.BytesIO(item.data))
    with tarfile.open(tar) as file:
        offsets = {member.name: member.offset_data for member in file}
    rows = []
    for item in entered:
        ok = item.candidate.fetch_id in got
        rows.append(
            {
                "fetch_id": item.candidate.fetch_id,
                "image_url": item.candidate.image_url,
                "ok": ok,
                "reason": "" if ok else item.reason,
                "evidence": "",
                "sha256": item.sha256 if ok else "",
                "offset": offsets.get(item.candidate.fetch_id, -1),
                "size": len(item.data) if ok else 0,
                "fetched_at": "2024-01-01T00:00:00Z",
                "etag": "",
                "retry_after": "",
            }
        )
    return pa.Table.from_pylist(rows, schema=FETCH_SCHEMA)


def split_of(item: Item) -> str:
    """Split of a kept item: one in five to dev, one in five to val."""
    return {0: "dev", 1: "val"}.get(item.candidate.row % 5, "train")


@functools.cache
def _looks(data: bytes) -> dict[str, Any]:
    return measure_image(data, 10_000_000)


def _features(item: Item) -> dict[str, Any]:
    return {"sha256": item.sha256, **_looks(item.data)}


def _dedup(kept: list[Item], seed: int) -> pa.Table:
    rows = []
    by_id = {item.candidate.candidate_id: item for item in kept}
    for row in candidate_rows([item.candidate for item in kept], seed).to_pylist():
        item = by_id[row["candidate_id"]]
        leaders = [sha256_hex(text["text"]) for text in row["texts"]]
        more = {"fetched_at": "2024-01-01T00:00:00Z", "text_leaders": leaders, "image_leader": item.sha256}
        rows.append({**row, **_features(item), **more, "split": split_of(item)})
    return pa.Table.from_pylist(rows, schema=DEDUP_SCHEMA)


def _regions(kept: list[Item]) -> pa.Table:
    rows = []
    for item in kept:
        header = pictures.header(item.data)
        half = [0.0, 0.0, header.width / 2, header.height / 2]
        rest = [header.width / 2, header.height / 2, float(header.width), float(header.height)]
        boxes = [*half, *rest][: 8 if item.candidate.row % 4 else 4]
        scores = [0.9, 0.5][: len(boxes) // 4]
        rows.append({"sha256": item.sha256, "boxes": boxes, "scores": scores, "labels": [0] * len(scores)})
    schema = pa.schema([field for field in REGION_SCHEMA if field.name != "key"])
    return pa.Table.from_pylist(rows, schema=schema)


def expected_funnel() -> Counter[tuple[str, str]]:
    """(stage, reason) -> count of all candidates, kept ones under ("shard", "")."""
    counts = Counter({(stage, reason): n for stage, reasons in FATES.items() for reason, n in reasons.items()})
    counts["shard", ""] = KEPT
    return counts
