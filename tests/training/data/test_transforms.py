"""Bytes to pixels and boxes, against Pillow and torchvision."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.transforms import UnreadableImage, decode, input_boxes, picture, square


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
    found = square(decode(data.getvalue()), 64).permute(1, 2, 0).numpy().astype(float)
    assert np.abs(found - expected).mean() < 1.0


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_device_decodes_to_the_pixels_of_full_size_or_leaves_it_to_the_cpu(mode: str) -> None:
    """torchvision's decoder for a device, here for the CPU as a device: CUDA's has the same face."""
    data = io.BytesIO()
    Image.open(io.BytesIO(jpeg(300, 200))).convert(mode).save(data, "JPEG")
    image, *sides = picture(data.getvalue(), 64, device=torch.device("cpu"))
    assert sides == [300, 200]
    assert (image.int() - square(decode(data.getvalue()), 64).int()).abs().max() <= 1


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"GIF89a"])
def test_what_no_device_decodes_is_unreadable_in_the_words_of_the_cpu(data: bytes) -> None:
    said = []
    for device in (None, torch.device("cpu")):
        with pytest.raises(UnreadableImage) as e:
            picture(data, 64, device=device)
        said.append(str(e.value))
    assert said[0] == said[1]


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
    full, *sides = picture(jpeg(*size), 64, full=True)
    found, *same = picture(jpeg(*size), 64)
    assert tuple(sides) == tuple(same) == size
    assert full.shape == found.shape == (3, 64, 64)
    assert torch.equal(full, square(decode(jpeg(*size)), 64))
    difference = (full.float() - found.float()).abs().mean()
    assert (0 < difference < near) if near else not difference


def test_a_large_picture_that_ends_early_is_unreadable_as_a_small_one() -> None:
    with pytest.raises(UnreadableImage):
        picture(jpeg(1200, 900)[:-2000], 64)
