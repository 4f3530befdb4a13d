"""Classification figures against torchmetrics, scikit-learn, clip_benchmark, scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation.classification import classify, figures, resampled, wilson


def scores(seed: int, items: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores that know something of random labels, and the labels; no two scores of an item are equal."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, items)
    values = rng.normal(size=(items, classes))
    values[np.arange(items), label] += 1
    return values.astype(np.float32), label


def names(count: int) -> list[str]:
    return [f"类{n}" for n in range(count)]


@pytest.mark.slow
def test_top_1_top_5_and_the_mean_over_classes_equal_those_of_torchmetrics_and_scikit_learn() -> None:
    import torch
    from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
    from torchmetrics.functional.classification import multiclass_accuracy

    values, label = scores(0, 500, 12)
    found = figures(classify(values, label), names(12))
    of_torch = torch.from_numpy(values), torch.from_numpy(label)
    for k in (1, 5):
        theirs = multiclass_accuracy(*of_torch, num_classes=12, top_k=k, average="micro")
        assert found[f"top{k}"] == pytest.approx(float(theirs), abs=1e-7)
        assert found[f"top{k}"] == pytest.approx(top_k_accuracy_score(label, values, k=k), abs=1e-12)
        assert found[f"chance_top{k}"] == pytest.approx(k / 12)
    assert found["mean_per_class"] == pytest.approx(balanced_accuracy_score(label, values.argmax(1)), abs=1e-12)
    assert found["majority"] == pytest.approx(np.bincount(label).max() / 500)


def test_confusion_equals_that_of_scikit_learn() -> None:
    from sklearn.metrics import confusion_matrix

    values, label = scores(2, 400, 5)
    found = figures(classify(values, label), names(5))
    matrix = confusion_matrix(label, values.argmax(1))
    for pair in found["worst_pairs"]:
        row, column = int(pair["class"][1:]), int(pair["taken_for"][1:])
        assert (pair["count"], pair["share"]) == (
            matrix[row, column],
            pytest.approx(matrix[row, column] / matrix[row].sum()),
        )
    off = matrix - np.diag(np.diag(matrix))
    assert [p["count"] for p in found["worst_pairs"]] == sorted(off[off > 0].tolist(), reverse=True)[:10]
    assert [row["n"] for row in found["per_class"]] == matrix.sum(1).tolist()
    assert [row["top1"] for row in found["per_class"]] == pytest.approx((np.diag(matrix) / matrix.sum(1)).tolist())


@pytest.mark.slow
@given(seed=st.integers(0, 999), items=st.integers(1, 30), classes=st.integers(2, 9), values=st.integers(1, 3))
def test_ties_count_against_us(seed: int, items: int, classes: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    given_NC = rng.integers(0, values, (items, classes)).astype(np.float32)
    label = rng.integers(0, classes, items)
    found = classify(given_NC, label)
    for i in range(items):
        better = [c for c in range(classes) if c != label[i] and given_NC[i, c] >= given_NC[i, label[i]]]
        assert found.rank_N[i] == 1 + len(better)
        assert (found.said_N[i] == label[i]) == (not better)
        assert found.best(i, classes)[0][0] == found.said_N[i]
    if values == 1:
        assert figures(found, names(classes))["top1"] == 0


@pytest.mark.slow
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_equals_that_of_scipy(pair: tuple[int, int]) -> None:
    from scipy.stats import binomtest

    theirs = binomtest(*pair).proportion_ci(method="wilson")
    assert wilson(*pair) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_items_of_one_image_widen_the_interval() -> None:
    """20 images, ten boxes each that are all right or all wrong: 20 independent observations, not 200."""
    right = np.repeat(np.arange(20) % 2 == 0, 10)
    low, high = resampled(right, np.repeat(np.arange(20), 10))
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 20), rel=0.15)
    narrow = resampled(right, np.arange(200))
    assert narrow[1] - narrow[0] < (high - low) / 2.5


def test_a_part_is_asked_among_all_classes_and_an_empty_one_says_so() -> None:
    values, label = scores(3, 60, 7)
    found = classify(values, label)
    asks = label < 3
    part = figures(found, names(7), asks)
    assert part["n"] == asks.sum()
    assert part["top1"] == pytest.approx((values[asks].argmax(1) == label[asks]).mean())
    assert part["chance_top1"] == pytest.approx(1 / 7), "the candidates are all classes"
    assert {row["class"] for row in part["per_class"]} == {"类0", "类1", "类2"}
    assert figures(found, names(7), np.zeros(60, bool)) == {"n": 0}
