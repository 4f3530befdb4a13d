"""Finds the content of one build that is taken down: candidates, images, captures and samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import nfc
from pipeline import exports
from pipeline.rows.records import sha256_hex
from pipeline.store import build_json
from pipeline.store.build import RELEASES, STUDIO, Build
from pipeline.store.commits import DECISIONS
from pipeline.store.store import PAIR_FEATURES
from pipeline.store.takedowns import Takedowns
from pipeline.takedown.known_builds import names_outside
from pipeline.takedown.page_pictures import pages_in_state, pages_showing
from pipeline.takedown.request import fetched_images, text_array


@dataclass
class RemovedContent:
    """Content that a build loses. `hashes`: ids, URLs, pages, images and scored texts that are removed."""

    build: Build
    hashes: set[str] = field(default_factory=set)
    candidates: int = 0
    images: int = 0
    captures: int = 0
    samples: list[dict[str, str]] = field(default_factory=list)
    exports: list[str] = field(default_factory=list)
    """Folders of exports in the build's, of samples as they were."""
    foreign: list[str] = field(default_factory=list)
    """Names of what else lies in the build's folder, where samples go: a renamed export, or a search index."""

    def value(self) -> dict[str, Any]:
        """Returns JSON values for the answer of `forget`."""
        return {
            "build_id": self.build.build_id,
            "out": self.build.out,
            "candidates": self.candidates,
            "images": self.images,
            "captures": self.captures,
            "samples": self.samples,
            "shards": sorted({sample["shard"] for sample in self.samples}),
            "exports": self.exports,
            "foreign": self.foreign,
        }


def find_removed_content(build: Build, takedowns: Takedowns, dry_run: bool = False) -> RemovedContent:
    """Finds the content of a build that is taken down. dry_run: store no table of what captures show."""
    ids, pages = _candidates(build, takedowns)
    waiting = pages_in_state(build, takedowns)
    pages |= pages_showing(build, takedowns, dry_run) | waiting
    captures = set[str]()
    for rows in build.tables("crawl", "parquet", ["url"]):
        captures |= {url for url in rows["url"].to_pylist() if sha256_hex(url) in pages or takedowns.host(url)}
    fetch_ids, removed = _images(build, takedowns, ids)
    samples = _samples(build, ids)
    ours = {*(stage.folder for stage in build.stages.values()), *exports.names(), build_json.NAME, RELEASES, STUDIO}
    names = names_outside(build.store, build.folder) if samples else []
    return RemovedContent(
        build,
        hashes=ids | pages | {sha256_hex(url) for url in captures} | removed | _scored_texts(build, ids),
        candidates=len(ids),
        images=len(fetch_ids),
        captures=len(captures) + len(waiting),
        samples=samples,
        exports=[name for name in exports.names() if build.folder.exists(name)] if samples else [],
        foreign=[name for name in names if name[0] not in "._" and name not in ours],
    )


def _samples(build: Build, ids: set[str]) -> list[dict[str, str]]:
    """Samples of these candidates, with the shard that each lies in."""
    samples: list[dict[str, str]] = []
    if "shard" not in build.fingerprints:
        return samples
    stage = build.stage("shard")
    for record in build.packed():
        rows = stage.table(record, "parquet", ["candidate_id", "key", "image_url"])
        for row in rows.filter(pc.is_in(rows["candidate_id"], text_array(ids))).to_pylist():
            samples.append({"key": row["key"], "shard": record.partition, "image_url": row["image_url"]})
    return samples


def _scored_texts(build: Build, ids: set[str]) -> set[str]:
    """sha256 of the texts of candidates, by which STORE may have features of them."""
    if not ids or not any(name.startswith(f"features/{PAIR_FEATURES}text-") for name, _ in build.store.caches()):
        return set()
    some, texts = pc.field("candidate_id").isin(text_array(ids)), set[str]()
    for stage in build.history("admit"):
        for record in stage.records():
            rows = stage.table(record, columns=["texts"], filters=some)
            texts |= {sha256_hex(nfc(text["text"])) for own in rows["texts"].to_pylist() for text in own}
    return texts


def _candidates(build: Build, takedowns: Takedowns) -> tuple[set[str], set[str]]:
    """(ids of candidates that are removed; hashes of pages that are removed or showed one of them).

    Captures that are removed are among the pages: one goes with any picture on it that goes.
    """
    ids, pages = set[str](), set[str]()

    def note(rows: pa.Table) -> None:
        """Note the rows (id, fetch_id, url, page_url) that are taken down."""
        taken = rows.filter(takedowns.taken_down_mask(rows))
        ids.update(taken["id"].to_pylist())
        pages.update(sha256_hex(page) for page in taken["page_url"].unique().to_pylist() if page)

    names = ["id", "fetch_id", "url", "page_url"]
    for rows in build.tables("extract", "parquet", ["candidate_id", "fetch_id", "image_url", "page_url"]):
        note(rows.rename_columns(names))
    for name in build.fingerprints:
        for rows in build.tables(name, DECISIONS, [*names, "subject"]):
            rows = rows.filter(
                pc.or_(*(pc.not_equal(rows[at], "") for at in ("url", "page_url")))
            )  # else blanked before
            of_candidates = pc.equal(rows["subject"], "candidate")
            note(rows.filter(of_candidates))
            captures = rows.filter(pc.invert(of_candidates))
            pages.update(captures.filter(takedowns.taken_down_mask(captures))["id"].to_pylist())
    return ids, pages


def _images(build: Build, takedowns: Takedowns, ids: set[str]) -> tuple[set[str], set[str]]:
    """Images that are removed: those named, and those of which no admitted candidate remains.

    Returns (fetch_ids of those that were fetched; fetch_ids and sha256 of all of them). Bytes that another address
    had too stay: their sha256 is not among the removed.
    """
    orphans = _orphans(build, ids)
    by_url, by_bytes = text_array(orphans | takedowns.hashes), text_array(takedowns.hashes)
    sha256_of = dict[str, str]()
    for rows in fetched_images([build]):
        rows = rows.filter(pc.or_(pc.is_in(rows["fetch_id"], by_url), pc.is_in(rows["sha256"], by_bytes)))
        sha256_of |= zip(rows["fetch_id"].to_pylist(), rows["sha256"].to_pylist(), strict=True)
    shared = set[str]()
    bytes_removed, urls_removed = text_array(set(sha256_of.values())), text_array(set(sha256_of))
    for rows in fetched_images([build]):
        elsewhere = pc.and_(
            pc.is_in(rows["sha256"], bytes_removed), pc.invert(pc.is_in(rows["fetch_id"], urls_removed))
        )
        shared |= set(rows.filter(elsewhere)["sha256"].to_pylist())
    return set(sha256_of), set(sha256_of) | orphans | (set(sha256_of.values()) - shared)


def _orphans(build: Build, ids: set[str]) -> set[str]:
    """fetch_ids of admitted candidates that are removed, where no candidate that stays shows the same URL."""
    columns, removed = ["candidate_id", "fetch_id"], text_array(ids)
    orphans = set[str]()
    for rows in build.tables("admit", "parquet", columns):
        orphans |= set(rows.filter(pc.is_in(rows["candidate_id"], removed))["fetch_id"].to_pylist())
    shown: pa.Array = text_array(orphans)
    for rows in build.tables("admit", "parquet", columns):
        stays = pc.and_(pc.invert(pc.is_in(rows["candidate_id"], removed)), pc.is_in(rows["fetch_id"], shown))
        orphans -= set(rows.filter(stays)["fetch_id"].to_pylist())
    return orphans
