"""The index folder while it is written: killed, gone on with, added to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.search.index import About, IndexFault, IndexWriter, Towers, read_index
from data_specs.search.search import Query, SearchIndex

ABOUT = About(name="weekly", width=4, images=True, texts=False, checkpoint=Towers(recipe="tiny", sha256="1" * 64))


def rows(*ids: str) -> pa.Table:
    return pa.table({"id": list(ids)})


def vectors(*axes: int) -> npt.NDArray[np.float32]:
    return np.eye(4, dtype=np.float32)[list(axes)]


def test_a_finished_index_is_added_to_and_can_be_searched_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    writer = IndexWriter.begin(folder, ABOUT.model_copy(update={"created_from": ("a",)}))
    writer.add(0, rows("x", "y"), vectors(0, 1), None, token="first")
    writer.finish()
    assert (writer.is_finished(), read_index(folder).revision) == (True, 0)

    grown = ABOUT.model_copy(update={"created_from": ("a", "b")})
    writer = IndexWriter.begin(folder, grown)
    assert (writer.is_finished(), writer.parts()) == (False, {0: "first"})
    with pytest.raises(IndexFault, match="part 0: the index has one of this number"):
        writer.add(0, rows("z"), vectors(2), None)
    writer.add(1, rows("z"), vectors(2), None, token="second")
    assert SearchIndex.open(folder).rows == 2
    assert IndexWriter.begin(folder, grown).parts() == {0: "first", 1: "second"}  # as after a kill
    writer.finish()

    index = SearchIndex.open(folder)
    assert (index.rows, index.about.created_from, index.revision) == (3, ("a", "b"), 1)
    assert index.search(Query(vector_D=vectors(2)[0], target="image")).hits[0].id == "z"
    stacked = np.concatenate([np.load(folder / p.files["img_emb"].path) for p in read_index(folder).parts])
    named = [pq.read_table(folder / p.files["metadata"].path)["id"].to_pylist() for p in read_index(folder).parts]
    np.testing.assert_array_equal(stacked, vectors(0, 1, 2))
    assert named == [["x", "y"], ["z"]]


def test_beginning_a_finished_index_again_changes_nothing(tmp_path: Path) -> None:
    IndexWriter.begin(tmp_path, ABOUT).add(0, rows("x"), vectors(0), None)
    IndexWriter.begin(tmp_path, ABOUT).finish()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    IndexWriter.begin(tmp_path, ABOUT).finish()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checkpoint": Towers(recipe="tiny", sha256="2" * 64)}, "its checkpoint is"),
        ({"name": "other"}, "its name is 'weekly', not 'other'"),
        ({"detector": "grid"}, "its detector is '', not 'grid'"),
        ({"texts": True}, "its texts is False, not True"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_index_is_refused(tmp_path: Path, changes: dict[str, object], said: str, finished: bool) -> None:
    writer = IndexWriter.begin(tmp_path, ABOUT)
    writer.add(0, rows("x"), vectors(0), None)
    if finished:
        writer.finish()
    with pytest.raises(IndexFault, match=said):
        IndexWriter.begin(tmp_path, ABOUT.model_copy(update=changes))


def test_a_part_of_which_nothing_could_be_read_is_done_and_has_no_files(tmp_path: Path) -> None:
    writer = IndexWriter.begin(tmp_path, ABOUT)
    writer.add(0, rows().cast(pa.schema([("id", pa.string())])), vectors(), None, token="broken")
    with pytest.raises(IndexFault, match="nothing was embedded"):
        writer.finish()
    writer.add(1, rows("x"), vectors(0), None, token="sound")
    writer.finish()
    assert IndexWriter.begin(tmp_path, ABOUT).parts() == {0: "broken", 1: "sound"}
    assert [part.part for part in read_index(tmp_path).parts] == [1]
    assert SearchIndex.open(tmp_path).rows == 1


def test_a_part_that_is_discarded_is_not_in_the_index(tmp_path: Path) -> None:
    writer = IndexWriter.begin(tmp_path, ABOUT)
    writer.add(0, rows("x"), vectors(0), None)
    writer.add(1, rows("y"), vectors(1), None)
    writer.discard(0)
    writer.finish()
    assert [part.part for part in read_index(tmp_path).parts] == [1]
    assert [path.name for path in (tmp_path / "img_emb").iterdir()] == ["img_emb_0001.npy"]
