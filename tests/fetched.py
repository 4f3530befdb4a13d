"""A build whose admit and fetch are written straight through the store, from pictures that a test made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_specs.build import BuildSpec
from data_specs.shard import Text
from pipeline.rows.records import FETCH_SCHEMA, Candidate, candidate_rows, order_range
from pipeline.stages import STAGES
from pipeline.store.build import Build, passes_of
from pipeline.store.identities import Identities
from pipeline.store.store import Store

FETCHED_AT = "2026-01-02T03:04:05Z"


@dataclass(frozen=True)
class Got:
    """An image as the web gave it, and the texts that pages had for it: a caption and alts, unless they say."""

    url: str
    data: bytes
    texts: tuple[str | Text, ...] = ("一张图片",)
    page: str = "http://site.test/a.html"


def begun(folder: Path, *, name: str = "test", snapshot: str = "2026-01-02", store: str = "", **more: Any) -> Build:
    """A Build below `folder` with a fingerprint for each stage and nothing committed; `more` goes into its spec."""
    source = {"kind": "url_table", "name": "table", "source_kind": "library", "path": "never-read.csv"}
    source["columns"] = {"texts": {"caption": "text"}}
    spec = BuildSpec.model_validate({"name": name, "contact": "mailto:a@b.c", "sources": [source], **more})
    kept, build_id = Store(store or str(folder / "store")), f"{name}-{snapshot}-{spec.digest[:8]}"
    build = Build(
        stages=STAGES,
        spec=spec,
        out=str(folder / build_id),
        store=kept,
        build_id=build_id,
        snapshot=snapshot,
        fingerprints={own: hashlib.sha256(f"{own} {more}".encode()).hexdigest() for own in passes_of(STAGES, spec)},
    )
    return replace(build, identities=Identities(kept).before(build))


def make(folder: Path, images: Sequence[Got], parts: int = 1, **more: Any) -> Build:
    """A Build below `folder` with admit and fetch committed; `more` is what `begun` takes."""
    build = begun(folder, **more)
    candidates = [Candidate("table", "library", g.page, g.page, g.url, _texts(g)) for g in images]
    rows = candidate_rows(candidates, build.spec.seed)
    for part in range(parts):
        low, high = order_range(part, parts)
        here = [low <= key < high for key in rows["order_key"].to_pylist()]
        _commit(build, f"{part:05d}-of-{parts:05d}", rows.filter(pa.array(here, pa.bool_())), images)
    return build


def _texts(got: Got) -> tuple[Text, ...]:
    named = enumerate(got.texts)
    return tuple(t if isinstance(t, Text) else Text("title" if at == 0 else "surrounding", t) for at, t in named)


def _commit(build: Build, partition: str, rows: pa.Table, images: Sequence[Got]) -> None:
    with build.stage("admit").attempt(partition) as attempt:
        attempt.write_table("parquet", rows)
        attempt.commit({"seen": rows.num_rows, "kept": rows.num_rows, "dropped": 0})
    data_of = {g.url: g.data for g in images}
    fetched = []
    with build.stage("fetch").attempt(partition) as attempt:
        with attempt.path("tar").open("wb") as tar:
            tar.write(b"\0" * 512)  # offsets are not from zero in a real tar either
            for url in dict.fromkeys(rows["image_url"].to_pylist()):
                data = data_of[url]
                ok = bool(data)
                fetched.append(
                    {
                        "fetch_id": hashlib.sha256(url.encode()).hexdigest(),
                        "image_url": url,
                        "ok": ok,
                        "reason": "" if ok else "empty_body",
                        "evidence": "",
                        "sha256": hashlib.sha256(data).hexdigest() if ok else "",
                        "offset": tar.tell() if ok else -1,
                        "size": len(data),
                        "fetched_at": FETCHED_AT,
                        "etag": "",
                        "retry_after": "",
                    }
                )
                tar.write(data)
        attempt.write_table("parquet", pa.Table.from_pylist(fetched, schema=FETCH_SCHEMA))
        attempt.commit({"seen": rows.num_rows, "kept": rows.num_rows, "dropped": 0})
