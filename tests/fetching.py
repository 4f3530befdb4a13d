"""Images fetched from servers on loopback, and what became of each, for tests of the parts of stage fetch."""

from __future__ import annotations

import hashlib
import tarfile

import numpy as np
from PIL import Image

from data_specs.shard import Text
from pipeline.rows.records import FETCH_SCHEMA, Candidate, candidate_rows
from pipeline.stages import fetch
from pipeline.store.build import Build
from pipeline.store.commits import DECISIONS
from tests.drawn import encoded

SITE = [{"kind": "site", "name": "s", "source_kind": "news", "start": ["http://a.cn/"]}]
PARTITION = "00000-of-00001"
HEADERS = {"Content-Type": "image/png"}


def picture(seed: int, kind: str = "PNG", side: int = 40) -> bytes:
    """A file of noise, as many pixels a side."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), kind)


def candidate(url: str, page: str = "http://a.cn/1.html", source: str = "s") -> Candidate:
    """An image on a page with one text."""
    return Candidate(source, "news", page, page, url, (Text("alt", "一张图片"),))


def admit(build: Build, candidates: list[Candidate]) -> None:
    """What the admit stage would have left."""
    with build.stage("admit").attempt(PARTITION) as attempt:
        attempt.write_table("parquet", candidate_rows(candidates, build.spec.seed))
        attempt.commit({"seen": len(candidates), "kept": len(candidates), "dropped": 0})


def run(build: Build, *urls: str) -> dict[str, dict]:
    """Fetch URLs; rows of the outcome table by URL, with `data` read from the tar by offset."""
    admit(build, [candidate(url) for url in urls])
    fetch.run_partition(build, PARTITION)
    return outcome(build)


def outcome(build: Build) -> dict[str, dict]:
    """The same rows of a partition that was fetched, checked against its tar, its decisions and its counts."""
    stage = build.stage("fetch")
    record = stage.record(PARTITION)
    table = stage.table(record)
    assert table.schema.equals(FETCH_SCHEMA)
    rows = {row["image_url"]: row for row in table.to_pylist()}
    with stage.file(record, "tar") as path:
        raw = path.read_bytes()
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}
    for row in rows.values():
        if row["ok"]:
            row["data"] = raw[row["offset"] : row["offset"] + row["size"]]
            assert members.pop(row["fetch_id"]) == row["data"]
            assert hashlib.sha256(row["data"]).hexdigest() == row["sha256"]
    assert members == {}, "the tar holds what the table names and nothing else"
    dropped = {}
    if DECISIONS in record.files:
        dropped = {d["url"]: d["reason"] for d in stage.table(record, DECISIONS).to_pylist()}
    assert dropped == {url: row["reason"] for url, row in rows.items() if not row["ok"]}
    assert record.counts["seen"] == record.counts["kept"] + record.counts["dropped"]
    return rows
