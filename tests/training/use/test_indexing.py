"""`embed --index` and `--out FILE.parquet`: what is written, what a second run does, kills, growth, takedowns."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_specs.search.folder import IndexFault, read_index
from data_specs.search.index import IndexWriter, locked, remove
from data_specs.search.search import Query, SearchIndex
from tests.places import ROOT
from tests.processes import Forks
from tests.training.conftest import picture as drawn
from tests.training.conftest import sample, write_manifest, write_shard
from training.use.encode import open_encoder
from training.use.indexing import Inputs, PartResult, embed_index, make_parts
from training.weights.load import load

MakeShards = Callable[..., Path]
Run = Callable[..., tuple[int, dict[str, Any], str]]


def rows_of(folder: Path) -> dict[str, tuple[npt.NDArray[np.float16] | None, npt.NDArray[np.float16] | None]]:
    """By id the vectors of the index, read by NumPy and Parquet alone."""
    found = {}
    for part in read_index(folder).parts:
        ids = pq.read_table(folder / part.files["metadata"].path)["id"].to_pylist()
        vectors = [np.load(folder / part.files[n].path) if n in part.files else None for n in ("img_emb", "text_emb")]
        for row, name in enumerate(ids):
            image, text = (None if v is None else v[row] for v in vectors)
            found[name] = image, text
    return found


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pictures(folder: Path, numbers: Sequence[int]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / f"{number:04d}.png")
    return folder


# --- what is in it


@pytest.mark.slow
def test_a_dataset_becomes_an_index_that_finds_each_sample_by_its_own_text(
    checkpoint: Path, make_shards: MakeShards, tmp_path: Path, run: Run
) -> None:
    manifest = make_shards(train=(7, 5), dev=(1,), val=(2,), damage={3: b"\xff\xd8junk"})
    code, written, said = run(checkpoint, "--data", manifest, "--index", tmp_path / "i", "--part-rows", 4)
    assert code == 0
    assert {name: written[name] for name in ("rows", "embedded", "unreadable", "removed", "parts")} == {
        "rows": 14,
        "embedded": 14,
        "unreadable": 1,
        "removed": 0,
        "parts": 4,
    }
    assert said.count("left out: ") == 1
    assert "train-000000.tar" in said

    index = SearchIndex.open(tmp_path / "i")
    encoder = open_encoder(checkpoint, "cpu")
    sealed = load(checkpoint, "cpu").checkpoint.sealed
    assert index.about.checkpoint is not None
    assert index.about.checkpoint.sha256 == sealed.files["towers.safetensors"]
    for name, (image_D, text_D) in rows_of(tmp_path / "i").items():
        row = index.row(name)
        assert row is not None
        content, _ = index.picture(name)
        np.testing.assert_allclose(image_D, encoder.encode_image(content)[0], atol=1e-3)
        np.testing.assert_allclose(text_D, encoder.encode_text(row.caption)[0], atol=1e-3)
        assert (row.width, row.height, row.source) == (40, 30, "test")
        hits = index.search(Query(vector_D=encoder.encode_text(row.caption)[0], target="text", limit=1)).hits
        assert hits[0].caption == row.caption


@pytest.mark.slow
def test_every_way_in_gives_the_same_vectors(
    checkpoint: Path, make_shards: MakeShards, tmp_path: Path, run: Run
) -> None:
    manifest = make_shards(train=(6,))
    run(checkpoint, "--data", manifest, "--index", tmp_path / "data")
    index = SearchIndex.open(tmp_path / "data")
    names = list(rows_of(tmp_path / "data"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for number, name in enumerate(names):
        (folder / f"{number}.jpg").write_bytes(index.picture(name)[0])
        row = index.row(name)
        assert row is not None
        lines.append({"image_id": f"pictures/{number}.jpg", "sentences": [["alt_text", row.caption]]})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    texts = "".join(f"{line['sentences'][0][1]}\n" for line in lines)  # type: ignore[index]
    (tmp_path / "texts.txt").write_text(texts, encoding="utf-8")

    run(checkpoint, "--images", folder, "--index", tmp_path / "images")
    run(checkpoint, "--jsonl", tmp_path / "rows.jsonl", "--index", tmp_path / "rows")
    run(checkpoint, "--texts", tmp_path / "texts.txt", "--index", tmp_path / "texts")
    expected = np.stack([v[0] for v in rows_of(tmp_path / "data").values() if v[0] is not None])
    expected_texts = np.stack([v[1] for v in rows_of(tmp_path / "data").values() if v[1] is not None])
    for name in ("images", "rows"):
        found = np.stack([v[0] for v in rows_of(tmp_path / name).values() if v[0] is not None])
        np.testing.assert_array_equal(found, expected)
    for name in ("rows", "texts"):
        found = np.stack([v[1] for v in rows_of(tmp_path / name).values() if v[1] is not None])
        np.testing.assert_allclose(found, expected_texts, atol=1e-3)  # texts go with others of their length

    for out, source in (("d", ["--data", manifest, "--split", "train"]), ("i", ["--images", folder])):
        code, written, _ = run(checkpoint, *source, "--out", tmp_path / f"{out}.parquet")
        assert (code, written["rows"]) == (0, 6)
        table = pq.read_table(tmp_path / f"{out}.parquet")
        assert "caption" in table.column_names
        np.testing.assert_allclose(np.array(table["image_features"].to_pylist()), expected, atol=1e-3)


@pytest.mark.slow
def test_pictures_and_texts_in_one_index_are_found_by_each_other_and_by_their_like(
    checkpoint: Path, tmp_path: Path, run: Run
) -> None:
    folder = pictures(tmp_path / "p", range(5))
    (tmp_path / "t.txt").write_text("红船\t旧题\n山\n白云\n山\n", encoding="utf-8")
    words = (checkpoint, "--images", folder, "--texts", tmp_path / "t.txt", "--index", tmp_path / "i")
    code, written, said = run(*words, "--part-rows", 2)
    assert (code, written["rows"], written["parts"]) == (0, 8, 5)
    assert "1 lines of t.txt repeat earlier ones" in said
    index, encoder = SearchIndex.open(tmp_path / "i"), open_encoder(checkpoint, "cpu")
    assert (index.about.images, index.about.texts, index.counts()) == (True, True, {"image": 5, "text": 3})
    name = str(folder / "0003.png")
    [image_D], [text_D] = encoder.encode_image([Path(name).read_bytes()]), encoder.encode_text(["山"])
    found = {
        (by, target): [hit.id if target == "image" else hit.caption for hit in index.search(query).hits]
        for by, vector_D in (("image", image_D), ("text", text_D))
        for target in ("image", "text")
        if (query := Query(vector_D, target=target, limit=9))  # type: ignore[arg-type]
    }
    assert {key: len(hits) for key, hits in found.items()} == {k: 5 if k[1] == "image" else 3 for k in found}
    assert (found["image", "image"][0], found["text", "text"][0]) == (name, "山")
    before = bytes_of(tmp_path / "i")
    assert run(*words, "--part-rows", 2)[1]["embedded"] == 0
    assert bytes_of(tmp_path / "i") == before
    (tmp_path / "t.txt").write_text("红船\t旧题\n山\n白云\n海\n", encoding="utf-8")
    grown = run(*words, "--part-rows", 2)[1]
    assert (grown["embedded"], grown["removed"], grown["rows"]) == (1, 0, 9)


@pytest.mark.slow
@pytest.mark.drill(12)
def test_the_onnx_towers_of_an_index_make_the_same_vectors(checkpoint: Path, tmp_path: Path, run: Run) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (tmp_path / "t.txt").write_text("红船\n山\n", encoding="utf-8")
    assert run(checkpoint, "--texts", tmp_path / "t.txt", "--index", tmp_path / "i", "--onnx")[0] == 0
    assert sorted(path.name for path in (tmp_path / "i/queries").iterdir()) == ["image.onnx", "text.onnx"]
    loaded = load(checkpoint, "cpu")
    batch = loaded.text_batch(["红船"])
    session = runtime.InferenceSession(tmp_path / "i/queries/text.onnx")
    inputs = {"input_ids": batch.token_ids_BL.numpy(), "n_tokens": batch.n_tokens_B.numpy()}
    [features] = session.run(None, inputs)
    index = SearchIndex.open(tmp_path / "i")
    hit = index.search(Query(vector_D=features[0], target="text", limit=1)).hits[0]
    assert (hit.caption, round(hit.cosine or 0, 2)) == ("红船", 1.0)


# --- boxes


@pytest.mark.slow
def test_pictures_without_boxes_get_them_from_the_checkpoints_detector_once(
    tmp_path: Path, run: Run, moved: Callable[..., Path]
) -> None:
    from pipeline.detectors.proposals import Proposals  # the test sees both halves; the code does not

    detector = Proposals().detector_id
    folder, cache = pictures(tmp_path / "p", range(3)), tmp_path / "regions"
    checkpoint = moved(tmp_path / "run", detector=detector)
    options = ["--images", folder, "--region-cache", cache]
    code, written, said = run(checkpoint, *options, "--index", tmp_path / "a")
    assert (code, written["detector"]) == (0, detector)
    assert f"boxes for pictures without any: {detector}" in said
    commits = sorted((cache / detector).glob("*.parquet"))
    assert sum(pq.read_metadata(file).num_rows for file in commits) == 3

    from wenlan import load as load_with

    encoder = load_with(checkpoint, "cpu", "proposals")
    for name, (image_D, _) in rows_of(tmp_path / "a").items():
        np.testing.assert_allclose(image_D, encoder.encode_image(name)[0], atol=1e-3)
        row = SearchIndex.open(tmp_path / "a").row(name)
        assert row is not None
        assert len(row.boxes) == 4  # the recipe's most
    run(checkpoint, *options, "--index", tmp_path / "b")
    assert sorted((cache / detector).glob("*.parquet")) == commits  # none was made again
    assert bytes_of(tmp_path / "a" / "img_emb") == bytes_of(tmp_path / "b" / "img_emb")

    grid = run(checkpoint, *options, "--detector", "grid", "--index", tmp_path / "g")[1]
    assert grid["detector"] == "grid"
    differ = [not np.array_equal(rows_of(tmp_path / "g")[n][0], v) for n, (v, _) in rows_of(tmp_path / "a").items()]  # type: ignore[arg-type]
    assert all(differ)


@pytest.mark.slow
def test_a_detector_that_cannot_be_run_is_the_grid_and_said(
    tmp_path: Path, run: Run, moved: Callable[..., Path]
) -> None:
    checkpoint = moved(tmp_path / "run", detector="onnx-0123456789ab")
    folder = pictures(tmp_path / "p", range(2))
    code, written, said = run(checkpoint, "--images", folder, "--index", tmp_path / "i")
    assert (code, written["detector"], read_index(tmp_path / "i").about.detector) == (0, "grid", "grid")
    assert "onnx-0123456789ab, which the checkpoint was trained with, cannot be run" in said
    code, answer, _ = run(checkpoint, "--images", folder, "--index", tmp_path / "j", "--detector", "nonesuch")
    assert (code, "nonesuch" in answer["error"]) == (2, True)


@pytest.mark.slow
def test_regions_of_the_dataset_come_before_any_detector(
    make_shards: MakeShards, tmp_path: Path, run: Run, moved: Callable[..., Path]
) -> None:
    manifest = make_shards(train=(3,), detector="find-1")
    checkpoint = moved(tmp_path / "run", detector="find-1")
    _, written, said = run(checkpoint, "--data", manifest, "--index", tmp_path / "i")
    assert (written["detector"], "without any" in said) == ("find-1", False)
    index = SearchIndex.open(tmp_path / "i")
    row = index.row(next(iter(rows_of(tmp_path / "i"))))
    assert row is not None
    assert row.boxes == ((0, 0, 20, 15), (10, 6, 40, 30))


# --- again


@pytest.mark.slow
@pytest.mark.parametrize("what", ["checkpoint", "dataset", "pictures"])
def test_another_checkpoint_or_other_data_on_the_same_index_is_refused_in_one_line(
    checkpoint: Path, make_shards: MakeShards, tmp_path: Path, run: Run, moved: Callable[..., Path], what: str
) -> None:
    folder, other = pictures(tmp_path / "a/p", range(2)), pictures(tmp_path / "b/p", range(2))
    run(checkpoint, "--images", folder, "--index", tmp_path / "i")
    before = bytes_of(tmp_path / "i")
    words: dict[str, list[object]] = {
        "checkpoint": [moved(tmp_path / "run"), "--images", folder],
        "dataset": [checkpoint, "--data", make_shards(train=(2,))],
        "pictures": [checkpoint, "--images", other],
    }
    code, answer, said = run(*words[what], "--index", tmp_path / "i")
    assert code in (1, 2)
    assert str(tmp_path / "i") in answer["error"]
    assert len([line for line in said.splitlines() if line.startswith("wenlan-train:")]) == 1
    assert bytes_of(tmp_path / "i") == before


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "content"), [("metadata", b""), ("rows", b"junk" * 100), ("img_emb", None)])
def test_a_damaged_index_is_one_line_that_names_the_file(
    checkpoint: Path, tmp_path: Path, run: Run, kind: str, content: bytes | None
) -> None:
    folder = pictures(tmp_path / "p", range(2))
    run(checkpoint, "--images", folder, "--index", tmp_path / "i")
    [file] = (tmp_path / "i" / kind).iterdir()
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    pictures(folder, [3])
    code, answer, said = run(checkpoint, "--images", folder, "--index", tmp_path / "i")
    assert code == 1
    assert f"{tmp_path / 'i'}: the index is damaged ({kind}/{file.name}: " in answer["error"]
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_damaged_part_that_waits_is_one_line_that_names_the_file(
    checkpoint: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the index was finished, on a disk that lost what was written last."""
    folder = pictures(tmp_path / "p", range(2))
    with monkeypatch.context() as killed:
        killed.setattr(IndexWriter, "finish", Mock(side_effect=KeyboardInterrupt))
        assert run(checkpoint, "--images", folder, "--index", tmp_path / "i")[0] == 130
    [file] = (tmp_path / "i" / "rows").iterdir()
    file.write_bytes(b"")
    code, answer, said = run(checkpoint, "--images", folder, "--index", tmp_path / "i")
    assert code == 1
    assert f"{tmp_path / 'i'}: the index is damaged (rows/{file.name}: " in answer["error"]
    assert "Traceback" not in said


def test_two_embeds_into_one_index_at_once_are_refused(checkpoint: Path, tmp_path: Path, run: Run) -> None:
    folder = pictures(tmp_path / "p", range(2))
    with locked(tmp_path / "i"):
        code, answer, _ = run(checkpoint, "--images", folder, "--index", tmp_path / "i")
    assert (code, "another command is writing this index" in answer["error"]) == (1, True)


_KILLED = """
import os, signal, sys
from data_specs.search.index import IndexWriter
from training import cli
commit, left = IndexWriter.commit, int(sys.argv[1])
def killed(self, *given):
    global left
    commit(self, *given)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
IndexWriter.commit = killed
cli.main(sys.argv[2:])
"""
"""The command, killed behind so many parts while the towers are at the next one: a kill from outside may come late."""


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    """Processes that have imported what embeds pictures."""
    imports = (
        "import timm, torch\nfrom data_specs.search.index import IndexWriter\nfrom training.use import embedding\n"
    )
    started = Forks(imports, tmp_path, os.environ | {"PYTHONPATH": str(ROOT)})
    yield started
    started.close()


@pytest.mark.drill(20)
def test_a_killed_embed_repeats_at_most_the_parts_in_flight(
    tmp_path: Path, moved: Callable[..., Path], run: Run, forks: Forks
) -> None:
    """Killed again and again, until it is done: what is left is what an undisturbed run leaves."""
    checkpoint, folder = moved(tmp_path / "run"), pictures(tmp_path / "p", range(208))
    words = [str(checkpoint), "--images", str(folder), "--part-rows", "16"]
    i = tmp_path / "killed"

    def committed() -> dict[str, int]:
        waiting = read_index(i, unfinished=True).waiting if i.exists() else ()
        return {file.path: (i / file.path).stat().st_mtime_ns for part in waiting for file in part.files.values()}

    for wanted in (3, 11):
        before = committed()
        forks(_KILLED, wanted - len(before) // 3, "embed", *words, "--index", i, code=-signal.SIGKILL)
        after = committed()
        assert len(after) == 3 * wanted
        assert before.items() <= after.items()  # no part that was there was made again
        with pytest.raises(IndexFault, match="is not finished"):
            read_index(i)
    code, _, said = run(*words, "--index", i)  # the same command
    assert (code, "rows of" in said) == (0, True)
    assert run(*words, "--index", tmp_path / "whole")[0] == 0
    left, whole = bytes_of(i), bytes_of(tmp_path / "whole")
    assert left == whole


@pytest.mark.slow
def test_a_takedown_while_an_index_is_written_is_refused_and_one_behind_a_kill_is_whole(
    checkpoint: Path, make_shards: MakeShards, tmp_path: Path
) -> None:
    """The shards and the index lose a sample that the killed command had embedded."""
    data, index = tmp_path / "data", tmp_path / "i"
    make_shards(train=(3, 4)).parent.rename(data)
    inputs = Inputs(data=(str(data),), cache=str(tmp_path / "cache"))
    forgotten = sample(5, "train").key

    def forget() -> int:
        return remove(index, lambda rows: np.isin(rows["id"].to_pylist(), [forgotten])).rows

    def disturbed(job: Any, folder: Path, about: Any, tasks: Any) -> Iterator[PartResult]:
        yield from make_parts(*job.open(), folder, about, tasks, None, lambda rows: None)
        with pytest.raises(IndexFault, match=f"{index}: another command is writing this index; wait until"):
            forget()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_index(checkpoint, inputs, index, rows=2, run=disturbed)
    shutil.rmtree(data)
    data.mkdir()
    numbers = ([0, 1, 2], [3, 4, 6])
    shards = [
        write_shard(data, "train", n, [sample(i, "train") for i in own], [drawn(i) for i in own], None)
        for n, own in enumerate(numbers)
    ]
    write_manifest(data, shards)
    assert forget() == 1
    assert embed_index(checkpoint, inputs, index, rows=2)["embedded"] == 0
    assert not [name for name, content in bytes_of(index).items() if forgotten.encode() in content]
    embed_index(checkpoint, inputs, tmp_path / "anew", rows=2)
    assert rows_of(index).keys() == rows_of(tmp_path / "anew").keys()


def test_nothing_that_can_be_read_is_one_line_and_no_index(checkpoint: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "x.jpg").write_bytes(b"junk")
    code, answer, _ = run(checkpoint, "--images", tmp_path / "x.jpg", "--index", tmp_path / "i")
    assert (code, "nothing was embedded" in answer["error"]) == (1, True)
    code, answer, _ = run(checkpoint, "--images", tmp_path / "x.jpg", "--out", tmp_path / "x.parquet")
    assert (code, (tmp_path / "x.parquet").exists()) == (1, False)
    with pytest.raises(IndexFault):
        read_index(tmp_path / "i")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--texts", "t", "--out", "o.parquet", "--images", "a.jpg"], "write two files, or use --index"),
        (["--texts", "t"], "give --out FILE to write features to a file, or --index DIR"),
        (["--texts", "t", "--index", "i", "--out", "o"], "give --out FILE"),
        (["--texts", "t", "--out", "o", "--onnx"], "--onnx: needs --index"),
        (["--texts", "t", "--out", "o", "--workers", "2"], "--workers: needs --index"),
        (["--texts", "t", "--index", "i", "--address", "auto"], "--address: needs --workers"),
        (["--texts", "t", "--index", "i", "--workers", "0"], "--workers: 0 is out of range"),
        (["--data", "muge:d", "--index", "i"], "--index: does not take a benchmark"),
        (["--texts", "t", "--index", "s3://bucket/i"], "--index: s3://bucket/i: must be on a local disk"),
    ],
)
def test_options_that_do_not_go_together_are_bad_usage(words: list[str], line: str, run: Run) -> None:
    code, answer, _ = run("run", *words)
    assert (code, line in answer["error"]) == (2, True), answer


@pytest.mark.slow
def test_an_index_is_searchable_while_it_grows(checkpoint: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", range(3))
    inputs = Inputs(images=(str(folder),))
    embed_index(checkpoint, inputs, tmp_path / "i", rows=2)
    pictures(folder, [3, 4, 5])
    (folder / "0000.png").unlink()
    seen: list[int] = []

    def look(job: Any, index: Path, about: Any, tasks: Any) -> Iterator[PartResult]:
        for made in make_parts(*job.open(), index, about, tasks, None, lambda rows: None):
            yield made
            seen.append(SearchIndex.open(index).rows)

    opened = SearchIndex.open(tmp_path / "i")
    embed_index(checkpoint, inputs, tmp_path / "i", rows=2, run=look)
    assert set(seen) == {3}
    assert opened.reload_if_changed()
    assert opened.rows == 5
