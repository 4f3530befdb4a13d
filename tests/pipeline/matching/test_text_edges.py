"""text_edges: short captions stay apart, near copies share a leader, and joins answer as comparing all does."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.text.folding import normal, normals, numerals_of
from pipeline.files.digests import rows_of
from pipeline.matching import crowds, sketches, text_edges, text_rows
from pipeline.matching.sketches import SHORT, sketch
from pipeline.matching.text_edges import BUCKETS, KeptTextJoin, KeptTexts, TextEntries, TextJoin
from tests.dedup_oracle import equal_texts
from tests.sketched import LETTERS, leaders_among, likeness, shingles


def alike(a: str, b: str, threshold: float) -> bool:
    """The definition, one pair at a time."""
    needed = 1.0 if min(len(own) for own in shingles([a, b])) < SHORT else threshold
    return len({*numerals_of(normals([a, b])).tolist()}) == 1 and likeness(a, b) >= needed


def leaders_of(texts: list[str], threshold: float = 0.8) -> list[int]:
    """For each text the position of its leader's first appearance."""
    rows = text_rows.make_text_rows(normals(texts), threshold)
    names = rows_of(rows.ids)
    first = {name: at for at, name in reversed(list(enumerate(names)))}
    distinct = sorted(first.values())
    leaders = leaders_among(rows.take(distinct), threshold)
    leader_of = {own: distinct[leader] for own, leader in zip(distinct, leaders, strict=True)}
    return [leader_of[first[name]] for name in names]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("茶", "酒"),
        ("青蛙", "青蛇"),
        ("哈哈", "哈哈哈"),
        ("猫追狗", "狗追猫"),
        ("红烧肉成品图", "红烧鱼成品图"),
        ("价格1.5元", "价格15元"),
        ("字母A", "字母C"),
        ("iPhone手机壳", "Nokia手机壳"),
        ("5g盐", "50g盐"),
        ("蚝油10ml", "油10ml"),
        ("！", "？"),
        ("😀", "😢"),
        ("0\0", "0.1"),
    ],
)
def test_short_captions_stay_apart(a: str, b: str) -> None:
    assert leaders_of([a, b]) == [0, 1]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("这张照片展示了制作葱烧海参的第1个步骤的细节图", "这张照片展示了制作葱烧海参的第2个步骤的细节图"),
        ("这张照片展示了制作葱烧海参的第一个步骤的细节图", "这张照片展示了制作葱烧海参的第二个步骤的细节图"),
        ("二〇二一年夏天我们一家人在青岛海边拍摄的照片", "二〇二二年夏天我们一家人在青岛海边拍摄的照片"),
    ],
)
def test_captions_that_differ_in_a_digit_stay_apart(a: str, b: str) -> None:
    assert likeness(a, b) >= 0.75  # by their shingles alone they would be close
    assert leaders_of([a, b], threshold=0.7) == [0, 1]
    assert len(set(numerals_of(normals([a, b])).tolist())) == 2


def test_near_copies_of_longer_captions_share_a_leader() -> None:
    text = "这家餐厅的红烧肉味道非常好值得推荐给大家来尝试"
    assert leaders_of([text, text.replace("推荐", "推存"), text + "哦", "今天天气很好我们去公园散步吧"]) == [0, 0, 0, 3]


def test_a_name_in_letters_does_not_outweigh_what_differs_before_it() -> None:
    assert leaders_of(["苦瓜酿 CylindricalContainer", "豆腐酿 CylindricalContainer"], 0.7) == [0, 1]
    text = "秋天的苦瓜酿肉的家常做法大全 Xiachufang"
    assert leaders_of([text, text.replace("大全", "大金")], 0.7) == [0, 0]


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=6).filter(normal), max_size=8))
def test_any_text_has_shingles_and_a_leader(texts: list[str]) -> None:
    if texts:
        assert all(len(own) for own in shingles(texts))
    leaders = leaders_of(texts)
    assert all(leaders[leader] == leader for leader in leaders)


@pytest.mark.slow
@given(
    st.lists(st.text("春夏秋1", min_size=1, max_size=14), max_size=14),
    st.sampled_from([0.4, 0.6, 0.8]),
    st.sampled_from([1, 5, 99]),
    st.sampled_from([1, 5, 99]),
)
def test_leaders_are_those_of_comparing_one_by_one(texts: list[str], threshold: float, long: int, block: int) -> None:
    """Whatever the size of a crowd, and of what is compared at once in one."""
    leading: list[int] = []
    expected = []
    for i, text in enumerate(texts):
        same = [j for j in leading if alike(text, texts[j], threshold)]
        leading += [] if same else [i]
        expected.append(texts.index(texts[(same or [i])[0]]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_edges, "LONG", long)
        patch.setattr(crowds, "AT_ONCE", block)
        assert leaders_of(texts, threshold) == expected


def varied(base: str, count: int) -> list[str]:
    """Copies of a text with one character changed."""
    spots = random.choices(range(len(base)), k=count)
    return [base[:at] + random.choice(LETTERS) + base[at + 1 :] for at in spots]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 40),
    st.integers(1, 4),
    st.sampled_from([0, 2, 64]),
    st.sampled_from([1, 3, 64]),
)
def test_joins_find_what_comparing_all_finds(seed: int, size: int, parts: int, long: int, block: int) -> None:
    """In any parts of the keys, among texts and with kept ones; with few bands, so that texts share one or none."""
    chance = random.Random(seed)
    base = ["公园里的{}很好看我们常去", "今天在家中制作{}的详细过程", "{}"]
    texts = list(
        dict.fromkeys(chance.choice(base).format("".join(chance.choices("红黄蓝白花草1", k=5))) for _ in range(size))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sketches, "MISS", 0.5)
        patch.setattr(text_edges, "LONG", long)
        patch.setattr(crowds, "AT_ONCE", block)
        made = sketch(normals(texts), 0.6)
        expected = equal_texts(normals(texts), 0.6)
        cut = len(texts) // 2
        kept = made.take(np.arange(cut))
        entries, found = TextEntries.of(made.keys), dict[int, int]()
        same, open_ = np.zeros_like(expected), np.zeros_like(expected)
        for part in range(parts):
            here = entries.in_buckets(BUCKETS * part // parts, BUCKETS * (part + 1) // parts)
            join = TextJoin(0.6, made.without_keys, np.zeros(len(texts), np.uint32))
            join.join(here.keys, here.owner.astype(np.int64))
            edges, of_crowds = join.edges()
            one, other = edges.T
            same[one, other] = same[other, one] = True
            partners = crowds.Partners(of_crowds)
            for text in range(len(texts)):
                open_[text, partners.of(text)] = True
            looking = KeptTextJoin(0.6, made.without_keys, KeptTexts(TextEntries.of(kept.keys), kept))
            looking.look(here.keys, here.owner.astype(np.int64))
            for text, first in zip(*(of.tolist() for of in looking.matches()), strict=True):
                found[text] = min(first, found.get(text, first))
    np.fill_diagonal(expected, val=False)
    assert not (same & ~expected).any()
    assert not (expected & ~same & ~open_).any(), "what was not compared is open in a crowd"
    np.fill_diagonal(expected, val=True)
    first_of = {
        text: int(np.flatnonzero(expected[text, :cut])[0]) for text in range(len(texts)) if expected[text, :cut].any()
    }
    # a text to the letter that has no shingles is near nothing: the join of copies finds it
    assert {text: first for text, first in found.items() if first != text} == {
        text: first for text, first in first_of.items() if first != text
    }


@pytest.mark.drill(2)
def test_a_hot_cluster_is_compared_with_its_leaders_only(monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(4)
    hot = varied("这家餐厅的红烧肉味道非常好值得推荐给大家来尝试一下", 6_000)
    compared = 0
    exact = sketches.similarities

    def counted(a: sketches.Sketches, rows: sketches.Ints, *rest: object) -> object:
        nonlocal compared
        compared += len(rows)
        return exact(a, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sketches, "similarities", counted)  # each key's crowd costs a comparison or two of a text
    assert len(set(leaders_of(hot, 0.7))) < 10
    assert compared < 60 * len(hot)  # with each other they would be 18 million


@pytest.mark.drill(7)
def test_captions_of_one_template_are_told_apart_and_crowds_lose_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """They share keys by the hundred. With few bands, so that a crowd is often the only key that two texts share."""
    monkeypatch.setattr(sketches, "MISS", 0.3)
    random.seed(7)
    letters = [c for c in map(chr, range(0x3400, 0xA000)) if normal(c) == c and not c.isnumeric()]
    random.shuffle(letters)
    dishes = ["".join(letters[at : at + 5]) for at in range(0, 4_000, 5)]
    captions = [f"这张照片展示了在家中制作{dish}的详细过程和所需材料" for dish in dishes]
    copies = [f"那张照片展现了在家中制作{dish}的详尽过程和所需材料" for dish in dishes]
    assert likeness(captions[0], captions[1]) < 0.7 < likeness(captions[0], copies[0]) < 0.75
    monkeypatch.setattr(text_edges, "LONG", 2_000)
    roomy = leaders_of(captions + copies, 0.7)
    assert roomy[: len(captions)] == list(range(len(captions)))
    assert sum(roomy[len(captions) + i] == i for i in range(len(copies))) > 500
    monkeypatch.setattr(text_edges, "LONG", 2)
    assert leaders_of(captions + copies, 0.7) == roomy


@pytest.mark.slow
def test_distinct_captions_stay_distinct() -> None:
    """50,000 words and phrases of one to some characters: the field's tools make one row of them."""
    import jieba

    with (Path(jieba.__file__).parent / "dict.txt").open(encoding="utf-8") as lines:
        words = list(dict.fromkeys(normals([line.split(" ")[0] for line in lines])))
    random.seed(8)
    captions = random.sample(words, 50_000)
    assert sum(len(c) <= 4 for c in captions) > 30_000
    assert leaders_of(captions, 0.7) == list(range(50_000))
