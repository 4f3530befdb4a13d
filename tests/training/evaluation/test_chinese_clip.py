"""Chinese-CLIP's own evaluation scripts find in our features the recalls that `wenlan-train eval` finds."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.exports import export
from pipeline.store.dataset import Dataset
from tests.processes import Forks
from training import cli
from training.evaluation.benchmarks import Benchmark, Caption
from training.evaluation.chinese_clip import write
from training.evaluation.evaluate import BenchmarkFeatures
from training.evaluation.hits import Captions

MakeShards = Callable[..., Path]

INSTALLED = Path(sys.prefix) / "cn-clip"
"""Where `make` installs cn-clip without the lmdb that it pins."""

RUN = """
import runpy, sys, torch
if not torch.cuda.is_available():
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # the scripts know no other device
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    """run("evaluation", *words): a script of cn_clip.eval in a process of its own, which has imported torch."""
    environment = os.environ | {"PYTHONPATH": str(INSTALLED), "CUDA_VISIBLE_DEVICES": ""}
    forks = Forks("import torch, tqdm\n", tmp_path_factory.mktemp("forks"), environment)

    def run(script: str, *words: object) -> None:
        forks(RUN, f"cn_clip.eval.{script}", *words)

    yield run
    forks.close()


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main([*map(str, words), "--json"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.drill(2)
def test_its_recalls_are_ours_to_the_last_digit(
    run: Callable[..., None],
    make_shards: MakeShards,
    checkpoint_with_moved_keys: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A dataset, exported and embedded with a detector's boxes, which are found by the images' sha256."""
    if importlib.util.find_spec("cn_clip") is None and not (INSTALLED / "cn_clip").is_dir():
        pytest.skip("cn-clip is not installed (make installs it into .venv/cn-clip)")
    manifest = make_shards(train=(4,), val=(40,), detector="onnx-x")
    data, out = tmp_path / "data", tmp_path / "features"
    export(Dataset.open(manifest.parent), "chinese-clip", data, ("val",))
    common = [checkpoint_with_moved_keys, "--data", f"chinese-clip:{data}", "--split", "test"]
    common += ["--regions", manifest.parent / "regions" / "onnx-x"]
    ours = answer(capsys, "eval", *common, "--task", "retrieval")
    written = answer(capsys, "embed", *common, "--to", "chinese-clip", "--out", out)
    names = ("imgs.img_feat", "texts.txt_feat", "texts", "texts.tr")
    assert written["files"] == [str(out / f"test_{name}.jsonl") for name in names]

    features = ["--image-feats", out / "test_imgs.img_feat.jsonl", "--text-feats", out / "test_texts.txt_feat.jsonl"]
    run("transform_ir_annotation_to_tr", "--input", data / "test_texts.jsonl")
    of_image = {row["image_id"]: row["text_ids"] for row in rows(data / "test_texts.tr.jsonl")}
    for folder, direction, suffix, answers in (
        (data, "t2i", "", "texts.jsonl"),
        (out, "t2i", "", "texts.jsonl"),
        (data, "i2t", "_tr", "texts.tr.jsonl"),
        (out, "i2t", "_tr", "texts.tr.jsonl"),
    ):
        found, scores = tmp_path / f"found{suffix}.jsonl", tmp_path / "scores.json"
        if not found.exists():
            run(f"make_topk_predictions{suffix}", *features, "--top-k", 10, "--output", found)
        run(f"evaluation{suffix}", folder / f"test_{answers}", found, scores)
        theirs = json.loads(scores.read_bytes())
        assert theirs["success"], theirs
        assert [theirs["scoreJson"][f"r{k}"] for k in (1, 5, 10)] == [
            100 * ours[direction][f"r{k}"] for k in (1, 5, 10)
        ]
    assert 0 < ours["t2i"]["r10"] < 1
    assert {row["image_id"]: row["text_ids"] for row in rows(out / "test_texts.tr.jsonl")} == of_image

    grid = answer(capsys, "embed", *common[:-2], "--to", "chinese-clip", "--out", tmp_path / "grid")
    assert rows(tmp_path / "grid" / "test_imgs.img_feat.jsonl") != rows(out / "test_imgs.img_feat.jsonl")
    assert grid["rows"] == written["rows"] == 40 + len(rows(data / "test_texts.jsonl"))


def test_a_caption_without_an_image_is_a_candidate_and_no_query(
    make_shards: MakeShards, checkpoint_with_moved_keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their script counts a query without an answer as a miss."""
    manifest = make_shards(train=(4,), val=(3,))
    data, out = tmp_path / "data", tmp_path / "features"
    export(Dataset.open(manifest.parent), "chinese-clip", data, ("val",))
    asked = rows(data / "test_texts.jsonl")
    with (data / "test_texts.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text_id": 9_999, "text": "谁也没有拍到", "image_ids": []}) + "\n")
    words = [checkpoint_with_moved_keys, "--data", f"chinese-clip:{data}", "--split", "test"]
    answer(capsys, "embed", *words, "--to", "chinese-clip", "--out", out)
    candidates = [row["text_id"] for row in rows(out / "test_texts.txt_feat.jsonl")]
    assert candidates == [*(row["text_id"] for row in asked), 9_999]
    assert [row["text_id"] for row in rows(out / "test_texts.jsonl")] == candidates[:-1]


def test_the_export_has_the_answers_that_their_script_makes(
    run: Callable[..., None], make_shards: MakeShards, tmp_path: Path
) -> None:
    if not (INSTALLED / "cn_clip").is_dir():
        pytest.skip("cn-clip is not installed (make installs it into .venv/cn-clip)")
    manifest = make_shards(train=(4,), val=(9,))
    export(Dataset.open(manifest.parent), "chinese-clip", tmp_path / "data", ("train", "val"))
    for split in ("train", "test"):
        file = tmp_path / "data" / f"{split}_texts.tr.jsonl"
        ours = file.read_bytes()
        run("transform_ir_annotation_to_tr", "--input", file.with_name(f"{split}_texts.jsonl"))
        assert ours == file.read_bytes()
        assert ours


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "numbered"), [("12", True), ("11", False), ("1x", False), (["1", "9" * 5000], False)]
)
def test_ids_are_those_of_the_benchmark_only_if_all_are_numbers_of_their_own(
    names: str | list[str], numbered: bool, tmp_path: Path
) -> None:
    features = np.eye(2, dtype=np.float32)
    captions = tuple(Caption(name, (name,)) for name in names)
    hits = Captions(2, 2, np.arange(2), np.arange(2))
    benchmark = Benchmark("any", "test", captions, lambda: iter(()))
    write(tmp_path, benchmark, BenchmarkFeatures(features, features, tuple(names), captions, hits, 0))
    assert [row["image_id"] for row in rows(tmp_path / "test_imgs.img_feat.jsonl")] == [1, 2]
    assert (tmp_path / "test_keys.tsv").exists() == (not numbered)


@pytest.mark.slow
def test_a_benchmark_without_numbers_gets_them_and_a_list_of_them(
    checkpoint_with_moved_keys: Path, make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.synthetic import encode

    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        (images / f"{i}.jpg").write_bytes(encode("jpeg", i, (60, 40)))
        (images / f"{i}.txt").write_text(f"第{i}张图\n{i}号\n", encoding="utf-8")
    common = ["embed", checkpoint_with_moved_keys, "--data", f"folder:{images}"]
    answer(capsys, *common, "--to", "chinese-clip", "--out", tmp_path / "out")
    keys = (tmp_path / "out" / "all_keys.tsv").read_text().splitlines()
    assert keys == [f"{i + 1}\t{images / f'{i}.jpg'}" for i in range(3)]
    assert [row["text_ids"] for row in rows(tmp_path / "out" / "all_texts.tr.jsonl")] == [[1, 2], [3, 4], [5, 6]]
    assert rows(tmp_path / "out" / "all_texts.jsonl")[3] == {"text_id": 4, "text": "1号", "image_ids": [2]}

    from safetensors.torch import load_file

    answer(capsys, *common, "--out", tmp_path / "f.safetensors")
    tensors = load_file(tmp_path / "f.safetensors")
    features = [row["feature"] for row in rows(tmp_path / "out" / "all_imgs.img_feat.jsonl")]
    assert tensors["image_features"].tolist() == features
    assert tensors["hits"].tolist() == [[i // 2, i] for i in range(6)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--data", "x", "--to", "chinese-clip"], "--to: chinese-clip needs a benchmark, --data KIND:PATH"),
        (["--data", "x", "--split", "test"], "--split: test: datasets have only the splits"),
        (["--data", "x", "--regions", "y"], "--regions: gives boxes of --images"),
    ],
)
def test_what_is_no_benchmark_is_bad_usage(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["embed", "ck", *words, "--out", "x"]) == 2
    assert line in capsys.readouterr().err
