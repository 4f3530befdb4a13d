"""Search over HTTP against the vectors themselves: by text, picture, box and sample; own collections; takedowns."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_specs.search.search import SearchIndex
from tests.training.serve.conftest import PICTURES, TEXTS, Server, patient, running
from tests.training.serve.test_embeddings import data_uri, error
from training.serve.galleries import Galleries, Upload
from training.serve.service import Service
from training.serve.towers import TorchTowers
from training.weights.load import load


def search(server: Server, **body: Any) -> dict[str, Any]:
    answer = server.post("/search", json={"collection": "pictures", **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def check_ranking(found: Sequence[tuple[int, float]], cosines: Any) -> None:
    """Hits (row, cosine) are all rows, each with its own cosine, best first. Indexes hold float16."""
    assert sorted(row for row, _ in found) == list(range(len(cosines)))
    np.testing.assert_allclose([cosine for _, cosine in found], [cosines[row] for row, _ in found], atol=2e-3)
    told = [cosine for _, cosine in found]
    assert told == sorted(told, reverse=True)


def ranking(found: dict[str, Any]) -> list[tuple[int, float]]:
    return [(number(hit), hit["cosine"]) for hit in found["hits"]]


def number(hit: dict[str, Any]) -> int:
    return int(hit["id"], 16)


def test_a_text_finds_pictures_in_the_order_of_their_cosines(server: Server, features: Any) -> None:
    found = search(server, text=TEXTS[3], limit=12)
    images = np.stack([features(content) for content in PICTURES])
    cosines = images @ features(TEXTS[3])
    check_ranking(ranking(found), cosines)
    first = found["hits"][0]
    assert (first["modality"], first["width"], first["height"]) == ("image", 48, 36)
    assert first["texts"] == [{"kind": "alt", "text": first["text"]}]
    assert first["boxes"] == [[0, 0, 24, 18], [10, 6, 48, 36]]
    assert not found["more"]


def test_pages_of_a_ranking_neither_overlap_nor_miss(server: Server) -> None:
    whole = [hit["id"] for hit in search(server, text="红", limit=12)["hits"]]
    pages = [search(server, text="红", limit=5, offset=offset) for offset in (0, 5, 10)]
    assert [hit["id"] for page in pages for hit in page["hits"]] == whole
    assert [page["more"] for page in pages] == [True, True, False]


def test_a_picture_finds_itself_and_says_what_was_looked_at(server: Server, features: Any) -> None:
    found = search(server, image=data_uri(PICTURES[4]), limit=3)
    assert found["hits"][0]["cosine"] == pytest.approx(1, abs=2e-3)
    assert (found["query"]["width"], found["query"]["height"]) == (48, 36)
    assert found["query"]["boxes"][0] == [0, 0, 24, 18]  # the grid of recipe tiny: 2 x 2
    texts = search(server, image=data_uri(PICTURES[4]), target="text", limit=12)
    cosines = np.stack([features(text) for text in TEXTS]) @ features(PICTURES[4])
    check_ranking(ranking(texts), cosines)
    assert texts["hits"][0]["modality"] == "text"


def test_a_sample_is_a_query_too(server: Server) -> None:
    by_sample = search(server, id=f"{7:032x}", limit=5)
    by_picture = search(server, image=data_uri(PICTURES[7]), limit=5)
    assert [hit["id"] for hit in by_sample["hits"]] == [hit["id"] for hit in by_picture["hits"]]
    assert by_sample["query"]["boxes"] == [[0, 0, 24, 18], [10, 6, 48, 36]]
    missing = server.post("/search", json={"collection": "pictures", "id": "f" * 32})
    assert error(missing, 404) == ("no_sample", "id")


def test_a_box_is_searched_by_itself_alone_and_by_its_crop(server: Server, tiny: Path) -> None:
    """`Tower.each_region`, which `eval --task regions` measures, and the crop as `embed` embeds a picture."""
    import torch

    from training.data.transforms import decode
    from training.use.encode import open_encoder
    from training.weights.load import load

    box = [10, 6, 40, 30]
    loaded, encoder = load(tiny, "cpu"), open_encoder(tiny, "cpu")
    opened = loaded.open_image(PICTURES[2], [box])
    with torch.inference_mode():
        alone = loaded.model.image_query.each_region(loaded.opened_batch([opened]))[0, 0].numpy()
    pixels = decode(PICTURES[2])[:, 6:30, 10:40].permute(1, 2, 0).numpy()
    both = alone + encoder.encode_image(Image.fromarray(pixels))[0]
    wanted = encoder.encode_image(list(PICTURES)) @ (both / np.linalg.norm(both))
    found = search(server, image=data_uri(PICTURES[2]), region=box, limit=12)
    check_ranking(ranking(found), wanted)
    assert ranking(found) != ranking(search(server, image=data_uri(PICTURES[2]), limit=12))
    of_sample = search(server, id=f"{2:032x}", region=box, limit=12)
    assert ranking(of_sample) == ranking(found)


@pytest.mark.parametrize("box", [[0, 0, 0, 9], [5, 5, 4, 9], [0, 0, 49, 36], [-1, 0, 9, 9], [0, 0, 9], [0, 0, 9, "x"]])
def test_a_box_outside_of_the_picture_is_refused(server: Server, box: list[Any]) -> None:
    body = {"collection": "pictures", "image": data_uri(PICTURES[2]), "region": box}
    assert error(server.post("/search", json=body))[1] in ("region", "region.3", "region.0")


def test_filters_decide_which_rows_are_searched(server: Server) -> None:
    news = search(server, text="红", limit=12, filters={"source": ["news"]})["hits"]
    assert sorted(map(number, news)) == [1, 3, 5, 7, 9, 11]
    free = search(server, text="红", limit=12, filters={"source": ["news"], "license": ["CC0-1.0"]})["hits"]
    assert sorted(map(number, free)) == [1, 5, 7, 11]
    assert search(server, text="红", filters={"min_side": 37})["hits"] == []
    one = search(server, text="红", filters={"url": "/11.JPG"})["hits"]
    assert [number(hit) for hit in one] == [11]
    assert [hit["id"] for hit in search(server, filters={"leader": one[0]["leader"]})["hits"]] == [one[0]["id"]]


def test_without_a_query_the_collection_is_shown_in_its_order(server: Server) -> None:
    found = search(server, limit=4, offset=4)
    assert [number(hit) for hit in found["hits"]] == [4, 5, 6, 7]
    assert (found["hits"][0]["cosine"], found["hits"][0]["score"], found["more"]) == (None, None, True)


def test_a_search_that_cannot_be_is_refused(server: Server) -> None:
    def refused(status: int = 400, **body: Any) -> tuple[str, str | None]:
        return error(server.post("/search", json={"collection": "pictures", **body}), status)

    assert refused(text="红", id="x") == ("query", "id")
    assert refused(text="红", region=[0, 0, 1, 1]) == ("region", "region")
    assert refused(collection="none", status=404) == ("no_collection", "collection")
    assert refused(text="红", filters={"colour": 1}) == ("invalid", "filters.colour")
    assert refused(text="红", limit=201) == ("invalid", "limit")
    assert refused(text="红", filters={"min_score": 0.5})[0] == "query"  # the checkpoint is not calibrated
    assert refused(image=data_uri(PICTURES[0]), filters={"min_score": 0.5})[0] == "query"


def test_pictures_come_checked_and_small(server: Server) -> None:
    place = search(server, text="红", limit=1)["hits"][0]["image"]
    stored = server.get(place)
    assert (stored.headers["content-type"], stored.content) == ("image/jpeg", PICTURES[int(place[-2:], 16)])
    assert stored.headers["cache-control"] == "private, max-age=300"
    small = server.get(f"{place}?side=16")
    with Image.open(io.BytesIO(small.content)) as image:
        assert (image.format, image.size) == ("JPEG", (16, 12))
    assert error(server.get(f"{place}?side=5000"))[1] == "side"
    assert error(server.get("/collections/pictures/images/none"), 404)[0] == "no_sample"
    assert server.get(place.replace("images", "samples")).json()["image"] == place


@pytest.mark.slow
def test_smaller_pictures_are_kept_within_their_megabytes(
    tiny: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def jpeg(_: Any, side: int) -> bytes:
        made.append(side)
        return bytes(400_000)

    monkeypatch.setattr("training.serve.pictures._jpeg", jpeg)
    with running(tiny, patient(kept_mb=1), indexes={"pictures": index}) as server:
        for side in (16, 17, 16, 18, 17, 16):  # two of them fit
            assert len(server.get(f"/collections/pictures/images/{0:032x}?side={side}").content) == 400_000
    assert made == [16, 17, 18, 17, 16]


@pytest.mark.slow
def test_a_changed_picture_is_not_shown(tiny: Path, index: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(index.parent, tmp_path / "copy") / "index"
    with running(tiny, indexes={"pictures": folder}) as server:
        place = search(server, text="红", limit=1)["hits"][0]["image"]
        file = index.parent / "pictures" / f"{int(place[-2:], 16)}.jpg"
        whole = file.read_bytes()
        try:
            file.write_bytes(whole[:-1] + b"x")
            assert error(server.get(place), 404)[0] == "no_picture"
        finally:
            file.write_bytes(whole)


def test_collections_say_what_they_hold(server: Server) -> None:
    one = next(c for c in server.get("/collections").json() if c["name"] == "pictures")
    assert (one["rows"], one["images"], one["texts"], one["own"]) == (12, 12, 12, False)
    assert one["facets"]["source"] == {"library": 6, "news": 6}
    assert one["calibrated"] is False
    assert error(server_delete(server, "pictures"), 403) == ("given", "name")


def server_delete(server: Server, name: str) -> Any:
    import httpx

    return httpx.delete(f"{server.url}/collections/{name}", timeout=60)


@pytest.fixture
def own(server: Server) -> Iterator[str]:
    yield "我的图"
    server_delete(server, "我的图")


def test_own_pictures_and_lines_become_a_collection_that_is_searched(server: Server, own: str) -> None:
    added = server.post(
        "/collections",
        data={"name": own},
        files=[("files", (f"{n}.jpg", PICTURES[n], "image/jpeg")) for n in (0, 1, 2)]
        + [("files", ("broken.jpg", b"\xff\xd8nothing", "image/jpeg"))],
    ).json()
    assert (added["name"], added["rows"], added["images"], added["texts"], added["own"]) == (own, 3, 3, 0, True)
    assert [one["file"] for one in added["refused"]] == ["broken.jpg"]
    lines = "但愿人长久\t苏轼《水调歌头》\n\n千里共婵娟\r\n但愿人长久\n".encode()
    more = server.post("/collections", data={"name": own}, files={"files": ("poems.txt", lines, "text/plain")}).json()
    assert (more["rows"], more["images"], more["texts"], more["refused"]) == (5, 3, 2, [])
    found = search(server, collection=own, image=data_uri(PICTURES[1]))["hits"]
    assert len(found) == 3
    assert found[0]["cosine"] == pytest.approx(1, abs=1e-2)
    assert server.get(found[0]["image"]).content == PICTURES[1]
    texts = search(server, collection=own, text="但愿人长久", target="text")["hits"]
    assert texts[0]["texts"] == [
        {"kind": "text", "text": "但愿人长久"},
        {"kind": "title", "text": "苏轼《水调歌头》"},
    ]
    assert own in [one["name"] for one in server.get("/collections").json()]
    again = server.post(
        "/collections", data={"name": own}, files={"files": ("a.jpg", PICTURES[0], "image/jpeg")}
    ).json()
    assert again["rows"] == 5
    assert server_delete(server, own).json() == {"deleted": own}
    assert error(server.post("/search", json={"collection": own}), 404)[0] == "no_collection"


@pytest.mark.parametrize("name", ["", "a/b", "../x", "x" * 81, "a\nb", " x", "a?b"])
def test_a_name_that_is_a_path_is_refused(server: Server, name: str) -> None:
    answer = server.post("/collections", data={"name": name}, files={"files": ("a.jpg", PICTURES[0], "image/jpeg")})
    assert error(answer)[1] == "name"


def test_an_upload_without_anything_that_can_be_read_leaves_nothing(server: Server) -> None:
    for files in ({"files": ("a.jpg", b"x", "image/jpeg")}, {"files": ("a.txt", b"\xff\xfe\x00", "text/plain")}):
        assert error(server.post("/collections", data={"name": "new"}, files=files)) == ("nothing", "files")
    taken = server.post(
        "/collections", data={"name": "pictures"}, files={"files": ("a.jpg", PICTURES[0], "image/jpeg")}
    )
    assert error(taken, 409) == ("name_taken", "name")
    assert "new" not in [one["name"] for one in server.get("/collections").json()]


def test_own_collections_are_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.serve import galleries

    monkeypatch.setattr(galleries, "OWN_ROWS", 2)
    lines = {"files": ("a.txt", "一\n二\n三".encode(), "text/plain")}
    assert error(server.post("/collections", data={"name": "new"}, files=lines), 413) == ("too_many", "files")
    monkeypatch.setattr(galleries, "OWN_BYTES", 100)
    picture = {"files": ("a.jpg", PICTURES[0], "image/jpeg")}
    assert error(server.post("/collections", data={"name": "new"}, files=picture), 413) == ("too_large", "files")
    monkeypatch.setattr(galleries, "OWN_COLLECTIONS", 0)
    assert error(server.post("/collections", data={"name": "new"}, files=picture), 413) == ("too_many", "name")


def test_an_own_collection_is_written_to_the_end_when_its_client_leaves(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, began, gate, write = load(tiny, "cpu"), threading.Event(), threading.Event(), Galleries._write
    service = Service("tiny", loaded.checkpoint, TorchTowers(loaded), patient())
    galleries = Galleries(service, {})

    def slow(*arguments: Any) -> Any:
        began.set()
        assert gate.wait(120)
        return write(*arguments)

    def lines(text: str) -> list[Upload]:
        return [Upload("lines.txt", text.encode(), True)]

    async def work() -> None:
        service.start()
        monkeypatch.setattr(Galleries, "_write", slow)
        leaving = asyncio.ensure_future(galleries.add("own", lines("山")))
        await asyncio.to_thread(began.wait, 120)
        following = asyncio.ensure_future(galleries.add("own", lines("水\n火")))
        leaving.cancel()
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        gallery, _ = await following
        assert gallery.index.rows == 3
        assert len(list(galleries._folder.iterdir())) == 1, "no folder that nobody knows"

        def fails(*_: Any) -> Any:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Galleries, "_write", fails)
        with pytest.raises(OSError, match="No space left"):
            await galleries.add("other", lines("土"))
        assert galleries.names() == ["own"]
        assert len(list(galleries._folder.iterdir())) == 1

    try:
        asyncio.run(work())
    finally:
        service.close()
        galleries.close()


@pytest.mark.parametrize("asks", ["samples", "images", "an upload"])
def test_a_slow_look_at_an_index_holds_up_no_other_request(
    server: Server, own: str, monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    """A sample, a picture and an upload looked at the index where all requests are taken: one slow disk held all up."""
    began, gate, opened, look = threading.Event(), threading.Event(), [], SearchIndex.reload_if_changed

    def slow(index: SearchIndex) -> bool:
        began.set()
        opened.append(gate.wait(120))
        return look(index)

    def upload() -> Any:
        return server.post("/collections", data={"name": own}, files={"files": ("a.txt", b"x", "text/plain")})

    id, ask = f"{3:032x}", dict[str, Callable[[], Any]]()
    ask["samples"] = lambda: server.get(f"/collections/pictures/samples/{id}")
    ask["images"] = lambda: server.get(f"/collections/pictures/images/{id}")
    ask["an upload"] = upload
    if asks == "an upload":
        upload()  # it looks at what is there already
    monkeypatch.setattr(SearchIndex, "reload_if_changed", slow)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask[asks])
        assert began.wait(60)
        assert server.get("/health").status_code == 200
        gate.set()
        assert asked.result().status_code == 200
    assert opened[0], "the answer of /health came while the index was looked at"


def test_a_server_whose_index_is_of_other_towers_does_not_begin(
    index: Path, checkpoint_with_moved_keys: Path, tmp_path: Path
) -> None:
    from tests.training.conftest import moved_checkpoint
    from training.errors import ConfigError
    from training.outputs.checkpoint import open_checkpoint
    from training.serve.galleries import open_collections

    other = moved_checkpoint(tmp_path, "moco.feature_dim=16")
    with pytest.raises(ConfigError, match="other towers"):
        open_collections([str(index)], open_checkpoint(other))
    assert list(open_collections([f"名={index}"], open_checkpoint(checkpoint_with_moved_keys))) == ["名"]


@pytest.mark.slow
def test_a_damaged_index_is_named_in_the_list_and_hides_no_other(tiny: Path, index: Path, tmp_path: Path) -> None:
    """Damaged while it is served: its disk is gone, its files are rewritten by something else."""
    folder = tmp_path / "damaged"
    shutil.copytree(index, folder)
    with running(tiny, indexes={"damaged": folder, "pictures": index}) as server:
        assert [one["problem"] for one in server.get("/collections").json()] == ["", ""]
        (folder / "index.json").write_bytes(b"{")
        answer = server.get("/collections")
        assert answer.status_code == 200
        first, second = answer.json()
        assert (first["name"], first["rows"], first["images"], first["texts"]) == ("damaged", 0, 0, 0)
        assert str(folder) in first["problem"]
        assert (second["name"], second["rows"], second["problem"]) == ("pictures", 12, "")
        told = error(server.post("/search", json={"collection": "damaged", "text": "山"}), 503)
        assert told[0] == "index_damaged"
        shutil.copy(index / "index.json", folder / "index.json")
        assert [one["problem"] for one in server.get("/collections").json()] == ["", ""]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["index.json", "rows"])
def test_a_damaged_collection_of_ones_own_can_be_deleted_and_not_added_to(
    tiny: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with running(tiny, indexes={"pictures": index}) as server:
        lines = {"files": ("poems.txt", "山\n水".encode(), "text/plain")}
        assert server.post("/collections", data={"name": "own"}, files=lines).status_code == 200
        [folder] = tmp_path.glob("wenlan-serve-*/*/index")
        for file in [folder / damage] if damage.endswith(".json") else (folder / damage).iterdir():
            file.unlink()  # what is mapped stays
            file.write_bytes(b"{")
        os.utime(folder / "index.json", ns=(1, 1))
        more = {"files": ("more.txt", "火".encode(), "text/plain")}
        told = error(server.post("/collections", data={"name": "own"}, files=more), 503)
        assert told[0] == "index_damaged"
        assert server_delete(server, "own").json() == {"deleted": "own"}
        assert [one["name"] for one in server.get("/collections").json()] == ["pictures"]
        assert server.post("/collections", data={"name": "own"}, files=more).status_code == 200


def test_words_find_the_texts_that_have_them_alone_and_beside_the_meaning(server: Server) -> None:
    by_words = search(server, text="绿色", mode="words", target="text", limit=12)["hits"]
    assert by_words
    assert all("绿色" in hit["text"] and hit["words"] > 0 and hit["cosine"] is None for hit in by_words)
    both = search(server, text="绿色", mode="both", target="text", limit=12)["hits"]
    assert {hit["id"] for hit in both[: len(by_words)]} >= {by_words[0]["id"]}
    assert all(hit["cosine"] is not None for hit in both)


@pytest.mark.slow
def test_what_a_takedown_removed_is_not_found_by_a_running_server(tiny: Path, index: Path, tmp_path: Path) -> None:
    from data_specs.search.index import remove

    folder = shutil.copytree(index.parent, tmp_path / "copy") / "index"
    with running(tiny, indexes={"pictures": folder}) as server:
        first = search(server, image=data_uri(PICTURES[3]), limit=1)["hits"][0]
        small = server.get(f"{first['image']}?side=16")
        assert small.status_code == 200
        remove(folder, lambda rows: np.array([id == first["id"] for id in rows["id"].to_pylist()]))
        every = [hit["id"] for hit in search(server, image=data_uri(PICTURES[3]), limit=12)["hits"]]
        assert len(every) == 11
        assert first["id"] not in every
        assert first["text"] not in [h["text"] for h in search(server, text=first["text"], mode="words")["hits"]]
        for path in (first["image"], f"{first['image']}?side=16", first["image"].replace("images", "samples")):
            assert error(server.get(path), 404)[0] == "no_sample"
        ids = [hit["id"] for hit in server.post("/knn-service", json={"text": "红", "num_images": 12}).json()]
        assert len(ids) == 11
