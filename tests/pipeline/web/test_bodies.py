"""Unpacking of response bodies: what was packed comes back, and a bomb does not."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.web import bodies


@given(st.binary(max_size=2000), st.sampled_from(["", "identity", "gzip", "deflate", "raw"]))
def test_unpacking_gives_back_what_was_packed(data, encoding):
    raw = zlib.compressobj(wbits=-15)
    packed = {
        "gzip": gzip.compress(data), "deflate": zlib.compress(data), "raw": raw.compress(data) + raw.flush()
    }.get(encoding, data)  # fmt: skip
    assert bodies.unpacked(packed, "deflate" if encoding == "raw" else encoding, 2000) == data


@pytest.mark.slow
def test_a_bomb_is_not_unpacked_and_damage_is_told():
    bomb = gzip.compress(b"\0" * 50_000_000)
    with pytest.raises(bodies.BodyTooLarge):
        bodies.unpacked(bomb, "gzip", 1_000_000)
    with pytest.raises(ValueError, match="is truncated"):
        bodies.unpacked(gzip.compress(b"x" * 1000)[:-12], "gzip", 10_000)
    with pytest.raises(ValueError, match="damaged"):
        bodies.unpacked(b"\xff" * 100, "gzip", 10_000)
    with pytest.raises(ValueError, match="was not requested"):
        bodies.unpacked(b"x", "br", 10)


def test_all_members_of_a_gzip_body_are_unpacked():
    packed = gzip.compress(b"a" * 100_000) + gzip.compress(b"") + gzip.compress(b"b")
    assert bodies.unpacked(packed, "gzip", 200_000) == b"a" * 100_000 + b"b"
    assert bodies.unpacked(packed + b"\0" * 512, "gzip", 200_000) == b"a" * 100_000 + b"b"
    with pytest.raises(bodies.BodyTooLarge):
        bodies.unpacked(packed, "gzip", 100_000)
    with pytest.raises(ValueError, match="is truncated"):
        bodies.unpacked(packed[:-3], "gzip", 200_000)
    with pytest.raises(ValueError, match="members"):
        bodies.unpacked(gzip.compress(b"") * (bodies.MAX_MEMBERS + 1), "gzip", 10)


@given(st.binary(max_size=3000), st.integers(1, 3000), st.integers(1, 3000))
def test_a_body_that_need_not_be_whole_is_cut_where_it_is_too_large_or_breaks_off(data, cap, end):
    packed = gzip.compress(data, 0)
    assert bodies.unpacked(packed, "gzip", cap, whole=False) == data[:cap]
    assert data.startswith(bodies.unpacked(packed[:end], "gzip", cap, whole=False))
