"""A build of any size for the benchmarks, written through the store's face up to detect, as the stages would leave it.

Pictures are JPEGs of noise that differ in a comment segment, so that every one has bytes of its own and costs the same
to decode. Where only the report looks (`shared=True`), all candidates share a few of them.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from data_specs.build import BuildSpec
from data_specs.shard import SPLITS
from pipeline.detectors import detectors_of
from pipeline.files.tars import TarWriter
from pipeline.rows.decisions import DECISION_SCHEMA
from pipeline.rows.records import (
    BOX_SCHEMA,
    DEDUP_SCHEMA,
    FEATURE_SCHEMA,
    FETCH_SCHEMA,
    WITH_REMOVED_SCHEMA,
    order_key,
    order_range,
    sha256_hex,
    split_of,
)
from pipeline.stages import STAGES
from pipeline.store.build import Build, passes_of
from pipeline.store.commits import ROWS_DIGEST, rows_digest
from pipeline.store.identities import DETAILS, IMAGE_SCHEMA, PLACEHOLDER_SCHEMA, SIGNATURES, TEXT_SCHEMA
from pipeline.store.store import Store
from tests.stages import run_stage

DROPS = (("extract", "no_text"), ("admit", "text_too_short"), ("admit", "boilerplate"), ("fetch", "http_status"),
         ("filter", "image_too_small"), ("dedup", "near_image"))  # fmt: skip
CANDIDATES = ("extract", "admit")
"""The stages that write candidates."""
WORDS = re.findall("..", "故宫雪景高清图片北京城市夜景小猫睡觉草原骏马番茄炒蛋做法清晨阳光古镇江南水乡火车")


def begun(folder: Path, **options: Any) -> Build:
    """The build, with nothing written; `options` go into its spec."""
    columns = {"image_url": "u", "texts": {"alt": "t"}}
    table = {"kind": "url_table", "source_kind": "library", "path": "t.csv", "columns": columns}
    sources = [{**table, "name": f"s{i}"} for i in range(3)]
    raw = {"name": "bench", "contact": "bench@example.org", "sources": sources, **options}
    spec = BuildSpec.model_validate(raw)
    return Build(
        stages=STAGES,
        spec=spec,
        out=str(folder / "build"),
        store=Store(str(folder / "store")),
        build_id="bench-1",
        snapshot="2026-01-01",
        fingerprints={name: hashlib.sha256(name.encode()).hexdigest() for name in passes_of(STAGES, spec)},
    )


def made(
    folder: Path,
    candidates: int,
    kept_share: float,
    per_partition: int,
    jpegs: list[bytes],
    shared: bool,
    **options: Any,
) -> Build:
    """Write the build; `candidates` in all, of which about `kept_share` are kept."""
    build = begun(folder, **options)
    parts = -(-candidates // per_partition)
    everything = sorted((order_key(sha256_hex(_url(i)), 0), i) for i in range(candidates))
    bounds = [order_range(part, parts)[1] for part in range(parts)]
    start = 0
    for part, high in enumerate(bounds):
        end = start
        while end < len(everything) and everything[end][0] < high:
            end += 1
        _partition(build, f"{part:05d}-of-{parts:05d}", everything[start:end], kept_share, jpegs, shared)
        start = end
    with build.stage("dedup.leaders").attempt("all") as attempt:
        attempt.write_table("images.parquet", IMAGE_SCHEMA.empty_table())
        attempt.path(SIGNATURES).write_bytes(b"")
        attempt.path(DETAILS).write_bytes(b"")
        attempt.write_table("texts.parquet", TEXT_SCHEMA.empty_table())
        attempt.write_table("placeholders.parquet", PLACEHOLDER_SCHEMA.empty_table())
        attempt.commit({}, {"features": "", "sketch": ""})
    return build


def noise(count: int, side: int, quality: int, seed: int = 0) -> list[bytes]:
    """JPEGs that compress badly: about 120 kB each at 330 pixels and quality 90."""
    dice = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        out = io.BytesIO()
        coarse = Image.fromarray(dice.integers(0, 256, (side // 2, side // 2, 3), dtype=np.uint8))
        coarse.resize((side, side)).save(out, "JPEG", quality=quality)
        found.append(out.getvalue())
    return found


def _url(i: int) -> str:
    return f"https://img{i % 37}.host{i % 11}.example/{i}.jpg"


def _own(jpeg: bytes, i: int) -> bytes:
    """The JPEG with a comment that no other has."""
    note = f"{i:020d}".encode()
    return jpeg[:2] + b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note + jpeg[2:]


def _partition(
    build: Build, name: str, here: list[tuple[str, int]], kept_share: float, jpegs: list[bytes], shared: bool
) -> None:
    side = Image.open(io.BytesIO(jpegs[0])).size[0]
    rows, fetched, kept, drops = [], [], [], dict[str, list[dict[str, Any]]]()
    measured: dict[str, dict[str, Any]] = {}
    with build.stage("fetch").attempt(name) as attempt:
        with attempt.path("tar").open("wb") as file:
            tar = TarWriter(file)
            places = [_place(tar, str(n), jpeg) for n, jpeg in enumerate(jpegs)] if shared else []
            for key, i in here:
                dice = random.Random(i)
                fate = None if dice.random() < kept_share else DROPS[dice.randrange(len(DROPS))]
                row = _candidate(i, key, dice)
                rows.append(row)
                if fate is not None:
                    drops.setdefault(fate[0], []).append(_drop(row, *fate))
                if fate is not None and fate[0] in ("extract", "admit"):
                    continue
                ok = fate is None or fate[0] != "fetch"
                if shared:
                    offset, sha256, size = places[i % len(places)]
                else:
                    offset, sha256, size = _place(tar, row["fetch_id"], _own(jpegs[i % len(jpegs)], i))
                fetched.append(
                    {"fetch_id": row["fetch_id"], "image_url": row["image_url"], "ok": ok, "evidence": "",
                     "reason": fate[1] if fate and not ok else "", "sha256": sha256 if ok else "",
                     "offset": offset if ok else -1, "size": size,
                     "fetched_at": "2026-01-01T00:00:00Z", "etag": "", "retry_after": ""}
                )  # fmt: skip
                if ok:
                    measured[sha256] = _features(sha256, side, size)
                if fate is None:
                    kept.append({**row, **measured[sha256]})
            tar.close()
        attempt.write_table("parquet", pa.Table.from_pylist(fetched, schema=FETCH_SCHEMA))
        _decide(attempt, drops.get("fetch", []))
        attempt.commit(_counts(here, drops, "fetch"))
    for stage in ("extract", "admit", "measure", "filter"):
        with build.stage(stage).attempt(name) as attempt:
            if stage == "measure":
                attempt.write_table("parquet", pa.Table.from_pylist(list(measured.values()), schema=FEATURE_SCHEMA))
            if stage in CANDIDATES:
                gone = {row["id"] for own in CANDIDATES[: CANDIDATES.index(stage) + 1] for row in drops.get(own, [])}
                left = [{**row, "removed": []} for row in rows if row["candidate_id"] not in gone]
                attempt.write_table("parquet", pa.Table.from_pylist(left, schema=WITH_REMOVED_SCHEMA))
            _decide(attempt, drops.get(stage, []))
            attempt.commit(_counts(here, drops, stage))
    splits = Counter(row["split"] for row in kept)
    with build.stage("dedup").attempt(name) as attempt:
        attempt.write_table("parquet", pa.Table.from_pylist(kept, schema=DEDUP_SCHEMA), row_group_size=1_000)
        _decide(attempt, drops.get("dedup", []))
        counts = {**_counts(here, drops, "dedup"), **{split: splits[split] for split in SPLITS}}
        attempt.commit(counts, {ROWS_DIGEST: rows_digest(row["candidate_id"] for row in kept)})
    with build.stage("detect").attempt(name) as attempt:
        seen = dict.fromkeys(row["sha256"] for row in kept)
        boxes = [[0.0, 0.0, side / 2, side / 2, side / 2, side / 2, float(side), float(side)]] * len(seen)
        table = {
            "sha256": list(seen),
            "boxes": boxes,
            "scores": [[0.9, 0.5]] * len(seen),
            "labels": [[0, 0]] * len(seen),
        }
        for detector in detectors_of(build.spec):
            attempt.write_table(f"{detector.detector_id}.parquet", pa.table(table, schema=BOX_SCHEMA))
        attempt.commit({"seen": len(kept), "kept": len(kept), "dropped": 0, "images": len(seen), "cached": 0})


def _place(tar: TarWriter, name: str, data: bytes) -> tuple[int, str, int]:
    return tar.add(name, data), hashlib.sha256(data).hexdigest(), len(data)


def _counts(here: list[Any], drops: dict[str, list[Any]], stage: str) -> dict[str, int]:
    order = ["extract", "admit", "fetch", "measure", "filter", "dedup"]
    before = sum(len(drops.get(name, ())) for name in order[: order.index(stage)])
    seen, dropped = len(here) - before, len(drops.get(stage, ()))
    return {"seen": seen, "kept": seen - dropped, "dropped": dropped}


def _decide(attempt: Any, rows: list[dict[str, Any]]) -> None:
    if rows:
        attempt.decide(pa.Table.from_pylist(rows, schema=DECISION_SCHEMA))


def _candidate(i: int, key: str, dice: random.Random) -> dict[str, Any]:
    url, page = _url(i), f"https://page.host{i % 11}.example/{i // 5}.html"
    text = "".join(dice.choices(WORDS, k=dice.randint(2, 8))) + f"第{i}幅"
    source = f"s{i % 3}"
    return {
        "order_key": key, "candidate_id": sha256_hex(source, str(i), url), "fetch_id": sha256_hex(url),
        "source": source, "source_kind": "library", "origin": str(i), "page_url": page, "image_url": url,
        "texts": [{"kind": "alt", "text": text, "original": ""}], "row": i,
        "text_rank": 0, "text_leaders": [sha256_hex(text)], "fetched_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip


def _features(sha256: str, side: int, size: int) -> dict[str, Any]:
    return {
        "sha256": sha256, "format": "jpeg", "width": side, "height": side, "bytes": size, "frames": 1, "alpha": False,
        "orientation": 1, "blankness": 0.1, "phash": [1], "signature": b"\0", "entropy": 5.0, "sharpness": 9.0,
        "image_leader": sha256, "split": split_of(sha256, 0, 0.01, 0.01),
    }  # fmt: skip


def _drop(row: dict[str, Any], stage: str, reason: str) -> dict[str, Any]:
    return {
        "subject": "candidate", "id": row["candidate_id"], "fetch_id": row["fetch_id"], "source": row["source"],
        "page_url": row["page_url"], "url": row["image_url"], "stage": stage, "kept": False, "reason": reason,
        "reasons": [reason], "evidence": "as made", "text": row["texts"][0]["text"],
        "duplicate_of": sha256_hex(f"leader {row['row'] % 997}") if stage == "dedup" else "",
    }  # fmt: skip


def packed(build: Build) -> None:
    """Pack all shards, in this process."""
    run_stage(build, "shard")


def samples(build: Build) -> Iterator[tuple[str, bytes, bytes, bytes]]:
    """(key, JPEG, text, JSON) of every sample as the tars hold them."""
    import pyarrow.parquet as pq

    for tar in sorted((Path(build.out) / "shards").glob("*.tar")):
        data = tar.read_bytes()
        for row in pq.read_table(tar.with_suffix(".parquet")).to_pylist():
            parts = [
                data[row[f"{w}_offset"] : row[f"{w}_offset"] + row[f"{w}_size"]] for w in ("image", "text", "json")
            ]
            image, text, record = parts
            yield row["key"], image, text, record
