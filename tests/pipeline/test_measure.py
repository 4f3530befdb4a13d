"""measure: features from one decode, cached by sha256; damage hurts only its own candidates."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import measure
from pipeline.features import features
from pipeline.features.phash import HASHES
from pipeline.features.signature import GRIDS, SIZE
from pipeline.pictures import PictureError
from pipeline.records import FEATURE_SCHEMA


def picture(seed: int, size: tuple[int, int] = (160, 120), kind: str = "JPEG", **more: Any) -> bytes:
    """A picture of smooth blobs, of which each seed has its own."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(out, kind, **more)
    return out.getvalue()


def run(build: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, int]]:
    """(feature rows, decisions, counts) of all partitions of a build."""
    stage, rows, decided, counts = build.stage("measure"), [], [], {}
    for partition in measure.partitions(build):
        measure.run_partition(build, partition)
        record = stage.record(partition)
        rows += stage.table(record).to_pylist()
        decided += stage.table(record, "decisions.parquet").to_pylist()
        counts = {k: counts.get(k, 0) + v for k, v in record.counts.items()}
    return rows, decided, counts


def test_a_row_tells_what_one_decode_tells(fetched_build: Any, got: Any) -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = picture(1, exif=exif)
    rows, decided, _ = run(fetched_build([got("a.jpg", data)]))
    assert decided == []
    (row,) = rows
    assert list(row) == FEATURE_SCHEMA.names
    assert row["sha256"] == hashlib.sha256(data).hexdigest()
    assert (row["width"], row["height"], row["orientation"]) == (120, 160, 6)
    assert (row["format"], row["bytes"], row["frames"], row["alpha"]) == ("jpeg", len(data), 1, False)
    assert len(row["phash"]) == HASHES
    assert len(row["signature"]) == GRIDS * SIZE
    assert 0 < row["blankness"] < 0.5


def test_frames_alpha_and_blankness() -> None:
    flat = io.BytesIO()
    Image.new("RGBA", (90, 90), (200, 0, 0, 128)).save(flat, "PNG")
    row = measure.measure_image(flat.getvalue(), 10_000)
    assert (row["format"], row["alpha"], row["blankness"]) == ("png", True, 1.0)
    moving = io.BytesIO()
    first = Image.new("RGB", (90, 90), "red")
    first.save(moving, "GIF", save_all=True, append_images=[Image.new("RGB", (90, 90), "blue")])
    assert measure.measure_image(moving.getvalue(), 10_000)["frames"] == 2


def test_every_file_of_features_is_a_column() -> None:
    assert set(features()) < set(FEATURE_SCHEMA.names)


def test_damage_hurts_only_its_own_candidates(fetched_build: Any, got: Any) -> None:
    whole = picture(2)
    images = [
        got("whole.jpg", whole),
        got("cut.jpg", whole[: len(whole) // 2], "甲"),
        got("cut.jpg", whole[: len(whole) // 2], "乙", page="http://site.test/b.html"),
        got("zeros.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 300),
        got("page.jpg", b"<html>not found</html>"),
        got("gone.jpg", b""),
        got("big.png", picture(3, (400, 300), "PNG")),
    ]
    rows, decided, counts = run(fetched_build(images, parts=3, fetch={"max_pixels": 100_000}))
    assert [r["sha256"] for r in rows] == [hashlib.sha256(whole).hexdigest()]
    assert sorted((d["url"].rpartition("/")[2], d["reason"]) for d in decided) == [
        ("big.png", "too_many_pixels"),
        ("cut.jpg", "corrupt_image"),
        ("cut.jpg", "corrupt_image"),
        ("page.jpg", "corrupt_image"),
        ("zeros.png", "corrupt_image"),
    ]
    assert all(d["url"] in d["evidence"] for d in decided)
    assert (counts["seen"], counts["kept"], counts["dropped"]) == (6, 1, 5)  # gone.jpg never came so far


def test_an_image_is_decoded_once_over_builds(fetched_build: Any, got: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = picture(4)
    images = [got("a.jpg", data), got("same-bytes.jpg", data)]
    first, _, counts = run(fetched_build(images))
    assert len(first) == 1
    assert counts["cached"] == 0

    def refuse(*_: Any, **__: Any) -> None:
        raise PictureError("decoded again")

    monkeypatch.setattr(measure, "decode", refuse)
    again, decided, counts = run(fetched_build(images, snapshot="2026-02-02"))
    assert again == first
    assert decided == []
    assert (counts["cached"], counts["kept"]) == (1, 2)
    _, decided, _ = run(fetched_build(images, snapshot="2026-03-02", fetch={"max_pixels": 1000}))
    assert [d["reason"] for d in decided] == ["too_many_pixels"] * 2


def test_the_token_follows_the_features(fetched_build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.features.phash import PHash

    build = fetched_build([])
    before = measure.token(build)
    monkeypatch.setattr(PHash, "VERSION", 99)
    assert measure.token(build) != before
