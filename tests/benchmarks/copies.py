"""Copies of pictures as the web makes them, for bench_near_images. Everything follows from the picture and a number."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

TEXT = "www.example.cn"
STAMPED = 0.045
"""Share of the picture that the text's box covers."""


def jpeg(image: Image.Image, quality: int = 85) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def half(image: Image.Image, _: int) -> bytes:
    return jpeg(image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.LANCZOS))


def quality_40(image: Image.Image, _: int) -> bytes:
    return jpeg(image, 40)


def grey(image: Image.Image, _: int) -> bytes:
    return jpeg(image.convert("L"))


def each_side(share: float) -> Callable[[Image.Image, int], bytes]:
    """A crop of a share at each side."""

    def cropped(image: Image.Image, _: int) -> bytes:
        x, y = round(image.width * share), round(image.height * share)
        return jpeg(image.crop((x, y, image.width - x, image.height - y)))

    return cropped


def one_corner(image: Image.Image, number: int) -> bytes:
    """4% less of width and height, all of it from one corner: another one for each number."""
    x, y = round(image.width * 0.04), round(image.height * 0.04)
    left, top = x * (number % 2), y * (number // 2 % 2)
    return jpeg(image.crop((left, top, image.width - x + left, image.height - y + top)))


def border(colour: str) -> Callable[[Image.Image, int], bytes]:
    """2% of the sides around the picture."""

    def framed(image: Image.Image, _: int) -> bytes:
        x, y = round(image.width * 0.02), round(image.height * 0.02)
        frame = Image.new("RGB", (image.width + 2 * x, image.height + 2 * y), colour)
        frame.paste(image, (x, y))
        return jpeg(frame)

    return framed


def text(label: bool = False, middle: bool = False, anywhere: bool = False) -> Callable[[Image.Image, int], bytes]:
    """White letters with a black outline near a corner or the middle of the lower edge, another place for each number.

    `label` lays them on a dark box, `middle` puts them across the middle, `anywhere` where chance puts them.
    """

    def stamped(image: Image.Image, number: int) -> bytes:
        image = image.copy()
        draw, (width, height) = ImageDraw.Draw(image), image.size
        left, top, right, bottom = draw.textbbox((0, 0), TEXT, font=ImageFont.load_default(100), stroke_width=6)
        area = (right - left) * (bottom - top)
        size = 100 * min((STAMPED * width * height / area) ** 0.5, 0.9 * width / (right - left))
        font, stroke = ImageFont.load_default(size), max(1, round(size * 0.06))
        left, top, right, bottom = draw.textbbox((0, 0), TEXT, font=font, stroke_width=stroke)
        margin = max(1, round(0.02 * min(width, height)))
        far_x, far_y = width - margin - right, height - margin - bottom
        centre = (width - right - left) / 2
        places = [(far_x, far_y), (margin - left, far_y), (far_x, margin - top), (centre, far_y)]
        x, y = (centre, (height - bottom - top) / 2) if middle else places[number % 4]
        if anywhere:
            chance = random.Random(number)
            x, y = chance.uniform(-left, width - right), chance.uniform(-top, height - bottom)
        if label:
            draw.rectangle((x + left, y + top, x + right, y + bottom), fill="#202020")
        draw.text((x, y), TEXT, font=font, fill="white", stroke_width=stroke, stroke_fill="black")
        return jpeg(image)

    return stamped


def seal(image: Image.Image, number: int) -> bytes:
    """A red seal with white letters, of a quarter of the shorter side, where chance puts it."""
    image, chance = image.copy(), random.Random(number)
    side = round(0.25 * min(image.size))
    x, y = chance.randint(0, image.width - side), chance.randint(0, image.height - side)
    draw, stroke = ImageDraw.Draw(image), max(1, side // 40)
    draw.rectangle((x, y, x + side - 1, y + side - 1), fill="#c01818")
    middle, font = (x + side / 2, y + side / 2), ImageFont.load_default(0.45 * side)
    draw.text(middle, "COPY", font=font, fill="white", anchor="mm", stroke_width=stroke, stroke_fill="white")
    return jpeg(image)


def brightness(times: float) -> Callable[[Image.Image, int], bytes]:
    """All colours so many times as bright; what is brighter than white is white."""
    return lambda image, _: jpeg(ImageEnhance.Brightness(image).enhance(times))


def contrast(image: Image.Image, _: int) -> bytes:
    """A fifth more of it, about the mean of the picture."""
    return jpeg(ImageEnhance.Contrast(image).enhance(1.2))


def blur(image: Image.Image, _: int) -> bytes:
    """As after a scaling to 400 pixels and back."""
    return jpeg(image.filter(ImageFilter.GaussianBlur(max(image.size) / 400)))


def webp(image: Image.Image, _: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "WEBP", quality=50)
    return out.getvalue()


COPIES: dict[str, Callable[[Image.Image, int], bytes]] = {
    "half": half,
    "quality_40": quality_40,
    "crop_each_side": each_side(0.04),
    "crop_one_corner": one_corner,
    "grey": grey,
    "border": border("white"),
    "text": text(),
}
"""What the figures are about."""

AT_ONCE: dict[str, Callable[[Image.Image, int], bytes]] = COPIES | {
    "text": text(anywhere=True),
    "seal": seal,
    "brighter": brightness(1.2),
    "darker": brightness(0.8),
    "contrast": contrast,
    "blur": blur,
    "webp": webp,
}
"""Those that lie beside the original, and each other, in one build."""

TURNED: dict[str, Callable[[Image.Image, int], bytes]] = {
    "mirrored": lambda image, _: jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "turned_90": lambda image, _: jpeg(image.transpose(Image.Transpose.ROTATE_90)),
    "turned_180": lambda image, _: jpeg(image.transpose(Image.Transpose.ROTATE_180)),
    "turned_270": lambda image, _: jpeg(image.transpose(Image.Transpose.ROTATE_270)),
}
"""Those that are found with `dedup.image_turned`."""

MORE: dict[str, Callable[[Image.Image, int], bytes]] = {
    "crop 1% each side": each_side(0.01),
    "crop 3% each side": each_side(0.03),
    "black border": border("black"),
    "text on a label": text(label=True),
    "text in the middle": text(middle=True),
}
"""What is shown without a bar."""
