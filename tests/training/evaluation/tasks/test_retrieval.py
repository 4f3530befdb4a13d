"""Retrieval as a task of `eval`: examples of both directions, and texts of no image."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from training.evaluation.results import Result

Run = Callable[..., Result]


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


def test_a_text_of_no_image_is_a_candidate(run: Run, folder: Path, tmp_path: Path) -> None:
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
