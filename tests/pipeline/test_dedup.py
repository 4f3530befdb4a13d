"""dedup: leaders, not chains; one pass that agrees with brute force; increments over earlier builds."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import dedup, filter, lead, measure, rank
from pipeline.identities import IMAGE_SCHEMA, Identities
from pipeline.near_texts import normal
from pipeline.records import DEDUP_SCHEMA

CORPUS = Path(__file__).parents[2].parent / "shared" / "corpus" / "howtocook-site" / "images"
SPLITS = ("train", "dev", "val")


def image(seed: int, size: tuple[int, int] = (160, 120), quality: int = 85) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=quality)
    return out.getvalue()


def run(build: Any) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], dict[str, int]]:
    """(kept rows, decisions, counts) of the dedup stage; rows by page and name of the image."""
    for stage in (measure, filter, rank, lead, dedup):
        for partition in stage.partitions(build):
            stage.run_partition(build, partition)
    stage = build.stage("dedup")
    kept: dict[str, dict[str, Any]] = {}
    decided: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    for split in SPLITS:
        tables = [stage.table(record, f"{split}.parquet") for record in stage.records()]
        assert all(table.schema == DEDUP_SCHEMA for table in tables)
        rows = [row for table in tables for row in table.to_pylist()]
        assert {row["split"] for row in rows} <= {split}
        assert rows == sorted(rows, key=lambda r: (r["order_key"], r["candidate_id"]))
        kept |= {_name(row["page_url"], row["image_url"]): row for row in rows}
    for record in stage.records():
        decided += stage.table(record, "decisions.parquet").to_pylist()
        counts.update(record.counts)
    assert counts["seen"] == counts["kept"] + counts["dropped"]
    counts.update(build.stage("lead").record("all").counts)
    return kept, {_name(d["page_url"], d["url"]): d for d in decided}, dict(counts)


def _name(page: str, url: str) -> str:
    end = url.rpartition("/")[2]
    return end if page.endswith("/a.html") else f"{end}@{page.rpartition('/')[2]}"


def texts(row: dict[str, Any]) -> list[str]:
    return [text["text"] for text in row["texts"]]


# --- the stage


def test_copies_give_way_to_the_larger_image_and_leave_it_their_texts(fetched_build: Any, got: Any) -> None:
    big, small = image(1, (320, 240)), image(1, (160, 120))
    images = [
        got("small", small, "小图的说明"),
        got("big", big, "大图的说明"),
        got("big-elsewhere", big, "大图的说明。", "别处的说明"),
        got("other", image(2), "另一张"),
    ]
    build = fetched_build(images, parts=2, filters=[])
    kept, decided, counts = run(build)
    leader = "big" if "big" in kept else "big-elsewhere"  # same bytes: the smaller candidate_id leads
    follower = "big-elsewhere" if leader == "big" else "big"
    assert set(kept) == {leader, "other"}
    assert decided[follower]["reason"] == "same_image"
    assert decided["small"]["reason"] == "near_image"
    assert {d["duplicate_of"] for d in decided.values()} == {kept[leader]["candidate_id"]}
    assert kept[leader]["candidate_id"][:32] in decided["small"]["evidence"]
    assert {normal(t) for t in texts(kept[leader])} == {"大图的说明", "小图的说明", "别处的说明"}
    assert len(kept[leader]["text_leaders"]) == 3
    assert (counts["seen"], counts["kept"], counts["dropped"]) == (4, 2, 2)
    assert (counts["same_image"], counts["near_image"]) == (1, 1)
    assert counts["merged_texts"] == (2 if leader == "big" else 1)
    assert sum(counts[split] for split in SPLITS) == 2


def test_texts_are_not_merged_when_the_spec_says_so(fetched_build: Any, got: Any) -> None:
    images = [got("small", image(1), "小图"), got("big", image(1, (320, 240)), "大图")]
    kept, decided, _ = run(fetched_build(images, filters=[], dedup={"merge_texts": False}))
    assert texts(kept["big"]) == ["大图"]
    assert set(decided) == {"small"}


def test_a_text_feeds_the_cap_and_drops_nothing_by_itself(fetched_build: Any, got: Any) -> None:
    caption = "这家餐厅的红烧肉味道非常好值得推荐给大家来尝试"
    images = [got(f"{i}", image(i), caption + "。" * i) for i in range(5)]
    kept, decided, counts = run(fetched_build(images, filters=[], dedup={"max_pairs_per_text": 3}))
    assert (len(kept), counts["cap_per_text"], counts["text_clusters"]) == (3, 2, 1)
    assert {d["reason"] for d in decided.values()} == {"cap_per_text"}
    assert len({row["text_leaders"][0] for row in kept.values()}) == 1
    kept, decided, _ = run(fetched_build(images, name="loose", filters=[]))
    assert (len(kept), decided) == (5, {})


def test_partitions_and_their_order_do_not_matter(fetched_build: Any, got: Any) -> None:
    images = [got(f"{i}", image(i % 7, (160 + 8 * (i % 3), 120 + 6 * (i % 3))), f"说明{i % 4}") for i in range(30)]
    one = run(fetched_build(images, filters=[], dedup={"max_pairs_per_text": 2}))
    more = run(fetched_build(images[::-1], parts=5, name="more", filters=[], dedup={"max_pairs_per_text": 2}))
    assert one == more
    assert 0 < len(one[0]) < 8


def test_a_build_without_pairs_is_no_fault(fetched_build: Any) -> None:
    build = fetched_build([])
    kept, decided, counts = run(build)
    assert (kept, decided, counts["seen"]) == ({}, {}, 0)
    assert publish(build) == []


def test_splits_have_their_shares_and_follow_the_leader() -> None:
    found = Counter(dedup.split_of(f"{i:064x}", 0, 0.1, 0.2) for i in range(5_000))
    assert found["dev"] == pytest.approx(500, rel=0.15)
    assert found["val"] == pytest.approx(1_000, rel=0.15)
    assert dedup.split_of("a", 0, 0.0, 0.0) == "train"
    assert [dedup.split_of(f"{i}", 1, 0.3, 0.3) for i in range(50)] != [
        dedup.split_of(f"{i}", 2, 0.3, 0.3) for i in range(50)
    ]


# --- across builds


def publish(build: Any) -> list[dict[str, Any]]:
    """Publish a build's identities; the rows of its images as STORE has them."""
    identities = Identities(build.store)
    with build.store.lock():
        identities.publish(build)
    known = identities.read(identities.of(build.build_id))
    tables = list(identities.batches(known, "images.parquet"))
    assert all(table.schema == IMAGE_SCHEMA for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def test_what_an_earlier_build_kept_is_not_kept_again(fetched_build: Any, got: Any) -> None:
    caption = "这家餐厅的红烧肉味道非常好值得推荐给大家来尝试"
    cap = {"max_pairs_per_text": 2}
    first = fetched_build([got("a", image(1), caption), got("b", image(2), caption + "哦")], filters=[], dedup=cap)
    kept, _, _ = run(first)
    rows = publish(first)
    assert {row["candidate_id"].hex() for row in rows} == {row["candidate_id"] for row in kept.values()}
    everything = [path.read_bytes() for path in Path(first.store.url).rglob("identity/*")]
    assert not any(caption.encode() in data for data in everything)

    later = [
        got("a-again", image(1), "新的说明"),
        got("a-near", image(1, (320, 240)), "更大的图"),
        got("c", image(3), caption + "啊"),
        got("d", image(4), "没有见过的文字"),
    ]
    second = fetched_build(later, snapshot="2026-02-02", filters=[], dedup=cap)
    found, decided, counts = run(second)
    assert {name: d["reason"] for name, d in decided.items()} == {
        "a-again": "same_image",
        "a-near": "near_image",
        "c": "cap_per_text",
    }
    assert decided["a-near"]["duplicate_of"] == kept["a"]["candidate_id"]
    assert set(found) == {"d"}
    assert counts["earlier"] == 2


def test_a_text_of_an_earlier_build_stays_the_leader(fetched_build: Any, got: Any) -> None:
    caption = "这家餐厅的红烧肉味道非常好值得推荐给大家来尝试"
    first = fetched_build([got("a", image(1), caption)], filters=[])
    kept, _, _ = run(first)
    publish(first)
    found, _, _ = run(fetched_build([got("b", image(2), caption + "哦")], snapshot="2026-02-02", filters=[]))
    assert found["b"]["text_leaders"] == kept["a"]["text_leaders"]


def test_a_build_never_matches_itself_nor_what_it_replaces(fetched_build: Any, got: Any) -> None:
    images = [got("a", image(1), "一"), got("b", image(2), "二")]
    first = fetched_build(images, filters=[])
    before = run(first)
    token = lead.token(first)
    publish(first)
    assert run(first) == before
    assert lead.token(first) == token
    changed = fetched_build(images, filters=[], shards={"jpeg_quality": 80})  # same dataset and snapshot
    assert changed.build_id != first.build_id
    assert len(run(changed)[0]) == 2


def test_hashes_of_other_features_are_matched_by_bytes_only(
    fetched_build: Any, got: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = fetched_build([got("a", image(1), "一")], filters=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.lead.feature_id", lambda: "features-old")
        run(first)
    publish(first)
    later = [got("same", image(1), "二"), got("near", image(1, (320, 240)), "三")]
    kept, decided, _ = run(fetched_build(later, snapshot="2026-02-02", filters=[]))
    assert "matched by bytes only" in caplog.text
    assert (set(kept), set(decided)) == ({"near"}, {"same"})


def test_increments_give_what_one_build_would_have_given(fetched_build: Any, got: Any, tmp_path: Path) -> None:
    """Three increments of ever smaller images: the ranks of one build over all are the same, so must be the result."""
    rng = np.random.default_rng(5)
    parts = []
    for step in range(3):
        size = (320 - 60 * step, 240 - 45 * step)
        parts.append(
            [got(f"{step}-{i}", image(int(rng.integers(12)), size), f"说明{rng.integers(5)}") for i in range(10)]
        )
    rules = {"max_pairs_per_text": 2, "merge_texts": False}
    together, _, _ = run(
        fetched_build([g for p in parts for g in p], store=str(tmp_path / "one"), filters=[], dedup=rules)
    )
    apart: dict[str, Any] = {}
    for step, part in enumerate(parts):
        build = fetched_build(part, snapshot=f"2026-0{step + 3}-01", filters=[], dedup=rules)
        apart |= run(build)[0]
        publish(build)
    assert apart == together
    assert 3 < len(apart) < 12


@pytest.mark.skipif(not CORPUS.exists(), reason="needs shared/corpus beside the repository")
def test_the_site_holds_one_picture_twice_and_no_other(fetched_build: Any, got: Any) -> None:
    files = sorted(CORPUS.glob("*.jpg"))
    images = [got(file.name, file.read_bytes(), f"第{i}张") for i, file in enumerate(files)]
    kept, decided, _ = run(fetched_build(images, parts=2, filters=[]))
    assert len(files) == 346
    assert {d["reason"] for d in decided.values()} == {"near_image"}
    assert len(decided) == 1  # images 1 and 12 of one recipe, says the corpus's README
    assert len(kept) == 345
