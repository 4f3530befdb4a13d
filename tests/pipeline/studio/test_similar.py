"""Neighbours against the angles that the vectors were made of; a takedown in the index is not found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from data_specs.build import SpecError
from data_specs.search.index import IndexWriter, remove
from pipeline.rows.records import sha256_hex
from pipeline.store.build import Build
from pipeline.store.frames import Frames
from pipeline.studio import server
from pipeline.studio.facets import Filters
from pipeline.studio.similar import ID_OF_INDEX, Similar, id_of_index, index_beside
from tests.exported import Exported

pytestmark = pytest.mark.slow

Make = Callable[..., Build]


def _keys(build: Build) -> list[str]:
    return sorted(Frames.of(build).frame("samples").key)


def test_neighbours_are_the_nearest_without_the_sample_itself(indexed: Make) -> None:
    build = indexed()
    similar, keys = Similar(Path(build.out) / "index"), _keys(build)
    found = similar.neighbours(keys[10], 4)
    assert {hit["id"] for hit in found} == {keys[8], keys[9], keys[11], keys[12]}
    assert found[0]["cosine"] == pytest.approx(0.995, abs=2e-3)
    assert similar.value() == {"name": "synthetic", "rows": 30, "images": True, "texts": False, "by_text": False}
    with pytest.raises(SpecError, match="not in the search index"):
        similar.neighbours("f" * 32)
    with pytest.raises(SpecError, match="the text tower of this index"):
        similar.text("小猫")


def test_what_leaves_the_index_is_found_no_more_by_an_open_studio(indexed: Make) -> None:
    build = indexed()
    similar, keys = Similar(Path(build.out) / "index"), _keys(build)
    assert keys[11] in {hit["id"] for hit in similar.neighbours(keys[10], 4)}
    remove(Path(build.out) / "index", lambda rows: np.array(rows["id"].to_pylist()) == keys[11])
    assert keys[11] not in {hit["id"] for hit in similar.neighbours(keys[10], 30)}


def test_an_index_is_looked_for_beside_the_build(indexed: Make, tmp_path: Path) -> None:
    build = indexed()
    assert index_beside(build.out, "") == Path(build.out) / "index"
    assert index_beside(str(tmp_path), "") is None
    assert index_beside(str(tmp_path), f"{build.out}/index") == Path(build.out) / "index"


def test_more_like_this_shows_rows_of_the_build(indexed: Make, client_of: Callable[..., Any]) -> None:
    build = indexed()
    client, keys = client_of(build.out), _keys(build)
    about = client.get("/api/about").json()
    assert about["similar"]["rows"] == 30
    pos = client.get("/api/where", params={"id": keys[10]}).json()["pos"]
    rows = client.get("/api/similar", params={"pos": pos, "g": about["g"]}).json()["rows"]
    assert [row["key"] for row in rows[:2]] in ([keys[9], keys[11]], [keys[11], keys[9]])
    assert rows[0]["fate"] == "kept"
    assert rows[0]["near"]["cosine"] > 0.99
    dropped = client.get("/api/rows", params={"fate": "dropped", "limit": 1}).json()["rows"][0]
    assert client.get("/api/similar", params={"pos": dropped["pos"], "g": about["g"]}).status_code == 400


def test_an_index_alone_is_a_place(indexed: Make, studio_of: Callable[..., Any]) -> None:
    build = indexed()
    studio = studio_of("", index=f"{build.out}/index")
    about = studio.first_data()
    assert about["kind"] == "index"
    counts = studio.opened.catalog.counts(Filters())
    assert counts.total == 30
    assert dict(counts.facets["fate"]) == {"kept": 30}
    assert sum(count for value, count in counts.facets["split"] if value) == 30
    places = studio.opened.catalog.positions(Filters(words="海边"), 0, 9)
    assert all("海边" in row["text"] for row in studio.opened.items.briefs(places))
    assert len(places) > 0
    [first] = studio.opened.items.briefs(studio.opened.catalog.positions(Filters(), 0, 1))
    assert len(studio.neighbours(studio.similar.neighbours(first["key"]))) == 29


@pytest.mark.drill(15)
def test_a_text_finds_its_picture_by_the_text_tower_of_the_index(
    own: Make, client_of: Callable[..., Any], exported: Exported
) -> None:
    """By a real tower: a picture's vector is here that of its own caption."""
    from data_specs.search.folder import IndexInfo
    from data_specs.search.queries import TextQuery

    build, tower = own(), exported.folder / "m.text.onnx"
    rows = Frames.of(build).frame("samples").to_dict("records")
    captions = [row["texts"][0]["text"] for row in rows]
    query = TextQuery.open(tower)
    vectors_ND = np.asarray(query.encode(captions), np.float32)
    about = IndexInfo(name="m", width=vectors_ND.shape[1], images=True, texts=False, checkpoint=query.towers)
    with IndexWriter.begin(Path(build.out) / "index", about) as writer:
        writer.add(pa.table({"id": [row["key"] for row in rows], "caption": captions}), vectors_ND, None)
        writer.finish()
    (Path(build.out) / "index/queries").mkdir(exist_ok=True)
    shutil.copy(tower, Path(build.out) / "index/queries/text.onnx")
    client = client_of(build.out)
    assert client.get("/api/about").json()["similar"]["by_text"] is True
    for number in (3, 11):
        found = client.get("/api/similar", params={"text": captions[number]}).json()["rows"]
        assert found[0]["text"] == captions[number]
        assert found[0]["near"]["cosine"] > 0.99
    assert client.get("/api/similar", params={"text": " "}).status_code == 400


def test_an_index_alone_is_opened_anew_after_a_takedown(
    indexed: Make, studio_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LOOK_S", 0.0)
    build = indexed()
    studio, keys = studio_of("", index=f"{build.out}/index"), _keys(build)
    every = range(studio.opened.catalog.counts(Filters()).total)
    assert keys[11] in {row["key"] for row in studio.opened.items.briefs(list(every))}
    remove(Path(build.out) / "index", lambda rows: np.array(rows["id"].to_pylist()) == keys[11])
    shown = studio.opened.items.briefs(studio.opened.catalog.positions(Filters(), 0, 99))
    assert len(shown) == 29
    assert keys[11] not in {row["key"] for row in shown}


@pytest.mark.parametrize("name", ["ab" * 32, "ab" * 16, "000000012", "AB" * 32, "一"])
def test_an_id_of_an_index_is_the_same_in_sql(name: str) -> None:
    assert duckdb.sql(f"SELECT {ID_OF_INDEX} FROM (SELECT ? AS id)", params=[name]).fetchall() == [(id_of_index(name),)]
    assert id_of_index(name) in (name, sha256_hex(name))
