"""leader_pass: agrees with its definition for any blocks and shares; leaders, not chains; hot clusters."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.build import Dedup
from pipeline.matching import leader_pass, looks, near_texts, text_rows
from pipeline.matching.holders import EARLIER, PLACEHOLDER, Holders, ImageRows, Known
from pipeline.matching.leader_pass import BLOCK, REASONS, Block, LeaderPass
from pipeline.matching.looks import NO_DETAILS, Details
from pipeline.matching.near_images import ImageLeaders
from pipeline.matching.sketches import same
from pipeline.pictures.hashing import HASHES
from pipeline.pictures.signatures import GRIDS, SIZE
from pipeline.records import DropReason
from tests.detailed import drawn_details


@dataclass(frozen=True)
class Items:
    """Pairs by rank."""

    sha256: list[bytes]
    phash: Any
    signature: Any
    domain: list[int]
    texts: list[list[str]]
    details: Details = NO_DETAILS

    def block(self, rows: range, threshold: float) -> Block:
        distinct = sorted({text for row in rows for text in self.texts[row]})
        number = {text: at for at, text in enumerate(distinct)}
        at = np.arange(rows.start, rows.stop)
        return Block(
            np.array([list(_name(row)) for row in rows], np.uint8).reshape(-1, 32),
            at,
            ImageRows([self.sha256[row] for row in rows], self.phash[at], self.signature[at], self.details.take(at)),
            [self.domain[row] for row in rows],
            text_rows.made(distinct, threshold),
            [[number[text] for text in self.texts[row]] for row in rows],
        )


def _name(row: int) -> bytes:
    return (row + 1).to_bytes(32, "big")


def decide(pairs: Items, rules: Dedup, block: int = BLOCK, shares: int = 1) -> dict[int, tuple[list[DropReason], int]]:
    """(reasons, leader or -1) of each dropped row."""
    dropped = {}
    with Holders(rules, shares) as holders:
        deciding = LeaderPass(rules, holders)
        for start in range(0, len(pairs.sha256), block):
            rows = range(start, min(len(pairs.sha256), start + block))
            verdicts = deciding.decide(pairs.block(rows, rules.text_similarity))
            for row, bits, leader in zip(rows, verdicts.reasons, verdicts.leader, strict=True):
                if bits:
                    reasons = [reason for i, reason in enumerate(REASONS) if bits & 1 << i]
                    dropped[row] = reasons, int.from_bytes(leader.tobytes(), "big") - 1
                assert (row - rows.start in verdicts.text_leaders) == (not bits)
    return dropped


# --- against brute force


@st.composite
def items(draw: st.DrawFn) -> Items:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size, kinds = draw(st.integers(1, 40)), draw(st.integers(1, 25))
    phash = rng.choice(rng.integers(0, 2**63, 3, dtype=np.uint64), (kinds, HASHES))
    for _ in range(draw(st.integers(0, 9))):
        phash ^= np.uint64(1) << rng.integers(0, 64, (kinds, HASHES), dtype=np.uint64)
    signature = (rng.integers(0, 2, (kinds, 1)) * 60 + np.full(GRIDS * SIZE, 90)).astype(np.uint8)
    kind = rng.integers(0, kinds, size)
    words = ["红烧肉", "红烧鱼", "清蒸鱼", "今天天气很好我们去公园散步吧", "今天天气很好我们去公园散步啦"]
    chosen = [[words[w] for w in rng.integers(0, 5, rng.integers(1, 3))] for _ in range(size)]
    sha256 = [bytes([k] * 32) for k in kind.tolist()]
    details = drawn_details(rng, kinds, 3, 1, share=draw(st.sampled_from([0, 0.5])))
    return Items(sha256, phash[kind], signature[kind], rng.integers(0, 4, size).tolist(), chosen, details.take(kind))


@functools.cache
def _same(one: str, other: str, threshold: float) -> bool:
    both, row = text_rows.made([one, other], threshold).sketches, np.zeros(1, np.int64)
    return bool(same(both, row, both, row + 1, threshold)[0])


def brute_force(pairs: Items, rules: Dedup) -> dict[int, tuple[list[DropReason], int]]:
    """The definition, word by word; whether two images look alike is asked of them alone."""
    kept: list[int] = []
    dropped: dict[int, tuple[list[DropReason], int]] = {}
    leading: list[str] = []

    def leader(text: str) -> str | None:
        return next((t for t in leading if _same(t, text, rules.text_similarity)), None)

    looks = np.zeros((len(pairs.texts),) * 2, bool)
    for j in range(len(looks)):
        one = ImageLeaders(rules.image_distance, rules.image_signature)
        one.add(pairs.phash[[j]], pairs.signature[[j]], details=[pairs.details.take(np.array([j]))])
        looks[:, j] = one.first(pairs.phash, pairs.signature, pairs.details) == 0

    for i, own in enumerate(pairs.texts):
        same = [j for j in kept if pairs.sha256[j] == pairs.sha256[i]]
        near = [j for j in kept if looks[i, j]]
        reasons, holder = [], -1
        if same or near:
            reasons, holder = [DropReason.SAME_IMAGE if same else DropReason.NEAR_IMAGE], (same or near)[0]
        first = leader(own[0])
        if first and sum(leader(pairs.texts[j][0]) == first for j in kept) >= rules.max_pairs_per_text:
            reasons.append(DropReason.CAP_PER_TEXT)
        domain, cap = pairs.domain[i], rules.max_pairs_per_domain
        if cap and domain and sum(pairs.domain[j] == domain for j in kept) >= cap:
            reasons.append(DropReason.CAP_PER_DOMAIN)
        if reasons:
            dropped[i] = reasons, holder
            continue
        kept.append(i)
        for text in own:
            if leader(text) is None:
                leading.append(text)
    return dropped


@settings(max_examples=100, deadline=None)
@given(items(), st.integers(1, 4), st.integers(0, 6), st.sampled_from([1, 3, 7, 512]), st.integers(1, 5), st.booleans())
def test_the_pass_agrees_with_the_definition(
    pairs: Items, cap: int, of_domain: int, block: int, shares: int, halved: bool
) -> None:
    """Whatever the size of a block, and however many shares hold what is remembered."""
    rules = Dedup(image_distance=6, max_pairs_per_text=cap, max_pairs_per_domain=of_domain)
    with pytest.MonkeyPatch.context() as patch:
        if halved:
            patch.setattr("pipeline.matching.leader_pass.CROWDED", 0)
            patch.setattr("pipeline.matching.leader_pass.SMALLEST", 2)
        assert decide(pairs, rules, block, shares) == brute_force(pairs, rules)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 7, 512]), st.integers(1, 5))
def test_texts_that_bands_miss_and_full_buckets_change_nothing(seed: int, block: int, shares: int) -> None:
    """Templated captions, a bucket that is full with two, and so few bands that every other pair is missed."""
    rng = np.random.default_rng(seed)
    texts = ["公园里的" + "".join(rng.choice(list("红黄蓝白花草树木"), 6)) + "很好看" for _ in range(50)]
    pairs = alike(50, rng.integers(1, 2**63, 50, dtype=np.uint64), texts)
    rules = Dedup(image_distance=0, max_pairs_per_text=2, text_similarity=0.6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.matching.sketches.MISS", 0.5)
        patch.setattr("pipeline.matching.near_texts.BUCKET", 2)
        rows = text_rows.made(texts, rules.text_similarity).sketches.keys
        missed = {(texts[i], texts[j]) for i in range(50) for j in range(50) if not (rows[i] == rows[j]).any()}
        leading: list[str] = []
        kept: Counter[str] = Counter()
        expected = []
        for row, text in enumerate(texts):
            first = next((t for t in leading if (t, text) not in missed and _same(t, text, 0.6)), None)
            if first and kept[first] >= 2:
                expected.append(row)
                continue
            if first is None:
                leading.append(text)
            kept[first or text] += 1
        assert sorted(decide(pairs, rules, block, shares)) == expected


# --- what follows from it


def alike(size: int, codes: Any, texts: list[str]) -> Items:
    """Pairs of different bytes, with the given hashes [N] and one colour."""
    phash = np.repeat(np.asarray(codes, np.uint64)[:, None], HASHES, axis=1)
    signature = np.full((size, GRIDS * SIZE), 100, np.uint8)
    return Items([_name(row) for row in range(size)], phash, signature, [0] * size, [[text] for text in texts])


def test_leaders_make_no_chains() -> None:
    """a - b - c, each 6 bits from the next: c is 12 from a, so b follows a and c leads."""
    pairs = alike(3, [0b1, 0b1 | 0b111111 << 10, 0b1 | 0b111111111111 << 10], ["甲", "乙", "丙"])
    assert decide(pairs, Dedup(image_distance=6)) == {1: ([DropReason.NEAR_IMAGE], 0)}


def test_identical_short_captions_on_different_pictures_stay_and_only_feed_the_cap() -> None:
    codes = np.random.default_rng(0).integers(1, 2**63, 60, dtype=np.uint64)
    pairs = alike(60, codes, ["故宫雪景"] * 60)
    assert decide(pairs, Dedup(max_pairs_per_text=60)) == {}
    capped = decide(pairs, Dedup(max_pairs_per_text=10))
    assert {row: reasons for row, (reasons, _) in capped.items()} == {
        row: [DropReason.CAP_PER_TEXT] for row in range(10, 60)
    }


def test_an_earlier_placeholder_is_dropped_at_sight() -> None:
    pairs = alike(2, [0b1, 2**50 - 2**20], ["甲", "乙"])
    rules = Dedup()
    with Holders(rules, 2) as holders:
        known = Known(np.full((1, 32), 7, np.uint8), np.array([-1]), np.array([EARLIER | PLACEHOLDER], np.uint8))
        holders.learn_images([b"x" * 32], known, (pairs.phash[:1], [pairs.signature[:1]], [NO_DETAILS]))
        verdicts = LeaderPass(rules, holders).decide(pairs.block(range(2), rules.text_similarity))
    reasons = [[reason for i, reason in enumerate(REASONS) if bits & 1 << i] for bits in verdicts.reasons]
    assert reasons == [[DropReason.PLACEHOLDER, DropReason.NEAR_IMAGE], []]
    assert verdicts.leader[0].tolist() == [7] * 32
    assert verdicts.place[0] == -1


def _counting(compare: Callable[..., Any], pairs: Counter[str], place: str) -> Callable[..., Any]:
    def counting(*arguments: Any, **options: Any) -> Any:
        answers = compare(*arguments, **options)
        pairs[place] += len(answers)
        return answers

    return counting


@contextlib.contextmanager
def compared() -> Iterator[Counter[str]]:
    """Counts the pairs whose signatures or sketches are compared, by who compares them."""
    pairs: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((looks, "within"), (near_texts, "same"), (leader_pass, "same")):
            patch.setattr(module, name, _counting(getattr(module, name), pairs, f"{module.__name__}.{name}"))
        yield pairs


@pytest.mark.parametrize("what", ["image", "caption"])
def test_a_hot_cluster_is_not_quadratic(what: str) -> None:
    """20,000 near copies of one picture, or one caption on as many: a few comparisons each; all with all is 2e8."""
    rng, size = np.random.default_rng(0), 20_000
    if what == "image":
        bits = np.uint64(1) << rng.integers(0, 64, size, dtype=np.uint64)
        copies, rules = alike(size, np.uint64(2**63 + 12345) ^ bits, [f"说明{i}" for i in range(size)]), Dedup()
    else:
        copies = alike(size, rng.integers(1, 2**63, size, dtype=np.uint64), ["故宫的雪景真的是非常好看"] * size)
        rules = Dedup(image_distance=0, max_pairs_per_text=10)
    with compared() as pairs:
        reasons = Counter(own[0] for own, _ in decide(copies, rules).values())
    expected = (DropReason.NEAR_IMAGE, size - 1) if what == "image" else (DropReason.CAP_PER_TEXT, size - 10)
    assert reasons == Counter(dict([expected]))
    assert sum(pairs.values()) < 30 * size
    assert (sum(pairs.values()) > 0) == (what == "image"), "one caption is one text, with nothing to compare it with"
