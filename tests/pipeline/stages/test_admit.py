"""What is decided before a byte is fetched: rules, order, and a funnel that adds up."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.build import BuildSpec
from data_specs.shard import Text, TextKind
from pipeline.rows.records import Candidate, RemovedText, candidate_rows, candidates_of, order_range, sha256_hex
from pipeline.stages import STAGES
from pipeline.stages._templates import HostTemplates
from pipeline.stages.admit import admit, partitions, range_count, run_partition, token
from pipeline.store.build import Build
from pipeline.store.commits import DECISIONS
from pipeline.store.store import Store
from pipeline.store.takedowns import Takedowns
from pipeline.texts.templates import Template, Templates
from tests.stages import run_stage


def spec(**more: Any) -> BuildSpec:
    source = {
        "kind": "url_table",
        "name": "t",
        "source_kind": "news",
        "path": "t.csv",
        "columns": {"texts": {"alt": "a"}},
    }
    return BuildSpec.model_validate({"name": "t", "contact": "a@b.cn", "sources": [source], **more})


def candidate(
    image: str = "http://i.test/a.jpg", *texts: tuple[TextKind, str], origin: str = "1", page: str = "", row: int = 0
) -> Candidate:
    own_texts = tuple(Text(kind, text) for kind, text in texts or [("alt", "故宫雪景图片")])
    return Candidate("t", "news", origin, page, image, own_texts, row)


def reasons(candidates: list[Candidate], **more: Any) -> list[str]:
    return [d.reason for d in admit(candidates, spec(), **more)[1]]


def test_the_primary_text_is_the_first_of_the_spec_s_kinds():
    one = candidate(
        "http://i.test/a", ("surrounding", "一段周围的文字"), ("alt", "故宫雪景图片"), ("caption", "雪后的故宫角楼")
    )
    [kept], _ = admit([one], spec())
    assert [t.kind for t in kept.texts] == ["caption", "alt", "surrounding"]
    [kept], _ = admit([one], spec(text_kinds=["surrounding", "alt"]))
    assert [t.kind for t in kept.texts] == ["surrounding", "alt"], "a kind that is not listed is left out"


def test_a_candidate_without_texts_is_dropped_and_an_earlier_rank_is_counted_anew():
    bare = replace(candidate(), texts=())
    assert reasons([bare]) == ["no_text"]
    ranked = replace(candidate(), text_rank=3)  # by a build before this one
    [kept], _ = admit([ranked], spec())
    assert kept == candidate()


def test_texts_that_fail_are_taken_off_and_the_others_stay():
    one = candidate(
        "http://i.test/a", ("caption", "IMG_1234.jpg"), ("alt", "  故宫\n雪景　图片 "), ("title", "a title in English")
    )
    [kept], decisions = admit([one], spec())
    assert [(t.kind, t.text) for t in kept.texts] == [("alt", "故宫 雪景 图片")]
    assert decisions == []


def test_a_candidate_without_a_good_text_names_every_reason_the_primary_text_s_first():
    one = candidate("http://i.test/a", ("title", "点击查看大图"), ("alt", "短"), ("caption", "english caption here"))
    _, [decision] = admit([one], spec())
    assert decision.reason == "low_han_share"
    assert decision.reasons == ("low_han_share", "text_too_short", "boilerplate")
    assert decision.text == "english caption here"


def test_a_removed_text_is_a_fact_and_the_text_in_its_place_is_marked_as_a_fallback():
    one = candidate(
        "http://i.test/a", ("caption", "IMG_1234.jpg"), ("alt", "门"), ("title", "北京城门漫步"), ("tag", "x")
    )
    [kept], decisions = admit([one], spec())
    assert decisions == []
    assert [(t.kind, t.text, t.reason) for t in kept.removed] == [
        ("caption", "IMG_1234.jpg", "low_han_share"),
        ("alt", "门", "text_too_short"),
        ("tag", "x", "text_too_short"),
    ]
    assert kept.removed[1].evidence == "1 characters; needs 2"
    assert (kept.texts[0].kind, kept.text_rank) == ("title", 2), "the tag would have come after it"
    [kept], _ = admit([candidate("http://i.test/a", ("alt", "正阳门"), ("title", "北京城门漫步"))], spec())
    assert (kept.texts[0].text, kept.text_rank, kept.removed) == ("正阳门", 0, ())


def test_what_extract_removed_counts_where_it_would_have_come_first():
    furniture = RemovedText("title", "某某网", "boilerplate", "stands on 7 pages")
    one = replace(candidate("http://i.test/a", ("surrounding", "雪后的故宫角楼")), removed=(furniture,))
    [kept], _ = admit([one], spec())
    assert (kept.text_rank, kept.removed) == (1, ())
    [kept], _ = admit([replace(one, texts=(Text("alt", "角楼"), *one.texts))], spec())
    assert kept.text_rank == 0


def test_texts_about_a_page_with_many_images_alone_are_no_words_of_one_of_them() -> None:
    title = ("title", "文本管理的方法")
    own = candidate("http://i.test/a.jpg", title, page="http://a.test/", origin="http://a.test/")
    assert admit([own], spec())[0], "of few on its page"
    for shown in ("among", "listed"):
        [decision] = admit([replace(own, shown=shown)], spec())[1]
        assert (decision.reason, decision.text) == ("no_text", "文本管理的方法")
        assert decision.evidence == "only the title of its page is left (page_texts: drop)"
    for words, reason in (("A screenshot of the text tool", "low_han_share"), ("字", "text_too_short")):
        removed = replace(own, texts=(Text("caption", words), *own.texts), shown="among")
        [decision] = admit([removed], spec())[1]
        assert decision.reason == reason, "the fault of the words that were removed"
    for text in (Text("alt", "文本工具"), Text("surrounding", "选择文本工具后的窗口。")):
        [kept] = admit([replace(own, texts=(*own.texts, text), shown="among")], spec())[0]
        assert text in kept.texts
    assert admit([replace(own, texts=(*own.texts, Text("surrounding", "如下图所示：")), shown="among")], spec())[1]


def test_a_source_is_judged_by_its_own_options_and_a_library_by_no_threshold_of_the_web():
    sources = [
        {
            "kind": "url_table",
            "name": name,
            "source_kind": kind,
            "path": "t.csv",
            "columns": {"texts": {"alt": "a"}},
            **own,
        }
        for name, kind, own in (
            ("t", "news", {}),
            ("strict", "news", {"filters": {"text_length": {"min_chars": 9}}}),
            ("lib", "library", {}),
        )
    ]
    two = spec(sources=sources)
    texts = {"t": "门", "strict": "故宫雪景图片", "lib": "门"}
    many = [replace(candidate(f"http://i.test/{n}", ("alt", text)), source=n) for n, text in texts.items()]
    kept, decisions = admit(many, two)
    assert [c.source for c in kept] == ["lib"]
    assert {d.source: d.evidence for d in decisions} == {
        "t": "1 characters; needs 2",
        "strict": "6 characters; needs 9",
    }


def test_a_sentence_that_extract_put_before_the_title_stays_there_in_the_default_order_only():
    page = "http://a.test/p"
    texts: list[tuple[TextKind, str]] = [
        ("surrounding", "把土豆切成细丝。"),
        ("title", "酸辣土豆丝"),
        ("alt", "切好的土豆丝"),
    ]
    one = candidate("http://i.test/a", *texts, origin=page, page=page)
    [kept], _ = admit([one], spec())
    assert [t.kind for t in kept.texts] == ["alt", "surrounding", "title"]
    [kept], _ = admit([one], spec(text_kinds=["title", "alt", "surrounding"]))
    assert [t.kind for t in kept.texts] == ["title", "alt", "surrounding"]
    [kept], _ = admit([replace(one, origin="1")], spec())
    assert [t.kind for t in kept.texts] == ["alt", "title", "surrounding"], (
        "the order of a table's columns says nothing"
    )


def test_an_image_on_very_many_pages_of_the_whole_crawl_is_furniture():
    pages = [f"http://a.test/{i}" for i in range(20)]
    many = [candidate("http://i.test/logo.jpg", origin=p, page=p) for p in pages]
    kept, decisions = admit(many, spec())
    assert kept == []
    assert {(d.reason, d.evidence) for d in decisions} == {("spacer", "repeated on 20 pages")}
    assert len(admit(many[1:], spec())[0]) == 8, "max_candidates_per_image"


def test_templates_of_a_host_are_cut_and_avatars_dropped():
    own = [
        Template("begins", "某某网【", 300),
        Template("ends", "的头像", 300),
        Template("ends", " 的图片", 300),
    ]
    templates = HostTemplates({("a.test", "own"): Templates(own)})
    page = "http://a.test/p"

    def of(*texts: tuple[TextKind, str]) -> tuple[list[Candidate], list[Any]]:
        return admit([candidate("http://i.test/a", *texts, origin=page, page=page)], spec(), templates=templates)

    [kept], _ = of(("alt", "某某网【故宫雪景】"), ("title", "某某网【正阳门】"))
    assert [t.text for t in kept.texts] == ["故宫雪景", "某某网【正阳门】"], "titles are another sample"
    [kept], _ = of(("alt", "某某网【 的图片"), ("title", "北京城门漫步"))
    assert (kept.texts[0].text, kept.text_rank) == ("北京城门漫步", 1)
    assert kept.removed[0].evidence.startswith("template of its host: ")
    kept_none, [decision] = of(("alt", "张三的头像"), ("title", "北京城门漫步"))
    assert (kept_none, decision.reason) == ([], "spacer")


REWRITING = [
    {"name": "text_length", "min_chars": 2},
    {"name": "to_simplified"},
    {"name": "han_share"},
    {"name": "personal_data"},
]


def test_what_a_filter_masks_is_in_no_decision_though_it_was_dropped_before_the_filters_are_asked():
    own = Templates([Template("ends", "的头像", 300), Template("begins", "联系电话0", 300)])
    page = "http://a.test/p"
    many = [candidate("http://i.test/f", ("alt", "拨 13800138000"), origin=f"http://a.test/{n}") for n in range(20)]
    shown = [
        candidate("http://i.test/a", ("alt", "张三13800138000的头像"), origin=page, page=page),
        candidate("http://i.test/b", ("alt", "联系电话13800138000"), origin=page, page=page),
        *[candidate("http://i.test/c", ("alt", "故宫雪景，电话13800138000"), row=row) for row in range(2)],
        *(replace(one, page_url=one.origin) for one in many),
    ]
    _, decisions = admit(shown, spec(filters=REWRITING), templates=HostTemplates({("a.test", "own"): own}))
    assert Counter(d.reason for d in decisions) == {"spacer": 21, "no_text": 1, "same_candidate": 1}
    assert {d.text for d in decisions} == {
        "张三<电话>的头像", "联系电话<电话>", "故宫雪景，电话<电话>", "拨 <电话>"
    }  # fmt: skip


def test_filters_rewrite_in_the_spec_s_order_and_later_ones_see_what_came_of_it():
    one = candidate("http://i.test/a", ("alt", "臺北故宮 13800138000"), ("title", "故宫"), ("caption", "故宮"))
    counts: Counter[str] = Counter()
    [kept], decisions = admit([one], spec(filters=REWRITING), rewritten=counts)
    assert kept.texts == (Text("caption", "故宫", "故宮"), Text("alt", "台北故宫 <电话>", "臺北故宮 <电话>"))
    assert decisions == [], "the title has become the caption's text, and is there once"
    assert counts == {"to_simplified": 2, "personal_data": 1}
    assert admit([kept], spec(filters=REWRITING)) == ([kept], [])


def test_what_is_masked_is_not_read_in_a_decision_and_every_reason_is_there():
    filters = [{"name": "text_length", "max_chars": 8}, {"name": "ads"}, {"name": "personal_data"}]
    _, [decision] = admit([candidate("http://i.test/a", ("alt", "张三的电话13800138000"))], spec(filters=filters))
    assert decision.reasons == ("text_too_long", "advertisement")
    assert decision.text == "张三的电话<电话>"
    assert "138" not in decision.evidence


def test_takedowns_by_url_and_by_domain_of_image_or_page():
    one = candidate("http://img.cdn.test/a.jpg", page="http://www.news.test/1")
    assert reasons([one], takedowns=Takedowns(frozenset({one.fetch_id}))) == ["forgotten"]
    for domain in ("img.cdn.test", "cdn.test", "www.news.test", "news.test"):
        assert reasons([one], takedowns=Takedowns(frozenset({sha256_hex(domain)}))) == ["forgotten"], domain
    others = {sha256_hex("test"), sha256_hex("dn.test"), sha256_hex("http://cdn.test")}
    assert reasons([one], takedowns=Takedowns(frozenset(others))) == []


def test_the_same_candidate_counts_once():
    same = [candidate(row=2), candidate(row=1), candidate(row=1)]
    kept, decisions = admit(same, spec())
    assert [c.row for c in kept] == [1]
    assert [d.reason for d in decisions] == ["same_candidate", "same_candidate"]
    assert {d.duplicate_of for d in decisions} == {kept[0].candidate_id}


def test_the_cap_per_image_url_prefers_texts_that_are_not_there_yet():
    many = [candidate(origin=str(i)) for i in range(5)]
    other = [candidate("http://i.test/a.jpg", ("alt", "另外一个说明文字"), origin="x")]
    kept, decisions = admit(many + other, spec(admit={"max_candidates_per_image": 2}))
    assert sorted(c.texts[0].text for c in kept) == ["另外一个说明文字", "故宫雪景图片"]
    assert [d.reason for d in decisions] == ["cap_per_image_url"] * 4


def test_a_host_has_at_most_its_share_of_the_images_and_which_does_not_depend_on_the_order():
    large = [candidate(f"http://large.test/{i}.jpg", origin=origin) for i in range(6) for origin in "ab"]
    small = [candidate(f"http://small.test/{i}.jpg") for i in range(3)]
    files = [candidate(f"folder:///t/{i}.jpg") for i in range(11)]
    limited = spec(admit={"max_share_per_host": 0.2})
    kept, decisions = admit([*large, *small, *files], limited)
    assert Counter(c.image_url.split("/")[2] for c in kept) == {"large.test": 8, "small.test": 3, "": 11}
    images = sorted((sha256_hex(c.image_url), c.image_url) for c in large[::2])
    assert {c.image_url for c in kept} >= {url for _, url in images[:4]}, "with all candidates of each"
    assert [d.reason for d in decisions] == ["cap_per_image_host"] * 4
    assert {d.evidence for d in decisions} == {"large.test has 6 of 20 images; 4 are allowed"}
    assert admit([*files[::-1], *small, *large[::-1]], limited) == (kept, decisions)
    assert len(admit(small, limited)[0]) == 1, "never none"


def test_kinds_that_a_spec_does_not_list_are_left_out_and_the_others_keep_their_order():
    beside = candidate(
        "http://i.test/b.jpg", ("surrounding", "北京城门漫步"), ("alt", "步骤三的图"), ("title", "北京的城门楼")
    )
    beside = replace(beside, origin="http://p.test/", page_url="http://p.test/")
    bare = candidate("http://i.test/c.jpg", ("title", "北京的城门"))
    own = ["caption", "alt", "surrounding"]
    [kept], [gone] = admit([beside, bare], spec(text_kinds=own))
    assert [t.kind for t in kept.texts] == ["surrounding", "alt"]
    assert (kept.text_rank, [t.kind for t in kept.removed]) == (0, ["title"])
    assert (gone.reason, gone.evidence) == ("no_text", "kind not in text_kinds")
    assert admit([replace(beside, texts=beside.texts[::-1])], spec(text_kinds=own))[0][0].text_rank == 0
    both, _ = admit([beside, bare], spec())
    assert sorted([t.kind for t in one.texts] for one in both) == [["surrounding", "alt", "title"], ["title"]]


def test_a_candidate_that_lost_better_texts_goes_where_the_spec_says_so():
    fallback = candidate("http://i.test/b.jpg", ("alt", "short"), ("surrounding", "北京城门漫步"))
    for most, reasons in ((None, []), (1, []), (0, ["fallback_text"])):
        kept, decisions = admit([candidate(), fallback], spec(admit={"max_text_rank": most}))
        assert [d.reason for d in decisions] == reasons
        assert len(kept) + len(decisions) == 2


CANDIDATES = st.lists(
    st.builds(
        candidate,
        st.sampled_from([f"http://i{i}.test/a.jpg" for i in range(3)]),
        st.tuples(
            st.sampled_from(["alt", "title", "caption"]),
            st.sampled_from(["故宫雪景图片", "黄山云海日出", "短", "x.jpg", " "]),
        ),
        st.tuples(st.just("surrounding"), st.sampled_from(["", "周围的一段文字", "english"])),
        origin=st.sampled_from(["1", "2", "3", "4"]),
        row=st.integers(0, 2),
    ),
    max_size=12,
)


@pytest.mark.slow
@given(CANDIDATES, st.randoms(use_true_random=False), st.sets(st.sampled_from([sha256_hex("i0.test")])))
def test_every_candidate_leaves_once_and_the_order_of_input_does_not_matter(candidates, dice, forgotten):
    limited = spec(admit={"max_candidates_per_image": 2})
    takedowns = Takedowns(frozenset(forgotten))
    kept, decisions = admit(candidates, limited, takedowns)
    assert len(kept) + len(decisions) == len(candidates)
    assert not any(d.kept or not d.reason for d in decisions)
    assert len({c.candidate_id for c in kept}) == len(kept)
    assert all(sum(c.image_url == k.image_url for c in kept) <= 2 for k in kept)
    shuffled = list(candidates)
    dice.shuffle(shuffled)
    assert admit(shuffled, limited, takedowns) == (kept, decisions)
    again, none = admit(kept, limited, takedowns)
    assert (again, none) == ([replace(c, removed=()) for c in kept], []), "nothing more is removed"
    seen = {
        c.candidate_id: max(len(other.texts) for other in candidates if other.candidate_id == c.candidate_id)
        for c in kept
    }
    assert all(c.text_rank <= len(c.removed) and len(c.texts) + len(c.removed) <= seen[c.candidate_id] for c in kept)


def build_with(tmp_path: Path, candidates: list[Candidate], files: int) -> Build:
    limited = spec(fetch={"images_per_partition": 20})
    prints = {"extract": "e" * 64, "admit.sort": "5" * 64, "admit": "a" * 64}
    store = Store(str(tmp_path / "store"))
    build = Build(limited, str(tmp_path / "out"), store, "t", "2026-01-01", prints, stages=STAGES)
    for i in range(files):
        part = candidates[i::files]
        with build.stage("extract").attempt(f"t-{i:05d}") as attempt:
            attempt.write_table("parquet", candidate_rows(part, limited.seed))
            attempt.commit({"seen": len(part), "kept": len(part), "dropped": 0})
    run_stage(build, "admit.sort")
    return build


@pytest.mark.parametrize(
    ("candidates", "most", "ranges"),
    [(0, 10_000, 1), (499, 10_000, 1), (1_000, 10_000, 4), (16_000, 10_000, 64), (640_000, 10_000, 64),
     (700_000, 10_000, 70), (5_000_000, 10_000, 500), (110, 20, 6)],
)  # fmt: skip
def test_a_small_build_is_cut_finer_and_a_large_one_as_the_spec_says(candidates, most, ranges):
    assert range_count(candidates, most) == ranges


@pytest.mark.slow
@pytest.mark.parametrize("files", [1, 3])
def test_partitions_are_ranges_that_hold_every_candidate_once(tmp_path, files):
    dice = random.Random(5)
    candidates = [candidate(f"http://i.test/{i // 2}.jpg", origin=str(i)) for i in range(100)]
    candidates += [candidate(f"http://i.test/x{i}.jpg", ("alt", "短")) for i in range(10)]
    dice.shuffle(candidates)
    build = build_with(tmp_path, candidates, files)
    names = partitions(build)
    assert names == [f"{i:05d}-of-00006" for i in range(6)]
    stage, kept = build.stage("admit"), []
    for i, name in enumerate(names):
        run_partition(build, name)
        table = stage.table(stage.record(name))
        low, high = order_range(i, 6)
        keys = table["order_key"].to_pylist()
        assert keys == sorted(keys)
        assert all(low <= key < high for key in keys)
        kept += candidates_of(table)
        if DECISIONS in stage.record(name).files:
            assert set(stage.table(stage.record(name), DECISIONS)["reason"].to_pylist()) <= {"text_too_short"}
    counts = [stage.record(name).counts for name in names]
    assert sum(c["seen"] for c in counts) == len(candidates)
    assert all(c["seen"] == c["kept"] + c["dropped"] for c in counts)
    assert sorted(c.candidate_id for c in kept) == sorted(
        c.candidate_id for c in candidates if len(c.texts[0].text) > 1
    )


def test_a_record_counts_rewritten_texts_and_originals_are_kept(tmp_path):
    build = build_with(tmp_path, [candidate("http://i.test/a", ("alt", "臺北故宮博物院"))], 1)
    build = replace(build, spec=spec(filters=REWRITING))
    [name] = partitions(build)
    run_partition(build, name)
    record = build.stage("admit").record(name)
    assert record.counts["texts_rewritten_by_to_simplified"] == 1
    assert record.counts["texts_rewritten_by_personal_data"] == 0
    [kept] = candidates_of(build.stage("admit").table(record))
    assert kept.texts == (Text("alt", "台北故宫博物院", "臺北故宮博物院"),)


def test_nothing_extracted_is_one_empty_partition(tmp_path):
    build = build_with(tmp_path, [], 1)
    assert partitions(build) == ["00000-of-00001"]
    run_partition(build, "00000-of-00001")
    assert build.stage("admit").table(next(build.stage("admit").records())).num_rows == 0


def test_a_takedown_changes_the_token(tmp_path):
    before = token(build_with(tmp_path, [], 1))
    build = build_with(tmp_path, [], 1)
    (build.store.folder / "forgotten").write_json("1.json", {"hashes": ["f" * 64]})
    assert token(build) != before


def test_the_cap_per_image_url_takes_what_an_older_snapshot_shows_first():
    """As builds that followed each other took it: else a new generation would drop what the last one kept."""
    many = [candidate("http://i.test/a.jpg", ("alt", f"故宫雪景之{n}"), origin=str(n)) for n in range(6)]
    by_id = sorted(many, key=lambda c: c.candidate_id)
    limited = spec(admit={"max_candidates_per_image": 2})
    snapshots = {by_id[4].candidate_id: "2026-01-01", by_id[2].candidate_id: "2026-01-08"}
    kept, _ = admit(many, limited, first_snapshot=snapshots)
    assert {c.candidate_id for c in kept} == set(snapshots), "what no crawl shows comes last"
    kept, _ = admit(many, limited)
    assert kept == by_id[:2]
