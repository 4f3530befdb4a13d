"""Linear probe and nearest neighbours: against scikit-learn and the condition of an optimum."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from training.evaluation.results import Result
from training.evaluation.tasks.probe import GRID, _probe, _Set, fit, votes

Run = Callable[..., Result]


def clouds(seed: int, each: int, classes: int = 4, spread: float = 0.9) -> _Set:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, 8))
    label = np.repeat(np.arange(classes), each)
    rows = centres[label] + spread * rng.normal(size=(len(label), 8))
    return _Set((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), label)


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 3, 20])
def test_votes_equal_the_neighbours_of_scikit_learn(k: int) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    train, asked = clouds(0, 40), clouds(1, 30)
    theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(train.features_ND, train.label_N)
    counts = theirs.predict_proba(asked.features_ND) * k
    scores = votes(train.features_ND, train.label_N, asked.features_ND, 4, k)
    assert (np.round(scores) == np.round(counts)).all()
    clear = np.sort(counts, axis=1)[:, -1] > np.sort(counts, axis=1)[:, -2]
    assert (scores.argmax(1) == theirs.predict(asked.features_ND))[clear].all()


def test_classes_with_as_many_votes_are_told_apart_by_their_cosine() -> None:
    train = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]], np.float32)
    scores = votes(train, np.array([0, 0, 1, 1]), np.array([[0.96, 0.28]], np.float32), 3, 4)
    assert scores[0, 0] > scores[0, 1] > scores[0, 2] == 0


@pytest.mark.slow
def test_the_probe_is_at_the_optimum_of_the_logistic_loss() -> None:
    """By torch: the gradient of C * cross entropy + |w|^2 / 2 vanishes at what the solver found."""
    import torch
    from sklearn.linear_model import LogisticRegression

    train = clouds(0, 30)
    for c in (0.1, 10.0):
        model = LogisticRegression(C=c, max_iter=1000).fit(train.features_ND.astype(float), train.label_N)
        scores, converged = _probe(train, c, train.features_ND, 4)
        assert converged
        weights = torch.tensor(model.coef_, requires_grad=True)
        bias = torch.tensor(model.intercept_, requires_grad=True)
        logits = torch.from_numpy(train.features_ND).double() @ weights.T + bias
        assert np.abs(logits.detach().numpy() - scores).max() < 1e-4
        loss = c * torch.nn.functional.cross_entropy(logits, torch.from_numpy(train.label_N), reduction="sum")
        (loss + weights.square().sum() / 2).backward()
        assert weights.grad is not None
        assert float(weights.grad.abs().max()) < 2e-2 * c


@pytest.mark.slow
def test_the_best_c_is_that_of_dev_and_then_dev_is_trained_on_too() -> None:
    train, dev, asked = clouds(0, 15), clouds(1, 15), clouds(2, 50)
    best, scores = fit(train, dev, asked.features_ND, 4)
    on_dev = {c: float((_probe(train, c, dev.features_ND, 4)[0].argmax(1) == dev.label_N).mean()) for c in GRID}
    assert best.dev_top1 == {f"{c:g}": value for c, value in on_dev.items()}
    assert on_dev[best.c] == max(on_dev.values())
    assert best.c == min(c for c in GRID if on_dev[c] == max(on_dev.values())), "of equally good ones the smallest"
    assert np.array_equal(scores, _probe(train.and_(dev), best.c, asked.features_ND, 4)[0])


def test_a_class_without_training_images_is_never_said_and_two_classes_have_one_column() -> None:
    two = clouds(0, 20, classes=2)
    scores, _ = _probe(two, 1.0, two.features_ND, 3)
    assert np.isneginf(scores[:, 2]).all()
    assert (scores[:, 0] == -scores[:, 1]).all()
    assert (scores[:, :2].argmax(1) == two.label_N).mean() > 0.8


def test_a_class_that_is_never_said_has_no_score_in_an_example(run: Run, folder: Path, tmp_path: Path) -> None:
    """The page's file is JSON, which knows no infinity."""
    for split in ("train", "val"):
        for file in (folder / split).rglob("*.jpg"):
            if split == "val" or file.parent.name != "bird":
                place = tmp_path / split / file.parent.name
                place.mkdir(parents=True, exist_ok=True)
                (place / file.name).write_bytes(file.read_bytes())
    result = run("probe", f"classes:{tmp_path}", pictures=True)
    json.dumps(result, allow_nan=False)
    birds = [one for one in result["examples"] if one["query"]["name"] == "bird"]
    assert birds
    assert not any(one["right"] or "score" in one["answers"][-1] for one in birds)


@pytest.mark.slow
def test_both_ways_over_folders_with_splits(run: Run, folder: Path) -> None:
    result = run("probe", f"classes:{folder}", k=5, pictures=True)
    protocol = result["protocol"]
    assert protocol["train_images"] + protocol["dev_images"] == 48
    assert 0 < protocol["dev_images"] < 24
    assert protocol["parts"] == "a fifth of train is dev"
    assert (result["n"], result["knn"]["n"], protocol["images"]) == (14, 14, 14)
    assert result["top1"] > 0.6, "colours tell the classes"
    assert result["knn"]["top1"] > 0.6
    assert "5 nearest by cosine" in protocol["neighbours"]
    assert run("probe", f"classes:{folder}", k=5)["top1"] == result["top1"]


@pytest.mark.slow
def test_without_splits_a_fifth_is_evaluated_and_copies_do_not_straddle(run: Run, folder: Path, tmp_path: Path) -> None:
    for file in (folder / "train").rglob("*.jpg"):
        for copy in ("a", "b"):
            place = tmp_path / file.parent.name
            place.mkdir(exist_ok=True)
            (place / f"{copy}{file.name}").write_bytes(file.read_bytes())
    result = run("probe", f"classes:{tmp_path}", pictures=True)
    protocol = result["protocol"]
    assert protocol["images"] + protocol["train_images"] + protocol["dev_images"] == 96
    assert protocol["images"] % 2 == protocol["train_images"] % 2 == protocol["dev_images"] % 2 == 0
    assert result["split"] == "all"
