"""measure: features from one decode, cached by sha256; damage hurts only its own candidates."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import StageError
from pipeline.features._rows import measure_image
from pipeline.pictures.decode import PictureError
from pipeline.pictures.hashing import HASHES
from pipeline.pictures.signatures import GRIDS, SIZE
from pipeline.rows.records import FEATURE_SCHEMA
from pipeline.stages import measure
from pipeline.store import image_features
from tests.drawn import picture
from tests.stages import run_stage


def run(build: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, int]]:
    """(feature rows, decisions, counts) of all partitions of a build."""
    stage, rows, decided, counts = build.stage("measure"), [], [], {}
    run_stage(build, "measure")
    for record in stage.records():
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
    row = measure_image(flat.getvalue(), 10_000)
    assert (row["format"], row["alpha"], row["blankness"]) == ("png", True, 1.0)
    moving = io.BytesIO()
    first = Image.new("RGB", (90, 90), "red")
    first.save(moving, "GIF", save_all=True, append_images=[Image.new("RGB", (90, 90), "blue")])
    assert measure_image(moving.getvalue(), 10_000)["frames"] == 2


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_image_is_decoded_once_over_builds(fetched_build: Any, got: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = picture(4)
    images = [got("a.jpg", data), got("same-bytes.jpg", data)]
    first, _, counts = run(fetched_build(images))
    assert len(first) == 1
    assert counts["cached"] == 0

    def refuse(*_: Any, **__: Any) -> None:
        raise PictureError("decoded again")

    monkeypatch.setattr(image_features, "decode", refuse)
    again, decided, counts = run(fetched_build(images, snapshot="2026-02-02"))
    assert again == first
    assert decided == []
    assert (counts["cached"], counts["kept"]) == (1, 2)
    _, decided, _ = run(fetched_build(images, snapshot="2026-03-02", fetch={"max_pixels": 1000}))
    assert [d["reason"] for d in decided] == ["too_many_pixels"] * 2


def test_bytes_that_are_not_what_was_fetched_stop_the_build_and_name_the_tar(fetched_build: Any, got: Any) -> None:
    build = fetched_build([got("a.jpg", picture(5)), got("b.jpg", picture(6))])
    (partition,) = measure.partitions(build)
    stage = build.stage("fetch")
    tar = Path(stage.folder.at(stage.record(partition).files["tar"].name))
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    said = rf"^{tar}: the bytes of [0-9a-f]{{64}} differ from those fetched; delete the stage's folder to fetch again$"
    with pytest.raises(StageError, match=said):
        measure.run_partition(build, partition)


def hurt(kind: str) -> bytes:
    """Files as the web has them."""
    out = io.BytesIO()
    if kind == "bomb.png":
        Image.new("1", (12_000, 12_000)).save(out, "PNG")
        return out.getvalue()
    if kind == "bomb.webp":
        data = picture(9, kind="WEBP", lossless=True)
        at = data.index(b"VP8L") + 9  # 14 bits each: width - 1, height - 1
        return data[:at] + b"\xff\xff\xff\x0f" + data[at + 4 :]
    if kind == "cut.gif":
        data = picture(9, kind="GIF")
        return data[: len(data) // 2]
    if kind == "cut.webp":
        data = picture(9, kind="WEBP")
        return data[: len(data) // 2]
    if kind == "no-end.jpg":
        return picture(9)[:-40]
    if kind == "crc.png":
        data = bytearray(picture(9, kind="PNG"))
        data[data.index(b"IDAT") + 20] ^= 0xFF
        return bytes(data)
    raise AssertionError(kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bomb.png", "too_many_pixels"),
        ("bomb.webp", "too_many_pixels"),
        ("cut.gif", "corrupt_image"),
        ("cut.webp", "corrupt_image"),
        ("no-end.jpg", "corrupt_image"),
        ("crc.png", "corrupt_image"),
    ],
)
def test_bombs_and_damage_are_reasons(fetched_build: Any, got: Any, kind: str, reason: str) -> None:
    rows, decided, counts = run(fetched_build([got(kind, hurt(kind)), got("whole.jpg", picture(10))]))
    assert [(d["url"].rpartition("/")[2], d["reason"]) for d in decided] == [(kind, reason)]
    assert (len(rows), counts["damaged"]) == (1, 1)


@pytest.mark.parametrize(
    "kind", ["16-bit.png", "cmyk.jpg", "palette-clear.png", "moving.gif", "moving.webp", "grey.jpg"]
)
def test_odd_but_sound_files_have_features(kind: str) -> None:
    base = Image.open(io.BytesIO(picture(11, (120, 90))))
    out = io.BytesIO()
    if kind == "16-bit.png":
        Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257).save(out, "PNG")
    elif kind == "cmyk.jpg":
        base.convert("CMYK").save(out, "JPEG")
    elif kind == "palette-clear.png":
        base.quantize(16).save(out, "PNG", transparency=3)
    elif kind.startswith("moving"):
        base.save(out, kind[-4:].strip("."), save_all=True, append_images=[base.rotate(90), base.rotate(180)])
    else:
        base.convert("L").save(out, "JPEG")
    row, plain = measure_image(out.getvalue(), 10**6), measure_image(picture(11, (120, 90)), 10**6)
    assert row["alpha"] == (kind == "palette-clear.png")
    assert row["frames"] == (3 if kind.startswith("moving") else 1)
    if kind != "palette-clear.png":
        assert (row["phash"][0] ^ plain["phash"][0]).bit_count() <= 8


def test_the_token_follows_the_features(fetched_build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.features.columns import FEATURES

    build = fetched_build([])
    before = measure.token(build)
    monkeypatch.setitem(FEATURES, "phash", FEATURES["phash"]._replace(version=99))
    assert measure.token(build) != before
