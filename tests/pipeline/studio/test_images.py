"""Pictures: where their bytes are found, what is not shown, and what is kept of thumbnails."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from pipeline.store.build import Build
from pipeline.studio import images
from pipeline.studio.facets import Filters
from pipeline.studio.images import NoPicture

pytestmark = pytest.mark.slow

Connect = Callable[..., Any]


def test_a_thumbnail_is_a_jpeg_of_the_size_that_was_asked_for(built: Build, client_of: Connect) -> None:
    client = client_of(built.out)
    g = client.get("/api/about").json()["g"]
    row = client.get("/api/rows", params={"fate": "kept"}).json()["rows"][3]
    answer = client.get("/api/thumb", params={"pos": row["pos"], "g": g, "side": 100})
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"].startswith("private")
    with Image.open(io.BytesIO(answer.content), formats=("JPEG",)) as picture:
        assert max(picture.size) <= 160
    damaged = client.get("/api/rows", params={"reason": "corrupt_image"}).json()["rows"][0]
    answer = client.get("/api/thumb", params={"pos": damaged["pos"], "g": g})
    assert answer.status_code == 404
    assert answer.json()["why"] == {"en": "it cannot be decoded", "zh": "无法解码"}


def test_pictures_that_are_gone_are_told_and_the_rest_is_shown(
    own: Callable[..., Build], client_of: Callable[..., Any]
) -> None:
    build = own()
    for record in build.stage("fetch").records():
        build.stage("fetch").folder.delete(record.files["tar"].name)
    client = client_of(build.out)
    g = client.get("/api/about").json()["g"]
    row = client.get("/api/rows", params={"reason": "image_too_small"}).json()["rows"][0]
    item = client.get("/api/item", params={"pos": row["pos"], "g": g}).json()
    assert "no longer stored" in item["picture"]["why"]["en"]
    kept = client.get("/api/rows", params={"fate": "kept"}).json()["rows"][0]
    assert client.get("/api/thumb", params={"pos": kept["pos"], "g": g}).status_code == 200


def test_what_is_shown_is_the_picture_that_was_decided_on(built: Build, studio_of: Connect, synthetic: Any) -> None:
    studio = studio_of(built.out)
    items = {item.candidate.candidate_id: item for item in synthetic.items()}
    rows = studio.opened.catalog.rows(studio.opened.catalog.positions(Filters(), 0, 100))
    shown = 0
    for row in rows:
        item = items.get(row["id"])
        if item is None or not item.data or row["reason"] in images.WITHHELD:
            continue
        data, sha256 = studio.opened.pictures.bytes_of(row)
        assert sha256 == item.sha256
        if not row["kept"]:
            assert data == item.data
        shown += 1
    assert shown > 30


def test_what_was_taken_down_meanwhile_is_not_shown(own: Callable[..., Build], studio_of: Connect) -> None:
    """STORE knows of a takedown that has not reached this build yet."""
    build = own()
    studio = studio_of(build.out)
    [row] = studio.opened.catalog.rows(studio.opened.catalog.positions(Filters({"fate": ("kept",)}), 0, 1))
    _, sha256 = studio.opened.pictures.bytes_of(row)
    for name in (sha256, row["fetch_id"]):
        build.store.folder.write_json("forgotten/a.json", {"version": 1, "hashes": [name], "looks": []})
        again = studio_of(build.out)
        with pytest.raises(NoPicture, match="taken down"):
            again.opened.pictures.thumb(row, 160)
        build.store.folder.delete("forgotten/a.json")


def test_thumbnails_are_kept_within_a_budget(built: Build, studio_of: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CACHE", 20_000)
    studio = studio_of(built.out)
    pictures = studio.opened.pictures
    rows = studio.opened.catalog.rows(studio.opened.catalog.positions(Filters({"fate": ("kept",)}), 0, 30))
    first = pictures.thumb(rows[0], 160)
    assert pictures.thumb(rows[0], 120) is first, "the same size of thumbnail"
    for row in rows:
        pictures.thumb(row, 160)
    assert sum(len(thumb.jpeg) for thumb in pictures._thumbs.values()) <= 20_000
    assert pictures.thumb(rows[0], 160) == first


def test_a_bomb_is_not_decoded(own: Callable[..., Build], studio_of: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_PIXELS", 5_000)
    studio = studio_of(own().out)
    [row] = studio.opened.catalog.rows(studio.opened.catalog.positions(Filters({"fate": ("kept",)}), 0, 1))
    with pytest.raises(NoPicture, match="cannot be decoded"):
        studio.opened.pictures.thumb(row, 160)
