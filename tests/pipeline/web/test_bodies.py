"""Unpacking of response bodies: what was packed comes back, and a bomb does not."""

from __future__ import annotations

import contextlib
import gzip
import random
import tracemalloc
import zlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.web import bodies

ENCODINGS = ["gzip", "deflate", "raw", "br", "zstd"]


def pack(data, encoding):
    """The data as a server packs it."""
    if encoding in ("br", "zstd"):
        return pa.Codec("brotli" if encoding == "br" else "zstd").compress(data, asbytes=True)
    raw = zlib.compressobj(wbits=-15)
    packed = {"gzip": gzip.compress(data), "deflate": zlib.compress(data), "raw": raw.compress(data) + raw.flush()}
    return packed.get(encoding, data)


@given(st.binary(max_size=2000), st.sampled_from(["", "identity", *ENCODINGS]))
def test_unpacking_gives_back_what_was_packed(data, encoding):
    packed = pack(data, encoding)
    assert bodies.unpacked(packed, "deflate" if encoding == "raw" else encoding, 2000) == data


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
def test_a_bomb_is_not_unpacked_and_damage_is_told(encoding):
    bomb = pack(b"\0" * 50_000_000, encoding)
    tracemalloc.start()
    with pytest.raises(bodies.BodyTooLarge):
        bodies.unpacked(bomb, encoding, 1_000_000)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    whole = pack(random.Random(1).randbytes(200_000), encoding)
    with pytest.raises(bodies.Undecodable, match=f"^{encoding} body is truncated"):
        bodies.unpacked(whole[:-12], encoding, 300_000)
    with pytest.raises(bodies.Undecodable, match=f"^{encoding} body is damaged"):
        bodies.unpacked(random.Random(2).randbytes(1000), encoding, 10_000)


def test_an_encoding_that_is_unknown_is_undecodable():
    with pytest.raises(bodies.Undecodable, match="unknown Content-Encoding 'snappy'"):
        bodies.unpacked(b"x", "snappy", 10)


@given(st.binary(max_size=300), st.sampled_from(ENCODINGS))
def test_any_bytes_are_a_body_or_undecodable(data, encoding):
    with contextlib.suppress(bodies.Undecodable):
        assert len(bodies.unpacked(data, encoding, 1000, whole=False)) <= 1000


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


@given(st.binary(max_size=3000), st.integers(1, 3000), st.integers(1, 3000), st.sampled_from(["gzip", "br", "zstd"]))
def test_a_body_that_need_not_be_whole_is_cut_where_it_is_too_large_or_breaks_off(data, cap, end, encoding):
    packed = pack(data, encoding)
    assert bodies.unpacked(packed, encoding, cap, whole=False) == data[:cap]
    assert data.startswith(bodies.unpacked(packed[:end], encoding, cap, whole=False))
