"""Zero-shot classification: equal to brute force and to clip_benchmark; labels of folders and datasets."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests.training.evaluation.conftest import CLASSES, picture
from training import cli
from training.errors import InputError
from training.evaluation import features
from training.evaluation.class_texts import TEMPLATES, class_features, fill
from training.evaluation.labelled import ClassName
from training.evaluation.results import Result
from training.evaluation.tasks import Task, task
from training.evaluation.tasks.zero_shot import summary
from training.use.embed import embed_files

Run = Callable[..., Result]


def as_tars(folder: Path, out: Path) -> Path:
    """The folder of classes as clip_benchmark reads it: a tar of split test, names and templates."""
    (out / "classnames.txt").write_text("".join(f"{names[0]}\n" for names in CLASSES.values()), encoding="utf-8")
    (out / "zeroshot_classification_templates.txt").write_text("一幅{c}\n有{c}的图", encoding="utf-8")
    (out / "test").mkdir()
    (out / "test" / "nshards.txt").write_text("1")
    with tarfile.open(out / "test" / "0.tar", "w") as tar:
        for number, file in enumerate(sorted(folder.rglob("*.jpg"))):
            label = str(list(CLASSES).index(file.parent.name)).encode()
            for suffix, data in (("cls", label), ("jpg", file.read_bytes())):
                info = tarfile.TarInfo(f"s{number:04d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out


def test_figures_equal_brute_force_over_features_of_embed(
    run: Run, checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    files = sorted((folder / "val").rglob("*.jpg"), key=lambda p: (list(CLASSES).index(p.parent.name), p.name))
    lines = [fill(template, name) for names in CLASSES.values() for name in names for template in TEMPLATES]
    (tmp_path / "t.txt").write_text("\n".join(lines), encoding="utf-8")
    embed_files(checkpoint, [str(f) for f in files], None, tmp_path / "t.txt", tmp_path / "f.safetensors")
    features = {name: tensor.double().numpy() for name, tensor in load_file(tmp_path / "f.safetensors").items()}
    owner = np.repeat(np.arange(4), [len(names) * len(TEMPLATES) for names in CLASSES.values()])
    means = np.stack([features["text_features"][owner == c].mean(0) for c in range(4)])
    scores = features["image_features"] @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    label = np.array([list(CLASSES).index(f.parent.name) for f in files])
    result = run("zero-shot", f"classes:{folder}")
    assert (result["n"], result["protocol"]["images"], result["corrupt"]) == (14, 14, 0)
    assert result["top1"] == pytest.approx((scores.argmax(1) == label).mean())
    per_class = {row["class"]: (row["n"], row["top1"]) for row in result["per_class"]}
    for c, names in enumerate(CLASSES.values()):
        assert per_class[names[0]] == (sum(label == c), pytest.approx((scores[label == c].argmax(1) == c).mean()))
    assert "top5" not in result, "of four classes"
    assert "top-1" in "\n".join(summary(result))


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:WebDataset",  # clip_benchmark leaves out an argument
    "ignore::pytest.PytestUnraisableExceptionWarning",  # webdataset leaves a tar open
    "ignore::ResourceWarning",
)
def test_clip_benchmark_measures_the_same(run: Run, checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    """Its own function over tars of the same pictures, by the registration of training/use/clip_benchmark.py."""
    import torch
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.metrics import zeroshot_classification

    from training.use.clip_benchmark import load_wenlan, register

    register()
    place = as_tars(folder / "val", tmp_path)
    templates = place / "zeroshot_classification_templates.txt"
    model, transform, tokenizer = load_wenlan(str(checkpoint))
    dataset = build_dataset("wds/ours", root=str(place), transform=transform, split="test", download=False)
    loader = torch.utils.data.DataLoader(dataset.batched(4), batch_size=None)

    theirs = zeroshot_classification.evaluate(
        model, loader, tokenizer, dataset.classes, dataset.templates, "cpu", amp=False
    )
    ours = run("zero-shot", f"classes:{folder}", templates=templates)
    assert ours["protocol"]["templates"] == 2
    assert ours["top1"] == pytest.approx(theirs["acc1"])
    assert ours["mean_per_class"] == pytest.approx(theirs["mean_per_class_recall"])


@pytest.mark.slow
def test_labels_of_a_dataset_and_what_of_it_stands_in_train(
    run: Run, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    manifest = make_shards(train=(12,), val=(10,))
    keys = pq.read_table(manifest.parent / "val-000000.parquet")["key"].to_pylist()
    table = pa.table({"key": keys[:8], "label": ["山", "水"] * 4})
    pq.write_table(table, tmp_path / "labels.parquet")
    (tmp_path / "labels.csv").write_text(
        "key,label\n" + "".join(f"{k},{'山水'[i % 2]}\n" for i, k in enumerate(keys[:8])), encoding="utf-8"
    )
    (tmp_path / "labels.jsonl").write_text(
        "".join(json.dumps({"key": k, "label": "山水"[i % 2]}) + "\n" for i, k in enumerate(keys[:8]))
    )
    results = [run("zero-shot", manifest, labels=tmp_path / f"labels.{s}") for s in ("parquet", "csv", "jsonl")]
    assert results[0] == results[1] == results[2]
    assert results[0]["n"] == 8, "samples without a label are left out"
    assert (results[0]["headline"], results[0]["in_train"]) == ("unseen", {"either": 0})
    path = manifest.parent / "val-000000.parquet"
    rows, schema = pq.read_table(path).to_pylist(), pq.read_schema(path)
    leaders = pq.read_table(manifest.parent / "train-000000.parquet")["image_leader"].to_pylist()
    for i in range(3):
        rows[i]["image_leader"] = leaders[i]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    described = json.loads(manifest.read_bytes())
    [shard] = [shard for shard in described["shards"] if shard["split"] == "val"]
    shard["parquet"] |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    manifest.write_text(json.dumps(described))
    result = run("zero-shot", manifest, labels=tmp_path / "labels.csv")
    assert (result["seen"]["n"], result["unseen"]["n"], result["n"]) == (3, 5, 8)
    right = [result[part]["top1"] * result[part]["n"] for part in ("seen", "unseen")]
    assert sum(right) == pytest.approx(result["top1"] * 8)


@pytest.mark.slow
def test_templates_of_a_file_change_the_digest(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("图里有{}\n{c}\n", encoding="utf-8")
    ours, theirs = (run("zero-shot", f"classes:{folder}", templates=t) for t in (None, tmp_path / "t.txt"))
    assert (ours["protocol"]["templates"], theirs["protocol"]["templates"]) == (len(TEMPLATES), 2)
    assert theirs["protocol"]["templates_sha256"] == hashlib.sha256("图里有{}\n{c}".encode()).hexdigest()
    assert ours["protocol"]["templates_sha256"] != theirs["protocol"]["templates_sha256"]
    assert theirs["protocol"]["templates_sha256"][:12] in theirs["protocol"]["line"]
    (tmp_path / "t.txt").write_text("没有位置\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"t\.txt: template '没有位置' lacks \{\}"):
        run("zero-shot", f"classes:{folder}", templates=tmp_path / "t.txt")


def test_an_image_that_cannot_be_read_is_counted_and_left_out(run: Run, folder: Path, tmp_path: Path) -> None:
    for name in ("mountain", "water"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(picture(name, 1))
    (tmp_path / "water" / "2.jpg").write_bytes(b"no image")
    result = run("zero-shot", f"classes:{tmp_path}")
    assert (result["n"], result["corrupt"], result["split"]) == (2, 1, "all")


def test_examples_show_hits_and_misses_with_pictures(run: Run, folder: Path) -> None:
    result = run("zero-shot", f"classes:{folder}", pictures=True)
    assert {one["right"] for one in result["examples"]} == {result["top1"] > 0, result["top1"] == 1}
    for one in result["examples"]:
        assert one["query"]["picture"].startswith("data:image/jpeg;base64,")
        assert one["right"] == one["answers"][0]["right"] == (one["rank"] == 1)
        assert [a["text"] for a in one["answers"] if a["right"]] == [one["query"]["name"]]
        scores = [answer["score"] for answer in one["answers"]]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--data", "classes:{folder}", "--task", "zero-shot", "--split", "dev"],
            2,
            "does not have a dev split; it has train, val",
        ),
        (["--data", "classes:{folder}/none", "--task", "zero-shot"], 1, "no such folder"),
        (["--data", "classes:{folder}", "--labels", "x", "--task", "zero-shot"], 2, "is for datasets"),
        (
            ["--data", "{folder}/manifest.json", "--task", "zero-shot"],
            2,
            "--labels: a dataset needs a .jsonl, .csv or .parquet file",
        ),
        (["--data", "folder:{folder}", "--task", "retrieval", "--templates", "t"], 2, "--templates: sentences for"),
        (["--data", "classes:{folder}", "--task", "zero-shot", "--regions", "r"], 2, "--regions: boxes of a benchmark"),
        (
            ["--data", "classes:{folder}", "--task", "zero-shot", "--min-score", "0.5"],
            2,
            "--min-score: for boxes that a detector",
        ),
        (["--data", "folder:{folder}", "--task", "retrieval", "--tokens", "jieba"], 2, "--tokens: for captions"),
        (["--data", "folder:{folder}", "--task", "retrieval", "--classes", "c"], 2, "--classes: names of classes"),
        (
            ["--data", "folder:{folder}", "--task", "captioning", "--towers", "key"],
            2,
            "--towers: a captioner only has query towers",
        ),
        (["--data", "folder:{folder}", "--task", "zero-shot"], 2, "does not label images"),
        (["--data", "classes:{folder}", "--task", "regions"], 2, "lacks labelled boxes"),
        (["--data", "coco:{folder}/none.json", "--task", "regions"], 1, "no such file"),
        (
            ["--data", "folder:{folder}", "--task", "retrieval", "--detector", "x"],
            2,
            "--detector: chooses regions of",
        ),
    ],
)
@pytest.mark.slow
def test_bad_usage_is_one_line(
    arguments: list[str], code: int, message: str, checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part.format(folder=folder) for part in arguments]
    assert cli.main(["eval", str(checkpoint), *given]) == code
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_report_that_cannot_be_added_to_is_refused_before_anything_is_measured(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.evaluation.tasks import zero_shot

    def measure(request: object) -> None:
        raise AssertionError

    monkeypatch.setattr(zero_shot, "TASK", Task(measure, zero_shot.summary))
    (tmp_path / "eval.json").write_text('{"mine": 1}')
    words = ["eval", str(checkpoint), "--data", f"classes:{folder}", "--task", "zero-shot", "--report", str(tmp_path)]
    assert cli.main(words) == 1
    assert "eval.json: not an eval.json of wenlan" in capsys.readouterr().err


@pytest.mark.slow
def test_vectors_of_classes_with_many_names_take_no_memory_for_each_of_their_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """21,000 classes with two names each, in twelve sentences, are half a million texts."""
    width = 512

    def encode(loaded: object, modality: str, batch: list[str]) -> np.ndarray:
        return np.stack([np.full(width, 1 + ("山" in text), np.float32) for text in batch])

    monkeypatch.setattr(features, "encode_batch", encode)
    settings = SimpleNamespace(moco=SimpleNamespace(feature_dim=width))
    loaded: Any = SimpleNamespace(config=settings, text_batch=list)
    classes = [ClassName("a", tuple(f"山{n}" for n in range(2000))), ClassName("b", ("水",))]
    tracemalloc.start()
    vectors = class_features(loaded, classes, TEMPLATES)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert vectors == pytest.approx(np.full((2, width), width**-0.5))
    assert peak < 2000 * len(TEMPLATES) * width  # a byte a number: their features alone take four


def test_a_task_is_known_by_its_file(run: Run) -> None:
    from training.evaluation import tasks

    files = {p.stem for p in Path(tasks.__file__).parent.glob("*.py") if not p.stem.startswith("_")}
    assert {name.replace("-", "_") for name in tasks.TASKS} == files
    assert all(isinstance(task(name), tasks.Task) for name in tasks.TASKS)
