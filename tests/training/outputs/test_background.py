"""Scores: shares of a background, whatever its cosines are."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.errors import CheckpointError
from training.outputs.background import Background

COSINES = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=300)


def drawn(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Cosines as towers have them: of random unit rows about a common direction."""
    generator = np.random.default_rng(seed)
    left, right = (generator.normal(size=(count, 16)) + 0.4 for _ in range(2))
    cosines = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    return np.asarray(cosines, np.float32)


@pytest.mark.slow
@given(COSINES, st.lists(st.floats(-1, 1), min_size=2, max_size=50))
def test_a_score_never_falls_and_lies_between_0_and_1(background: list[float], asked: list[float]) -> None:
    scores = Background.of(np.array(background, np.float32), 1, 1).score(np.sort(asked))
    assert (np.diff(scores) >= 0).all()
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.slow
@given(COSINES)
def test_nothing_is_below_the_least_and_all_below_what_is_above_the_greatest(background: list[float]) -> None:
    cosines = np.array(background, np.float32)
    score = Background.of(cosines, 1, 1).score
    assert score(cosines.min()) == score(-1.1) == 0
    assert score(float(cosines.max()) + 1e-3) == 1


@pytest.mark.parametrize("count", [1_500, 40_000])
def test_the_background_itself_is_uniform(count: int) -> None:
    """And each score is the share of it below the cosine, as counted; in the tail to a part of the rest."""
    cosines = drawn(count)
    background = Background.of(cosines, 200, 200)
    scores = np.sort(background.score(cosines))
    assert np.abs(scores - np.arange(count) / count).max() < 2e-3
    for asked in np.linspace(cosines.min(), cosines.max(), 50):
        assert background.score(asked) == pytest.approx((cosines < asked).mean(), abs=2e-3)
    if count > 10_000:
        top = np.sort(cosines)[-count // 4_000]
        assert 1 - background.score(top) == pytest.approx((cosines >= top).mean(), rel=0.5)


def test_it_survives_its_file_and_its_json() -> None:
    background = Background.of(drawn(5_000), 70, 71)
    read = Background.from_tensors(background.tensors(), "x")
    told = json.loads(background.to_json())
    asked = np.clip(drawn(300, seed=3), told["cosines"][0], told["cosines"][-1])
    assert (read.score(asked) == background.score(asked)).all()
    assert np.interp(asked, told["cosines"], told["shares"]) == pytest.approx(background.score(asked), abs=1e-6)
    assert (read.images, read.texts, read.pairs) == (told["images"], told["texts"], told["pairs"]) == (70, 71, 5_000)


@pytest.mark.parametrize(
    "changes",
    [
        {"cosines": torch.tensor([0.2, 0.1])},
        {"shares": torch.tensor([0.2, 0.1])},
        {"cosines": torch.tensor([0.1])},
        {"counts": torch.tensor([1])},
        {"cosines": torch.zeros(0), "shares": torch.zeros(0)},
    ],
)
def test_a_damaged_one_is_refused(changes: dict[str, torch.Tensor]) -> None:
    sound = {"cosines": torch.tensor([0.1, 0.2]), "shares": torch.tensor([0.0, 1.0]), "counts": torch.tensor([1, 1, 1])}
    Background.from_tensors(sound, "x")
    with pytest.raises(CheckpointError, match="x: not a background of cosines"):
        Background.from_tensors({**sound, **changes}, "x")
