"""takedowns: URLs, domains, bytes and looks are recognised from hashes alone, and nothing beside them is."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pictures.hashing import HASHES
from pipeline.pictures.signatures import GRIDS, SIZE
from pipeline.rows.records import sha256_hex
from pipeline.store.takedowns import NO_TAKEDOWNS, Look, Takedowns, domain_hashes, merged
from tests.detailed import drawn_details

IMAGE, PAGE = "http://img.a.cn/1.jpg", "http://www.b.cn/1.html"


def of(*names: str) -> Takedowns:
    return Takedowns(frozenset(sha256_hex(name) for name in names))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (IMAGE, "this image URL was taken down"),
        (PAGE, "its page was taken down"),
        ("a.cn", "its domain was taken down"),
        ("img.a.cn", "its domain was taken down"),
        ("b.cn", "its domain was taken down"),
        ("http://img.a.cn/2.jpg", ""),
        (".a.cn", ""),
        ("mg.a.cn", ""),
        ("c.cn", ""),
    ],
)
def test_an_image_on_a_page_is_taken_down_by_either_url_or_any_domain_above_them(name: str, why: str) -> None:
    takedowns = of(name)
    assert takedowns.takedown_reason(IMAGE, PAGE) == why
    row = {"fetch_id": sha256_hex("other"), "url": IMAGE, "page_url": PAGE}
    assert takedowns.names(row) == bool(why)
    sample = {"key": "k", "image_url": IMAGE, "page_url": PAGE, "sha256": "0" * 64}
    samples = [sample, {**sample, "key": "m", "sha256": sha256_hex(name)}]
    assert takedowns.taken_down_keys(samples) == (["k", "m"] if why else ["m"])


def test_an_address_of_a_host_without_parents_and_no_takedown_at_all() -> None:
    assert of("10.0.0.1").host("http://10.0.0.1:8080/x")
    assert not of("0.0.1").host("http://10.0.0.1/x")
    assert NO_TAKEDOWNS.takedown_reason(IMAGE, PAGE) == ""
    assert not NO_TAKEDOWNS


def test_a_domain_is_known_in_the_spelling_of_people_and_of_urls() -> None:
    takedowns = Takedowns(frozenset(domain_hashes("例子.测试.")))
    assert takedowns.host("http://www.例子.测试/")
    assert takedowns.host("http://xn--fsqu00a.xn--0zwm56d/")
    assert domain_hashes("A.CN") == {sha256_hex("a.cn")}


looks = st.builds(
    Look,
    st.tuples(*[st.integers(0, 2**64 - 1)] * 3),
    st.binary(min_size=4, max_size=4),
    st.integers(0, 16),
    st.floats(0, 1),
    st.text(max_size=5),
)


@pytest.mark.slow
@given(st.lists(st.tuples(st.sets(st.sampled_from("abc")), st.lists(looks, max_size=2)), max_size=3))
def test_files_of_takedowns_come_back_as_one(files: list[tuple[set[str], list[Look]]]) -> None:
    raw = [{"hashes": sorted(names), "looks": [look.value() for look in own]} for names, own in files]
    together = merged(json.loads(json.dumps(raw)))
    assert together.hashes == frozenset(name for names, _ in files for name in names)
    assert {look.signature for look in together.looks} == {look.signature for _, own in files for look in own}
    assert set(together.looks) <= {look for _, own in files for look in own}


def test_one_picture_is_taken_down_within_each_distance_that_was_asked_for() -> None:
    narrow = Look((1, 2, 3), b"four", 2, 0.1, "f")
    wide = Look((1, 2, 3), b"four", 12, 0.1, "f")
    for order in ([narrow, wide], [wide, narrow], [wide, narrow, wide]):
        assert set(merged([{"hashes": [], "looks": [look.value()]} for look in order]).looks) == {narrow, wide}


def test_a_picture_that_looks_like_one_within_its_distance_is_found_among_those_of_its_features() -> None:
    rng = np.random.default_rng(1)
    phash = rng.integers(1, 2**63, HASHES, dtype=np.uint64)
    near, far = phash ^ np.uint64(0b1111), phash ^ np.uint64(2**20 - 1)
    signature = np.full(GRIDS * SIZE, 100, np.uint8).tobytes()
    names = pa.array(["same", "near", "far"])
    phashes = pa.array([phash.tolist(), near.tolist(), far.tolist()], pa.list_(pa.uint64()))
    signatures = pa.array([signature] * 3, pa.binary())
    details = pa.nulls(3, pa.binary())
    rows = pa.table({"sha256": names, "phash": phashes, "signature": signatures, "details": details})

    def alike(distance: int, features: str = "f") -> list[str]:
        return Takedowns(looks=(Look(tuple(phash.tolist()), signature, distance, 0.1, "f"),)).alike(rows, features)

    assert alike(6) == ["same", "near"]
    assert alike(0) == ["same"]
    assert alike(6, "measured otherwise") == []
    assert Takedowns().alike(rows, "f") == []


@pytest.mark.slow
def test_a_picture_without_texture_is_found_by_its_details_where_both_have_some() -> None:
    rng = np.random.default_rng(3)
    own = drawn_details(rng, 1, 1, 0, share=1.0).stored.tobytes()
    phash = rng.integers(1, 2**63, (2, HASHES), dtype=np.uint64).tolist()
    signature = np.full(GRIDS * SIZE, 128, np.uint8).tobytes()
    names = {"sha256": ["a"], "phash": pa.array(phash[:1], pa.list_(pa.uint64())), "signature": [signature]}
    rows, detailed = (pa.table({**names, "details": pa.array([of], pa.binary())}) for of in (None, own))
    before, now = (Look(tuple(phash[1]), signature, 4, 0.07, "f", details) for details in (None, own))
    assert [Look.read(look.value()) for look in (before, now)] == [before, now]
    assert "details" not in before.value()
    for look, table, expected in ((now, detailed, ["a"]), (now, rows, []), (before, detailed, []), (before, rows, [])):
        assert Takedowns(looks=(look,)).alike(table, "f") == expected


_URLS = st.sampled_from(["", IMAGE, PAGE, "http://img.a.cn/2.jpg", "http://c.cn/", "x", "http://[", "例子"])
_ROWS = st.fixed_dictionaries({"fetch_id": _URLS.map(sha256_hex), "url": _URLS, "page_url": _URLS})


@pytest.mark.slow
@given(st.lists(_ROWS, max_size=8), st.sets(_URLS | st.sampled_from(["a.cn", "cn", "b.cn"])))
def test_of_many_rows_those_are_named_that_are_named_one_by_one(rows: list[dict[str, str]], names: set[str]) -> None:
    takedowns = of(*names - {""})
    schema = pa.schema([(name, pa.string()) for name in ("fetch_id", "url", "page_url")])
    table = pa.Table.from_pylist(rows, schema=schema)
    assert takedowns.taken_down_mask(table).to_pylist() == [takedowns.names(row) for row in rows]
