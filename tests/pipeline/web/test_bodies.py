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


def test_a_bomb_is_not_unpacked_and_damage_is_told():
    bomb = gzip.compress(b"\0" * 50_000_000)
    with pytest.raises(bodies.BodyTooLarge):
        bodies.unpacked(bomb, "gzip", 1_000_000)
    with pytest.raises(ValueError, match="too early"):
        bodies.unpacked(gzip.compress(b"x" * 1000)[:-12], "gzip", 10_000)
    with pytest.raises(ValueError, match="damaged"):
        bodies.unpacked(b"\xff" * 100, "gzip", 10_000)
    with pytest.raises(ValueError, match="not asked for"):
        bodies.unpacked(b"x", "br", 10)
