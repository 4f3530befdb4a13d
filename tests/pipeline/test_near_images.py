"""near_images: nothing within the radius is missed, colour is looked at, and real photographs are found again."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pipeline.features.phash import hash_of
from pipeline.features.signature import SIZE, distance
from pipeline.measure import measure_image
from pipeline.near_images import COMBINATIONS, HashIndex, ImageLeaders
from pipeline.pictures import decode

CORPUS = Path(__file__).parents[2].parent / "shared" / "corpus" / "howtocook-site" / "images"


def near_codes(seed: int, size: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Random codes, and queries that are some of them with up to radius + 2 bits turned."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(1, 2**63, size, dtype=np.uint64)
    queries = codes[:: max(1, size // 60)].copy()
    for i in range(len(queries)):
        for bit in rng.choice(64, rng.integers(0, radius + 3), replace=False):
            queries[i] ^= np.uint64(1 << int(bit))
    return codes, queries


@pytest.mark.parametrize("radius", [0, 1, 4, 8, 10, 16])
@pytest.mark.parametrize("size", [1, 300, 2_500, 9_000])
def test_the_index_finds_exactly_what_comparing_all_finds(radius: int, size: int) -> None:
    codes, queries = near_codes(radius * 31 + size, size, radius)
    index = HashIndex(radius)
    for start in range(0, size, 700):
        index.add(codes[start : start + 700], np.arange(start, min(size, start + 700)) * 10)
    rows, ids = index.near(queries)
    apart = np.bitwise_count(queries[:, None] ^ codes[None, :])
    rows_b, at = np.nonzero((apart <= radius) & (queries != 0)[:, None])
    assert set(zip(rows.tolist(), ids.tolist(), strict=True)) == set(
        zip(rows_b.tolist(), (at * 10).tolist(), strict=True)
    )


def test_a_hot_bucket_is_answered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.near_images.BLOCK", 200)
    codes = np.full(6_000, 12345, np.uint64)
    index = HashIndex(8)
    index.add(codes, np.arange(6_000))
    rows, ids = index.near(codes[:3])
    assert len({*zip(rows.tolist(), ids.tolist(), strict=True)}) == 18_000


def test_pictures_without_structure_are_near_nothing() -> None:
    index = HashIndex(8)
    index.add(np.array([0, 1], np.uint64), np.array([7, 8]))
    rows, ids = index.near(np.array([0, 3], np.uint64))
    assert (rows.tolist(), ids.tolist()) == ([1], [8])
    assert hash_of(np.full((32, 32), 99, np.uint8)) == 0


@st.composite
def looks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """phash [N, 3] and signature [N, 3, 192] with many near ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(0, 40))
    bases = rng.integers(0, 2**63, 3, dtype=np.uint64)
    phash = rng.choice(bases, (size, 3))
    for _ in range(draw(st.integers(0, 8))):
        phash ^= np.uint64(1) << rng.integers(0, 64, (size, 3), dtype=np.uint64)
    colours = rng.integers(0, 200, (2, SIZE))
    signature = colours[rng.integers(0, 2, (size, 3))] + rng.integers(0, 40, (size, 3, 1))
    return phash, signature.astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(looks(), st.integers(0, 40))
def test_leaders_and_lists_agree_with_comparing_one_by_one(made: tuple[np.ndarray, np.ndarray], cut: int) -> None:
    phash, signature = made

    def alike(i: int, j: int) -> bool:
        return any(
            phash[i, a] != 0
            and phash[j, b] != 0
            and int(phash[i, a] ^ phash[j, b]).bit_count() <= 6
            and distance(signature[i, a][None], signature[j, b][None])[0] <= 0.06
            for a, b in COMBINATIONS
        )

    leaders = ImageLeaders(6, 0.06)
    leaders.add(phash[:cut], signature[:cut])
    first = leaders.first(phash[cut:], signature[cut:]).tolist()
    count = min(cut, len(phash))
    assert first == [next((j for j in range(count) if alike(i, j)), -1) for i in range(cut, len(phash))]
    among = leaders.among(phash, signature)
    assert among == [[j for j in range(i) if alike(i, j)] for i in range(len(phash))]


def _jpeg(image: Image.Image, quality: int = 85) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _look(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    row = measure_image(data, 10**8)
    return np.array([row["phash"]], np.uint64), np.frombuffer(row["signature"], np.uint8).reshape(1, -1, SIZE)


def _found(data: bytes, leaders: ImageLeaders) -> int:
    return int(leaders.first(*_look(data))[0])


def test_one_shape_in_two_colours_is_two_pictures() -> None:
    def flag(colour: str) -> bytes:
        image = Image.new("RGB", (240, 200), "white")
        ImageDraw.Draw(image).ellipse((90, 70, 150, 130), fill=colour)
        ImageDraw.Draw(image).rectangle((20, 20, 60, 180), fill="black")
        return _jpeg(image)

    leaders = ImageLeaders(8, 0.06)
    red, _ = _look(flag("#d02020"))
    green, _ = _look(flag("#107818"))
    assert int(red[0, 0] ^ green[0, 0]).bit_count() <= 8  # the hash alone would merge them
    leaders.add(*_look(flag("#d02020")))
    assert _found(flag("#d42424"), leaders) == 0
    assert _found(flag("#107818"), leaders) == -1


def _copies(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    width, height = image.size

    def cropped(share: float) -> Image.Image:
        x, y = round(width * share), round(height * share)
        return image.crop((x, y, width - x, height - y))

    yield "saved again at quality 40", _jpeg(image, 40)
    yield "half the size", _jpeg(image.resize((width // 2, height // 2), Image.Resampling.LANCZOS))
    yield "a little brighter", _jpeg(image.point(lambda v: min(255, int(v * 0.95 + 8))))
    for share in (0.01, 0.02, 0.03, 0.04):
        yield f"{share:.0%} cut off at each side", _jpeg(cropped(share))
    framed = Image.new("RGB", (round(width * 1.04), round(height * 1.04)), "white")
    framed.paste(image, (round(width * 0.02), round(height * 0.02)))
    yield "a white border", _jpeg(framed)


@pytest.mark.skipif(not CORPUS.exists(), reason="needs shared/corpus beside the repository")
def test_real_photographs_are_found_again_and_not_mistaken() -> None:
    files = sorted(CORPUS.glob("*.jpg"))[::7]
    leaders = ImageLeaders(8, 0.06)
    missed, wrong = list[str](), list[str]()
    for number, file in enumerate(files):
        data = file.read_bytes()
        if _found(data, leaders) >= 0:
            wrong.append(file.name)
        leaders.add(*_look(data))
        for what, copy in _copies(Image.fromarray(decode(data).pixels)):
            if _found(copy, leaders) != number:
                missed.append(f"{file.name}: {what}")
    assert len(files) == 50
    assert wrong == []
    assert len(missed) <= 0.01 * 8 * len(files), missed
