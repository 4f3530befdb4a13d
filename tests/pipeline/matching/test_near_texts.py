"""near_texts: different short Chinese captions stay apart, near copies match, other digits keep texts apart."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.build import Dedup
from pipeline.files.digests import rows_of
from pipeline.matching import near_texts, sketches, text_rows
from pipeline.matching.holders import Holders
from pipeline.matching.leader_pass import LeaderPass
from pipeline.matching.near_texts import TextIndex
from pipeline.matching.sketches import SHINGLES, SHORT, bands, similarities, sketch
from pipeline.texts.folding import normal, normals, numerals_of

LETTERS = [c for c in map(chr, range(0x4E00, 0x8000, 7)) if not c.isnumeric()]


def shingles(texts: list[str]) -> list[npt.NDArray[np.uint32]]:
    made = sketch(normals(texts), 0.7)
    return np.split(made.shingles, made.starts[1:-1])


def likeness(a: str, b: str) -> float:
    both, row = sketch(normals([a, b]), 0.7), np.zeros(1, np.int64)
    return float(similarities(both, row, both, row + 1)[0])


def alike(a: str, b: str, threshold: float) -> bool:
    """The definition, one pair at a time."""
    needed = 1.0 if min(len(own) for own in shingles([a, b])) < SHORT else threshold
    return len({*numerals_of(normals([a, b])).tolist()}) == 1 and likeness(a, b) >= needed


def leaders_of(texts: list[str], threshold: float = 0.8, block: int = 1_024) -> list[int]:
    """For each text the position of its leader's first appearance."""
    rules = Dedup(text_similarity=threshold)
    decide = LeaderPass(rules, Holders(rules, 1))
    rows = text_rows.made(normals(texts), threshold)
    names = rows_of(rows.ids)
    first = {name: at for at, name in reversed(list(enumerate(names)))}
    distinct = sorted(first.values())
    leaders: dict[int, int] = {}
    for start in range(0, len(distinct), block):
        some = distinct[start : start + block]
        leaders |= zip(some, (first[leader] for leader in decide.place(rows.take(some))), strict=True)
    return [leaders[first[name]] for name in names]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("青蛙。", "青蛙"),
        ("ＡＢＣ　１２３", "abc123"),
        ("北京，故宫！", "北京故宫"),
        ("「红烧肉」的做法", "红烧肉的做法"),
        ("ﬁre①", "FIRE1"),
        ("  茶  ", "茶"),
        ("❤️ 茶", "❤茶"),
        ("葛\U000e0100", "葛"),
        ("紅燒肉裡的麵條", "红烧肉里的面条"),
        ("臺灣風景著名遊覽區", "台湾风景着名游览区"),
        ("什麼時候發財", "什么时候发财"),
    ],
)
def test_width_case_and_punctuation_do_not_count(a: str, b: str) -> None:
    assert normal(a) == normal(b)


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


def test_similarity_is_jaccard_of_counted_shingles() -> None:
    def counted(text: str) -> Counter[str]:
        return Counter([*text, *(a + b for a, b in itertools.pairwise(text))])

    random.seed(1)
    for _ in range(50):
        a = "".join(random.choices("春夏秋冬", k=random.randint(1, 20)))
        b = "".join(random.choices("春夏秋冬", k=random.randint(1, 20)))
        one, two = counted(a), counted(b)
        assert likeness(a, b) == pytest.approx((one & two).total() / (one | two).total())


def test_long_texts_are_compared_by_a_sketch() -> None:
    random.seed(2)
    text = "".join(random.choices(LETTERS, k=3_000))
    (own,) = shingles([text])
    assert len(own) == SHINGLES
    other = text[:1500] + "".join(random.choices(LETTERS, k=150)) + text[1650:]
    exact = 2 * 2850 / (2 * 6000 - 2 * 2850)
    assert likeness(text, other) == pytest.approx(exact, abs=0.1)
    assert leaders_of([text, text[:-20]]) == [0, 0]


def test_bands_miss_next_to_nothing_as_datasketch_would_have_it() -> None:
    """Over real near-copies: what exact Jaccard calls the same, and what datasketch's LSH finds, we find."""
    from datasketch import MinHash, MinHashLSH

    random.seed(3)
    originals = ["".join(random.choices(LETTERS, k=random.randint(16, 40))) for _ in range(400)]
    copies = []
    for text in originals:
        at = random.randrange(len(text))
        copies.append(text[:at] + random.choice(LETTERS) + text[at + 1 :])
    true = [likeness(a, b) >= 0.8 for a, b in zip(originals, copies, strict=True)]
    found = leaders_of(originals + copies)[len(originals) :]
    ours = [at == i for i, at in enumerate(found)]
    assert sum(true) > 300
    assert all(t or not o for t, o in zip(true, ours, strict=True))  # never one below the threshold
    assert sum(t and not o for t, o in zip(true, ours, strict=True)) == 0

    lsh = MinHashLSH(threshold=0.8, num_perm=128)

    def sketch(text: str) -> MinHash:
        made = MinHash(num_perm=128)
        made.update_batch([value.tobytes() for value in shingles([text])[0]])
        return made

    for i, text in enumerate(originals):
        lsh.insert(i, sketch(text))
    theirs = [t and i in lsh.query(sketch(copy)) for i, (t, copy) in enumerate(zip(true, copies, strict=True))]
    assert sum(ours) >= sum(theirs)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9, 1.0])
def test_the_bands_fit_the_threshold(threshold: float) -> None:
    rows, count = bands(threshold)
    assert rows * count <= 128
    assert (1 - threshold**rows) ** count <= 1e-3


def test_a_name_in_letters_does_not_outweigh_what_differs_before_it() -> None:
    assert leaders_of(["苦瓜酿 CylindricalContainer", "豆腐酿 CylindricalContainer"], 0.7) == [0, 1]
    text = "秋天的苦瓜酿肉的家常做法大全 Xiachufang"
    assert leaders_of([text, text.replace("大全", "大金")], 0.7) == [0, 0]


@pytest.mark.parametrize("conversion", ["s2t", "s2tw", "s2hk", "t2s", "tw2s", "hk2s"])
def test_every_form_of_a_character_is_the_same_as_opencc_has_it(conversion: str) -> None:
    import opencc

    characters = [chr(c) for c in range(0x3400, 0xA000)]
    converted = opencc.OpenCC(conversion).convert("\n".join(characters)).split("\n")
    single = [(a, b) for a, b in zip(characters, converted, strict=True) if len(b) == 1]
    assert normals([a for a, _ in single]) == normals([b for _, b in single])


@given(st.text(max_size=30))
def test_normal_form_is_a_fixed_point(text: str) -> None:
    assert normal(normal(text)) == normal(text)
    assert bool(normal(text)) == bool(text.replace("\uffff", ""))


@given(st.lists(st.text(max_size=8), max_size=8))
def test_texts_in_a_batch_do_not_touch_each_other(texts: list[str]) -> None:
    assert normals(texts) == [normal(text) for text in texts]
    if texts:
        alone = [shingles([text])[0].tolist() for text in texts]
        assert [own.tolist() for own in shingles(texts)] == alone


@given(st.text("春夏秋冬天a1", max_size=30), st.text("春夏秋冬天a1", max_size=30))
def test_similarity_is_symmetric_and_whole_for_a_text_itself(a: str, b: str) -> None:
    assert likeness(a, b) == likeness(b, a)
    assert likeness(a, a) == (1 if normal(a) else 0)


def pairs_of_texts(count: int, changed: int) -> list[str]:
    """Texts of 40 characters, each followed by itself with some of them changed."""
    texts = []
    for _ in range(count):
        text = random.choices(LETTERS, k=40)
        other = text.copy()
        for at in random.sample(range(40), changed):
            other[at] = random.choice(LETTERS)
        texts += ["".join(text), "".join(other)]
    return texts


def test_minhash_estimates_as_datasketch_and_rensa_do() -> None:
    """The share of agreeing digests is the Jaccard similarity, within the error of that many permutations."""
    import rensa
    from datasketch import MinHash

    random.seed(5)
    count, texts = 128, pairs_of_texts(200, 8)
    own = shingles(texts)
    digests = sketches.min_hashes(np.concatenate(own), np.cumsum([len(s) for s in own]), count)
    exact = np.array([likeness(a, b) for a, b in zip(texts[::2], texts[1::2], strict=True)])
    lists = [[str(value) for value in signature] for signature in own]
    theirs = [MinHash(num_perm=count) for _ in own]
    for made, values in zip(theirs, lists, strict=True):
        made.update_batch([value.encode() for value in values])
    estimates = {
        "ours": (digests[::2] == digests[1::2]).mean(axis=1),
        "datasketch": np.array([a.jaccard(b) for a, b in zip(theirs[::2], theirs[1::2], strict=True)]),
        "rensa": np.array(
            [a.jaccard(b) for a, b in zip(*[iter(rensa.RMinHash.from_token_sets(lists, count, 1))] * 2, strict=True)]
        ),
    }
    errors = {name: float(np.abs(found - exact).mean()) for name, found in estimates.items()}
    assert errors["ours"] < 1.25 * errors["datasketch"]
    assert errors["ours"] < 2 * errors["rensa"]
    assert abs((estimates["ours"] - exact).mean()) < 0.01


def test_bands_are_missed_as_seldom_as_theory_has_it() -> None:
    random.seed(9)
    texts = pairs_of_texts(4_000, 5)
    made = sketch(texts, 0.7)
    at = np.arange(0, len(texts), 2)
    missed = ~(made.keys[at] == made.keys[at + 1]).any(axis=1)
    rows, count = bands(0.7)
    expected = ((1 - similarities(made, at, made, at + 1) ** rows) ** count).sum()
    assert 3 < expected < 60
    assert missed.sum() < expected + 4 * expected**0.5


@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=6).filter(normal), max_size=8))
def test_any_text_has_shingles_and_a_leader(texts: list[str]) -> None:
    if texts:
        assert all(len(own) for own in shingles(texts))
    leaders = leaders_of(texts)
    assert all(leaders[leader] == leader for leader in leaders)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.text("春夏秋1", min_size=1, max_size=14), max_size=14),
    st.sampled_from([0.4, 0.6, 0.8]),
    st.sampled_from([1, 5, 99]),
)
def test_leaders_are_those_of_comparing_one_by_one(texts: list[str], threshold: float, block: int) -> None:
    leading: list[int] = []
    expected = []
    for i, text in enumerate(texts):
        same = [j for j in leading if alike(text, texts[j], threshold)]
        leading += [] if same else [i]
        expected.append(texts.index(texts[(same or [i])[0]]))
    assert leaders_of(texts, threshold, block) == expected


def varied(base: str, count: int) -> list[str]:
    """Copies of a text with one character changed."""
    spots = random.choices(range(len(base)), k=count)
    return [base[:at] + random.choice(LETTERS) + base[at + 1 :] for at in spots]


def test_shards_answer_as_one_index_does() -> None:
    random.seed(6)
    leading = ["".join(random.choices(LETTERS, k=random.randint(2, 30))) for _ in range(500)]
    leading += varied("这家餐厅的红烧肉味道非常好值得推荐给大家来尝试一下", 100)
    asked = [copy for text in leading if len(text) > 10 for copy in varied(text, 1)] + leading
    whole, shards = TextIndex(0.7), [TextIndex(0.7) for _ in range(3)]
    texts, numbers = sketch(leading, 0.7), np.arange(len(leading))
    whole.add(texts, numbers)
    for part, shard in enumerate(shards):
        shard.add(texts.take(numbers[part::3]), numbers[part::3])
    answers = np.array([shard.first(sketch(asked, 0.7)) for shard in shards])
    expected = whole.first(sketch(asked, 0.7))
    assert (expected >= 0).sum() > 400
    assert np.where(answers < 0, len(leading), answers).min(axis=0).tolist() == expected.tolist()


def test_a_hot_cluster_is_compared_with_its_leaders_only(monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(4)
    hot = varied("这家餐厅的红烧肉味道非常好值得推荐给大家来尝试一下", 6_000)
    compared = 0
    exact = sketches.similarities

    def counted(a: sketches.Sketches, rows: sketches.Ints, *rest: object) -> object:
        nonlocal compared
        compared += len(rows)
        return exact(a, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sketches, "similarities", counted)
    assert len(set(leaders_of(hot, 0.7, block=256))) < 10
    assert compared < 60 * len(hot)  # with each other they would be 18 million


def test_captions_of_one_template_are_told_apart_and_full_buckets_lose_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """They share buckets by the hundred. With few bands, so that a full bucket is often the only one of two texts."""
    monkeypatch.setattr(sketches, "MISS", 0.3)
    random.seed(7)
    letters = [c for c in map(chr, range(0x3400, 0xA000)) if normal(c) == c and not c.isnumeric()]
    random.shuffle(letters)
    dishes = ["".join(letters[at : at + 5]) for at in range(0, 4_000, 5)]
    captions = [f"这张照片展示了在家中制作{dish}的详细过程和所需材料" for dish in dishes]
    copies = [f"那张照片展现了在家中制作{dish}的详尽过程和所需材料" for dish in dishes]
    assert likeness(captions[0], captions[1]) < 0.7 < likeness(captions[0], copies[0]) < 0.75
    monkeypatch.setattr(near_texts, "BUCKET", 2_000)
    roomy = leaders_of(captions + copies, 0.7)
    assert roomy[: len(captions)] == list(range(len(captions)))
    assert sum(roomy[len(captions) + i] == i for i in range(len(copies))) > 500
    monkeypatch.setattr(near_texts, "BUCKET", 2)
    assert leaders_of(captions + copies, 0.7) == roomy


def test_distinct_captions_stay_distinct() -> None:
    """50,000 words and phrases of one to some characters: the field's tools make one row of them."""
    import jieba

    with (Path(jieba.__file__).parent / "dict.txt").open(encoding="utf-8") as lines:
        words = list(dict.fromkeys(normals([line.split(" ")[0] for line in lines])))
    random.seed(8)
    captions = random.sample(words, 50_000)
    assert sum(len(c) <= 4 for c in captions) > 30_000
    assert leaders_of(captions, 0.7) == list(range(50_000))
