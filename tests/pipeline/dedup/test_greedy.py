"""greedy: the pass over edges decides what its definition says, whatever was left open in crowds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.build import Dedup
from pipeline.dedup.greedy import BIT, NONE, EarlierResults, LeaderPass, Nodes, Pairs, first_by
from pipeline.matching.contexts import WIDTH
from pipeline.matching.crowds import Crowds, represent
from pipeline.rows.decisions import DropReason


def drawn(rng: np.random.Generator, size: int, share: float) -> Any:
    """[N, N] which items are alike."""
    alike = np.triu(rng.random((size, size)) < share, 1)
    return alike | alike.T


def found(rng: np.random.Generator, alike: Any) -> tuple[Any, Crowds]:
    """Edges, and crowds of what was not compared: some items at a time, in any order, are a crowd."""
    size, edges, open_ = len(alike), [np.zeros((0, 2), np.int64)], list[tuple[Any, Any]]()
    together = np.zeros_like(alike)
    for _ in range(int(rng.integers(0, 4))):
        members = rng.permutation(size)[: int(rng.integers(0, size + 1))]

        def same(ones: Any, others: Any, members: Any = members) -> Any:
            one, other = np.nonzero(alike[np.ix_(members[ones], members[others])])
            edges.append(np.stack([members[ones[one]], members[others[other]]], axis=1))
            return ones[one], others[other]

        order, follows, _ = represent(rng.random(len(members)) < 0.2, same)
        open_.append((members[order], follows))
        together[np.ix_(members, members)] = True
    edges.append(np.stack(np.nonzero(np.triu(alike & ~together)), axis=1))
    every = np.sort(np.concatenate(edges), axis=1)
    return every[every[:, 0] != every[:, 1]], Crowds.of(open_)


def bond(one: Any, other: Any) -> int:
    """The bond of contexts by its definition, 0 for a veto."""
    (page, host, alt, caption, file, pixels), (page2, host2, alt2, caption2, file2, pixels2) = (
        one.tolist(),
        other.tolist(),
    )
    if pixels and pixels == pixels2:
        return 4
    if file and file == file2:
        return 3
    words = {alt, caption} - {0}, {alt2, caption2} - {0}
    strangers = (words[0] and words[1]) or (host and host == host2)
    if (page and page == page2) or (strangers and not words[0] & words[1]):
        return 0
    return 2 if words[0] & words[1] else 1


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(1, 3))
def test_the_pass_agrees_with_its_definition(seed: int, size: int, cap: int) -> None:
    rng = np.random.default_rng(seed)
    looks, means = drawn(rng, size, rng.choice([0.05, 0.5, 0.95])), drawn(rng, size, rng.choice([0.05, 0.5, 0.95]))
    pairs = int(rng.integers(0, 40))
    image, counts = rng.integers(0, size, pairs), rng.integers(1, 4, pairs)
    starts = np.concatenate([[0], np.cumsum(counts)])
    texts = rng.integers(0, size, int(starts[-1]))
    # of what earlier builds kept: images that some have the bytes of or look like; texts that lead, by numbers from 100
    same, near = (np.where(rng.random(of) < 0.1, rng.integers(0, 9, of), NONE) for of in (size, pairs))
    # few pages, words, files and pixels, so that many pairs share them; or words of their own for most
    few = bool(rng.random() < 0.5)
    values = rng.integers(0, 3 if few else 1_000, (pairs, WIDTH)).astype(np.uint64)
    contexts = values * (rng.random((pairs, WIDTH)) < (rng.random(WIDTH) if few else [0, 0.1, 0.7, 0, 0.1, 0.1]))
    led = np.where(rng.random(size) < 0.1, rng.integers(0, 2, size), NONE)
    every = np.arange(size)
    nodes = [
        Nodes(np.zeros((0, 2), np.int64), *found(rng, of), every, lambda one, others, of=of: of[one, others])
        for of in (looks, means)
    ]
    before_bond = np.where(near != NONE, rng.integers(1, 5, pairs), 0).astype(np.int8)
    before = EarlierResults(
        same,
        near,
        before_bond,
        frozenset({3}),
        np.where(led != NONE, led + size, NONE),
        np.array([1, 0]),
    )
    rules = Dedup(max_pairs_per_text=cap)
    verdicts = LeaderPass(rules, *nodes, before).decide(Pairs(image, starts, texts, contexts))

    kept, leading = list[int](), list[int]()
    by_text = Counter({100: 1})

    def leader(text: int) -> int:
        if text in leading:
            return text
        return 100 + int(led[text]) if led[text] != NONE else next((t for t in leading if means[t, text]), NONE)

    for row in range(pairs):
        own, reasons, of, earlier = int(image[row]), 0, NONE, NONE
        copies = [other for other in kept if image[other] == own]
        like = [other for other in kept if looks[image[other], own] and bond(contexts[other], contexts[row])]
        if same[own] != NONE or copies:
            reasons = BIT[DropReason.SAME_IMAGE]
            earlier, of = (same[own], NONE) if same[own] != NONE else (NONE, copies[0])
        elif near[row] != NONE or like:
            reasons = BIT[DropReason.NEAR_IMAGE]
            best = max(like, key=lambda other, row=row: bond(contexts[other], contexts[row]), default=NONE)
            own_bond = bond(contexts[best], contexts[row]) if like else 0
            earlier, of = (near[row], NONE) if near[row] != NONE and own_bond <= before_bond[row] else (NONE, best)
        if earlier == 3:
            reasons |= BIT[DropReason.PLACEHOLDER]
        first = leader(int(texts[starts[row]]))
        if first != NONE and by_text[first] >= cap:
            reasons |= BIT[DropReason.CAP_PER_TEXT]
        assert (verdicts.reasons[row], verdicts.leader[row], verdicts.earlier[row]) == (reasons, of, earlier)
        here = range(int(starts[row]), int(starts[row + 1]))
        if reasons:
            assert not verdicts.began[here.start : here.stop].any()
            continue
        kept.append(row)
        for at in here:
            text = int(texts[at])
            own_leader = leader(text)
            assert verdicts.began[at] == (own_leader == NONE)
            leading += [text] if own_leader == NONE else []
            shown = text if own_leader == NONE else own_leader
            assert verdicts.text_leaders[at] == (shown if shown < 100 else shown - 100 + size)
            by_text[shown] += at == here.start


def test_copies_share_the_node_of_the_first_and_what_matches_nothing_has_none() -> None:
    copies = np.array([[7, 2], [9, 2]])
    nodes = Nodes(copies, np.array([[4, 5]]), Crowds.of([]), np.array([9, 11]), lambda *_: np.zeros(0, np.bool_))
    assert nodes.numbers.tolist() == [2, 4, 5, 11]
    assert nodes.of(np.array([7, 2, 9, 3, 5, 11, 0])).tolist() == [0, 0, 0, NONE, 2, 3, NONE]


def test_the_smallest_value_of_each_key_is_taken() -> None:
    assert first_by(np.array([2, 0, 2]), np.array([5, 9, 3]), 4).tolist() == [9, NONE, 3, NONE]
    assert first_by(np.zeros(0, np.int64), np.zeros(0, np.int64), 2).tolist() == [NONE, NONE]
