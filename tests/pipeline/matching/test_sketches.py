"""sketches: similarity is Jaccard's, and the digests and bands estimate it as well as the field's tools do."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.text.folding import normal, normals
from pipeline.matching import sketches
from pipeline.matching.sketches import SHINGLES, are_same, bands, similarities, sketch
from tests.sketched import LETTERS, likeness, shingles


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
    both, row = sketch(normals([text, text[:-20]]), 0.8), np.zeros(1, np.int64)
    assert are_same(both, row, both, row + 1, 0.8).tolist() == [True]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9, 1.0])
def test_the_bands_fit_the_threshold(threshold: float) -> None:
    rows, count = bands(threshold)
    assert rows * count <= 128
    assert (1 - threshold**rows) ** count <= 1e-3


@pytest.mark.slow
@given(st.lists(st.text(max_size=8), max_size=8))
def test_texts_in_a_batch_do_not_touch_each_other(texts: list[str]) -> None:
    assert normals(texts) == [normal(text) for text in texts]
    if texts:
        alone = [shingles([text])[0].tolist() for text in texts]
        assert [own.tolist() for own in shingles(texts)] == alone


@pytest.mark.slow
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


@pytest.mark.slow
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
    errors = {name: float(np.abs(estimate - exact).mean()) for name, estimate in estimates.items()}
    assert errors["ours"] < 1.25 * errors["datasketch"]
    assert errors["ours"] < 2 * errors["rensa"]
    assert abs((estimates["ours"] - exact).mean()) < 0.01


@pytest.mark.slow
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
