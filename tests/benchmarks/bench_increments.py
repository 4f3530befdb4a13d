"""Dedup across builds: 50,000 pairs and five increments of 10,000, against one build over all 100,000.

The whole of dedup (all its passes and the identities that publish leaves), from filter's Parquet to its
own, each build in a fresh folder, all increments in one STORE. No pixels: hashes, signatures and captions are drawn by
a seed, with copies of a fifth of the images within and across increments, a caption under a tenth of all pairs and
captions that differ in a character. Every increment holds smaller images than the one before, so the one build over all
ranks the pairs in the same order; then both must keep the same pairs, with the same splits and text leaders.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_specs.build import BuildSpec
from pipeline.matching.sketches import mixed
from pipeline.pictures.hashing import HASHES
from pipeline.pictures.signatures import GRIDS, SIZE
from pipeline.rows.records import order_key, order_range
from pipeline.stages import STAGES
from pipeline.store.build import Build, passes_of
from pipeline.store.identities import Identities
from pipeline.store.store import Store
from tests.benchmarks.harness import at_least, at_most, quick, report, told
from tests.filtered import MEASURED_SCHEMA, commit
from tests.stages import run_stage

PER_PARTITION = 10_000
SHARED = 20_000
"""Kinds of images of which copies are drawn in every increment."""


def pairs(seed: int, first: int, count: int, side: int) -> pa.Table:
    """MEASURED_SCHEMA rows number first to first + count, of images at least `side` pixels wide."""
    rng = np.random.default_rng([seed, first])
    number = np.arange(first, first + count)
    kind = np.where(rng.random(count) < 0.2, rng.integers(0, SHARED, count), SHARED + number)
    changed = (rng.random(count) < 0.7) | (kind >= SHARED)  # else the very same bytes
    phash, signature = _looks(seed, kind)
    phash ^= np.where(changed[:, None], np.uint64(1) << rng.integers(0, 64, phash.shape, dtype=np.uint64), np.uint64(0))
    sides = side + (rng.integers(0, 100, count) if side else np.zeros(count, np.int64))
    sha256 = [_hash(f"{k} {n if c else ''}") for k, n, c in zip(kind, number, changed, strict=True)]
    return measured(first, captions(rng, count), sides, phash, signature, sha256)


def measured(first: int, texts: list[str], sides: Any, phash: Any, signature: Any, sha256: list[str]) -> pa.Table:
    """MEASURED_SCHEMA rows from number `first` on, by their texts, sides, hashes [N, hashes], signatures [N, bytes]."""
    count = len(texts)
    number = range(first, first + count)
    names = [f"http://img{n % 50}.test/{n}" for n in number]
    fetch_ids = [_hash(name) for name in names]
    columns: dict[str, Any] = {
        "order_key": [order_key(name, 0) for name in fetch_ids],
        "candidate_id": [_hash(f"candidate {name}") for name in names],
        "fetch_id": fetch_ids,
        "source": ["table"] * count,
        "source_kind": ["library"] * count,
        "origin": names,
        "page_url": [f"http://site{n % 500}.test/{n}" for n in number],
        "image_url": names,
        "texts": [[{"kind": "caption", "text": text}] for text in texts],
        "row": list(number),
        "text_rank": [0] * count,
        "shown": ["alone"] * count,
        "pixels": [int(name[:16], 16) for name in fetch_ids],
        "sha256": sha256,
        "format": ["jpeg"] * count,
        "width": sides,
        "height": sides,
        "phash": list(phash),
        "signature": [own.tobytes() for own in signature],
        "fetched_at": ["2026-01-01T00:00:00Z"] * count,
    }
    arrays = [
        pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(count, f.type) for f in MEASURED_SCHEMA
    ]
    return pa.table(arrays, schema=MEASURED_SCHEMA)


def captions(rng: np.random.Generator, count: int) -> list[str]:
    """Of 4 to 30 characters; a tenth is one caption, a tenth near copies of 500 others."""
    hot = "这家餐厅的红烧肉味道非常好值得推荐"
    stock = ["".join(map(chr, 0x4E00 + np.random.default_rng(n).integers(0, 3000, 20))) for n in range(500)]
    found = []
    for share, length in zip(rng.random(count).tolist(), rng.integers(4, 31, count).tolist(), strict=True):
        if share < 0.1:
            found.append(hot)
        elif share < 0.2:
            text = stock[int(rng.integers(500))]
            at = int(rng.integers(20))
            found.append(text[:at] + chr(0x4E00 + int(rng.integers(3000))) + text[at + 1 :])
        else:
            found.append("".join(map(chr, (0x4E00 + rng.integers(0, 3000, length)).tolist())))
    return found


def _looks(seed: int, kind: Any) -> tuple[Any, Any]:
    """Hashes [N, hashes] and signatures [N, bytes] of kinds of images."""
    with np.errstate(over="ignore"):
        numbers = kind.astype(np.uint64)[:, None] * np.uint64(HASHES + 1) + np.arange(1, HASHES + 1, dtype=np.uint64)
        phash = mixed(mixed(numbers + np.uint64(seed << 40)))
    table = np.random.default_rng(seed).integers(0, 256, (4096, GRIDS * SIZE), dtype=np.uint8)
    return phash, table[kind % 4096]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def build_of(folder: Path, store: Path, snapshot: str) -> Build:
    """A build that knows what the builds before it left in STORE."""
    source = {"kind": "url_table", "name": "table", "source_kind": "library"}
    spec = BuildSpec.model_validate({"name": "bench", "contact": "mailto:a@b.c", "sources": [source]})
    build = Build(
        stages=STAGES,
        spec=spec,
        out=str(folder / snapshot),
        store=Store(str(store)),
        build_id=f"bench-{snapshot}",
        snapshot=snapshot,
        fingerprints=dict.fromkeys(passes_of(STAGES, spec), "f" * 64),
    )
    return replace(build, identities=Identities(build.store).before(build))


def filtered(folder: Path, store: Path, snapshot: str, tables: list[pa.Table]) -> Build:
    """A build whose stages measure and filter hold the tables' rows (MEASURED_SCHEMA)."""
    build = build_of(folder, store, snapshot)
    rows = pa.concat_tables(tables).sort_by([("order_key", "ascending"), ("candidate_id", "ascending")])
    parts = max(1, rows.num_rows // PER_PARTITION)
    keys = np.array(rows["order_key"].to_pylist())
    for part in range(parts):
        low, high = np.searchsorted(keys, order_range(part, parts))
        commit(build, f"{part:05d}-of-{parts:05d}", rows.slice(low, high - low))
    return build


def run(build: Build) -> tuple[float, float]:
    """(seconds, CPU seconds of all threads) that dedup and the publishing of identities take."""
    started, cpu = time.perf_counter(), time.process_time()
    run_stage(build, "dedup")
    with build.store.lock():
        Identities(build.store).publish(build)
    return time.perf_counter() - started, time.process_time() - cpu


def kept(build: Build) -> set[tuple[str, ...]]:
    """(candidate, image leader, split, leader of the primary text) of what a build kept."""
    stage = build.stage("dedup")
    names = ["candidate_id", "image_leader", "split", "text_leaders"]
    tables = [stage.table(record, columns=names) for record in stage.records()]
    rows = [row for table in tables for row in table.to_pylist()]
    return {(r["candidate_id"], r["image_leader"], r["split"], r["text_leaders"][0]) for r in rows}


def main() -> int:
    small = quick(__doc__)
    scale, rounds = (2, 2) if small else (1, 3)
    sizes = [50_000 // scale, *[10_000 // scale] * 5]
    starts = np.cumsum([0, *sizes])
    tables = [pairs(1, int(starts[i]), n, 4_000 - 500 * i) for i, n in enumerate(sizes)]
    with tempfile.TemporaryDirectory() as name:  # imports and tables of characters are no part of anybody's share
        run(filtered(Path(name), Path(name) / "store", "2026-01-01", [pairs(2, 0, 1_000, 100)]))
    shares: dict[str, list[list[float]]] = {"wall": [], "cpu": []}
    same = True
    for turn in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            apart: set[tuple[str, ...]] = set()
            spent = []
            for i, table in enumerate(tables):
                build = filtered(folder, folder / "store", f"2026-01-{i + 1:02d}", [table])
                spent.append(run(build))
                apart |= kept(build)
            whole = filtered(folder, folder / "other", "2026-02-01", tables)
            at_once = run(whole)
            same &= apart == kept(whole)
        for clock, (name, found) in enumerate(shares.items()):
            of_one = at_once[clock] / sum(sizes)
            found.append([own[clock] / (of_one * n) for own, n in zip(spent, sizes, strict=True)])
            seconds = ", ".join(f"{own[clock]:.2f}" for own in spent)
            told(f"round {turn + 1} of {rounds}, {name}: {seconds}; at once {at_once[clock]:.2f} s")
    figures = {"union_equals_from_scratch": at_least(float(same), 1, "yes")}
    for name, found in shares.items():
        medians = [statistics.median(turn[i] for turn in found) for i in range(len(sizes))]
        told(f"{name}: {', '.join(f'{m:.2f}' for m in medians)} times its share")
        figures[f"largest_increment_over_its_share_{name}"] = at_most(max(medians[1:]), 1.2)
    return report(figures)


if __name__ == "__main__":
    sys.exit(main())
