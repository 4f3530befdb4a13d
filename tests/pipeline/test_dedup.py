"""dedup: leaders, not chains; one pass that agrees with brute force; increments over earlier builds."""

from __future__ import annotations

import io
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_specs.build import Dedup
from pipeline import dedup, filter, measure
from pipeline.features.signature import SIZE, distance
from pipeline.leaders import MAX_TEXTS, Images, Items, choose
from pipeline.near_images import COMBINATIONS
from pipeline.near_texts import normal, signatures, similarity
from pipeline.records import DEDUP_SCHEMA, DropReason

CORPUS = Path(__file__).parents[2].parent / "shared" / "corpus" / "howtocook-site" / "images"
SPLITS = ("train", "dev", "val")


def image(seed: int, size: tuple[int, int] = (160, 120), quality: int = 85) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=quality)
    return out.getvalue()


def run(build: Any) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], dict[str, int]]:
    """(kept rows, decisions, counts) of the dedup stage; rows by page and name of the image."""
    for stage in (measure, filter, dedup):
        for partition in stage.partitions(build):
            stage.run_partition(build, partition)
    stage = build.stage("dedup")
    record = stage.record("all")
    kept = {}
    for split in SPLITS:
        table = stage.table(record, f"{split}.parquet")
        assert table.schema == DEDUP_SCHEMA
        rows = table.to_pylist()
        assert {row["split"] for row in rows} <= {split}
        assert rows == sorted(rows, key=lambda r: (r["order_key"], r["candidate_id"]))
        kept |= {_name(row["page_url"], row["image_url"]): row for row in rows}
    decided = stage.table(record, "decisions.parquet").to_pylist()
    return kept, {_name(d["page_url"], d["url"]): d for d in decided}, record.counts


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
    assert kept[leader]["image_url"] in decided["small"]["evidence"]
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
    assert run(build) == ({}, {}, build.stage("dedup").record("all").counts)
    assert dedup.identity_rows(build).num_rows == 0


def test_splits_have_their_shares_and_follow_the_leader() -> None:
    found = Counter(dedup.split_of(f"{i:064x}", 0, 0.1, 0.2) for i in range(5_000))
    assert found["dev"] == pytest.approx(500, rel=0.15)
    assert found["val"] == pytest.approx(1_000, rel=0.15)
    assert dedup.split_of("a", 0, 0.0, 0.0) == "train"
    assert [dedup.split_of(f"{i}", 1, 0.3, 0.3) for i in range(50)] != [
        dedup.split_of(f"{i}", 2, 0.3, 0.3) for i in range(50)
    ]


# --- across builds


def publish(build: Any) -> pa.Table:
    rows = dedup.identity_rows(build)
    build.store.publish_identities(build.build_id, rows)
    return rows


def test_what_an_earlier_build_kept_is_not_kept_again(fetched_build: Any, got: Any) -> None:
    caption = "这家餐厅的红烧肉味道非常好值得推荐给大家来尝试"
    cap = {"max_pairs_per_text": 2}
    first = fetched_build([got("a", image(1), caption), got("b", image(2), caption + "哦")], filters=[], dedup=cap)
    kept, _, _ = run(first)
    rows = publish(first)
    assert rows.schema == dedup.IDENTITY_SCHEMA
    assert rows.num_rows == 2
    assert caption not in str(rows.to_pylist())

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
    token = dedup.token(first)
    publish(first)
    assert run(first) == before
    assert dedup.token(first) == token
    changed = fetched_build(images, filters=[], shards={"jpeg_quality": 80})  # same dataset and snapshot
    assert changed.build_id != first.build_id
    assert len(run(changed)[0]) == 2


def test_hashes_of_other_features_are_matched_by_bytes_only(
    fetched_build: Any, got: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = fetched_build([got("a", image(1), "一")], filters=[])
    run(first)
    rows = dedup.identity_rows(first)
    at = rows.schema.get_field_index("features")
    first.store.publish_identities(first.build_id, rows.set_column(at, "features", pa.array(["features-old"])))
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


# --- the pass, against brute force


@st.composite
def items(draw: st.DrawFn) -> Items:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(1, 40))
    kinds = draw(st.integers(1, 25))
    phash = rng.choice(rng.integers(0, 2**63, 3, dtype=np.uint64), (kinds, 3))
    for _ in range(draw(st.integers(0, 9))):
        phash ^= np.uint64(1) << rng.integers(0, 64, (kinds, 3), dtype=np.uint64)
    signature = (rng.integers(0, 2, (kinds, 3, 1)) * 30 + np.full(SIZE, 90)).astype(np.uint8)
    kind = rng.integers(0, kinds, size)
    words = ["红烧肉", "红烧鱼", "清蒸鱼", "今天天气很好我们去公园散步吧", "今天天气很好我们去公园散步啦"]
    chosen = [[words[w] for w in rng.integers(0, 5, rng.integers(1, 3))] for _ in range(size)]
    return Items([f"c{i}" for i in range(size)], Images([f"s{k}" for k in kind], phash[kind], signature[kind]), chosen)


def brute_force(found: Items, rules: Dedup) -> tuple[list[int], dict[int, tuple[DropReason, int]]]:
    """The definition, word by word."""
    kept: list[int] = []
    dropped: dict[int, tuple[DropReason, int]] = {}
    leading: list[str] = []
    leader_of: dict[int, list[str]] = {}

    def leader(text: str) -> str | None:
        return next((t for t in leading if similarity(*signatures([t, text])) >= rules.text_similarity), None)

    def place(text: str) -> str:
        if leader(text) is None:
            leading.append(text)
        return leader(text) or text

    def alike(i: int, j: int) -> bool:
        a, b = found.images.phash, found.images.signature
        return any(
            a[i, v] != 0
            and a[j, w] != 0
            and int(a[i, v] ^ a[j, w]).bit_count() <= rules.image_distance
            and distance(b[i, v][None], b[j, w][None])[0] <= rules.image_signature
            for v, w in COMBINATIONS
        )

    for i, own in enumerate(found.texts):
        same = [j for j in kept if found.images.sha256[j] == found.images.sha256[i]]
        near = [j for j in kept if alike(i, j)]
        if same or near:
            holder = (same or near)[0]
            dropped[i] = (DropReason.SAME_IMAGE if same else DropReason.NEAR_IMAGE, holder)
            for text in own:
                if text not in leader_of[holder]:
                    leader_of[holder].append(text)
                    place(text)
            continue
        first = leader(own[0])
        if first and sum(leader(found.texts[j][0]) == first for j in kept) >= rules.max_pairs_per_text:
            dropped[i] = (DropReason.CAP_PER_TEXT, -1)
            continue
        kept.append(i)
        leader_of[i] = list(own)
        for text in own:
            place(text)
    return kept, dropped


@settings(max_examples=150, deadline=None)
@given(items(), st.integers(1, 4), st.sampled_from([1, 3, 7, 512]))
def test_the_pass_agrees_with_the_definition(found: Items, cap: int, block: int) -> None:
    rules = Dedup(image_distance=6, max_pairs_per_text=cap)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.leaders.BLOCK", block)
        outcome = choose(found, rules)
    kept, dropped = brute_force(found, rules)
    assert outcome.kept == kept
    assert {row: (d.reason, d.leader) for row, d in outcome.dropped.items()} == dropped


def test_leaders_make_no_chains() -> None:
    """a - b - c, each 6 bits from the next: c is 12 from a, so b follows a and c leads."""
    codes = np.array([0b1, 0b1 | 0b111111 << 10, 0b1 | 0b111111111111 << 10], np.uint64)
    images = Images(["a", "b", "c"], np.repeat(codes[:, None], 3, axis=1), np.zeros((3, 3, SIZE), np.uint8))
    outcome = choose(Items(["a", "b", "c"], images, [["甲"], ["乙"], ["丙"]]), Dedup(image_distance=6))
    assert outcome.kept == [0, 2]
    assert outcome.dropped[1].leader == 0


def test_a_placeholder_on_a_hundred_thousand_pages_is_not_quadratic() -> None:
    """Near copies with captions of their own: linear takes seconds, comparing all with all would take hours."""
    rng = np.random.default_rng(0)
    size = 20_000
    base = rng.integers(0, 2**63, (1, 3), dtype=np.uint64)
    phash = base ^ (np.uint64(1) << rng.integers(0, 64, (size, 3), dtype=np.uint64))
    images = Images([f"{i}" for i in range(size)], phash, np.full((size, 3, SIZE), 100, np.uint8))
    started = time.process_time()
    outcome = choose(Items([f"{i}" for i in range(size)], images, [[f"说明{i}"] for i in range(size)]), Dedup())
    assert outcome.kept == [0]
    assert len(outcome.text_leaders[0]) == MAX_TEXTS
    assert time.process_time() - started < 30


@pytest.mark.skipif(not CORPUS.exists(), reason="needs shared/corpus beside the repository")
def test_the_site_holds_one_picture_twice_and_no_other(fetched_build: Any, got: Any) -> None:
    files = sorted(CORPUS.glob("*.jpg"))
    images = [got(file.name, file.read_bytes(), f"第{i}张") for i, file in enumerate(files)]
    kept, decided, _ = run(fetched_build(images, parts=2, filters=[]))
    assert len(files) == 346
    assert {d["reason"] for d in decided.values()} == {"near_image"}
    assert len(decided) == 1  # images 1 and 12 of one recipe, says the corpus's README
    assert len(kept) == 345
