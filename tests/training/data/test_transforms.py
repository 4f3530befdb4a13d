"""Bytes to pixels and boxes, against Pillow and torchvision."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
import torchvision.io
from PIL import Image

from tests.drawn import claiming
from training.data.transforms import (
    UnreadableImage,
    check_decodes,
    crop_and_flip,
    decode,
    decode_on_device,
    decode_square,
    input_boxes,
    resize_square,
)
from training.errors import ConfigError, RunError


def test_boxes_are_clipped_and_empty_ones_left_out() -> None:
    found = input_boxes([-5, 0, 20, 50, 10, 10, 10, 30], 40, 40, 80, 36)
    assert found.tolist() == [[0, 0, 40, 80], [0, 0, 80, 80]]


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"text"])
def test_bytes_that_are_no_image_are_unreadable_in_the_same_words_each_time(data: bytes) -> None:
    words = set()
    for copy in (data, bytes(bytearray(data)) + b""):
        with pytest.raises(UnreadableImage) as e:
            decode(copy)
        words.add(str(e.value))
    assert len(words) == 1
    assert "0x" not in words.pop()


def test_pixels_are_those_of_pillow() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (320, 240), Image.Resampling.BICUBIC
    )
    data = io.BytesIO()
    smooth.save(data, "JPEG", quality=95)
    expected = np.asarray(Image.open(data).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR), dtype=float)
    found = resize_square(decode(data.getvalue()), 64).permute(1, 2, 0).numpy().astype(float)
    assert np.abs(found - expected).mean() < 1.0


def test_a_device_decodes_many_jpegs_at_once_and_leaves_the_rest_to_the_cpu() -> None:
    """torchvision's decoder for a device, here for the CPU as a device: CUDA's has the same face."""
    files = dict(enumerate([b"", b"\xff\xd8\xff", jpeg(300, 200)[:-3000], png(), *BOMBS]))
    sound = {number: jpeg(300, 200 + number) for number in range(10, 30)}
    data = io.BytesIO()
    Image.open(io.BytesIO(jpeg(300, 240))).convert("L").save(data, "JPEG")
    sound[40] = data.getvalue()
    found = decode_on_device(files | sound, 64, torch.device("cpu"))
    assert found.keys() == sound.keys()
    for number, (image, *size) in found.items():
        assert size == [300, 200 + number]
        assert (image.int() - resize_square(decode(sound[number]), 64).int()).abs().max() <= 1


@pytest.mark.parametrize("said", ["CUDA out of memory. Tried 2 GiB\nIts trace", "Failed to decode batch: 5"])
def test_pictures_that_fill_a_device_are_decoded_in_fewer_at_once_or_end_the_run(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A RuntimeError in the words of torchvision, as for a damaged picture, which is left to the CPU."""
    fits, asked, real = 3, list[int](), torchvision.io.decode_jpeg

    def decode_few(data: list[torch.Tensor], **options: object) -> object:
        asked.append(len(data))
        if len(data) > fits:
            raise RuntimeError(f"Error while decoding JPEG images: {said}")
        return real(data, **options)

    monkeypatch.setattr("torchvision.io.decode_jpeg", decode_few)
    files = {number: jpeg(30, 20 + number) for number in range(16)}
    found = decode_on_device(files, 64, torch.device("cpu"))
    assert {number: height for number, (_, _, height) in found.items()} == {n: 20 + n for n in range(16)}
    assert sorted(asked) == [2] * 8 + [4] * 4 + [8] * 2 + [16]
    fits = 0
    with pytest.raises(RunError, match=r"^data.decoder: the memory of cpu is full; set data.decoder=cpu, or [^\n]*$"):
        decode_on_device(files, 64, torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may decode here")
def test_a_device_that_decodes_nothing_is_refused_at_the_start() -> None:
    check_decodes(torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"^data.decoder: torchvision cannot decode a JPEG on cuda:0; install"):
        check_decodes(torch.device("cuda:0"))


def jpeg(width: int, height: int) -> bytes:
    """Smooth, with an edge at every 50 pixels."""
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height))
    for at in range(0, width, 50):
        pixels.paste((at % 256, 90, 200), (at, 0, at + 9, height))
    data = io.BytesIO()
    pixels.save(data, "JPEG", quality=90)
    return data.getvalue()


@pytest.mark.parametrize(
    ("size", "near"), [((317, 1003), 1.0), ((256, 290), 1.0), ((1021, 773), 0.5), ((255, 640), 0.0), ((64, 64), 0.0)]
)
def test_a_large_picture_is_decoded_reduced_with_nearly_the_same_pixels(size: tuple[int, int], near: float) -> None:
    full, *sides = decode_square(jpeg(*size), 64, full=True)
    found, *same = decode_square(jpeg(*size), 64)
    assert tuple(sides) == tuple(same) == size
    assert full.shape == found.shape == (3, 64, 64)
    assert torch.equal(full, resize_square(decode(jpeg(*size)), 64))
    difference = (full.float() - found.float()).abs().mean()
    assert (0 < difference < near) if near else not difference


def png(mode: str = "RGB") -> bytes:
    data = io.BytesIO()
    Image.new(mode, (8, 8)).save(data, "PNG")
    return data.getvalue()


BOMBS = [claiming(data, side, side) for data in (jpeg(64, 64), png()) for side in (20_000, 65_000)]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("number", range(len(BOMBS)))
def test_a_bomb_is_unreadable_by_its_header_alone(number: int, full: bool) -> None:
    tracemalloc.start()
    line = r"^\d{5} x \d{5} pixels, more than the 100,000,000 allowed \(data.max_pixels\)$"
    with pytest.raises(UnreadableImage, match=line):
        decode_square(BOMBS[number], 64, full=full)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "garbage", [b"", b"\xff\xff", b"\xff\xe1\x00\x04\xff\xc0", b"noise", b"\xff\x01", b"\xff\xe0\0\0"]
)
def test_the_frame_header_is_where_libjpeg_finds_it(garbage: bytes) -> None:
    """Between segments libjpeg passes over fill bytes, noise, and markers that have no length."""
    data = claiming(jpeg(64, 64), 20_000, 20_000)
    with pytest.raises(UnreadableImage, match="pixels"):
        decode_square(data[:2] + garbage + data[2:], 64)
    sound = jpeg(64, 64)
    image, *sides = decode_square(sound[:2] + garbage + sound[2:], 64)
    assert sides == [64, 64]
    assert torch.equal(image, decode_square(sound, 64)[0])


def test_the_bound_is_the_config_s() -> None:
    decode_square(jpeg(64, 64), 64, max_pixels=64 * 64)
    for data in (jpeg(64, 64), claiming(png(), 64, 64)):
        with pytest.raises(UnreadableImage, match="64 x 64 pixels, more than the 4,095 allowed"):
            decode_square(data, 64, max_pixels=64 * 64 - 1)


@pytest.mark.parametrize("error", [MemoryError, SystemError, struct.error, TypeError, zlib.error])
def test_whatever_a_decoder_raises_is_an_unreadable_image(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    monkeypatch.setattr("simplejpeg.decode_jpeg", fail)
    monkeypatch.setattr("torchvision.io.decode_jpeg", fail)
    for data in (png(), jpeg(64, 64), jpeg(640, 640)):
        with pytest.raises(UnreadableImage, match=error.__name__):
            decode_square(data, 64)


def test_a_program_is_no_picture() -> None:
    """PostScript, for which Pillow would start Ghostscript, and other formats that no dataset holds."""
    with pytest.raises(UnreadableImage, match="not an image: it begins with the bytes 25215053"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_other_formats_have_the_pixels_of_pillow_on_white(mode: str) -> None:
    rng = np.random.default_rng(0)
    source = Image.fromarray(rng.integers(0, 256, (37, 21, 4), dtype=np.uint8), "RGBA")
    data = io.BytesIO()
    source.convert(mode).save(data, "PNG")
    rgba = Image.open(data).convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    expected = np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    assert np.array_equal(decode(data.getvalue()).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(("kind", "type"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.float32)])
def test_a_picture_of_one_deep_channel_has_the_pixels_that_the_pipeline_gives_it(kind: str, type: object) -> None:
    """Pillow's own conversion cuts them off at 255: all but the darkest would be white."""
    from pipeline.pictures.decode import decode as pipeline_decode  # the test sees both halves; the code does not

    values = np.random.default_rng(0).integers(0, 2**16, (37, 21)).astype(type)  # type: ignore[call-overload]
    values[0, :2] = 0, 2**16 - 1
    data = io.BytesIO()
    Image.fromarray(values).save(data, kind)
    pixels = decode(data.getvalue()).permute(1, 2, 0).numpy()
    assert np.abs(pixels.astype(int) - (values / 257)[..., None]).max() <= 1
    assert np.array_equal(pixels, pipeline_decode(data.getvalue()).pixels)


def test_boxes_move_with_the_pixels_of_a_crop_and_a_mirror() -> None:
    """A white patch stays what its box shows; a box that is cropped away goes; the last box is whole."""
    image = torch.zeros(3, 96, 96, dtype=torch.uint8)
    image[:, 30:60, 40:80] = 255
    boxes_R4 = input_boxes([40, 30, 80, 60, 0, 0, 4, 4], 96, 96, 96, 9)
    left, sizes = set[int](), set[int]()
    for seed in range(20):
        pixels, moved_R4 = crop_and_flip(image, boxes_R4, 0.6, 0.5, torch.Generator().manual_seed(seed))
        x1, y1, x2, y2 = moved_R4[0].round().astype(int)
        inside = pixels[0, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
        around = pixels[0].clone()
        around[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = 0
        assert inside.min() == 255
        assert around.max() == 0
        assert np.allclose(moved_R4[-1], [0, 0, 96, 96], atol=1e-3)
        left.add(x1)
        sizes.add(len(moved_R4))
    assert sizes == {2, 3}
    assert len(left) > 5
    same, same_R4 = crop_and_flip(image, boxes_R4, 1.0, 0.0, torch.Generator())
    assert torch.equal(same, image)
    assert np.array_equal(same_R4, boxes_R4)
