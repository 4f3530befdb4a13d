"""near_texts: short Chinese captions are told apart, near copies are found, digits keep texts apart."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.near_texts import SHINGLES, TextLeaders, normal, numerals, signatures, similarity
from pipeline.sketches import bands

LETTERS = [c for c in map(chr, range(0x4E00, 0x8000, 7)) if not c.isnumeric()]


def likeness(a: str, b: str) -> float:
    return similarity(*signatures([normal(a), normal(b)]))


def leaders_of(texts: list[str], threshold: float = 0.8) -> list[int]:
    """For each text the position of its leader's first appearance."""
    found = TextLeaders(threshold)
    ids = found.prepare([normal(text) for text in texts])
    return [ids.index(found.place(i)) for i in ids]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("青蛙。", "青蛙"),
        ("ＡＢＣ　１２３", "abc123"),
        ("北京，故宫！", "北京故宫"),
        ("「红烧肉」的做法", "红烧肉的做法"),
        ("ﬁre①", "FIRE1"),
        ("  茶  ", "茶"),
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
    assert numerals(normal(a)) != numerals(normal(b))


def test_near_copies_of_longer_captions_share_a_leader() -> None:
    text = "这家餐厅的红烧肉味道非常好值得推荐给大家来尝试"
    assert leaders_of([text, text.replace("推荐", "推存"), text + "哦", "今天天气很好我们去公园散步吧"]) == [0, 0, 0, 3]


def test_similarity_is_jaccard_of_counted_shingles() -> None:
    def shingles(text: str) -> Counter[str]:
        return Counter([*text, *(a + b for a, b in itertools.pairwise(text))])

    random.seed(1)
    for _ in range(50):
        a = "".join(random.choices("春夏秋冬", k=random.randint(1, 20)))
        b = "".join(random.choices("春夏秋冬", k=random.randint(1, 20)))
        one, two = shingles(a), shingles(b)
        assert likeness(a, b) == pytest.approx((one & two).total() / (one | two).total())


def test_long_texts_are_compared_by_a_sketch() -> None:
    random.seed(2)
    text = "".join(random.choices(LETTERS, k=3_000))
    (own,) = signatures([text])
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
        made.update_batch([value.tobytes() for value in signatures([text])[0]])
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


@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=6), max_size=8))
def test_any_text_has_an_id_a_signature_and_a_leader(texts: list[str]) -> None:
    found = TextLeaders(0.8)
    ids = found.prepare([normal(text) for text in texts])
    for i, text in zip(ids, texts, strict=True):
        assert normal(text)
        assert len(signatures([normal(text)])[0]) > 0
        leader = found.place(i)
        assert leader in ids
        assert found.place(leader) == leader


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text("春夏秋", min_size=1, max_size=5), max_size=14), st.sampled_from([0.4, 0.6, 0.8]))
def test_leaders_are_those_of_comparing_one_by_one(texts: list[str], threshold: float) -> None:
    leading: list[int] = []
    expected = []
    for i, text in enumerate(texts):
        same = [j for j in leading if likeness(text, texts[j]) >= threshold]
        leading += [] if same else [i]
        expected.append(texts.index(texts[(same or [i])[0]]))
    assert leaders_of(texts, threshold) == expected


def test_a_hot_cluster_costs_no_more_than_other_texts() -> None:
    random.seed(4)
    base = "这家餐厅的红烧肉味道非常好值得推荐给大家来尝试一下"
    plain = ["".join(random.choices(LETTERS, k=26)) for _ in range(6_000)]
    hot = [base[:at] + random.choice(LETTERS) + base[at + 1 :] for at in random.choices(range(26), k=6_000)]

    def seconds(texts: list[str]) -> float:
        found = TextLeaders(0.8)
        ids = found.prepare(texts)
        started = time.process_time()
        for i in ids:
            found.place(i)
        return time.process_time() - started

    assert seconds(hot) < 10 * seconds(plain) + 1  # 6,000 against 6,000 would be 18 million comparisons: minutes
