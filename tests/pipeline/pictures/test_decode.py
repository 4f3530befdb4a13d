"""decode: bytes become the picture as shown, and every fault of a file is a PictureError."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.features._rows import measure_image
from pipeline.pictures import decode as pictures
from pipeline.pictures.decode import PictureError, decode, encode_jpeg, header, resized, to_jpeg
from tests.drawn import HEIC, encoded

RNG = np.random.default_rng(0)
BLOCKS = RNG.integers(0, 256, (5, 8, 3), dtype=np.uint8)
NOISE = Image.fromarray(
    np.clip(BLOCKS.repeat(8, 0).repeat(8, 1) + RNG.integers(-9, 9, (40, 64, 3)), 0, 255).astype("u1")
)


@pytest.mark.parametrize(
    ("kind", "orientation"),
    [*(("JPEG", number) for number in range(1, 9)), *((kind, 6) for kind in ("PNG", "WEBP", "TIFF", "AVIF"))],
)
def test_orientation_is_applied_as_pillow_would(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(NOISE, kind, exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    picture = pictures.decode(data)
    assert np.array_equal(picture.pixels, shown)
    assert (picture.header.height, picture.header.width) == shown.shape[:2]
    assert picture.header.format == kind.lower()
    stored = pictures.to_jpeg(data, 92)
    assert pictures.header(stored).orientation == 1
    assert np.abs(pictures.decode(stored).pixels.astype(int) - shown).mean() < 12
    assert (stored == data) == (kind == "JPEG" and orientation == 1)


def test_alpha_lies_on_white_and_the_first_frame_is_taken() -> None:
    clear = Image.new("RGBA", (10, 10), (255, 0, 0, 0))
    assert (pictures.decode(encoded(clear, "PNG")).pixels == 255).all()
    half = pictures.decode(encoded(Image.new("LA", (10, 10), (0, 128)), "PNG"))
    assert half.header.alpha
    assert abs(int(half.pixels[0, 0, 0]) - 127) <= 1
    palette = Image.new("P", (10, 10), 0)
    palette.putpalette([0, 0, 255] * 256)
    assert (pictures.decode(encoded(palette, "PNG", transparency=0)).pixels == 255).all()
    frames = encoded(
        Image.new("RGB", (10, 10), "red"), "GIF", save_all=True, append_images=[Image.new("RGB", (10, 10), "blue")]
    )
    moving = pictures.decode(frames)
    assert moving.header.frames == 2
    assert tuple(moving.pixels[5, 5]) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "I;16", "F"])
def test_every_mode_becomes_rgb_of_the_same_brightness(mode: str) -> None:
    ramp = Image.linear_gradient("L").resize((64, 64))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(ramp).astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(ramp).astype(np.float32) / 255)
    else:
        image = ramp.convert("RGB").convert(mode)
    kind = {"CMYK": "JPEG", "F": "TIFF"}.get(mode, "PNG")
    shown = pictures.decode(encoded(image, kind)).pixels.astype(int)
    assert shown.shape == (64, 64, 3)
    assert abs(shown[:32].mean() - np.asarray(ramp)[:32].mean()) < 6
    assert abs(shown[32:].mean() - np.asarray(ramp)[32:].mean()) < 6


def test_a_jpeg_whose_orientation_only_xmp_tells_is_stored_without_it() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    data = encoded(NOISE, "JPEG", xmp=xmp)
    header = pictures.header(data)
    assert (header.width, header.height, header.orientation) == (64, 40, 1)
    stored = pictures.to_jpeg(data, 92)
    assert Image.open(io.BytesIO(stored)).getexif().get(274, 1) == 1
    assert pictures.header(stored).width == 64


def test_storing_is_deterministic() -> None:
    data = encoded(NOISE, "PNG")
    assert pictures.to_jpeg(data, 80) == pictures.to_jpeg(data, 80)
    assert len(pictures.to_jpeg(data, 60)) < len(pictures.to_jpeg(data, 95))


def test_a_reduced_decode_keeps_the_asked_side_and_looks_the_same() -> None:
    smooth = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (800, 600), Image.Resampling.BICUBIC
    )
    data = encoded(smooth, "JPEG")
    small = pictures.decode(data, reduce_to=128)
    assert (small.header.width, small.header.height) == (800, 600)
    assert 128 <= min(small.pixels.shape[:2]) < 600
    whole = np.asarray(Image.fromarray(pictures.decode(data).pixels).resize((8, 8), Image.Resampling.BOX)).astype(int)
    other = np.asarray(Image.fromarray(small.pixels).resize((8, 8), Image.Resampling.BOX)).astype(int)
    assert np.abs(whole - other).max() <= 4


@pytest.mark.slow
def test_a_bomb_is_refused_from_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("1", (11_000, 11_000)), "PNG")
    assert len(data) < 100_000
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(PictureError, match="11000 x 11000 pixels; at most 100,000,000 are allowed") as caught:
        pictures.decode(data)
    assert caught.value.too_many_pixels


@pytest.mark.parametrize("reduce_to", [0, 8])
def test_a_picture_that_no_jpeg_can_hold_is_refused_from_its_header(reduce_to: int) -> None:
    data = encoded(Image.new("RGB", (pictures.JPEG_MAX_SIDE + 1, 1)), "PNG")
    with pytest.raises(PictureError, match="65501 x 1 pixels do not fit into a JPEG"):
        pictures.decode(data, reduce_to=reduce_to)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("reduce_to", [0, 8])
def test_a_truncated_file_is_refused(kind: str, reduce_to: int) -> None:
    data = encoded(NOISE, kind)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(PictureError):
            pictures.decode(data[: int(len(data) * share)], reduce_to=reduce_to)


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"%PDF-1.7", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff\xe0"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    for ask in (pictures.header, pictures.decode, lambda d: pictures.to_jpeg(d, 90)):
        with pytest.raises(PictureError):
            ask(data)


def by_pillow_alone(data: bytes, reduce_to: int) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_decode_plain_jpeg", lambda *_: None)
        return outcome(data, reduce_to)


def outcome(data: bytes, reduce_to: int) -> Any:
    """(header, pixels as bytes), or what the error says."""
    try:
        picture = pictures.decode(data, 1_000_000, reduce_to)
    except PictureError as e:
        return str(e)
    return picture.header, picture.pixels.shape, picture.pixels.tobytes()


def mutated(data: st.DataObject, whole: bytes) -> bytes:
    """Bytes changed, cut out or put in, mostly where the headers are."""
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        if not damaged:
            break
        end = len(damaged) - 1 if data.draw(st.booleans()) else min(700, len(damaged) - 1)
        at, what = data.draw(st.integers(0, end)), data.draw(st.sampled_from(["change", "insert", "cut", "end"]))
        if what == "change":
            damaged[at] = data.draw(st.integers(0, 255))
        elif what == "insert":
            damaged[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif what == "cut":
            del damaged[at : at + data.draw(st.integers(1, 9))]
        else:
            del damaged[max(at, 4) :]
    return bytes(damaged)


JPEGS = [
    encoded(image, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive, exif=exif)
    for image in (NOISE, NOISE.convert("L"), NOISE.resize((301, 207)))
    for quality, subsampling, progressive in ((60, 2, False), (95, 0, True))
    for exif in (b"", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
]


@pytest.mark.parametrize("reduce_to", [0, 8])
@pytest.mark.parametrize("number", range(len(JPEGS)))
def test_the_short_way_gives_the_pixels_that_pillow_gives(
    number: int, reduce_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = by_pillow_alone(JPEGS[number], reduce_to)
    monkeypatch.setattr(pictures, "_open_by_pillow", lambda *_: pytest.fail("Pillow was asked"))
    assert outcome(JPEGS[number], reduce_to) == theirs
    assert theirs[0].orientation == (6 if b"Exif" in JPEGS[number] else 1)


@pytest.mark.parametrize("number", range(len(JPEGS)))
def test_the_short_way_to_a_header_says_what_pillow_says(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with Image.open(io.BytesIO(JPEGS[number])) as image:
        theirs = image.size if image.getexif().get(274, 1) < 5 else image.size[::-1]
    monkeypatch.setattr(pictures, "_open_by_pillow", lambda *_: pytest.fail("Pillow was asked"))
    ours = pictures.header(JPEGS[number])
    assert (ours.format, ours.width, ours.height) == ("jpeg", *theirs)


@pytest.mark.slow
@settings(max_examples=100)
@given(whole=st.sampled_from(JPEGS), reduce_to=st.sampled_from([0, 8, 64]), data=st.data())
def test_of_damaged_jpegs_both_ways_say_the_same(whole: bytes, reduce_to: int, data: st.DataObject) -> None:
    damaged = mutated(data, whole)
    assert outcome(damaged, reduce_to) == by_pillow_alone(damaged, reduce_to)


def test_a_jpeg_of_four_components_and_one_with_a_phones_second_picture() -> None:
    ramp = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    inverted = pictures.decode(encoded(ramp.convert("CMYK"), "JPEG"), reduce_to=8)
    assert np.abs(inverted.pixels.astype(int).mean() - np.asarray(ramp).mean()) < 8
    two = encoded(NOISE, "MPO", save_all=True, append_images=[NOISE.rotate(180)])
    shown = pictures.decode(two)
    assert (shown.header.format, shown.header.frames) == ("jpeg", 1)
    assert np.abs(shown.pixels.astype(int) - np.asarray(NOISE)).mean() < 12


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_other_formats_come_smaller_too_by_whole_factors(kind: str) -> None:
    whole = np.asarray(NOISE.resize((300, 200)).convert("P").convert("RGB"))
    small = pictures.decode(
        encoded(Image.fromarray(whole), kind, **({"lossless": True} if kind == "WEBP" else {})), 10**6, 60
    )
    assert (small.header.width, small.header.height) == (300, 200)
    assert small.pixels.shape == (67, 100, 3)
    means = whole[:198].reshape(66, 3, 100, 3, 3).mean(axis=(1, 3))
    assert np.abs(small.pixels[:66] - means).max() <= 1


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]), data=st.data())
def test_damaged_bytes_give_a_picture_or_a_picture_error(kind: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(NOISE, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    shown, message = None, ""
    try:
        shown = pictures.decode(bytes(whole), max_pixels=1_000_000)
    except PictureError as e:
        message = str(e)
    assert (shown is None) == bool(message)
    assert "\n" not in message
    assert shown is None or shown.pixels.shape == (shown.header.height, shown.header.width, 3)


@pytest.mark.parametrize("error", [MemoryError, SystemError, struct.error, RecursionError, ZeroDivisionError])
@pytest.mark.parametrize(
    "place", ["simplejpeg.decode_jpeg", "simplejpeg.decode_jpeg_header", "PIL.ImageFile.ImageFile.load"]
)
def test_whatever_a_decoder_raises_is_a_picture_error(
    place: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(place, fail)
    kind = "PNG" if place.startswith("PIL") else "JPEG"
    out = io.BytesIO()
    Image.new("RGB", (200, 200)).save(out, kind)
    for reduce_to in (0, 64):
        with pytest.raises(PictureError, match=error.__name__):
            decode(out.getvalue(), reduce_to=reduce_to)
    if place.endswith("header"):
        with pytest.raises(PictureError, match=error.__name__):
            header(out.getvalue())


def test_no_memory_to_shrink_resize_or_encode_is_a_picture_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise MemoryError

    pixels = np.zeros((300, 300, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    data = out.getvalue()
    monkeypatch.setattr("PIL.Image.fromarray", fail)
    for call in (lambda: decode(data, reduce_to=100), lambda: resized(pixels, 9, 9), lambda: encode_jpeg(pixels, 90)):
        with pytest.raises(PictureError, match="MemoryError"):
            call()


@pytest.mark.parametrize("segment", [b"\xff\xee\0\x08Adobe\0", b"\xff\xe0\0\x06JFIF", b"\xff\xe2\0\x0eICC_PROFILE\0"])
def test_a_jpeg_that_pillow_refuses_and_libjpeg_decodes_is_encoded_anew(segment: bytes) -> None:
    """It was measured by libjpeg alone: an error when it is stored would end the build."""
    sound = encode_jpeg(np.full((40, 60, 3), 99, np.uint8), 90)
    odd = sound[:2] + segment + sound[2:]
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(odd))
    stored = to_jpeg(odd, 95)
    assert np.abs(np.asarray(Image.open(io.BytesIO(stored))).astype(int) - decode(odd).pixels).max() <= 2


def _gif(frames: int) -> bytes:
    head = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff"
    return head + b"!\xf9\x04\0\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0" * frames + b";"


def _tiff(directories: int) -> bytes:
    first = bytearray(encoded(Image.new("L", (1, 1)), "TIFF"))
    end = 10 + 12 * int.from_bytes(first[8:10], "little")  # the count has 2 bytes, an entry 12
    directory, size, start = bytes(first[8:end]), end - 4, len(first)
    first[end : end + 4] = struct.pack("<I", start if directories > 1 else 0)
    links = (start + size * n if n < directories - 1 else 0 for n in range(1, directories))
    return bytes(first) + b"".join(directory + struct.pack("<I", link) for link in links)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("make", [_gif, _tiff])
def test_frames_are_counted_to_a_bound(make: Callable[[int], bytes]) -> None:
    """A GIF of 7 MB may have 400,000, and Pillow takes seconds to count them; a TIFF of 20 MB three million."""
    assert header(make(3)).frames == 3
    assert header(make(pictures.MAX_FRAMES + 1)).frames == pictures.MAX_FRAMES
    assert header(make(200_000)).frames == pictures.MAX_FRAMES


@pytest.mark.slow
def test_a_png_that_claims_two_billion_frames_fits_into_the_features() -> None:
    data = encoded(Image.new("RGB", (9, 9)), "PNG")
    control = b"acTL" + struct.pack(">II", 2**31, 0)
    data = data[:33] + struct.pack(">I", 8) + control + struct.pack(">I", zlib.crc32(control)) + data[33:]
    assert measure_image(data, 1000)["frames"] == pictures.MAX_FRAMES


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_laid_on_white_strip_by_strip_as_at_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 21, 4), np.uint8), "RGBA")
    data = encoded(image.quantize(64) if mode == "P" else image.convert(mode), "PNG")
    whole = decode(data).pixels
    monkeypatch.setattr("data_specs.pictures.rgb.STRIP", 21 * 4)
    assert np.array_equal(decode(data).pixels, whole)


def test_a_picture_of_a_phone_is_read() -> None:
    pytest.importorskip("pi_heif")
    picture = decode(HEIC)
    assert (picture.header.format, picture.header.width, picture.header.height) == ("heif", 64, 48)
    quarters = [picture.pixels[y, x].astype(int) for y in (10, 40) for x in (10, 50)]
    for seen, drawn in zip(quarters, [(220, 30, 40), (30, 60, 210), (110, 15, 20), (15, 30, 105)], strict=True):
        assert np.abs(seen - drawn).max() <= 6
    with pytest.raises(PictureError, match="9 are allowed") as e:
        decode(HEIC, max_pixels=9)
    assert e.value.too_many_pixels
    with pytest.raises(PictureError):
        decode(HEIC[:-40])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (HEIC, r"HEIC \(HEIF\) pictures .* install wenlan's extra heif"),
        (encoded(NOISE, "AVIF"), "AVIF pictures .*pillow>=11.3"),
    ],
)
def test_a_format_whose_reader_is_missing_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, data: bytes, said: str
) -> None:
    monkeypatch.setattr(pictures, "readable_formats", lambda: ("jpeg", "png"))
    with pytest.raises(PictureError, match=said) as e:
        header(data)
    assert e.value.unreadable_here
    with pytest.raises(PictureError, match="not a supported image") as e:
        header(b"\0\0\0\x14ftypmp42" + bytes(40))
    assert not e.value.unreadable_here
