"""Scans of JPEG files: those of the first picture count, whatever else the file holds."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_specs.pictures.jpeg import MAX_SCANS, has_too_many_scans
from tests.fuzz.corpus import picture_of, scans

MARK = b"\xff\xda"


def test_a_repeated_scan_counts_each_time_and_comments_cannot_hide_it():
    own = picture_of(64, 64, "JPEG", progressive=True).count(MARK)
    assert not has_too_many_scans(scans(MAX_SCANS - own, 64))
    many = scans(MAX_SCANS - own + 1, 64)
    assert has_too_many_scans(many)
    assert has_too_many_scans(memoryview(many))
    end = b"\xff\xfe\0\x06\xff\xd9ab"  # a comment that holds the mark of the end
    first = many.index(MARK)
    assert has_too_many_scans(many[:first] + end + many[first:])
    Image.open(io.BytesIO(many[:first] + end + many[first:])).load()  # to libjpeg the comment is one, too


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 100}])
@given(behind=st.binary(max_size=200))
def test_what_lies_in_a_thumbnail_or_behind_the_picture_does_not_count(options, behind):
    film = (MARK + b"\0\x02") * (MAX_SCANS + 1)  # scans without end, to whoever takes them for the picture's
    thumbnail = b"\xff\xe1" + (2 + 6 + len(film)).to_bytes(2, "big") + b"Exif\0\0" + film
    whole = picture_of(64, 64, "JPEG", **options)
    assert not has_too_many_scans(whole[:2] + thumbnail + whole[2:] + behind + film)
    assert not has_too_many_scans(whole + b"\0\x02" + film)


def test_what_is_no_jpeg_is_not_walked():
    assert not has_too_many_scans(b"\x89PNG" + MARK * 1_000)
    assert not has_too_many_scans(b"")
