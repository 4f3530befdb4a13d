"""holders: shares answer as one holder does, and both as a plain look through all that was learnt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.build import Dedup
from data_specs.shard import SPLITS
from data_specs.text.folding import normals
from pipeline.files.digests import rows_of
from pipeline.matching import text_rows
from pipeline.matching.holders import NONE, Holders, ImageRows, Known
from pipeline.pictures.hashing import HASHES
from pipeline.pictures.signatures import GRIDS, SIZE
from tests.detailed import drawn_details

RULES = Dedup(image_distance=6, text_similarity=0.7)
TEXTS = text_rows.made(
    normals(["红烧肉", "红烧鱼", "故宫雪景", "今天天气很好我们去公园散步吧", "清晨的第一缕阳光照在黄山上"]), 0.7
)
ASKED = text_rows.made(normals(["红烧肉！", "今天天气很好我们去公园散步啦", "没有见过的文字", "故宫雪景"]), 0.7)


def pictures(rng: np.random.Generator, size: int) -> tuple[ImageRows, Known]:
    """Images of four looks with some bits changed, two of them often with the same bytes; their place is their row."""
    bits = np.uint64(1) << rng.integers(0, 64, (size, HASHES), dtype=np.uint64)
    phash = np.random.default_rng(0).integers(1, 2**63, (4, HASHES), dtype=np.uint64)[rng.integers(0, 4, size)] ^ bits
    signature = np.repeat(rng.integers(0, 2, (size, 1)) * 60 + 90, GRIDS * SIZE, axis=1).astype(np.uint8)
    sha256 = [bytes([number] * 32) for number in rng.integers(0, 2 * size, size).tolist()]
    candidate_id = rng.integers(0, 256, (size, 32), dtype=np.uint8)
    flags = rng.integers(0, 4, size).astype(np.uint8)
    details = drawn_details(rng, size, 2, 1, share=0.3)
    return ImageRows(sha256, phash, signature, details), Known(candidate_id, np.arange(size), flags)


@contextmanager
def learnt(images: ImageRows, known: Known, shares: int, cut: int) -> Iterator[Holders]:
    """Holders that learnt the images in two steps, the looks of each in two pieces, and TEXTS one after the other."""
    with Holders(RULES, shares) as holders:
        for part in (slice(0, cut), slice(cut, None)):
            own, (phash, signature, details) = images.take(part), images.take(part).looks
            kept = Known(known.candidate_id[part], known.place[part], known.flags[part])
            pieces = [details.take(np.arange(len(own))[of]) for of in (slice(0, 2), slice(2, None))]
            holders.learn_images(own.sha256, kept, (phash, [signature[:2], signature[2:]], pieces))
        for row in range(len(TEXTS)):
            holders.learn_texts(TEXTS.take([row]))
        yield holders


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(0, 30))
def test_images_are_found_in_any_number_of_shares(seed: int, shares: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    images, known = pictures(rng, 30)
    asked, _ = pictures(rng, 20)
    with learnt(images, known, 1, 30) as one, learnt(images, known, shares, cut) as many:
        same, alike = many.same(asked.sha256), many.alike(asked)
        for answer, expected in ((same, one.same(asked.sha256)), (alike, one.alike(asked))):
            assert answer.number.tolist() == expected.number.tolist()
            assert answer.place.tolist() == expected.place.tolist()
            assert answer.flags.tolist() == expected.flags.tolist()
            assert answer.candidate_id.tolist() == expected.candidate_id.tolist()
    first = [images.sha256.index(digest) if digest in images.sha256 else NONE for digest in asked.sha256]
    assert same.number.tolist() == first
    for row, number in enumerate(same.number.tolist()):
        if number != NONE:
            assert (same.place[row], same.flags[row]) == (number, known.flags[number])
            assert same.candidate_id[row].tolist() == known.candidate_id[number].tolist()
    assert (alike.number != NONE).any(), "looks are four, so some of them are found"


@given(st.integers(1, 5), st.lists(st.integers(0, 4), max_size=12), st.lists(st.integers(1, 9), max_size=12))
def test_texts_pairs_domains_and_splits_are_counted_where_their_leader_is(
    shares: int, leaders: list[int], domains: list[int]
) -> None:
    ids = rows_of(TEXTS.ids)
    split_of = {ids[row]: SPLITS[row % len(SPLITS)] for row in set(leaders)}
    nothing = ImageRows([], np.zeros((0, HASHES), np.uint64), np.zeros((0, GRIDS * SIZE), np.uint8))
    unknown = Known(np.zeros((0, 32), np.uint8), np.zeros(0, np.int64), np.zeros(0, np.uint8))
    with learnt(nothing, unknown, shares, 0) as own:
        own.count(Counter(ids[row] for row in leaders), Counter(domains))
        own.place_texts(split_of)
        number, leader_id, pairs = own.texts(ASKED)
        counted = own.domains(range(11)).tolist()
        splits = own.text_splits(ids)
    assert number.tolist() == [0, 3, NONE, 2], "to the letter, alike, unknown, to the letter"
    assert [rows_of(leader_id)[row] for row in (0, 1, 3)] == [ids[0], ids[3], ids[2]]
    assert pairs[[0, 1, 3]].tolist() == [leaders.count(row) for row in (0, 3, 2)]
    assert counted == [domains.count(domain) for domain in range(11)]
    assert splits == [split_of.get(leader, "") for leader in ids]
