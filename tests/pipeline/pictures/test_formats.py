"""formats: a picture is detected by its first bytes, whatever it is called, and Pillow reads what is detected."""

from __future__ import annotations

import io
import string

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError

from pipeline.pictures.decode import PictureError, decode, header
from pipeline.pictures.formats import FORMATS, HEAD, format_of, is_picture, readable_formats
from tests.drawn import HEIC, encoded

RAMP = Image.linear_gradient("L").resize((60, 40)).convert("RGB")
PNG = encoded(RAMP, "PNG")
FILES = {
    "jpeg": encoded(RAMP, "JPEG"), "png": PNG, "gif": encoded(RAMP, "GIF"), "webp": encoded(RAMP, "WEBP"),
    "bmp": encoded(RAMP, "BMP"), "tiff": encoded(RAMP, "TIFF"), "avif": encoded(RAMP, "AVIF"), "heif": HEIC,
    "ico": encoded(RAMP, "ICO", sizes=[(60, 40)]), "jpeg2000": encoded(RAMP, "JPEG2000"),
    "ppm": encoded(RAMP, "PPM"), "dib": encoded(RAMP, "DIB"), "tga": encoded(RAMP, "TGA"),
}  # fmt: skip
OTHERS = {
    "JPEG 2000 codestream": encoded(RAMP, "JPEG2000", no_jp2=True), "icon of bitmaps": encoded(RAMP, "ICO",
    sizes=[(60, 40)], bitmap_format="bmp"), "animated PNG": encoded(RAMP, "PNG", save_all=True, append_images=[RAMP]),
    "packed Targa": encoded(RAMP, "TGA", compression="tga_rle"), "grey Targa": encoded(RAMP.convert("L"), "TGA"),
    "Targa with a palette": encoded(RAMP.convert("P"), "TGA"), "PGM": encoded(RAMP.convert("L"), "PPM"),
    "PBM": encoded(RAMP.convert("1"), "PPM"), "BigTIFF": encoded(RAMP, "TIFF", big_tiff=True),
    "bitmap of 256 colours": encoded(RAMP.convert("P"), "DIB"), "plain PPM": b"P3\n# x\n2 1\n255\n1 2 3 4 5 6\n",
}  # fmt: skip


def test_every_format_has_an_example() -> None:
    assert FILES.keys() == set(FORMATS) == set(readable_formats()), "of what is missing the tests say nothing"


@pytest.mark.parametrize("data", [*FILES.values(), *OTHERS.values()], ids=[*FILES, *OTHERS])
def test_a_picture_without_a_suffix_is_read_as_pillow_reads_it(data: bytes) -> None:
    assert is_picture("0001", lambda: data[:HEAD])
    shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA").convert("RGB"))
    assert np.abs(decode(data).pixels.astype(int) - shown).max() <= 3, "libjpeg decodes a JPEG in another way"
    assert header(data).format == format_of(data)


@given(st.one_of(st.binary(max_size=300), st.sampled_from([*FILES.values()]).map(lambda data: data[9:])))
@example(b"")
def test_what_is_not_detected_is_nothing_that_pillow_would_open(data: bytes) -> None:
    if format_of(data):
        return
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(data), formats=[name.upper() for name in FORMATS if name != "tga"])


@given(
    st.text(string.printable + "云海，。", max_size=400), st.sampled_from(["utf-8", "gb18030", "utf-16", "utf-16-le"])
)
@example("P1 is a car", "utf-8")
@example("P6: the pump", "utf-8")
@example("BMW,云\n", "utf-8")
def test_a_text_is_no_picture(text: str, codec: str) -> None:
    assert format_of(text.encode(codec)) == ""


@pytest.mark.parametrize("name", ["a.JFIF", "a.jpe", "a.pjpeg", "a.ico", "a.jp2", "a.TGA", "a.ppm", "a.apng", "a.dib"])
def test_a_suffix_of_pictures_is_believed_and_one_of_texts_too(name: str) -> None:
    def unread() -> bytes:
        raise AssertionError

    assert is_picture(name, unread)
    assert not is_picture(f"{name}.txt", unread)
    assert not is_picture("a.CAPTION", unread)


@pytest.mark.slow
def test_an_icon_whose_picture_is_larger_than_it_says_is_refused_before_it_takes_memory() -> None:
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    icon = encoded(RAMP, "ICO", sizes=[(60, 40)])
    start = int.from_bytes(icon[18:22], "little")
    with pytest.raises(PictureError, match=r"directory says \(60, 40\), its picture \(20000, 20000\)"):
        header(icon[:14] + len(bomb).to_bytes(4, "little") + icon[18:start] + bomb)
