"""Evaluation of a checkpoint: what stands in train apart, benchmarks by every form, query and key towers."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.checkpoints import save
from tests.training.conftest import moved_checkpoint, retrieval_of
from training import cli
from training.data.tokenizer import load_tokenizer
from training.evaluation.hits import Clusters
from training.evaluation.labelled import EvaluationData
from training.evaluation.retrieval import KS, rank
from training.evaluation.tasks import Request, task
from training.evaluation.tasks.retrieval import Measured, summary
from training.moco import BriVL
from training.outputs.checkpoint import RunState
from training.resolve import resolve
from training.run.optimizer import build_optimizer
from training.use.embed import embed_data

MakeShards = Callable[..., Path]


def share(manifest: Path, texts: range, images: range) -> None:
    """Let these val samples have the text leader, or the image leader, of a train sample: a second text's at that."""
    root = manifest.parent
    train = pq.read_table(root / "train-000000.parquet").to_pylist()
    table = pq.read_table(root / "val-000000.parquet")
    rows = table.to_pylist()
    for i in texts:
        rows[i]["texts"][0]["text_leader"] = train[i]["texts"][1]["text_leader"]
    for i in images:
        rows[i]["image_leader"] = train[i]["image_leader"]
    path = root / "val-000000.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    described = json.loads(manifest.read_bytes())
    [shard] = [shard for shard in described["shards"] if shard["split"] == "val"]
    shard["parquet"] |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    manifest.write_text(json.dumps(described))


def expected(features: dict[str, torch.Tensor], asks: np.ndarray) -> dict[str, list[float]]:
    """Recalls by brute force, in float64, of the queries that ask."""
    image, text = (features[f"{name}_features"].numpy().astype(np.float64) for name in ("image", "text"))
    hits = np.zeros((len(image), len(text)), bool)
    for name in ("image_ids", "text_ids"):
        hits |= np.equal.outer(features[name].numpy(), features[name].numpy())
    found = {}
    for direction, similar, of in (("i2t", image @ text.T, hits), ("t2i", text @ image.T, hits.T)):
        best = np.where(of, similar, -np.inf).max(1, keepdims=True)
        ranks = (1 + (~of & (similar >= best)).sum(1))[asks]
        found[direction] = [float((ranks <= k).mean()) for k in KS]
    return found


@pytest.mark.slow
def test_queries_that_stand_in_train_are_told_from_those_that_do_not(
    make_shards: MakeShards, checkpoint: Path, tmp_path: Path
) -> None:
    manifest = make_shards(train=(12, 9), val=(20,))
    share(manifest, texts=range(5), images=range(3, 9))
    result = retrieval_of(checkpoint, str(manifest))
    assert result["in_train"] == {"images": 6, "texts": 5, "either": 9}
    assert result["headline"] == "unseen"
    assert (result["samples"], result["seen"]["samples"], result["unseen"]["samples"]) == (20, 9, 11)
    embed_data(checkpoint, [str(manifest)], "val", tmp_path / "f.safetensors")
    features = load_file(tmp_path / "f.safetensors")
    seen = np.arange(20) < 9
    for part, asks in ((result, seen | True), (result["seen"], seen), (result["unseen"], ~seen)):
        for direction, recalls in expected(features, asks).items():
            assert [part[direction][f"r{k}"] for k in KS] == pytest.approx(recalls)
            assert part[direction]["queries"] == asks.sum()
            assert part[direction]["chance_r10"] == pytest.approx(0.5), "all 20 candidates, whoever asks"
    lines = summary(result)
    assert "9 of 20 pairs also occur in train (by image leader 6, by text leader 5)" in lines[2]
    assert lines[1] == "warning: the unseen figure is based on 11 queries; at least 30 are needed"
    assert [line.partition(":")[0] for line in lines[3:-1]] == [
        f"{part}{direction}"
        for part in ("unseen", "seen in train", "all")
        for direction in (", image -> text", ", text -> image", "")
    ]


def test_where_all_queries_stand_in_train_they_are_the_headline(make_shards: MakeShards, checkpoint: Path) -> None:
    manifest = make_shards(train=(12,), val=(6,))
    share(manifest, texts=range(6), images=range(0))
    result = retrieval_of(checkpoint, str(manifest))
    assert (result["headline"], result["unseen"]) == ("all", {"samples": 0})
    assert "no unseen query is left" in "\n".join(summary(result))


@pytest.mark.slow
def test_without_a_train_split_it_is_unknown(make_shards: MakeShards, checkpoint: Path) -> None:
    manifest = make_shards(train=(), val=(6,))
    tar = str(manifest.parent / "val-000000.tar")
    for data in ([str(manifest)], [tar], [f"{tar}@2"]):
        result = retrieval_of(checkpoint, *data)
        assert (result["in_train"], result["seen"], result["unseen"], result["headline"]) == (None, None, None, "all")
        assert "unknown" in summary(result)[1]
        assert result["samples"] == 6


def test_the_protocol_names_data_candidates_and_checkpoint(make_shards: MakeShards, checkpoint: Path) -> None:
    manifest = make_shards(train=(12,), val=(6,))
    protocol = retrieval_of(checkpoint, str(manifest))["protocol"]
    digest = hashlib.sha256((checkpoint / "checkpoint.json").read_bytes()).hexdigest()
    assert (protocol["checkpoint"], protocol["images"], protocol["texts"]) == (digest, 6, 6)
    assert protocol["line"] == (
        f"{manifest}, val: 6 images, 6 texts; a hit has the same image leader or text leader; "
        f"query towers of {digest[:12]}"
    )


@pytest.mark.slow
def test_key_towers_are_those_that_the_run_averaged(
    make_shards: MakeShards, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same as a checkpoint whose query trunks are the key towers."""
    manifest = make_shards(train=(12,), val=(30,))
    found = retrieval_of(checkpoint, str(manifest), towers="key")
    query = retrieval_of(checkpoint, str(manifest))
    config = resolve("tiny")
    model = BriVL(config)
    for file in ("towers", "key_towers"):
        model.load_state_dict(load_file(checkpoint / f"{file}.safetensors"), strict=False)
    model.image_query.trunk.load_state_dict(model.image_key.state_dict())
    model.text_query.trunk.load_state_dict(model.text_key.state_dict())
    state, tokenizer = RunState(1, 8, 0, (), (), ""), load_tokenizer("gb2312")
    swapped = save(tmp_path / "run", model, build_optimizer(model, config.optim), config, tokenizer, state, 1)
    other = retrieval_of(swapped, str(manifest))
    assert (found["i2t"], found["t2i"]) == (other["i2t"], other["t2i"])
    assert (found["i2t"], found["t2i"]) != (query["i2t"], query["t2i"])
    assert (found["protocol"]["towers"], query["protocol"]["towers"]) == ("key", "query")

    clip = resolve("tiny", ["moco.objective=clip"])
    alone = BriVL(clip)
    without = save(tmp_path / "clip", alone, build_optimizer(alone, clip.optim), clip, tokenizer, state, 1)
    words = ["eval", str(without), "--data", str(manifest), "--task", "retrieval", "--towers", "key"]
    assert cli.main(words) == 2
    assert "lacks key towers (objective clip)" in capsys.readouterr().err


def pictures(folder: Path) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"第{i}张图\n{i}号图片\n", encoding="utf-8")
    return paths


@pytest.mark.slow
def test_a_benchmark_is_evaluated_by_its_captions(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = pictures(tmp_path / "images")
    data = f"folder:{tmp_path / 'images'}"
    words = ["eval", str(checkpoint), "--data", data, "--task", "retrieval", "--json"]
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["samples"], result["corrupt"], result["headline"], result["in_train"]) == (6, 0, "all", None)
    assert (result["i2t"]["queries"], result["t2i"]["queries"]) == (6, 12)
    assert result["i2t"]["chance_r1"] == pytest.approx(2 / 12)
    assert result["t2i"]["chance_r1"] == pytest.approx(1 / 6)
    line = "folder:images, all: 6 images, 12 texts; a hit is a caption of the image; every caption is a query; query"
    assert line in printed.err

    paths[2].write_bytes(b"\x89PNG")  # left out with its two captions, and the others are as they were
    result = retrieval_of(checkpoint, data)
    assert (result["samples"], result["corrupt"], result["t2i"]["queries"]) == (5, 1, 10)


@pytest.mark.slow
def test_a_benchmark_has_the_features_that_embed_gives(checkpoint: Path, tmp_path: Path) -> None:
    """By brute force over what `embed` makes of the same files and texts."""
    from training.use.embed import embed_files

    paths = pictures(tmp_path / "images")
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(p.with_suffix(".txt").read_text("utf-8") for p in paths), encoding="utf-8")
    embed_files(checkpoint, [str(p) for p in paths], None, texts, tmp_path / "f.safetensors")
    features = load_file(tmp_path / "f.safetensors")
    similar = features["image_features"].double() @ features["text_features"].double().T
    own = torch.arange(12)[None] // 2 == torch.arange(6)[:, None]
    best = similar.masked_fill(~own, -9).amax(1, keepdim=True)
    result = retrieval_of(checkpoint, f"folder:{tmp_path / 'images'}")
    for direction, ranks in (
        ("i2t", 1 + ((similar >= best) & ~own).sum(1)),
        ("t2i", 1 + ((similar.T[own.T][:, None] <= similar.T) & ~own.T).sum(1)),
    ):
        assert [result[direction][f"r{k}"] for k in KS] == pytest.approx(
            [float((ranks <= k).double().mean()) for k in KS]
        )
        assert result[direction]["median_rank"] == float(np.median(ranks.numpy()))


@pytest.mark.slow
def test_a_result_names_the_boxes_that_it_was_measured_with(tmp_path: Path) -> None:
    """A benchmark has none of the detector that a checkpoint was trained with."""
    checkpoint = moved_checkpoint(tmp_path / "run", detector="frcnn-1")
    paths = pictures(tmp_path / "images")
    for number, path in enumerate(paths):
        (tmp_path / "classes" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "classes" / str(number % 2) / path.name).write_bytes(path.read_bytes())
    found = {}
    for name, data in (
        ("retrieval", f"folder:{tmp_path / 'images'}"),
        ("zero-shot", f"classes:{tmp_path / 'classes'}"),
    ):
        found[name] = task(name).run(Request(checkpoint, EvaluationData((data,)), "val", device="cpu"))["detector"]
    assert found == dict.fromkeys(found, "grid")
    row = {"image_id": str(paths[0]), "sentences": [["alt_text", "图"]], "bbox": [[1, 2, 30, 40]]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    rows = retrieval_of(checkpoint, f"rows:{tmp_path / 'rows.jsonl'}")
    assert rows["detector"] == "rows:rows.jsonl", "its own"


@pytest.mark.parametrize(
    ("data", "more", "code", "message"),
    [
        (["folder:{tmp}", "x.tar"], [], 2, "is a benchmark; it is evaluated alone"),
        (["{tmp}/manifest.json"], ["--split", "test"], 2, "test: datasets have only the splits train, dev, val"),
        (["aic-icc:{tmp}"], ["--split", "test"], 2, "aic-icc does not have a test split"),
        (["aic-icc:{tmp}/none"], [], 1, "no such file or folder"),
        (["muge:{tmp}"], [], 1, "contains no valid_imgs.tsv"),
    ],
)
def test_bad_usage_is_one_line(
    data: list[str],
    more: list[str],
    code: int,
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: list[Any] = [part.format(tmp=tmp_path) for part in data]
    assert cli.main(["eval", str(checkpoint), "--data", *given, "--task", "retrieval", *more]) == code
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.drill(6)
def test_single_queries_of_a_large_cluster_take_no_memory_for_each_of_its_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """查看原图 stands under thousands of pictures: each is a hit of all of them."""
    from training.evaluation.tasks import retrieval

    count, width = 2_000, 256
    rng = np.random.default_rng(0)
    image_ND, text_MD = (rng.normal(size=(count, width)).astype(np.float32) for _ in range(2))
    hits = Clusters(np.arange(count), np.arange(count) % 2)
    ranks, names = rank(image_ND, text_MD, hits), [str(number) for number in range(count)]
    monkeypatch.setattr(retrieval, "_texts_and_pictures", lambda request, measured: (names, iter(())))
    tracemalloc.start()
    examples = retrieval._examples(None, Measured(image_ND, text_MD, hits, ranks, names, names))  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < image_ND.nbytes, "neither the pairs nor a copy of the features"
    queries = {group: [one["query"] for one in examples if one["group"] == group] for group in ("i2t", "t2i")}
    for one in examples:
        own = int(one["query"].get("text") or one["query"]["id"])
        asking, gallery, key = (image_ND, text_MD, "text") if one["group"] == "i2t" else (text_MD, image_ND, "id")
        similar = gallery.astype(np.float64) @ asking[own].astype(np.float64)
        answers = one["answers"][:5]
        assert [int(answer[key]) for answer in answers] == np.argsort(-similar)[:5].tolist()
        assert [answer["score"] for answer in answers] == pytest.approx(np.sort(-similar)[:5] * -1)
        assert all(answer["right"] == (int(answer[key]) % 2 == own % 2) for answer in one["answers"])
    assert all(queries.values())
