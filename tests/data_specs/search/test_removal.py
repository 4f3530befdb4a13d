"""remove: after a takedown an index is what it would be without the rows, and holds no byte of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.search.folder import IndexFault, read_index
from data_specs.search.index import IndexWriter, IsRemoved, remove
from data_specs.search.search import Query, SearchIndex
from tests.indexed import contents, make, random_units, table

WORDS = ["红烧肉", "一只猫", "故宫的雪景", "清蒸鲈鱼", "Nikon"]


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"id-{n:05d}",
            "caption": f"{WORDS[n % 5]}第{n}张",
            "texts": [{"kind": "alt", "text": f"{WORDS[n % 5]}第{n}张"}, {"kind": "title", "text": f"借来的{n}号"}],
            "url": f"http://a.example/{n:05d}.jpg",
            "sha256": hashlib.sha256(f"picture {n}".encode()).hexdigest(),
            "image_leader": hashlib.sha256(f"leader {n // 2}".encode()).hexdigest(),
            "source": "news",
        }
        for n in range(count)
    ]


def of(*ids: str) -> IsRemoved:
    return lambda table: pc.is_in(table["id"], pa.array(ids, pa.string())).to_numpy()


def answers(folder: Path, query: np.ndarray) -> list[tuple[Any, ...]]:
    """Everything an index answers, to the last digit: by vector, by words and by both."""
    index = SearchIndex.open(folder)
    found: list[tuple[Any, ...]] = [(index.rows, str(index.facets()))]
    for asked in (Query(query, limit=100, exact=True), Query(words="猫 红烧肉", limit=100), Query(query, words="猫")):
        page = index.search(asked)
        found += [(hit.row, hit.id, hit.cosine, hit.words_score, hit.copies) for hit in page.hits]
    return found


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    gone=st.lists(st.sets(st.integers(0, 11)), min_size=1, max_size=3),
    parts=st.lists(st.integers(1, 5), max_size=3),
)
def test_removing_rows_is_building_without_them(tmp_path_factory: pytest.TempPathFactory, gone, parts) -> None:
    folder, vectors, whole = tmp_path_factory.mktemp("i"), random_units(12, 8), rows(12)
    index = make(folder / "a", whole, vectors, vectors, parts=parts)
    for ids in gone:
        remove(index, of(*(whole[n]["id"] for n in ids)))
    kept = [n for n in range(12) if n not in set().union(*gone)]
    assert SearchIndex.open(index).rows == len(kept)
    if kept:
        without = make(folder / "b", [whole[n] for n in kept], vectors[kept], vectors[kept])
        assert answers(index, vectors[0]) == answers(without, vectors[0])
    else:
        assert SearchIndex.open(index).search(Query(vectors[0], words="猫")).hits == ()


@pytest.mark.slow
def test_no_byte_of_what_was_removed_is_left(tmp_path: Path) -> None:
    count = 1_300
    whole, image_ND, text_ND = rows(count), random_units(count, 16), random_units(count, 16, seed=1)
    index = make(tmp_path / "i", whole, image_ND, text_ND, parts=[400, 400], approximate=True)
    taken = [3, 777, 1_299]

    def traces(n: int) -> list[bytes]:
        row = whole[n]
        texts = [row["id"], row["caption"], row["texts"][1]["text"], row["url"], row["sha256"]]
        return [t.encode() for t in texts] + [v[n].astype(np.float16).tobytes() for v in (image_ND, text_ND)]

    def left(trace: bytes) -> list[str]:
        return [name for name, data in contents(index).items() if trace in data]

    assert all(left(trace) for n in taken for trace in traces(n)), "all of it is there to be removed"
    before = contents(index)
    removed = remove(index, of(*(whole[n]["id"] for n in taken)))
    assert (removed.rows, removed.parts, removed.revision) == (3, 3, 2)
    assert [(n, left(trace)) for n in taken for trace in traces(n) if left(trace)] == []
    assert all(left(trace) for trace in traces(4)), "what stays is whole"
    opened = SearchIndex.open(index)
    for n in taken:
        assert opened.row(whole[n]["id"]) is None
        for exact in (True, False):
            for target, vectors in (("image", image_ND), ("text", text_ND)):
                found = opened.search(Query(vectors[n], target=target, limit=50, exact=exact, copies=True))
                assert (len(found.hits), found.exact) == (50, exact)
                assert whole[n]["id"] not in {hit.id for hit in found.hits}
        assert f"第{n}张" not in "".join(hit.caption for hit in opened.search(Query(words=f"第{n}张", limit=200)).hits)
        with pytest.raises(IndexFault, match="does not exist"):
            opened.picture(whole[n]["id"])
    assert not set(before) & {name for name in contents(index) if name.startswith(("words/", "approximate/"))}


def test_parts_that_lose_nothing_are_not_touched(tmp_path: Path) -> None:
    index = make(tmp_path / "i", rows(9), random_units(9, 8), parts=[3, 3])
    before = {file: file.stat().st_ino for file in index.rglob("*_0002*")}
    remove(index, of("id-00000"))
    assert {file: file.stat().st_ino for file in index.rglob("*_0002*")} == before
    assert (index / "img_emb" / "img_emb_0000_r2.npy").exists()


def test_an_open_index_sees_a_takedown_when_it_looks_again(tmp_path: Path) -> None:
    vectors = random_units(20, 8)
    folder = make(tmp_path / "i", rows(20), vectors, parts=[10])
    index = SearchIndex.open(folder)
    assert not index.reload_if_changed()
    remove(folder, of("id-00003"))
    assert index.search(Query(vectors[3])).hits[0].id == "id-00003", "its files are mapped still"
    assert index.reload_if_changed()
    assert (index.revision, index.rows) == (2, 19)
    assert "id-00003" not in {hit.id for hit in index.search(Query(vectors[3], limit=30, copies=True)).hits}
    assert not index.reload_if_changed()


def test_a_dry_run_counts_and_changes_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path / "i", rows(20), random_units(20, 8), parts=[10])
    before = contents(folder)
    assert remove(folder, of("id-00003", "id-00015", "none"), dry_run=True).rows == 2
    assert contents(folder) == before
    assert remove(folder, of("none")).revision == 1
    assert contents(folder) == before


def test_texts_that_a_row_had_from_a_removed_copy_leave_it(tmp_path: Path) -> None:
    folder, vectors = make(tmp_path / "i", rows(6), random_units(6, 8), parts=[3]), random_units(6, 8)

    def stay(table: pa.Table) -> dict[int, list[int]]:
        return {n: [0] for n, id in enumerate(table["id"].to_pylist()) if id == "id-00004"}

    removed = remove(folder, of("id-00001"), stay)
    assert (removed.rows, removed.texts) == (1, 1)
    index = SearchIndex.open(folder)
    row = index.row("id-00004")
    assert row is not None
    assert [text.text for text in row.texts] == [row.caption]
    assert not [name for name, data in contents(folder).items() if "借来的4号".encode() in data]
    others = {"id-00000", "id-00002", "id-00003", "id-00005"}
    assert {hit.id for hit in index.search(Query(words="借来", copies=True)).hits} == others
    assert index.search(Query(vectors[4])).hits[0].id == "id-00004"


KILLED = """
import os, signal, sys
from pathlib import Path
import pyarrow as pa, pyarrow.compute as pc
from data_specs.search import index
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
write_index, write, parts = index.write_index, index._write_files, []
def killed_after_one_part(*given):
    if parts: die()
    parts.append(1)
    return write(*given)
def killed_after_the_step(*given):
    write_index(*given)
    die()
name, replacement = {
    "between parts": ("_write_files", killed_after_one_part),
    "before index.json": ("write_index", die),
    "before the old files go": ("write_index", killed_after_the_step),
}[sys.argv[2]]
setattr(index, name, replacement)
index.remove(Path(sys.argv[1]), lambda table: pc.is_in(table["id"], pa.array(["id-00001", "id-00008"])).to_numpy())
"""


@pytest.mark.drill(2)
@pytest.mark.parametrize("moment", ["between parts", "before index.json", "before the old files go"])
def test_a_takedown_that_is_killed_is_finished_by_the_same_command(tmp_path: Path, moment: str) -> None:
    vectors = random_units(12, 8)
    folder = make(tmp_path / "i", rows(12), vectors, vectors, parts=[4, 4])
    undisturbed = tmp_path / "j"
    shutil.copytree(folder, undisturbed)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), moment], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert SearchIndex.open(folder).rows == (10 if moment == "before the old files go" else 12), "whole at any moment"
    remove(folder, of("id-00001", "id-00008"))
    remove(undisturbed, of("id-00001", "id-00008"))
    assert contents(folder) == contents(undisturbed)


@pytest.mark.parametrize("first", [True, False], ids=["first", "grows"])
def test_parts_of_a_killed_embed_lose_rows_too_which_do_not_come_back(tmp_path: Path, first: bool) -> None:
    vectors, folder = random_units(12, 8), tmp_path / "i"
    whole = [row | {"stamp": n + 1} for n, row in enumerate(rows(12))]
    make(folder, whole[:4], vectors[:4])
    about = read_index(folder).about
    if first:
        shutil.rmtree(folder)
    with IndexWriter.begin(folder, about) as writer:
        for low in (0, 4, 8) if first else (4, 8):
            writer.add(table(whole[low : low + 4]), vectors[low : low + 4], None)
    assert remove(folder, of("id-00001", "id-00009")).rows == 2
    assert remove(folder, of("id-00010")).rows == 1
    left = contents(folder)
    assert not [name for name, data in left.items() if any(b"id-%05d" % n in data for n in (1, 9, 10))]
    assert vectors[9].astype(np.float16).tobytes() not in b"".join(left.values())
    with IndexWriter.begin(folder, about) as writer:
        assert sorted(writer.stamps().tolist()) == list(range(1, 13)), "what went is known, and not embedded again"
        writer.finish()
    found = SearchIndex.open(folder).search(Query(limit=20, copies=True)).hits
    assert [hit.id for hit in found] == [row["id"] for n, row in enumerate(whole) if n not in (1, 9, 10)]


def test_a_takedown_of_an_index_that_is_being_written_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "i", rows(3), random_units(3, 8))
    with (
        IndexWriter.begin(folder, read_index(folder).about),
        pytest.raises(IndexFault, match="another command is writing this index; wait until"),
    ):
        remove(folder, of("id-00001"))
    assert remove(folder, of("id-00001")).rows == 1
