"""index: parts are committed one by one, by any process, and a writer that was killed goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.extras import extras
from data_specs.search.index import NEEDED, About, IndexFault, IndexWriter, Towers, read_index
from data_specs.search.search import Query, SearchIndex
from tests.indexed import contents, make, named, random_units, table

ABOUT = About(name="test", width=8, images=True, texts=False)


def test_a_killed_writer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """What is left is what one that was not killed leaves, to the byte."""
    vectors, rows = random_units(9, 8), [{"id": f"{n}", "caption": "猫"} for n in range(9)]
    folder = tmp_path / "i"
    code = f"""
import os, signal
from pathlib import Path
from data_specs.search import index
from tests.indexed import random_units, table
writer = index.IndexWriter.begin(Path({str(folder)!r}), index.About(name="test", width=8, images=True, texts=False))
vectors, rows = random_units(9, 8), [{{"id": f"{{n}}", "caption": "猫"}} for n in range(9)]
writer.add(0, table(rows[:3]), vectors[:3], None)
index.write_file = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # the files of part 1 are there, its record is not
writer.add(1, table(rows[3:6]), vectors[3:6], None)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(IndexFault, match="the index is not finished; run the command that writes it again"):
        SearchIndex.open(folder)
    writer = IndexWriter.begin(folder, ABOUT)
    assert writer.done() == {0}
    assert not writer.is_finished()
    for part in (2, 1):
        writer.add(part, table(rows[3 * part : 3 * part + 3]), vectors[3 * part : 3 * part + 3], None)
    writer.finish()
    whole = make(tmp_path / "j", rows, vectors, parts=[3, 3])
    assert contents(folder) == contents(whole)
    assert IndexWriter.begin(folder, ABOUT).done() == {0, 1, 2}


def test_the_layout_is_clip_retrieval_s(tmp_path: Path) -> None:
    """embedding-reader, by which its tools read a folder, pairs files by their sorted names."""
    image_ND, text_ND = random_units(5, 8), random_units(5, 8, seed=1)
    rows = [{"id": f"{n}", "caption": f"{n}", "url": f"http://a.example/{n}"} for n in range(5)]
    folder = make(tmp_path / "i", rows, image_ND, text_ND, parts=[2])
    images = [np.load(file, mmap_mode="r") for file in sorted((folder / "img_emb").iterdir())]
    texts = [np.load(file, mmap_mode="r") for file in sorted((folder / "text_emb").iterdir())]
    metadata = pa.concat_tables([pq.read_table(file) for file in sorted((folder / "metadata").iterdir())])
    assert {array.dtype for array in images + texts} == {np.dtype(np.float16)}
    assert np.allclose(np.concatenate(images), image_ND, atol=1e-3)
    assert np.allclose(np.concatenate(texts), text_ND, atol=1e-3)
    assert metadata["caption"].to_pylist() == [row["caption"] for row in rows]
    assert metadata["url"].to_pylist() == [row["url"] for row in rows]
    cosines = (image_ND * text_ND).sum(axis=1)
    assert np.allclose(metadata["similarity"].to_numpy(), cosines, atol=1e-5)
    assert json.loads((folder / "index.json").read_text())["rows"] == 5


def test_the_files_are_those_that_index_json_names(tmp_path: Path) -> None:
    folder = make(tmp_path / "i", named(1_100), random_units(1_100, 8), parts=[500], approximate=True)
    index = json.loads((folder / "index.json").read_text())
    named_files = {file["path"] for part in index["parts"] for file in part["files"].values()}
    named_files |= {index["words"]["path"], index["approximate"]["image"]["path"]}
    assert set(contents(folder)) == named_files | {"index.json"}


@pytest.mark.parametrize(
    ("rows", "image_ND", "text_ND", "line"),
    [
        (named(2), None, None, "part 0: image vectors are missing"),
        (named(2), random_units(2, 8), random_units(2, 8), "part 0: text vectors are none of this index"),
        (named(2), random_units(3, 8), None, "part 0: image vectors [3, 8], not [2, 8]"),
        (named(2), random_units(2, 9), None, "part 0: image vectors [2, 9], not [2, 8]"),
        (
            named(2),
            2 * random_units(2, 8),
            None,
            "part 0: image: row 0 has length 2; vectors of an index have length 1",
        ),
        (named(2), np.full((2, 8), np.nan, np.float32), None, "part 0: image: row 0 has length nan"),
        ([{"id": "a"}, {"id": "a"}], random_units(2, 8), None, "part 0: every row of an index needs an id of its own"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, rows, image_ND, text_ND, line: str) -> None:
    writer = IndexWriter.begin(tmp_path / "i", ABOUT)
    with pytest.raises(ValueError, match="part 0") as raised:
        writer.add(0, table(rows), image_ND, text_ND)
    assert line in str(raised.value)
    assert writer.done() == set()


def test_an_index_needs_what_its_extra_brings_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """jieba, which other extras bring, cuts no word of an index."""
    assert set(NEEDED) <= extras()["search"]
    asked: list[str] = []
    monkeypatch.setattr("data_specs.search.index.require", asked.append)
    IndexWriter.begin(tmp_path / "i", ABOUT)
    assert asked == list(NEEDED)


def test_one_folder_is_one_index(tmp_path: Path) -> None:
    folder = make(tmp_path / "i", named(2), random_units(2, 8))
    with pytest.raises(IndexFault, match="holds another index \\(its width is 8, not 9\\); give a new folder"):
        IndexWriter.begin(folder, ABOUT.model_copy(update={"width": 9}))
    with pytest.raises(IndexFault, match=r"\(its checkpoint is None, not tiny 01234567\); give"):
        IndexWriter.begin(folder, ABOUT.model_copy(update={"checkpoint": Towers(recipe="tiny", sha256="0123456789")}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    with pytest.raises(IndexFault, match="is not empty and holds no index"):
        IndexWriter.begin(tmp_path / "mine", ABOUT)
    with pytest.raises(IndexFault, match="an index is mapped from a local disk; give a path"):
        IndexWriter.begin(Path("s3://bucket/index"), ABOUT)
    with pytest.raises(IndexFault, match="nothing was embedded"):
        IndexWriter.begin(tmp_path / "empty", ABOUT).finish()


def test_an_id_is_in_one_part_only(tmp_path: Path) -> None:
    with pytest.raises(IndexFault, match="id row-1 is in parts 0 and 1"):
        make(tmp_path / "i", [*named(3), {"id": "row-1"}], random_units(4, 8), parts=[3])


def test_vectors_of_rows_without_one_are_zeros_and_never_found(tmp_path: Path) -> None:
    rows = [{"id": "a", "has_image": False}, {"id": "b", "has_image": True}]
    index = SearchIndex.open(make(tmp_path / "i", rows, np.array([[np.nan] * 8, [1] + [0] * 7], np.float32)))
    assert [hit.id for hit in index.search(Query(np.ones(8, np.float32))).hits] == ["b"]


WEEKLY = About(name="weekly", width=4, images=True, texts=False, checkpoint=Towers(recipe="tiny", sha256="1" * 64))


def ids(*names: str) -> pa.Table:
    return pa.table({"id": list(names)})


def axes(*numbers: int) -> npt.NDArray[np.float32]:
    return np.eye(4, dtype=np.float32)[list(numbers)]


def test_a_finished_index_is_added_to_and_can_be_searched_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    writer = IndexWriter.begin(folder, WEEKLY.model_copy(update={"created_from": ("a",)}))
    writer.add(0, ids("x", "y"), axes(0, 1), None, token="first")
    writer.finish()
    assert (writer.is_finished(), read_index(folder).revision) == (True, 0)

    grown = WEEKLY.model_copy(update={"created_from": ("a", "b")})
    writer = IndexWriter.begin(folder, grown)
    assert (writer.is_finished(), writer.parts()) == (False, {0: "first"})
    with pytest.raises(IndexFault, match="part 0: the index has one of this number"):
        writer.add(0, ids("z"), axes(2), None)
    writer.add(1, ids("z"), axes(2), None, token="second")
    assert SearchIndex.open(folder).rows == 2
    assert IndexWriter.begin(folder, grown).parts() == {0: "first", 1: "second"}  # as after a kill
    writer.finish()

    index = SearchIndex.open(folder)
    assert (index.rows, index.about.created_from, index.revision) == (3, ("a", "b"), 1)
    assert index.search(Query(vector_D=axes(2)[0], target="image")).hits[0].id == "z"
    stacked = np.concatenate([np.load(folder / p.files["img_emb"].path) for p in read_index(folder).parts])
    named = [pq.read_table(folder / p.files["metadata"].path)["id"].to_pylist() for p in read_index(folder).parts]
    np.testing.assert_array_equal(stacked, axes(0, 1, 2))
    assert named == [["x", "y"], ["z"]]


def test_beginning_a_finished_index_again_changes_nothing(tmp_path: Path) -> None:
    IndexWriter.begin(tmp_path, WEEKLY).add(0, ids("x"), axes(0), None)
    IndexWriter.begin(tmp_path, WEEKLY).finish()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    IndexWriter.begin(tmp_path, WEEKLY).finish()
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
    writer = IndexWriter.begin(tmp_path, WEEKLY)
    writer.add(0, ids("x"), axes(0), None)
    if finished:
        writer.finish()
    with pytest.raises(IndexFault, match=said):
        IndexWriter.begin(tmp_path, WEEKLY.model_copy(update=changes))


def test_a_part_of_which_nothing_could_be_read_is_done_and_has_no_files(tmp_path: Path) -> None:
    writer = IndexWriter.begin(tmp_path, WEEKLY)
    writer.add(0, ids().cast(pa.schema([("id", pa.string())])), axes(), None, token="broken")
    with pytest.raises(IndexFault, match="nothing was embedded"):
        writer.finish()
    writer.add(1, ids("x"), axes(0), None, token="sound")
    writer.finish()
    assert IndexWriter.begin(tmp_path, WEEKLY).parts() == {0: "broken", 1: "sound"}
    assert [part.part for part in read_index(tmp_path).parts] == [1]
    assert SearchIndex.open(tmp_path).rows == 1


def test_a_part_that_is_discarded_is_not_in_the_index(tmp_path: Path) -> None:
    writer = IndexWriter.begin(tmp_path, WEEKLY)
    writer.add(0, ids("x"), axes(0), None)
    writer.add(1, ids("y"), axes(1), None)
    writer.discard(0)
    writer.finish()
    assert [part.part for part in read_index(tmp_path).parts] == [1]
    assert [path.name for path in (tmp_path / "img_emb").iterdir()] == ["img_emb_0001.npy"]


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from data_specs.search import approximate, words
from data_specs.search.folder import IndexFault, made
from data_specs.search.scan import Stack
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
vectors = np.random.default_rng(0).standard_normal((3_000, 256))
vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
for name, make in (
    ("words", lambda path: words.write(path, [[f"词{i} 故宫{i * 7}" for i in range(20_000)]])),
    ("approximate", lambda path: approximate.write(path, Stack([vectors], 256), np.arange(3_000))),
):
    try:
        made(Path(sys.argv[1]), f"{name}/it", make)
    except IndexFault as e:
        print(e)
"""


def test_a_disk_that_is_full_is_one_line_and_leaves_no_file(tmp_path: Path) -> None:
    """SQLite and faiss say it in exceptions of their own, which ended in tracebacks."""
    command = [sys.executable, "-c", FULL, str(tmp_path)]  # in its own process, whose files cannot grow
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        f"{tmp_path / name}: cannot be written" for name in ("words/it", "approximate/it")
    ]
    assert "SQLite: " in lines[0]
    assert "faiss: write error" in lines[1]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
