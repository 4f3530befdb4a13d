"""Composites: pictures with exact boxes, made of cut-out things on backgrounds and then degraded as a camera would.

A composite is a function of its number. Things lie on one another as on a table: first perhaps surfaces (a plate, a
board: a plain shape with a texture), often one that fills the picture, then large things, then small ones, some of them
many times; some are cut by the edge. A map holds which thing is visible at each pixel; the box of a thing encloses its
visible part, if that is large enough, or all around what lies on it: a full plate is still a plate.

Light, colour, blur, noise and JPEG follow. The range of sizes, from 5% of a side to all of it, is that of photos in
general. How often one thing fills the picture was chosen on the photos of `photos.txt`, on which the detector is not
judged (DECISIONS.md).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from tests.benchmarks.proposals.cutouts import Cutouts, Pixels

SIDE = 320
GREY = 114
VISIBLE = 0.35
"""Share of a thing that must be visible for its box to count."""

CLOSE = 0.5
"""Share of the composites in which one thing fills the picture, as the subject of a photo often does."""

RIM, OUTLINE = 0.1, 0.85
"""Less of a thing is enough, RIM of it, if the box of that is OUTLINE of the box that the thing has in the picture."""


@dataclass(frozen=True)
class Composite:
    """square [S, S, 3] BGR: the picture top left on grey; boxes [R, 4] xyxy in its pixels."""

    square: Pixels
    boxes: npt.NDArray[np.float32]


class Scene:
    """A picture in the making, and the number of the thing that is visible at each of its pixels (0: none)."""

    def __init__(self, ground: Pixels) -> None:
        self.pixels = ground
        self._visible = np.zeros(ground.shape[:2], np.uint8)  # so at most 255 things
        self._things: list[tuple[int, int]] = []
        """Of each thing its area, and the area of its box in the picture, which is 0 if most of it is outside."""

    @property
    def count(self) -> int:
        return len(self._things)

    def paste(self, thing: Pixels, x: int, y: int, shadow: float) -> None:
        """Lay a thing [h, w, 4] with its top left corner at x, y, which may be outside the picture."""
        height, width = self.pixels.shape[:2]
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + thing.shape[1], width), min(y + thing.shape[0], height)
        if x1 - x0 < 3 or y1 - y0 < 3 or self.count >= 250:
            return
        part = thing[y0 - y : y1 - y, x0 - x : x1 - x]
        mask = part[:, :, 3] > 127
        area = int((thing[:, :, 3] > 127).sum())
        if mask.sum() < 30:
            return
        if shadow:
            self._shade(part[:, :, 3], x0, y0, shadow)
        alpha = part[:, :, 3:].astype(np.uint16)
        here = self.pixels[y0:y1, x0:x1]
        here[:] = ((part[:, :, :3] * alpha + here * (255 - alpha)) // 255).astype(np.uint8)
        outline = mask.any(0).sum() * mask.any(1).sum()
        self._things.append((area, int(outline) if mask.sum() >= VISIBLE * area else 0))
        self._visible[y0:y1, x0:x1][mask] = self.count

    def _shade(self, alpha: Pixels, x: int, y: int, strength: float) -> None:
        """Darken the ground under a thing with mask `alpha` [h, w] at x, y: its shape, moved down right and blurred."""
        reach = max(2, min(alpha.shape) // 12)
        height, width = self.pixels.shape[:2]
        right, bottom = min(x + alpha.shape[1] + reach, width), min(y + alpha.shape[0] + reach, height)
        dark = np.zeros((bottom - y, right - x), np.uint8)
        inner = alpha[: dark.shape[0] - reach // 2, : dark.shape[1] - reach // 2]
        dark[reach // 2 : reach // 2 + inner.shape[0], reach // 2 : reach // 2 + inner.shape[1]] = inner
        dark = cv2.blur(dark, (2 * reach + 1, 2 * reach + 1))
        here = self.pixels[y:bottom, x:right]
        here[:] = (here * (1 - dark[:, :, None] * (strength / 255))).astype(np.uint8)

    def boxes(self) -> npt.NDArray[np.float32]:
        """[R, 4] boxes around the visible part of each thing."""
        boxes = []
        for number, (area, outline) in enumerate(self._things, 1):
            mask = (self._visible == number).view(np.uint8)
            visible = cv2.countNonZero(mask)
            if visible < RIM * area or visible < 30:
                continue
            x, y, width, height = cv2.boundingRect(mask)
            around = outline and width * height >= OUTLINE * outline
            if min(width, height) >= 6 and (visible >= VISIBLE * area or around):
                boxes.append((x, y, x + width, y + height))
        return np.array(boxes, np.float32).reshape(-1, 4)


def composite(number: int, cutouts: Cutouts, side: int = SIDE) -> Composite:
    """The composite of a number: the same number, cut-outs and side make the same picture."""
    chance = random.Random(number)
    rng = np.random.default_rng(number)
    shorter = int(side * chance.uniform(0.55, 1))
    width, height = (side, shorter) if chance.random() < 0.6 else (shorter, side)
    scene = Scene(_ground(width, height, cutouts, chance, rng))
    if chance.random() < CLOSE:
        size = round(width * chance.uniform(0.85, 1.3)), round(height * chance.uniform(0.85, 1.3))
        _paste(scene, _surface(*size, cutouts, chance, rng), chance, centred=1.0, spread=0.06)
    if chance.random() < 0.55:
        size = _oblong(chance.uniform(0.45, 1.15) * shorter, chance)
        _paste(scene, _surface(*size, cutouts, chance, rng), chance, centred=0.8)
    for low, high, most in ((0.35, 1.1, 2), (0.12, 0.45, 4), (0.05, 0.16, 3)):
        for _ in range(chance.randint(0, most)):
            length = math.exp(chance.uniform(math.log(low), math.log(high))) * math.sqrt(width * height)
            kind = chance.random()
            if kind < 0.35:
                thing = _lump(length, cutouts, chance, rng)
            else:
                thing = chance.choice(cutouts.rendered if kind < 0.75 else cutouts.drawn)
            for _ in range(chance.randint(2, 6) if high < 0.5 and chance.random() < 0.2 else 1):
                _paste(scene, _turned(thing, length, chance), chance, centred=0.7 if high > 1 else 0.4)
    boxes = scene.boxes()
    square = np.full((side, side, 3), GREY, np.uint8)
    square[:height, :width] = _developed(scene.pixels, chance, rng)
    return Composite(square, boxes)


def _paste(scene: Scene, thing: Pixels, chance: random.Random, centred: float, spread: float = 0.12) -> None:
    """Paste a thing somewhere, with probability `centred` near the middle, perhaps with a shadow."""
    height, width = scene.pixels.shape[:2]
    if chance.random() < centred:
        x, y = width * chance.gauss(0.5, spread), height * chance.gauss(0.5, spread)
    else:
        x, y = width * chance.uniform(0, 1), height * chance.uniform(0, 1)
    shadow = chance.uniform(0.2, 0.7) if chance.random() < 0.6 else 0.0
    scene.paste(thing, round(x - thing.shape[1] / 2), round(y - thing.shape[0] / 2), shadow)


def _turned(thing: Pixels, side: float, chance: random.Random) -> Pixels:
    """A thing at the given longer side, perhaps mirrored, turned, stretched and in other colours."""
    if chance.random() < 0.5:
        thing = thing[:, ::-1]
    angle = chance.gauss(0, 12) if chance.random() < 0.7 else chance.uniform(-180, 180)
    scale = max(side, 10) / max(thing.shape[:2])
    stretch = math.exp(chance.gauss(0, 0.12))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    across, down = scale * stretch, scale / stretch
    matrix = np.array([[across * cos, -down * sin, 0], [across * sin, down * cos, 0]])
    corners = matrix[:, :2] @ np.array([[0, thing.shape[1]] * 2, [0, 0, *[thing.shape[0]] * 2]])
    matrix[:, 2] = -corners.min(axis=1)
    size = np.ceil(corners.max(axis=1) - corners.min(axis=1)).astype(int).clip(3, 3 * SIDE)
    if scale < 0.5:  # reduced first by means over areas: warping alone would skip pixels
        small = max(1, round(thing.shape[1] * scale * 1.3)), max(1, round(thing.shape[0] * scale * 1.3))
        matrix[:, 0] *= thing.shape[1] / small[0]
        matrix[:, 1] *= thing.shape[0] / small[1]
        thing = cv2.resize(thing, small, interpolation=cv2.INTER_AREA)
    turned = cv2.warpAffine(thing, matrix, (int(size[0]), int(size[1])), flags=cv2.INTER_LINEAR)
    turned[:, :, :3] = _tinted(np.ascontiguousarray(turned[:, :, :3]), chance, 0.7)
    return turned


def _tinted(pixels: Pixels, chance: random.Random, strength: float) -> Pixels:
    """Pixels with random gain, offset and gamma in each channel."""
    gain = math.exp(chance.gauss(0, 0.18 * strength))
    levels = np.arange(256) / 255
    table = np.empty((1, 256, 3), np.uint8)
    for channel in range(3):
        gamma = math.exp(chance.gauss(0, 0.15 * strength))
        own = gain * math.exp(chance.gauss(0, 0.1 * strength))
        table[0, :, channel] = (levels**gamma * own * 255 + chance.gauss(0, 10 * strength)).clip(0, 255)
    return cv2.LUT(pixels, table)


def _ground(width: int, height: int, cutouts: Cutouts, chance: random.Random, rng: np.random.Generator) -> Pixels:
    """A background [height, width, 3]: part of a photo or the inside of a thing, much enlarged, or a texture."""
    kind = chance.random()
    if kind < 0.4:
        made = _part(chance.choice(cutouts.photos), width, height, 0.3, chance)
    elif kind < 0.55:
        thing = chance.choice(cutouts.drawn)
        h, w = max(2, thing.shape[0] // 3), max(2, thing.shape[1] // 3)
        made = cv2.resize(
            np.ascontiguousarray(thing[h : 2 * h, w : 2 * w, :3]), (width, height), interpolation=cv2.INTER_CUBIC
        )
    else:
        made = _texture(width, height, chance, rng)
    if chance.random() < 0.5:
        reach = 2 * chance.randint(0, 7) + 1
        made = cv2.blur(made, (reach, reach))
    return _tinted(np.ascontiguousarray(made), chance, 1.5)


def _part(photo: Pixels, width: int, height: int, most: float, chance: random.Random) -> Pixels:
    """Part of a photo, at most the share `most` of its sides, as a texture [height, width, 3], perhaps mirrored."""
    share = math.exp(chance.uniform(math.log(most / 4), math.log(most)))
    h, w = max(8, round(photo.shape[0] * share)), max(8, round(photo.shape[1] * share))
    y, x = chance.randint(0, photo.shape[0] - h), chance.randint(0, photo.shape[1] - w)
    part = photo[y : y + h, x : x + w][:: chance.choice((1, -1)), :: chance.choice((1, -1))]
    how = cv2.INTER_AREA if w > width else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(part), (width, height), interpolation=how)


def _filling(width: int, height: int, cutouts: Cutouts, chance: random.Random, rng: np.random.Generator) -> Pixels:
    """[height, width, 3]: what a plain shape looks like inside: a part of a photo, or a texture."""
    if chance.random() < 0.6:
        return _tinted(_part(chance.choice(cutouts.photos), width, height, 0.8, chance), chance, 0.7)
    return _texture(width, height, chance, rng)


def _texture(width: int, height: int, chance: random.Random, rng: np.random.Generator) -> Pixels:
    """[height, width, 3] coloured noise of several octaves around one colour: cloth, stone, wood, a wall, steel."""
    total = np.zeros((height, width, 3), np.float32) + rng.normal(rng.uniform(20, 235), 30, 3).astype(np.float32)
    cells, strength = chance.randint(1, 3), chance.uniform(5, 70)
    grain = math.exp(chance.gauss(0, 0.8))  # stretched to one side: boards, brushed steel
    while cells < 200:
        shape = max(1, round(cells * min(grain, 1))), max(1, round(cells / max(grain, 1))), 1 + 2 * chance.randint(0, 1)
        noise = rng.normal(0, strength, shape).astype(np.float32)
        layer = cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
        total += layer if layer.ndim == 3 else layer[:, :, None]
        cells, strength = cells * chance.randint(2, 4), strength * chance.uniform(0.3, 0.9)
    return total.clip(0, 255).astype(np.uint8)


def _oblong(side: float, chance: random.Random) -> tuple[int, int]:
    """Width and height of a thing as long as `side`, more often lying than standing."""
    width, height = round(side), max(12, round(side * chance.uniform(0.45, 1)))
    return (height, width) if chance.random() < 0.3 else (width, height)


def _surface(width: int, height: int, cutouts: Cutouts, chance: random.Random, rng: np.random.Generator) -> Pixels:
    """A plate, bowl, pot, board or table top [h, w, 4]: a rounded shape with a texture, perhaps with rims inside."""
    x = (np.arange(width, dtype=np.float32) + 0.5) / width * 2 - 1
    y = (np.arange(height, dtype=np.float32) + 0.5) / height * 2 - 1
    power = chance.choice((2.0, 2.0, 2.0, 3.0, 8.0))
    away = np.abs(x)[None] ** power + np.abs(y)[:, None] ** power
    thing = np.zeros((height, width, 4), np.uint8)
    thing[:, :, :3] = _filling(width, height, cutouts, chance, rng)
    for _ in range(chance.randint(0, 2)):
        inside = away < chance.uniform(0.3, 0.95)
        other = _filling(width, height, cutouts, chance, rng)
        thing[inside, :3] = other[inside]
    light = 1 + chance.uniform(-0.3, 0.3) * x[None] + chance.uniform(-0.3, 0.3) * y[:, None]
    thing[:, :, :3] = (thing[:, :, :3] * light[:, :, None]).clip(0, 255).astype(np.uint8)
    thing[:, :, 3] = ((1 - away) * max(width, height) / 4 * 255).clip(0, 255).astype(np.uint8)
    return thing


def _lump(side: float, cutouts: Cutouts, chance: random.Random, rng: np.random.Generator) -> Pixels:
    """A piece of something [h, w, 4], as of food: a closed outline of a few waves around a part of a photo."""
    side = max(side, 12)
    squash = chance.uniform(0.4, 1)
    width, height = round(side), max(12, round(side * squash))
    x = (np.arange(width, dtype=np.float32) + 0.5) / width * 2 - 1
    y = (np.arange(height, dtype=np.float32) + 0.5) / height * 2 - 1
    angle = np.arctan2(y[:, None], x[None])
    radius = np.full_like(angle, 0.8)
    for waves in range(1, 7):
        radius += chance.gauss(0, 0.18 / waves) * np.cos(waves * angle + chance.uniform(0, 2 * math.pi))
    away = np.sqrt(x[None] ** 2 + y[:, None] ** 2) / radius.clip(0.25, 1)
    thing = np.zeros((height, width, 4), np.uint8)
    light = 1.1 - chance.uniform(0, 0.5) * away**2 + chance.uniform(-0.25, 0.25) * y[:, None]
    thing[:, :, :3] = (_filling(width, height, cutouts, chance, rng) * light[:, :, None]).clip(0, 255).astype(np.uint8)
    thing[:, :, 3] = ((1 - away) * side / 4 * 255).clip(0, 255).astype(np.uint8)
    x0, y0, w, h = cv2.boundingRect((thing[:, :, 3] > 127).view(np.uint8))
    return np.ascontiguousarray(thing[y0 : y0 + h, x0 : x0 + w])


def _developed(pixels: Pixels, chance: random.Random, rng: np.random.Generator) -> Pixels:
    """A scene after the camera and the web site: light, grey, blur, noise and JPEG, each by chance."""
    pixels = _tinted(np.ascontiguousarray(pixels), chance, 1.0)
    if chance.random() < 0.05:
        pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    if chance.random() < 0.5:
        pixels = cv2.GaussianBlur(pixels, (0, 0), chance.uniform(0.3, 1.6))
    if chance.random() < 0.5:
        noise = rng.normal(0, chance.uniform(1, 9), pixels.shape)
        pixels = (pixels + noise).clip(0, 255).astype(np.uint8)
    if chance.random() < 0.7:
        encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, chance.randint(35, 95)])[1]
        back = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        assert back is not None, "what was just encoded can be decoded"
        pixels = back
    return pixels


def draw(cutouts: Cutouts, folder: Path, count: int = 48) -> None:
    """Write the first `count` composites, with their boxes drawn, as JPEGs."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        made = composite(number, cutouts)
        for left, top, right, bottom in made.boxes.astype(int).tolist():
            cv2.rectangle(made.square, (left, top), (right - 1, bottom - 1), (0, 255, 0), 1)
        cv2.imwrite(str(folder / f"{number:03d}.jpg"), made.square)
