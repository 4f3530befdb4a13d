"""A second `embed --index`: rows that came, that left, that changed, and that a takedown has removed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.search.folder import read_index
from data_specs.search.index import IndexInfo, remove
from data_specs.search.search import SearchIndex
from data_specs.shard import REGION_SCHEMA
from tests.training.use.test_indexing import MakeShards, Run, bytes_of, pictures, rows_of
from training.use.indexing import EmbedJob, Inputs, PartResult, PartTask, embed_index, make_parts

pytestmark = pytest.mark.slow


def moved_boxes(table: Path, last: Sequence[float]) -> None:
    """Give the last picture of a regions file other boxes."""
    rows = pq.read_table(table)
    boxes = [*rows["boxes"].to_pylist()[:-1], list(last)]
    at = rows.schema.get_field_index("boxes")
    pq.write_table(rows.set_column(at, rows.schema.field("boxes"), pa.array(boxes, pa.list_(pa.float32()))), table)


@pytest.mark.parametrize("way", ["data", "images"])
def test_a_picture_whose_boxes_are_others_now_is_embedded_again_and_no_other(
    make_shards: MakeShards, tmp_path: Path, run: Run, moved: Callable[..., Path], way: str
) -> None:
    """Under the same detector's name: a spec with another cap, a file of boxes that was made anew."""
    manifest = make_shards(train=(5,), detector="find-1")
    checkpoint = moved(tmp_path / "run", detector="find-1" if way == "data" else "")
    folder = pictures(tmp_path / "p", range(5))
    regions = manifest.parent / "regions/find-1/train-000000.parquet"

    def boxes_of_pictures(last: Sequence[float]) -> None:
        if way == "data":
            moved_boxes(regions, last)
            content = json.loads(manifest.read_text())
            of_shard = content["shards"][0]["regions"]["find-1"]
            of_shard |= {"bytes": regions.stat().st_size, "sha256": hashlib.sha256(regions.read_bytes()).hexdigest()}
            manifest.write_text(json.dumps(content))
            return
        every = [[0, 0, 20, 15]] * 4 + [last]
        rows = [
            {"key": "k", "sha256": hashlib.sha256(f.read_bytes()).hexdigest(), "boxes": b, "scores": [0.5]}
            for f, b in zip(sorted(folder.iterdir()), every, strict=True)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=REGION_SCHEMA), tmp_path / "boxes.parquet")

    words: dict[str, list[object]] = {
        "data": ["--data", manifest],
        "images": ["--images", folder, "--regions", tmp_path / "boxes.parquet"],
    }
    boxes_of_pictures([1, 2, 9, 8])
    run(checkpoint, *words[way], "--index", tmp_path / "i")
    boxes_of_pictures([3, 2, 19, 8])
    code, written, _ = run(checkpoint, *words[way], "--index", tmp_path / "i")
    assert (code, written["rows"], written["embedded"], written["removed"]) == (0, 5, 1, 1)
    run(checkpoint, *words[way], "--index", tmp_path / "anew")
    found, anew = rows_of(tmp_path / "i"), rows_of(tmp_path / "anew")
    assert found.keys() == anew.keys()
    for name, (image_D, _) in anew.items():
        np.testing.assert_allclose(found[name][0], image_D, atol=1e-3)  # type: ignore[arg-type]
    assert run(checkpoint, *words[way], "--index", tmp_path / "i")[1]["embedded"] == 0


def test_pictures_that_come_go_or_change_are_what_is_done_again(checkpoint: Path, tmp_path: Path, run: Run) -> None:
    folder = pictures(tmp_path / "p", range(10))
    run(checkpoint, "--images", folder, "--index", tmp_path / "i", "--part-rows", 4)
    before = bytes_of(tmp_path / "i")
    pictures(folder, [10, 11])
    (folder / "0001.png").unlink()
    shutil.copy(pictures(tmp_path / "q", [99]) / "0099.png", folder / "0006.png")
    code, written, _ = run(checkpoint, "--images", folder, "--index", tmp_path / "i", "--part-rows", 4)
    assert (code, written["rows"], written["embedded"], written["removed"]) == (0, 11, 3, 2)
    run(checkpoint, "--images", folder, "--index", tmp_path / "anew", "--part-rows", 4)
    found, anew = rows_of(tmp_path / "i"), rows_of(tmp_path / "anew")
    assert found.keys() == anew.keys()
    for name, (image_D, _) in anew.items():
        np.testing.assert_allclose(found[name][0], image_D, atol=1e-3)  # type: ignore[arg-type]
    kept = [name for name, content in bytes_of(tmp_path / "i").items() if before.get(name) == content]
    assert [name for name in kept if name.startswith("img_emb")] == ["img_emb/img_emb_0002.npy"]  # the last lost none
    removed = SearchIndex.open(tmp_path / "i").row(str(folder / "0001.png"))
    assert removed is None


def test_a_folder_is_the_same_however_it_is_spelt(
    checkpoint: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures(tmp_path / "p", range(5))
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run(checkpoint, "--images", "p", "--index", tmp_path / "i", "--part-rows", 2)
    before = bytes_of(tmp_path / "i")
    for spelt in ("./p", "p/", folder, "elsewhere/../p", "link"):
        code, written, _ = run(checkpoint, "--images", spelt, "--index", tmp_path / "i", "--part-rows", 2)
        assert (code, written["rows"], written["embedded"], written["removed"]) == (0, 5, 0, 0), spelt
        assert bytes_of(tmp_path / "i") == before
    assert sorted(rows_of(tmp_path / "i")) == sorted(map(str, folder.iterdir()))
    together = run(checkpoint, "--images", "p", "p/0001.png", folder / "0002.png", "--index", tmp_path / "j")[1]
    assert together["rows"] == 5


def test_a_picture_behind_a_link_that_leads_elsewhere_now_has_the_id_of_no_other(
    checkpoint: Path, tmp_path: Path, run: Run
) -> None:
    earlier, now = (pictures(tmp_path / name, [n]) / f"{n:04d}.png" for n, name in enumerate(("earlier", "now")))
    now = now.rename(now.with_name(earlier.name))
    link = tmp_path / "current"
    link.symlink_to("earlier")
    run(checkpoint, "--images", link / now.name, "--index", tmp_path / "i")
    link.unlink()
    link.symlink_to("now")
    run(checkpoint, "--images", link / now.name, "--index", tmp_path / "i")
    assert list(rows_of(tmp_path / "i")) == [str(now)]
    code, written, _ = run(checkpoint, "--images", link / now.name, earlier, "--index", tmp_path / "i")
    assert (code, written["rows"], written["embedded"]) == (0, 2, 1)
    assert sorted(rows_of(tmp_path / "i")) == [str(earlier), str(now)]


def test_a_dataset_that_grew_costs_its_new_shards_and_one_that_shrank_loses_its_rows(
    checkpoint: Path, make_shards: MakeShards, tmp_path: Path, run: Run
) -> None:
    small = make_shards(train=(4, 3), name="small")
    large = make_shards(train=(4, 3, 5), name="large")  # the same first shards
    run(checkpoint, "--data", small, "--index", tmp_path / "i")
    before = bytes_of(tmp_path / "i" / "img_emb")
    code, written, _ = run(checkpoint, "--data", large, "--index", tmp_path / "i")
    assert (code, written["embedded"], written["removed"], written["rows"]) == (0, 5, 0, 12)
    grown = bytes_of(tmp_path / "i" / "img_emb")
    assert {name: grown[name] for name in before} == before  # parts that are there stay, byte by byte
    assert len(grown) == 2
    assert read_index(tmp_path / "i").about.created_from != ()

    code, written, _ = run(checkpoint, "--data", small, "--index", tmp_path / "i")
    assert (code, written["embedded"], written["removed"], written["rows"]) == (0, 0, 5, 7)
    run(checkpoint, "--data", small, "--index", tmp_path / "anew")
    assert rows_of(tmp_path / "i").keys() == rows_of(tmp_path / "anew").keys()


def test_what_left_the_input_and_is_back_is_embedded_again(
    checkpoint: Path, make_shards: MakeShards, tmp_path: Path, run: Run
) -> None:
    """As after a release that was rolled back and came again, and a picture that somebody moved away and back."""
    small, large = make_shards(train=(4, 3), name="small"), make_shards(train=(4, 3, 5), name="large")
    for data, rows in ((large, 12), (small, 7), (large, 12)):
        assert run(checkpoint, "--data", data, "--index", tmp_path / "data")[1]["rows"] == rows
    folder = pictures(tmp_path / "p", range(5))
    words = (checkpoint, "--images", folder, "--index", tmp_path / "i", "--part-rows", 3)
    assert run(*words)[1]["rows"] == 5
    for _ in range(2):
        (folder / "0001.png").rename(tmp_path / "away.png")
        assert run(*words)[1]["rows"] == 4
        (tmp_path / "away.png").rename(folder / "0001.png")
        assert run(*words)[1]["rows"] == 5
    assert sorted(rows_of(tmp_path / "i")) == [str(path) for path in sorted(folder.iterdir())]


def test_a_part_of_another_state_of_the_input_loses_what_is_gone(checkpoint: Path, tmp_path: Path) -> None:
    """Killed behind two parts, then a picture went."""
    folder = pictures(tmp_path / "p", range(6))
    inputs = Inputs(images=(str(folder),))
    with pytest.raises(KeyboardInterrupt):
        embed_index(checkpoint, inputs, tmp_path / "i", rows=2, run=stopped_behind(2))
    (folder / "0002.png").unlink()
    written = embed_index(checkpoint, inputs, tmp_path / "i", rows=2)
    assert (written["rows"], written["embedded"], written["removed"]) == (5, 2, 1)
    embed_index(checkpoint, inputs, tmp_path / "anew", rows=2)
    assert rows_of(tmp_path / "i").keys() == rows_of(tmp_path / "anew").keys()


def stopped_behind(count: int) -> Any:
    """What makes so many parts, and is interrupted then."""

    def run(job: EmbedJob, folder: Path, about: IndexInfo, tasks: Sequence[PartTask]) -> Iterator[PartResult]:
        yield from make_parts(*job.open(), folder, about, tasks[:count], None, lambda rows: None)
        raise KeyboardInterrupt

    return run


def test_rows_that_a_takedown_removed_do_not_come_back_in_an_index_that_has_grown(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Neither old ones, whose unit is another since, nor those that it grew by; of parts, and whole parts."""
    folder = pictures(tmp_path / "p", range(1, 5))
    inputs = Inputs(images=(str(folder),))
    embed_index(checkpoint, inputs, tmp_path / "i", rows=3)
    pictures(folder, [0, 5, 6])  # the first moves all others from one unit to another
    assert embed_index(checkpoint, inputs, tmp_path / "i", rows=3)["embedded"] == 3
    gone = [str(folder / f"{n:04d}.png") for n in (2, 4, 5)]  # 4 is a part of its own
    remove(tmp_path / "i", lambda rows: np.isin(rows["id"].to_pylist(), gone))
    written = embed_index(checkpoint, inputs, tmp_path / "i", rows=3)
    assert (written["embedded"], written["rows"]) == (0, 4)
    (folder / "0006.png").unlink()  # a unit of its own
    written = embed_index(checkpoint, inputs, tmp_path / "i", rows=3)
    assert (written["embedded"], written["rows"], written["removed"]) == (0, 3, 1)
    assert sorted(rows_of(tmp_path / "i")) == [str(folder / f"{n:04d}.png") for n in (0, 1, 3)]


def test_what_could_not_be_read_is_not_tried_anew_by_every_command_after_the_input_has_grown(
    checkpoint: Path, tmp_path: Path, run: Run
) -> None:
    folder = pictures(tmp_path / "p", range(1, 5))
    (folder / "0003.png").write_bytes(b"junk")
    words = (checkpoint, "--images", folder, "--index", tmp_path / "i", "--part-rows", 3)
    run(*words)
    pictures(folder, [0])
    assert run(*words)[1]["embedded"] == 1
    before = bytes_of(tmp_path / "i")
    _, written, said = run(*words)
    assert (written["embedded"], written["unreadable"], "left out: " in said) == (0, 0, False)
    assert bytes_of(tmp_path / "i") == before
