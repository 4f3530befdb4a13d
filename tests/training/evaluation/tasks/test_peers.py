"""Search within one kind over folders, benchmarks and datasets, against brute force on the features of `embed`."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.training.evaluation.conftest import CLASSES
from training.errors import InputError
from training.evaluation.results import Result
from training.evaluation.retrieval import KS
from training.evaluation.tasks import task
from training.use.embed import embed_files

Run = Callable[..., Result]


def recalls(features: np.ndarray, hits: np.ndarray, candidate: np.ndarray) -> list[float]:
    similar = np.where(candidate, features @ features.T, -np.inf)
    asks = hits.any(1)
    best = np.where(hits, similar, -np.inf).max(1)[asks]
    ranks = 1 + ((similar[asks] >= best[:, None]) & ~hits[asks]).sum(1)
    return [float((ranks <= k).mean()) for k in KS]


@pytest.mark.slow
def test_images_find_those_of_their_class(run: Run, checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    files = sorted((folder / "val").rglob("*.jpg"))
    embed_files(checkpoint, [str(f) for f in files], None, None, tmp_path / "f.safetensors")
    features = load_file(tmp_path / "f.safetensors")["image_features"].double().numpy()
    label = np.array([list(CLASSES).index(f.parent.name) for f in files])
    other = ~np.eye(len(files), dtype=bool)
    result = run("image-to-image", f"classes:{folder}", pictures=True)
    assert [result[f"r{k}"] for k in KS] == pytest.approx(
        recalls(features, np.equal.outer(label, label) & other, other)
    )
    assert result["queries"] == 14
    assert "R@1" in task("image-to-image").summary(result)[3]
    for one in result["examples"]:
        assert all(answer["right"] == (answer["name"] == one["query"]["name"]) for answer in one["answers"])
        assert one["query"]["id"] not in [answer["id"] for answer in one["answers"]]


def test_a_copy_of_the_query_is_no_hit(run: Run, folder: Path, tmp_path: Path) -> None:
    for name in ("water", "bird"):
        (tmp_path / name).mkdir()
        for copy in "ab":
            (tmp_path / name / f"{copy}.jpg").write_bytes((folder / "val" / name / "00.jpg").read_bytes())
        (tmp_path / name / "c.jpg").write_bytes((folder / "val" / name / "01.jpg").read_bytes())
    result = run("image-to-image", f"classes:{tmp_path}")
    assert result["queries"] == 6
    assert result["chance_r1"] == pytest.approx((4 * 1 / 4 + 2 * 2 / 5) / 6), "copies are no candidates"


def test_texts_find_those_of_their_image(run: Run, checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    lines, image = [], []
    words = iter("天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳")
    for number, file in enumerate(sorted((folder / "val").rglob("*.jpg"))[:6]):
        (tmp_path / f"{number}.jpg").write_bytes(file.read_bytes())
        own = [f"{next(words)}{next(words)}" for _ in range(1 + number % 3)]
        (tmp_path / f"{number}.txt").write_text("\n".join(own), encoding="utf-8")
        lines, image = lines + own, image + [number] * len(own)
    (tmp_path / "t.list").write_text("\n".join(lines), encoding="utf-8")
    embed_files(checkpoint, [], None, tmp_path / "t.list", tmp_path / "f.safetensors")
    features = load_file(tmp_path / "f.safetensors")["text_features"].double().numpy()
    other = ~np.eye(len(lines), dtype=bool)
    result = run("text-to-text", f"folder:{tmp_path}", pictures=True)
    assert [result[f"r{k}"] for k in KS] == pytest.approx(
        recalls(features, np.equal.outer(image, image) & other, other)
    )
    assert (result["queries"], result["protocol"]["texts"]) == (10, 12)
    assert {one["group"] for one in result["examples"]} == {"text-to-text"}


@pytest.mark.slow
def test_texts_and_images_of_a_dataset(run: Run, make_shards: Callable[..., Path]) -> None:
    manifest = make_shards(train=(12,), val=(9,))
    result = run("text-to-text", manifest, pictures=True)
    assert (result["queries"], result["protocol"]["images"]) == (18, 9), "two texts each"
    assert (result["headline"], result["unseen"]["queries"], result["seen"]["queries"]) == ("unseen", 18, 0)
    assert len(task("text-to-text").summary(result)) == 4, "with a warning of so few"


def test_a_dataset_whose_texts_all_differ_is_asked_for_labels(run: Run, make_shards: Callable[..., Path]) -> None:
    manifest = make_shards(train=(), val=(4,))
    with pytest.raises(InputError, match="no two of 4 images share a text leader; give classes with --labels"):
        run("image-to-image", manifest)


@pytest.mark.slow
def test_retrieval_brings_examples_of_both_directions(run: Run, make_shards: Callable[..., Path], folder: Path) -> None:
    manifest = make_shards(train=(12,), val=(9,))
    plain, result = run("retrieval", manifest), run("retrieval", manifest, pictures=True)
    examples = result.pop("examples")
    assert plain == result
    assert {one["group"] for one in examples} == {"i2t", "t2i"}
    for one in examples:
        assert any(answer["right"] for answer in one["answers"])
        pictured = one["query"] if one["group"] == "i2t" else one["answers"][0]
        assert pictured["picture"].startswith("data:image/jpeg;base64,")
    misses = sum(one["group"] == "i2t" and not one["right"] for one in examples)
    assert (misses > 0) == (plain["i2t"]["r1"] < 1)


def test_a_text_of_no_image_is_a_candidate_of_retrieval_and_none_of_texts(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    """Chinese-CLIP's test files may have some; its own evaluation has all texts among the candidates."""
    images = [base64.urlsafe_b64encode(file.read_bytes()).decode() for file in sorted((folder / "val").rglob("*.jpg"))]
    rows = "".join(f"{number}\t{image}\n" for number, image in enumerate(images[:3]))
    (tmp_path / "test_imgs.tsv").write_text(rows, encoding="utf-8")
    texts = [("山", [0]), ("高山", [0]), ("水", [1]), ("花", []), ("红花", [2])]
    lines = [json.dumps({"text_id": n, "text": text, "image_ids": of}) for n, (text, of) in enumerate(texts)]
    (tmp_path / "test_texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = f"chinese-clip:{tmp_path}"
    result = run("retrieval", data, split="test")
    assert (result["protocol"]["texts"], result["t2i"]["queries"], result["i2t"]["queries"]) == (5, 4, 3)
    assert result["i2t"]["chance_r1"] == pytest.approx((2 + 1 + 1) / 3 / 5)
    assert run("text-to-text", data, split="test")["protocol"]["texts"] == 4
