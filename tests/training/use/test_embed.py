"""`embed` by every way in: the same picture and the same words must give the same features."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import moved_checkpoint
from training import cli
from training.errors import InputError
from training.use.embed import embed_files
from training.use.indexing import Inputs, embed_parquet

Run = Callable[..., tuple[int, str, str]]


BOXES = [[4, 2, 30, 40], [0, 0, 20, 20], [30, 10, 60, 50], [8, 8, 16, 16], [1, 2, 3, 4], [9, 9, 50, 60]]


SENTENCES = [["alt_text", "红船"], ["sur_text", "山水相连。白云飞"]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, 4 boxes at most, 64 x 64 pixels, that was trained on a detector's boxes."""
    return moved_checkpoint(tmp_path_factory.mktemp("run"), detector="onnx-x")


def row(image: str, boxes: Any = BOXES, sentences: Any = SENTENCES) -> str:
    return json.dumps({"image_id": image, "sentences": sentences, "bbox": boxes}, ensure_ascii=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.mark.slow
def test_bf16_is_near_and_an_index_has_one_precision(
    checkpoint: Path, pictures: list[Path], tmp_path: Path, run: Run
) -> None:
    (texts := tmp_path / "t.txt").write_text("红船\n山水相连\n", encoding="utf-8")
    inputs = ("--images", *pictures, "--texts", texts)
    found = []
    for precision in ((), ("--precision", "fp32"), ("--precision", "bf16")):
        out = tmp_path / f"{len(found)}.safetensors"
        assert run("embed", checkpoint, *inputs, *precision, "--out", out)[0] == 0
        found.append({n: t for n, t in load_file(out).items() if n.endswith("_features")})
    for name, exact in found[0].items():
        assert torch.equal(exact, found[1][name])
        assert 0 < (exact - found[2][name]).abs().max() < 0.03
    index = tmp_path / "index"
    assert run("embed", checkpoint, "--texts", texts, "--index", index, "--precision", "bf16")[0] == 0
    code, _, stderr = run("embed", checkpoint, "--texts", texts, "--index", index)
    assert code
    assert "its precision is 'bf16', not 'fp32'" in stderr
    asked = ("--data", "coco-cn:DIR", "--to", "chinese-clip", "--precision", "bf16", "--out", tmp_path / "benchmark")
    code, _, stderr = run("embed", checkpoint, *asked)
    assert code
    assert "--precision: a benchmark is embedded in the run's precision" in stderr


@pytest.mark.slow
def test_rows_and_files_give_the_same_features(
    checkpoint: Path, pictures: list[Path], tmp_path: Path, run: Run
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(row(f"images/{p.name}") for p in pictures) + "\n", encoding="utf-8")
    out = tmp_path / "new" / "rows.parquet"
    code, stdout, _ = run("embed", checkpoint, "--jsonl", rows, "--text-kind", "sur_text", "--out", out, "--json")
    assert (code, json.loads(stdout)["rows"], json.loads(stdout)["unreadable"]) == (0, 3, 0)
    table = pq.read_table(out)
    assert table.column_names[:4] == ["id", "image_features", "text_features", "caption"]
    assert table.schema.field("image_features").type == pa.list_(pa.float32())
    assert table["id"].to_pylist() == [f"images/{p.name}" for p in pictures]
    of_rows = np.array(table["image_features"].to_pylist(), dtype=np.float32)
    np.testing.assert_allclose(np.linalg.norm(of_rows, axis=1), 1, atol=1e-5)

    # of a longer box list the first are taken
    regions, texts, out = tmp_path / "boxes.jsonl", tmp_path / "t.txt", tmp_path / "files.safetensors"
    regions.write_text("\n".join(json.dumps(BOXES[:4]) for _ in pictures))
    texts.write_text(SENTENCES[1][1] + "\n", encoding="utf-8")
    assert run("embed", checkpoint, "--images", *pictures, "--regions", regions, "--texts", texts, "--out", out)[0] == 0
    found = load_file(out)
    np.testing.assert_allclose(found["image_features"].numpy(), of_rows, atol=1e-6)
    assert found["text_features"].shape == (1, 32)

    of_texts = np.array(table["text_features"].to_pylist())
    np.testing.assert_allclose(np.repeat(found["text_features"].numpy(), 3, 0), of_texts, atol=1e-6)


@pytest.mark.slow
def test_broken_rows_are_named_and_counted_and_the_others_are_as_without_them(
    checkpoint: Path, pictures: list[Path], tmp_path: Path, run: Run
) -> None:
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    good = [row(f"images/{p.name}") for p in pictures]
    bad = [
        row("cut.jpg"),
        row("gone.jpg"),
        "{'image_id': 1}",
        '{"sentences": []}',
        row("images/0.png", boxes=[[1, 2, 3]]),
        row("images/0.png", boxes=[[1, 2, 3, float("inf")]]),
        row("images/0.png", sentences=["红"]),
        row("images/0.png", sentences=[["alt_text", "红"]]),
        "[" * 100_000,
        row("images"),
    ]
    alone, mixed = tmp_path / "good.jsonl", tmp_path / "mixed.jsonl"
    alone.write_text("\n".join(good), encoding="utf-8")
    mixed.write_text("\n\n".join([*bad[:5], good[0], *bad[5:], *good[1:]]), encoding="utf-8")
    embed_parquet(checkpoint, Inputs(jsonl=str(alone), text_kind="first"), tmp_path / "good.parquet")
    code, stdout, stderr = run(
        "embed", checkpoint, "--jsonl", mixed, "--text-kind", "first", "--out", tmp_path / "mixed.parquet", "--json"
    )
    assert code == 0
    assert json.loads(stdout)["unreadable"] == len(bad)
    lines = stderr.splitlines()
    assert len([line for line in lines if line.startswith(f"left out: {mixed}:line ")]) == len(bad)
    assert f"{len(bad)} of {len(bad) + 3} rows could not be read and are left out" in lines
    for words in (
        "line 1: ",
        "cut.jpg: ",
        "gone.jpg: No such file or directory",
        "not JSON",
        "image_id is missing",
        "images/0.png: its boxes are not lists of four numbers",
        "images/0.png: its boxes are not finite numbers",
        "images/0.png: its sentences are not pairs of kind and text",
        "images/0.png: no text of kind first",
        "images: not a regular file",
    ):
        assert words in stderr, words
    wanted, found = pq.read_table(tmp_path / "good.parquet"), pq.read_table(tmp_path / "mixed.parquet")
    assert found["id"].to_pylist() == wanted["id"].to_pylist()
    for name in ("image_features", "text_features"):
        np.testing.assert_allclose(np.array(found[name].to_pylist()), np.array(wanted[name].to_pylist()), atol=1e-6)


@pytest.mark.timeout(120)
def test_no_good_row_at_all_is_an_error_and_leaves_no_file(checkpoint: Path, tmp_path: Path) -> None:
    """A row may name a pipe or a device, whose reading would have no end."""
    os.mkfifo(tmp_path / "pipe")
    rows = [json.dumps({"image_id": name, "sentences": [["alt_text", "图"]]}) for name in ("pipe", "/dev/zero")]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, "x"]), encoding="utf-8")
    with pytest.raises(InputError, match=r"rows.jsonl: none of its rows could be embedded \(3 are left out\)"):
        embed_parquet(checkpoint, Inputs(jsonl=str(tmp_path / "rows.jsonl")), tmp_path / "out.parquet")
    assert sorted(p.name for p in tmp_path.iterdir() if "cache" not in p.name) == ["pipe", "rows.jsonl"]


def test_images_without_regions_are_embedded_without_a_warning(
    checkpoint: Path, pictures: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embed_files(checkpoint, [str(pictures[0])], None, None, tmp_path / "out")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--images", "a.jpg", "--jsonl", "r.jsonl"), "embed: give one of --data"),
        ((), "embed: give one of --data"),
        (("--texts", "t.txt", "--regions", "r.jsonl"), "--regions: gives boxes of --images; give --images too"),
        (("--images", "a.jpg", "--text-kind", "first"), "--text-kind: needs --jsonl"),
        (("--images", "a.jpg", "--split", "val"), "--split: needs --data"),
        (
            ("--images", "a.jpg", "--detector", "proposals"),
            "--detector: boxes are made only for --index, --jsonl, and --images",
        ),
        (("--images", "a.jpg", "--region-cache", "c"), "--region-cache: boxes are made only for --index"),
        (("--data", "muge:d", "--detector", "grid"), "--detector: boxes are made only for --index"),
    ],
)
def test_kinds_of_input_that_do_not_go_together_are_bad_usage(run: Run, arguments: tuple[str, ...], line: str) -> None:
    code, stdout, stderr = run("embed", "ck", *arguments, "--out", "x")
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"wenlan-train: {line}")
