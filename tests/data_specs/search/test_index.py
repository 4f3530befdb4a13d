"""index: parts are committed one by one; a writer or a takedown that was killed is finished by the same command."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.command.extras import extras
from data_specs.search.folder import INDEX, is_finished
from data_specs.search.index import NEEDED, IndexFault, IndexInfo, IndexWriter, Towers, write_part
from data_specs.search.search import Query, SearchIndex
from tests.indexed import contents, make, named, random_units, table

ABOUT = IndexInfo(name="test", width=8, images=True, texts=False)
WEEKLY = IndexInfo(name="weekly", width=4, images=True, texts=False, checkpoint=Towers(recipe="tiny", sha256="1" * 64))


def ids(*names: str, stamps: tuple[int, ...] = ()) -> pa.Table:
    columns = {"id": pa.array(names, pa.string())}
    return pa.table(columns | ({"stamp": pa.array(stamps, pa.uint64())} if stamps else {}))


def axes(*numbers: int) -> npt.NDArray[np.float32]:
    return np.eye(4, dtype=np.float32)[list(numbers)]


def found(folder: Path) -> list[str]:
    return [hit.id for hit in SearchIndex.open(folder).search(Query(limit=50, copies=True)).hits]


KILLED = """
import os, signal, sys
from pathlib import Path
from data_specs.search import index
from tests.indexed import random_units, table
begun = index.IndexWriter.begin(Path(sys.argv[1]), index.IndexInfo(name="test", width=8, images=True, texts=False))
writer = begun.__enter__()
vectors, rows = random_units(9, 8), [{"id": f"{n}", "caption": "猫"} for n in range(9)]
writer.add(table(rows[:3]), vectors[:3], None)
index.write_index = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # the files of part 1 are written, not committed
writer.add(table(rows[3:6]), vectors[3:6], None)
"""


@pytest.mark.drill(1)
def test_a_killed_writer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The result has the bytes of one that was not killed."""
    vectors, rows, folder = random_units(9, 8), [{"id": f"{n}", "caption": "猫"} for n in range(9)], tmp_path / "i"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not is_finished(folder)
    with pytest.raises(IndexFault, match="the index is not finished; run the command that writes it again"):
        SearchIndex.open(folder)
    with IndexWriter.begin(folder, ABOUT) as writer:
        assert [part.part for part in writer.index.waiting] == [0]
        for low in (3, 6):
            writer.add(table(rows[low : low + 3]), vectors[low : low + 3], None)
        writer.finish()
    assert contents(folder) == contents(make(tmp_path / "j", rows, vectors, parts=[3, 3]))
    assert is_finished(folder)


@pytest.mark.slow
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
    assert json.loads((folder / INDEX).read_text())["rows"] == 5


def test_the_files_are_those_that_index_json_names(tmp_path: Path) -> None:
    folder = make(tmp_path / "i", named(1_100), random_units(1_100, 8), parts=[500], approximate=True)
    index = json.loads((folder / INDEX).read_text())
    files = {file["path"] for part in index["parts"] for file in part["files"].values()}
    files |= {index["words"]["path"], index["approximate"]["image"]["path"]}
    assert set(contents(folder)) == files | {INDEX}


@pytest.mark.parametrize(
    ("rows", "image_ND", "text_ND", "line"),
    [
        (named(2), None, None, "image vectors are missing"),
        (named(2), random_units(2, 8), random_units(2, 8), "text vectors are not expected"),
        (named(2), random_units(3, 8), None, "image vectors [3, 8], not [2, 8]"),
        (named(2), random_units(2, 9), None, "image vectors [2, 9], not [2, 8]"),
        (named(2), 2 * random_units(2, 8), None, "image: row 0 has length 2; vectors of an index have length 1"),
        (named(2), np.full((2, 8), np.nan, np.float32), None, "image: row 0 has length nan"),
        ([{"id": "a"}, {"id": "a"}], random_units(2, 8), None, "every row of an index needs a unique id"),
    ],
)
def test_a_part_that_does_not_fit_is_one_line(tmp_path: Path, rows, image_ND, text_ND, line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: part 7") + ".*" + re.escape(line)):
        write_part(tmp_path, ABOUT, 7, table(rows), image_ND, text_ND)
    assert list(tmp_path.iterdir()) == []


def test_an_index_needs_what_its_extra_brings_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """jieba, which other extras bring, cuts no word of an index."""
    assert set(NEEDED) <= extras()["search"]
    asked: list[str] = []
    monkeypatch.setattr("data_specs.search.index.require", asked.append)
    with IndexWriter.begin(tmp_path / "i", ABOUT):
        pass
    assert asked == list(NEEDED)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 9}, "its width is 4, not 9"),
        ({"checkpoint": Towers(recipe="tiny", sha256="2" * 64)}, "its checkpoint is tiny 11111111, not tiny 22222222"),
        ({"name": "other"}, "its name is 'weekly', not 'other'"),
        ({"detector": "grid"}, "its detector is '', not 'grid'"),
        ({"texts": True}, "its texts is False, not True"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_index_is_refused(tmp_path: Path, changes: dict[str, object], said: str, finished: bool) -> None:
    with IndexWriter.begin(tmp_path, WEEKLY) as writer:
        writer.add(ids("x"), axes(0), None)
        if finished:
            writer.finish()
    another = IndexWriter.begin(tmp_path, WEEKLY.model_copy(update=changes))
    with pytest.raises(IndexFault, match=rf"contains another index \({said}\); give a new folder"), another:
        pass


def test_a_folder_that_cannot_become_an_index_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    for place, said in (
        (tmp_path / "mine", "is not empty and does not contain an index"),
        (tmp_path / "mine" / "letter.txt", r"letter\.txt: cannot be written"),
        (Path("s3://bucket/index"), "an index must be on a local disk; give a path"),
    ):
        with pytest.raises(IndexFault, match=said), IndexWriter.begin(place, ABOUT):
            pass
    with (
        pytest.raises(IndexFault, match="nothing was embedded"),
        IndexWriter.begin(tmp_path / "empty", ABOUT) as writer,
    ):
        writer.finish()
    with pytest.raises(IndexFault, match="id row-1 occurs twice"):
        make(tmp_path / "i", [*named(3), {"id": "row-1"}], random_units(4, 8), parts=[3])


def test_vectors_of_rows_without_one_are_zeros_and_never_found(tmp_path: Path) -> None:
    rows = [{"id": "a", "has_image": False}, {"id": "b", "has_image": True}]
    index = SearchIndex.open(make(tmp_path / "i", rows, np.array([[np.nan] * 8, [1] + [0] * 7], np.float32)))
    assert [hit.id for hit in index.search(Query(np.ones(8, np.float32))).hits] == ["b"]


def test_a_finished_index_is_added_to_and_searched_as_it_was_meanwhile(tmp_path: Path) -> None:
    with IndexWriter.begin(tmp_path, WEEKLY.model_copy(update={"created_from": ("a",)})) as writer:
        writer.add(ids("x", "y"), axes(0, 1), None)
        writer.finish()
    opened = SearchIndex.open(tmp_path)
    with IndexWriter.begin(tmp_path, WEEKLY.model_copy(update={"created_from": ("a", "b")})) as writer:
        writer.add(ids("z"), axes(2), None)
        assert (found(tmp_path), opened.reload_if_changed()) == (["x", "y"], False)
        writer.finish()
    assert opened.reload_if_changed()
    assert (opened.rows, opened.about.created_from, opened.revision) == (3, ("a", "b"), 2)
    assert opened.search(Query(vector_D=axes(2)[0])).hits[0].id == "z"
    before = contents(tmp_path)
    with IndexWriter.begin(tmp_path, opened.about) as writer:
        writer.finish()
    assert contents(tmp_path) == before, "nothing was added"


def test_an_update_adds_and_removes_in_one_step(tmp_path: Path) -> None:
    """The row of a replaced picture has the id of the one that goes."""
    with IndexWriter.begin(tmp_path, WEEKLY) as writer:
        writer.add(ids("x", "y", stamps=(1, 2)), axes(0, 1), None)
        writer.commit(None, left_out=[3, 4])
        writer.finish(np.array([1, 2, 3, 4], np.uint64))
    with IndexWriter.begin(tmp_path, WEEKLY) as writer:
        assert sorted(writer.stamps().tolist()) == [1, 2, 3, 4]
        writer.add(ids("y", "z", stamps=(5, 6)), axes(2, 3), None)
        assert writer.finish(np.array([1, 4, 5], np.uint64)) == 2  # y as it was, and z, which left again
        assert sorted(writer.stamps().tolist()) == [1, 4, 5]
    assert found(tmp_path) == ["x", "y"]
    assert SearchIndex.open(tmp_path).search(Query(axes(2)[0])).hits[0].id == "y"


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from data_specs.search import vectors, words
from data_specs.search.folder import IndexFault, write_file
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
rows = np.random.default_rng(0).standard_normal((3_000, 256))
stack = vectors.Stack([(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)], 256)
for name, write in (
    ("words", lambda path: words.write(path, [f"词{i} 故宫{i * 7}" for i in range(20_000)])),
    ("approximate", lambda path: vectors.write_approximate(path, stack, np.arange(3_000))),
):
    try:
        write_file(Path(sys.argv[1]), f"{name}/it", write)
    except IndexFault as e:
        print(e)
"""


@pytest.mark.slow
def test_a_disk_that_is_full_is_one_line_and_leaves_no_file(tmp_path: Path) -> None:
    """SQLite and faiss report it in exceptions of their own."""
    command = [sys.executable, "-c", FULL, str(tmp_path)]  # in its own process, whose files cannot grow
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        f"{tmp_path / name}: cannot be written" for name in ("words/it", "approximate/it")
    ]
    assert "SQLite: " in lines[0]
    assert "faiss: write error" in lines[1]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_copy_of_an_index_is_an_index(tmp_path: Path) -> None:
    folder = make(tmp_path / "i", named(3), random_units(3, 8))
    shutil.copytree(folder, tmp_path / "j")
    assert found(tmp_path / "j") == found(folder)
