"""dedup: leaders, not chains; one pass that agrees with brute force; increments over earlier builds."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.records import DEDUP_SCHEMA
from pipeline.stages import lead
from pipeline.store.identities import IMAGE_SCHEMA, Identities
from pipeline.texts.folding import normal
from tests.places import CORPUS, needs_corpus
from tests.stages import run_stage

PHOTOS = CORPUS / "howtocook-site" / "images"
SPLITS = ("train", "dev", "val")


def image(seed: int, size: tuple[int, int] = (160, 120), quality: int = 85) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=quality)
    return out.getvalue()


def run(build: Any) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], dict[str, int]]:
    """(kept rows, decisions, counts) of the dedup stage; rows by page and name of the image."""
    run_stage(build, "measure", "filter", "rank", "lead", "dedup")
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
    assert counts["seen"] == counts["kept"] + counts["dropped"] + counts["known"]
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
    again, decided, counts = run(second)
    assert {name: d["reasons"] for name, d in decided.items()} == {
        "a-again": ["known", "same_image"],
        "a-near": ["known", "near_image"],
        "c": ["cap_per_text"],
    }
    assert decided["a-near"]["duplicate_of"] == kept["a"]["candidate_id"]
    assert set(again) == {"d"}
    assert [counts[name] for name in ("earlier", "known", "dropped", "cap_per_text")] == [2, 2, 1, 1]


def test_what_another_dataset_kept_is_a_duplicate_only_if_the_spec_says_so(fetched_build: Any, got: Any) -> None:
    first = fetched_build([got("a", image(1), "一")], filters=[])
    run(first)
    publish(first)
    later = [got("again", image(1), "二"), got("b", image(2), "三")]
    options: dict[str, Any] = {"snapshot": "2026-02-02", "name": "photos", "filters": []}
    kept, _, _ = run(fetched_build(later, **options))
    assert set(kept) == {"again", "b"}
    for across in ("all", [first.spec.name]):
        kept, decided, counts = run(fetched_build(later, dedup={"across": across}, **options))
        assert (set(kept), decided["again"]["reason"], counts["known"]) == ({"b"}, "same_image", 0)
        assert "which an earlier build kept" in decided["again"]["evidence"]


def test_a_text_of_an_earlier_build_stays_the_leader(fetched_build: Any, got: Any) -> None:
    caption = "这家餐厅的红烧肉味道非常好值得推荐给大家来尝试"
    first = fetched_build([got("a", image(1), caption)], filters=[])
    kept, _, _ = run(first)
    publish(first)
    again, _, _ = run(fetched_build([got("b", image(2), caption + "哦")], snapshot="2026-02-02", filters=[]))
    assert again["b"]["text_leaders"] == kept["a"]["text_leaders"]


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
        patch.setattr("pipeline.stages.lead.feature_id", lambda: "features-old")
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


@needs_corpus("howtocook-site", "images")
def test_the_site_holds_one_picture_twice_and_no_other(fetched_build: Any, got: Any) -> None:
    files = sorted(PHOTOS.glob("*.jpg"))
    images = [got(file.name, file.read_bytes(), f"第{i}张") for i, file in enumerate(files)]
    kept, decided, _ = run(fetched_build(images, parts=2, filters=[]))
    assert len(files) == 346
    assert {d["reason"] for d in decided.values()} == {"near_image"}
    assert len(decided) == 1  # images 1 and 12 of one recipe, says the corpus's README
    assert len(kept) == 345


# --- without pictures: caps, placeholders, and any way to cut pairs into builds and processes


def after(build: Any) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """(kept rows, decisions) by name of the picture, of a build made by tests/filtered.py."""
    run_stage(build, "rank", "lead", "dedup")
    stage = build.stage("dedup")
    records = stage.records()
    kept = [row for r in records for split in SPLITS for row in stage.table(r, f"{split}.parquet").to_pylist()]
    decided = [row for r in records for row in stage.table(r, "decisions.parquet").to_pylist()]
    assert sum(r.counts["seen"] for r in records) == len(kept) + len(decided)
    by_name = (
        {_name("/a.html", row[url]): row for row in rows} for rows, url in ((kept, "image_url"), (decided, "url"))
    )
    return next(by_name), next(by_name)


def test_a_picture_under_many_different_texts_is_a_placeholder_and_all_its_copies_go(
    tmp_path: Path, filtered: Any
) -> None:
    shown = [filtered.Shown(f"p{i}", 1, (f"第{i}道菜的做法",), 200 - i) for i in range(6)]
    shown += [filtered.Shown(f"q{i}", 2, ("同一道菜",), 200 - i) for i in range(6)]
    build = filtered.make(tmp_path, shown, parts=3, dedup={"placeholder_texts": 5})
    kept, decided = after(build)
    assert set(kept) == {"q0"}
    assert set(decided["p0"]["reasons"]) == {"placeholder"}
    assert decided["p5"]["reasons"] == ["placeholder", "near_image"]
    assert "more than 5 different texts" in decided["p5"]["evidence"]
    assert decided["q5"]["reason"] == "near_image"
    publish(build)

    again = [filtered.Shown("p9", 1, ("又一页",)), filtered.Shown("r", 3)]
    kept, decided = after(filtered.make(tmp_path, again, snapshot="2026-02-02", dedup={"placeholder_texts": 5}))
    assert set(kept) == {"r"}
    assert decided["p9"]["reasons"] == ["placeholder", "near_image"], "what was a placeholder once is one at sight"


def test_with_no_limit_a_picture_may_have_any_number_of_texts_and_keeps_max_texts(
    tmp_path: Path, filtered: Any
) -> None:
    shown = [filtered.Shown(f"p{i}", 1, (f"第{i}道菜的做法", f"图{i}"), 200 - i) for i in range(6)]
    kept, _ = after(filtered.make(tmp_path, shown, dedup={"placeholder_texts": 0, "max_texts": 3}))
    assert texts(kept["p0"]) == ["第0道菜的做法", "图0", "第1道菜的做法"]
    assert len(kept["p0"]["text_leaders"]) == 3
    kept, _ = after(filtered.make(tmp_path, shown, dedup={"placeholder_texts": 0, "max_texts": 1}))
    assert texts(kept["p0"]) == ["第0道菜的做法"]


def test_a_domain_has_its_cap_by_registered_domain_and_across_builds(tmp_path: Path, filtered: Any) -> None:
    pages = ["http://a.site.com.cn/", "http://b.site.com.cn/x", "http://www.other.com.cn/", "http://a.site.com.cn:80/y"]
    shown = [filtered.Shown(f"p{i}", i, (f"第{i}张",), 200 - i, page=page) for i, page in enumerate(pages)]
    build = filtered.make(tmp_path, shown, dedup={"max_pairs_per_domain": 2})
    kept, decided = after(build)
    assert set(kept) == {"p0", "p1", "p2"}
    assert (decided["p3"]["reason"], decided["p3"]["evidence"]) == (
        "cap_per_domain",
        "2 pairs of site.com.cn are kept already",
    )
    publish(build)
    later = [filtered.Shown(f"q{i}", 9 + i, (f"另{i}张",), page=page) for i, page in enumerate(pages)]
    kept, decided = after(filtered.make(tmp_path, later, snapshot="2026-02-02", dedup={"max_pairs_per_domain": 2}))
    assert len(kept) == 1
    assert set(kept) == {"q2"}


def test_merged_texts_share_their_ids_wherever_they_came_from(tmp_path: Path, filtered: Any) -> None:
    """Two copies of two pictures bring nearly one caption; it gets one id, though no kept pair had it of its own."""
    caption = "今天天气很好我们一家人去公园散步吧"
    shown = [
        filtered.Shown("a", 1, ("甲",), 300),
        filtered.Shown("b", 2, ("乙",), 290),
        filtered.Shown("a2", 1, (caption,), 200),
        filtered.Shown("b2", 2, (caption + "哦",), 190),
    ]
    kept, _ = after(filtered.make(tmp_path, shown, parts=2))
    assert texts(kept["a"]) == ["甲", caption]
    assert texts(kept["b"]) == ["乙", caption + "哦"]
    assert kept["a"]["text_leaders"][1] == kept["b"]["text_leaders"][1]


@st.composite
def splits(draw: st.DrawFn) -> tuple[list[list[tuple[int, bool, list[str], int]]], dict[str, Any], int, int]:
    """Builds of (picture, same bytes, texts, site); rules; partitions; pairs in a process."""
    words = ["红烧肉", "红烧鱼", "清蒸鱼", "今天天气很好我们去公园散步吧", "今天天气很好我们去公园散步啦", "故宫雪景"]
    pair = st.tuples(
        st.integers(0, 6), st.booleans(), st.lists(st.sampled_from(words), min_size=1, max_size=3), st.integers(0, 2)
    )
    builds = draw(st.lists(st.lists(pair, max_size=10), min_size=1, max_size=4))
    rules = {
        "max_pairs_per_text": draw(st.integers(1, 3)),
        "max_pairs_per_domain": draw(st.sampled_from([0, 2, 4])),
        "merge_texts": draw(st.booleans()),
        "placeholder_texts": 0,
    }
    return builds, rules, draw(st.integers(1, 3)), draw(st.sampled_from([2, 5, 1000]))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(splits())
def test_any_increments_give_what_one_build_would_have_given(
    tmp_path_factory: Any, filtered: Any, drawn: tuple[Any, dict[str, Any], int, int]
) -> None:
    """Each build shows smaller pictures than the one before, so that one build over all has the same ranks."""
    builds, rules, parts, holder = drawn
    folder = tmp_path_factory.mktemp("splits")
    increments = [
        [
            filtered.Shown(
                f"{step}-{i}", picture, tuple(own), 900 - 100 * step - i, "same" if same else "", f"http://s{site}.cn/"
            )
            for i, (picture, same, own, site) in enumerate(shown)
        ]
        for step, shown in enumerate(builds)
    ]
    apart: dict[str, Any] = {}
    for step, shown in enumerate(increments):
        build = filtered.make(folder, shown, parts, snapshot=f"2026-0{step + 1}-01", dedup=rules)
        apart |= after(build)[0]
        publish(build)
    spread = {**rules, "pairs_per_holder": holder}
    everything = [one for shown in increments for one in shown]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.stages.rank.RUN", 4)
        together, _ = after(filtered.make(folder, everything, 4, store=str(folder / "other"), dedup=spread))
    what = ("image_leader", "split", "sha256")
    assert {name: [row[w] for w in what] for name, row in apart.items()} == {
        name: [row[w] for w in what] for name, row in together.items()
    }
    own = {one.name: len(dict.fromkeys(one.texts)) for one in everything}
    assert {name: row["text_leaders"][: own[name]] for name, row in apart.items()} == {
        name: row["text_leaders"][: own[name]] for name, row in together.items()
    }


@pytest.mark.slow
def test_actors_of_a_cluster_hold_leaders_as_one_process_does(tmp_path: Path, filtered: Any) -> None:
    import ray

    shown = [
        filtered.Shown(f"p{i}", i % 20, (f"说明{i % 7}",), 300 - i, page=f"http://s{i % 3}.cn/") for i in range(60)
    ]
    rules = {"max_pairs_per_text": 3, "max_pairs_per_domain": 6}
    alone = after(filtered.make(tmp_path, shown, parts=2, dedup=rules))
    build = filtered.make(tmp_path, shown, parts=2, name="spread", dedup={**rules, "pairs_per_holder": 20})
    ray.init("local", num_cpus=1, _node_ip_address="127.0.0.1", include_dashboard=False, log_to_driver=False)
    try:
        assert after(build) == alone
    finally:
        ray.shutdown()
    assert build.stage("lead").record("all").counts["holders"] == 3
    assert 0 < len(alone[0]) < 20
