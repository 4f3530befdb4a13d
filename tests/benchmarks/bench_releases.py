"""A release of 650 million samples: the size of its manifest, and the time until training has it open.

10,000 builds of 65,000 shards, 10,000 samples each, as the contract names them; no shard is there, since a release of
more than `training.data.index.AT_START` shards is opened without a look at any. Beside it a release whose shards are
there, of as many as are looked at when it is opened: once with the indexes to be made, once with them in the cache.
Times are CPU seconds of all threads, so that a busy machine gives the same figures; wall times are printed beside them.

--quick: a tenth of the builds and shards.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from harness import Figure, at_least, at_most, quick, report

from data_specs.shard import (
    SHARD_SCHEMA,
    SPLITS,
    FileDigest,
    Manifest,
    ReleasedBuild,
    ShardFiles,
    content_digest,
    parse_manifest,
    pretty_manifest,
)
from data_specs.storage.whole_files import sha256_of
from training.data import index
from training.data.order import Order

SAMPLES = 10_000
"""Of a shard."""
SECONDS = 10.0
"""CPU seconds in which a release of any size is to be open."""


def digest(number: int, suffix: str) -> FileDigest:
    name = f"{number:064x}"
    return FileDigest(path=f"train-{number % 10:06d}.{suffix}", bytes=400_000_000, sha256=name)


def release(builds: int, shards: int) -> Manifest:
    """A release of so many builds and shards of SAMPLES samples; one in a hundred is dev, one val."""
    names = [f"news-2026-01-01-{number:08x}" for number in range(builds)]
    listed = [
        ShardFiles(
            split={0: "dev", 1: "val"}.get(number % 100, "train"),  # type: ignore[arg-type]
            samples=SAMPLES,
            tar=digest(number, "tar"),
            parquet=digest(number, "parquet"),
            regions={"yolo-0123456789abcdef": digest(number, "regions.parquet")},
            build=names[number * builds // shards],
        )
        for number in range(shards)
    ]
    counts = {split: sum(shard.samples for shard in listed if shard.split == split) for split in SPLITS}
    return Manifest(
        schema_version=1,
        build_id="news@1",
        spec_digest="0" * 64,
        content_digest=content_digest(listed),
        created_at="2026-01-01T00:00:00Z",
        samples=counts,
        detectors=("yolo-0123456789abcdef",),
        shards=tuple(listed),
        dataset="news",
        release=1,
        generation=1,
        builds=tuple(
            ReleasedBuild(
                build_id=name,
                revision=0,
                snapshot="2026-01-01",
                folder=f"s3://bucket/builds/{name}/shards",
                out=f"s3://bucket/builds/{name}",
                spec_digest="0" * 64,
                content_digest="0" * 64,
                samples=dict.fromkeys(SPLITS, 0),
            )
            for name in names
        ),
    )


def timed(what: str, call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and what it returns."""
    wall, began = time.perf_counter(), time.process_time()
    value = call()
    seconds = time.process_time() - began
    print(f"{what}: {seconds:.2f} CPU seconds, {time.perf_counter() - wall:.2f} s", file=sys.stderr)
    return seconds, value


def large(folder: Path, builds: int, shards: int) -> dict[str, Figure]:
    """A manifest of that many shards, none of which is there."""
    manifest = release(builds, shards)
    written, data = timed("write", lambda: pretty_manifest(manifest))
    path = folder / "000001.json"
    path.write_bytes(data)
    parsed, _ = timed("parse", lambda: parse_manifest(data, "x"))
    opened, dataset = timed("open", lambda: index.open_dataset([str(path)], "train", cache=folder / "cache"))
    order = Order(dataset.shard_sizes, seed=0, window_shards=8)
    first, _ = timed("first entry of the order", lambda: order.entry(len(dataset) // 2))
    return {
        f"manifest of {shards:,} shards of {builds:,} builds": at_most(len(data) / 1e6, 0.0012 * shards, "MB"),
        "written": at_most(written, SECONDS, "s"),
        "parsed": at_most(parsed, SECONDS, "s"),
        "first entry of its order": at_most(first, 1, "s"),
        f"opened for training, {len(dataset):,} samples": at_most(opened, SECONDS, "s"),
    }


def there(folder: Path, shards: int) -> dict[str, Figure]:
    """A release of shards that are there, of few samples each: every file is looked at, every index made once."""
    row = dict.fromkeys(SHARD_SCHEMA.names) | {"width": 9, "height": 9, "image_offset": 512, "image_size": 9}
    listed = []
    for number in range(shards):
        key = f"{number:064x}"
        row |= {"key": key[32:], "candidate_id": key, "sha256": key, "image_leader": key, "source_kind": "news"}
        row |= {"texts": [{"kind": "alt", "text": "图", "text_leader": key}], "split": "train"}
        path = folder / f"train-{number:06d}.parquet"
        pq.write_table(pa.Table.from_pylist([row], schema=SHARD_SCHEMA), path)
        tar = path.with_suffix(".tar")
        with tar.open("wb") as file:
            file.truncate(10_240)
        parquet = FileDigest(path=path.name, bytes=path.stat().st_size, sha256=sha256_of(path))
        listed.append(
            ShardFiles(
                split="train",
                samples=1,
                tar=FileDigest(path=tar.name, bytes=10_240, sha256=key),
                parquet=parquet,
            )
        )
    made = release(1, 1).model_copy(
        update={"shards": tuple(listed), "builds": (), "dataset": "", "detectors": (), "samples": {"train": shards}}
    )
    (folder / "manifest.json").write_bytes(pretty_manifest(made))
    cold, _ = timed("cold", lambda: index.open_dataset([str(folder)], "train", cache=folder / "cache"))
    warm, _ = timed("warm", lambda: index.open_dataset([str(folder)], "train", cache=folder / "cache"))
    return {
        f"opened, {shards:,} shards that are there, indexes to be made": at_most(cold, 4 * SECONDS, "s"),
        f"opened, {shards:,} shards that are there, indexes in the cache": at_most(warm, SECONDS, "s"),
        "indexes made": at_least(len(list((folder / "cache").glob("*.arrow"))), shards, "files"),
    }


def main() -> int:
    scale = 10 if quick(__doc__.splitlines()[0] if __doc__ else "") else 1
    with tempfile.TemporaryDirectory() as folder:
        figures = large(Path(folder), 10_000 // scale, 65_000 // scale)
    with tempfile.TemporaryDirectory() as folder:
        figures |= there(Path(folder), index.AT_START // scale)
    return report(figures)


if __name__ == "__main__":
    sys.exit(main())
