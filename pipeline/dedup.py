"""Dedup: one pair for each image, however often and in whatever form the web holds it, and an id for each text.

All pairs of the build are ranked by (snapshot, larger image, candidate_id), those of earlier builds (STORE's
identities) before them, and `pipeline.leaders` decides in one pass. Kept pairs get the ids by which training masks
false negatives (image_leader, text_leaders), and their split: a keyed hash of the leader, so that copies of one image
never straddle two splits. A leader of an earlier build is never kept again, so its split cannot change.

The ONE partition "all" is the fast path of a single machine: one thread, about 2 KB a pair, some millions of pairs.
Earlier builds of the same dataset and snapshot are no earlier ones: this build replaces them.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import SPLITS, Split
from pipeline.features import CROPS, feature_id
from pipeline.features.signature import SIZE
from pipeline.leaders import Dropped, Earlier, Images, Items, Outcome, choose
from pipeline.near_texts import normal, numerals, signatures, text_id
from pipeline.records import DEDUP_SCHEMA, PAIR_SCHEMA, Decision, DropReason, candidates_of, drop
from pipeline.store import Build

log = logging.getLogger("wenlan")

VERSION = 1
INPUTS: tuple[str, ...] = ("filter",)
PARTITION = "all"
ROW_GROUP = 1_000

IDENTITY_SCHEMA = pa.schema(
    [
        ("candidate_id", pa.string()),
        ("fetch_id", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("features", pa.string()),  # feature id: hashes of another one cannot be compared
        ("phash", pa.list_(pa.uint64())),
        ("signature", pa.binary()),
        (
            "texts",  # primary first; shingles and numerals only where a text is its own leader
            pa.list_(
                pa.struct(
                    [
                        ("id", pa.string()),
                        ("leader", pa.string()),
                        ("numerals", pa.string()),
                        ("shingles", pa.list_(pa.uint32())),
                    ]
                )
            ),
        ),
        ("image_leader", pa.string()),
        ("split", pa.string()),
        ("dataset", pa.string()),
        ("build", pa.string()),
        ("snapshot", pa.string()),
    ]
)
"""What STORE keeps of a published sample: enough to match against, not enough to read its text."""


def token(build: Build) -> Any:
    spec = build.spec
    return {
        "dedup": spec.dedup.model_dump(mode="json"),
        "seed": spec.seed,
        "shares": [spec.shards.dev_share, spec.shards.val_share],
        "features": feature_id(),
        "identities": build.store.identity_revision(but=build.build_id),
    }


def partitions(build: Build) -> list[str]:
    return [PARTITION]


def run_partition(build: Build, partition: str) -> None:
    """Kept pairs of each split, sorted by (order_key, candidate_id), and a Decision for each dropped one."""
    pairs = _ranked(build)
    texts = [[normal(t["text"]) for t in row] for row in pairs["texts"].to_pylist()]
    items = Items(pairs["candidate_id"].to_pylist(), _images(pairs), texts)
    earlier = _earlier(build)
    outcome = choose(items, build.spec.dedup, earlier)
    kept = _kept_table(build, pairs, outcome)
    reasons = Counter(d.reason.value for d in outcome.dropped.values())
    with build.stage("dedup").attempt(partition) as attempt:
        counts = {"seen": pairs.num_rows, "kept": kept.num_rows, "dropped": len(outcome.dropped)}
        for split in SPLITS:
            rows = kept.filter(pc.field("split") == split)
            attempt.write_table(f"{split}.parquet", rows, row_group_size=ROW_GROUP)
            counts[split] = rows.num_rows
        attempt.decide(_decisions(build, pairs, outcome))
        counts |= {r.value: reasons[r.value] for r in (DropReason.SAME_IMAGE, DropReason.NEAR_IMAGE)}
        counts |= {
            "cap_per_text": reasons[DropReason.CAP_PER_TEXT.value],
            "merged_texts": sum(row != holder for holder, found in outcome.texts.items() for row, _ in found),
            "text_clusters": len({leader for found in outcome.text_leaders.values() for leader in found}),
            "earlier": len(earlier.candidate_of) if earlier else 0,
        }
        attempt.commit(counts)


def split_of(image_leader: str, seed: int, dev_share: float, val_share: float) -> Split:
    """The split of an image cluster: a keyed hash of its leader's sha256, as a number in [0, 1)."""
    key = f"split {seed}".encode()
    number = int.from_bytes(hashlib.blake2b(image_leader.encode(), digest_size=8, key=key).digest(), "big") / 2**64
    if number < dev_share:
        return "dev"
    return "val" if number < dev_share + val_share else "train"


def identity_rows(build: Build) -> pa.Table:
    """IDENTITY_SCHEMA rows of everything this build kept: what `publish` hands to STORE. Raises StoreError."""
    stage = build.stage("dedup")
    record = stage.record(PARTITION)
    kept = pa.concat_tables([stage.table(record, f"{split}.parquet") for split in SPLITS])
    texts = [[normal(t["text"]) for t in row] for row in kept["texts"].to_pylist()]
    flat = sorted({text for row in texts for text in row})
    shingles = {text: own.tolist() for text, own in zip(flat, signatures(flat), strict=True)}
    rows = []
    for own, leaders in zip(texts, kept["text_leaders"].to_pylist(), strict=True):
        row = []
        for text, leader in zip(own, leaders, strict=True):
            name = text_id(text)
            leads = name == leader
            row.append(
                {
                    "id": name,
                    "leader": leader,
                    "numerals": numerals(text) if leads else "",
                    "shingles": shingles[text] if leads else [],
                }
            )
        rows.append(row)
    columns: dict[str, Any] = {name: kept[name] for name in IDENTITY_SCHEMA.names if name in kept.column_names}
    columns["texts"] = pa.array(rows, IDENTITY_SCHEMA.field("texts").type)
    for name, value in (
        ("features", feature_id()),
        ("dataset", build.spec.name),
        ("build", build.build_id),
        ("snapshot", build.snapshot),
    ):
        columns[name] = pa.array([value] * kept.num_rows, pa.string())
    return pa.table({name: columns[name] for name in IDENTITY_SCHEMA.names}, schema=IDENTITY_SCHEMA)


def _ranked(build: Build) -> pa.Table:
    """All pairs of the build by rank. One snapshot a build, so the larger image comes first, then the smaller id."""
    stage = build.stage("filter")
    pairs = pa.concat_tables([PAIR_SCHEMA.empty_table(), *(stage.table(record) for record in stage.records())])
    pixels = pc.multiply(pairs["width"].cast(pa.int64()), pairs["height"].cast(pa.int64()))
    order = pc.sort_indices(
        pa.table({"pixels": pixels, "id": pairs["candidate_id"]}),
        sort_keys=[("pixels", "descending"), ("id", "ascending")],
    )
    return pairs.take(order)


def _images(table: pa.Table) -> Images:
    """Images of a table with sha256, phash and signature; hashes and signatures of the current features only."""
    rows, views = table.num_rows, len(CROPS)
    phash = pc.list_flatten(table["phash"]).to_numpy().astype(np.uint64).reshape(rows, views)
    signature = np.frombuffer(b"".join(table["signature"].to_pylist()), np.uint8).reshape(rows, views, SIZE)
    return Images(table["sha256"].to_pylist(), phash, signature)


def _earlier(build: Build) -> Earlier | None:
    """What the other builds in STORE kept, by rank; None if there are none."""
    table = build.store.identities(but=build.build_id)
    if table is None:
        return None
    same = (pc.field("dataset") == build.spec.name) & (pc.field("snapshot") == build.snapshot)
    table = table.filter(~same)
    if not table.num_rows:
        return None
    pixels = pc.multiply(table["width"].cast(pa.int64()), table["height"].cast(pa.int64()))
    table = table.append_column("pixels", pixels).sort_by(
        [("snapshot", "ascending"), ("build", "ascending"), ("pixels", "descending"), ("candidate_id", "ascending")]
    )
    comparable = table.filter(pc.field("features") == feature_id())
    if comparable.num_rows < table.num_rows:
        missing = table.num_rows - comparable.num_rows
        log.warning("dedup: %d images of earlier builds were measured otherwise: matched by bytes only", missing)
    candidate_of: dict[str, str] = {}
    for sha256, name in zip(table["sha256"].to_pylist(), table["candidate_id"].to_pylist(), strict=True):
        candidate_of.setdefault(sha256, name)
    texts: Sequence[Sequence[dict[str, Any]]] = table["texts"].to_pylist()
    leading = {t["id"]: t for row in texts for t in row if t["id"] == t["leader"]}
    return Earlier(
        candidate_of,
        _images(comparable),
        list(leading),
        [t["numerals"] for t in leading.values()],
        [np.array(t["shingles"], np.uint32) for t in leading.values()],
        Counter(row[0]["leader"] for row in texts),
    )


def _kept_table(build: Build, pairs: pa.Table, outcome: Outcome) -> pa.Table:
    """DEDUP_SCHEMA rows of the kept pairs, sorted."""
    all_texts, shards = pairs["texts"], build.spec.shards
    kept = pairs.take(pa.array(outcome.kept, pa.int64()))
    texts = [[all_texts[row][at].as_py() for row, at in outcome.texts[holder]] for holder in outcome.kept]
    leaders = kept["sha256"]
    splits = [split_of(h, build.spec.seed, shards.dev_share, shards.val_share) for h in leaders.to_pylist()]
    columns = {name: kept[name] for name in PAIR_SCHEMA.names}
    columns["texts"] = pa.array(texts, DEDUP_SCHEMA.field("texts").type)
    columns["text_leaders"] = pa.array(
        [outcome.text_leaders[row] for row in outcome.kept], DEDUP_SCHEMA.field("text_leaders").type
    )
    columns["image_leader"], columns["split"] = leaders, pa.array(splits, pa.string())
    return pa.table(columns, schema=DEDUP_SCHEMA).sort_by([("order_key", "ascending"), ("candidate_id", "ascending")])


def _decisions(build: Build, pairs: pa.Table, outcome: Outcome) -> list[Decision]:
    rows = sorted(outcome.dropped)
    dropped = pairs.take(pa.array(rows, pa.int64()))
    decisions = []
    for row, candidate in zip(rows, candidates_of(dropped), strict=True):
        found = outcome.dropped[row]
        evidence = _evidence(build, pairs, found)
        decisions.append(drop(candidate, "dedup", found.reason, evidence, duplicate_of=found.duplicate_of))
    return decisions


def _evidence(build: Build, pairs: pa.Table, found: Dropped) -> str:
    if found.reason is DropReason.CAP_PER_TEXT:
        return f"{build.spec.dedup.max_pairs_per_text} pairs with this text, or nearly this text, are kept already"
    seen = "same bytes as" if found.reason is DropReason.SAME_IMAGE else "looks like"
    where = "an image of an earlier build" if found.leader < 0 else str(pairs["image_url"][found.leader].as_py())
    return f"{seen} {where}"
