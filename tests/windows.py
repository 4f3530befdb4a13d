"""Windows of programs, drawn: pictures without texture that differ in a word or a curve, and copies of them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def dialog(*words: str, curve: int = 0, seed: int = 0) -> Image.Image:
    """A window of a program with a row for each word, and a chart."""
    image = Image.new("RGB", (500, 400), "#f0f0f0")
    draw = ImageDraw.Draw(image)
    draw.rectangle((10, 10, 490, 50), fill="#3060a0")
    font = ImageFont.load_default(22)
    for row, word in enumerate(words):
        draw.text((30, 70 + 40 * row), word, font=font, fill="black")
        draw.rectangle((180, 70 + 40 * row, 300, 96 + 40 * row), outline="#808080", fill="white")
    rng = np.random.default_rng(seed)
    draw.rectangle((320, 70, 480, 380), outline="black", fill="white")
    points = [(322 + 16 * x, 360 - curve - int(rng.integers(0, 250))) for x in range(10)]
    draw.line(points, fill="#c03030", width=4)
    return image


WORDS = ("Radius", "Contrast", "Opacity", "Seed", "Blend mode", "Clip", "Preview")


def bordered(image: Image.Image) -> Image.Image:
    framed = Image.new("RGB", (image.width * 104 // 100, image.height * 104 // 100), "white")
    framed.paste(image, (image.width // 50, image.height // 50))
    return framed


def cropped(image: Image.Image, share: float = 0.04) -> Image.Image:
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


def stamped(image: Image.Image, *places: tuple[int, int], size: int = 36) -> Image.Image:
    """A copy with an address stamped onto it, at each place (x, y)."""
    copy, font = image.copy(), ImageFont.load_default(size)
    for place in places:
        ImageDraw.Draw(copy).text(place, "www.example.cn", font=font, fill="white", stroke_width=3, stroke_fill="black")
    return copy


def sealed(image: Image.Image, *corners: tuple[int, int], colour: str = "#c01818", side: int = 100) -> Image.Image:
    """A copy with a square seal, of letters on red or another colour, at each corner (x, y)."""
    copy, font = image.copy(), ImageFont.load_default(side * 0.45)
    draw = ImageDraw.Draw(copy)
    for x, y in corners:
        draw.rectangle((x, y, x + side - 1, y + side - 1), fill=colour)
        draw.text((x + side / 2, y + side / 2), "COPY", font=font, fill="white", anchor="mm", stroke_width=2)
    return copy
