"""approximate: recall against exact search, filters, and rows that a takedown removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_specs.search import approximate
from data_specs.search.approximate import Cells
from data_specs.search.scan import Rows, Stack, cosines_of, ordered
from tests.indexed import random_units, units


@pytest.fixture(scope="module")
def clustered() -> Stack:
    """5,000 vectors in 60 clusters, in two parts; one direction is much larger than the others, as towers have it."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, 96))
    points = centres[rng.integers(0, 60, 5_000)] + 0.7 * rng.standard_normal((5_000, 96))
    points[:, 3] += 6
    half = units(points).astype(np.float16)
    return Stack([half[:2_000], half[2_000:]], 96)


def top(stack: Stack, rows: Rows, query: np.ndarray, count: int) -> set[int]:
    best, _ = ordered(rows, cosines_of(stack.take(rows), query))
    return set(best[:count].tolist())


def recall(stack: Stack, cells: Cells, allowed: np.ndarray | None, numbers: Rows) -> float:
    """Of the ten best; `numbers`: rows of the stack that the rows of the search are."""
    stack_rows = numbers if allowed is None else numbers[allowed]
    shares = []
    for seed in range(40):
        near = stack.take(np.array([seed * 100]))[0].astype(np.float32) + 0.05 * random_units(1, 96, seed)[0]
        query = units([near])[0]
        found = numbers[cells.candidates(query, allowed, 200)]
        assert set(found.tolist()) <= set(stack_rows.tolist())
        shares.append(len(top(stack, found, query, 10) & top(stack, stack_rows, query, 10)) / 10)
    return float(np.mean(shares))


def test_nearly_all_of_the_best_are_found(tmp_path: Path, clustered: Stack) -> None:
    every = np.arange(5_000)
    approximate.write(tmp_path / "a", clustered, every)
    cells = Cells(tmp_path / "a")
    assert recall(clustered, cells, None, every) >= 0.95
    assert recall(clustered, cells, np.random.default_rng(1).random(5_000) < 0.3, every) >= 0.95
    assert (tmp_path / "a").stat().st_size < 5_000 * 96 * 2, "smaller than the vectors"


def test_removed_rows_are_not_found_and_the_others_have_their_new_numbers(tmp_path: Path, clustered: Stack) -> None:
    approximate.write(tmp_path / "a", clustered, np.arange(5_000))
    kept = np.random.default_rng(2).random(5_000) < 0.6
    kept[:1_000] = False
    approximate.write_without(tmp_path / "b", tmp_path / "a", kept)
    cells = Cells(tmp_path / "b")
    assert recall(clustered, cells, None, np.flatnonzero(kept)) >= 0.95
    everything = cells.candidates(units([np.ones(96)])[0], None, 5_000)
    assert len(everything) == len(set(everything.tolist())) <= np.count_nonzero(kept)


def test_a_cell_that_loses_all_its_rows_loses_its_centroid(tmp_path: Path) -> None:
    vectors = np.concatenate([units([[1, 0, 0, 0]] * 40), random_units(1_000, 4)]).astype(np.float16)
    stack = Stack([vectors], 4)
    approximate.write(tmp_path / "a", stack, np.arange(1_040))
    approximate.write_without(tmp_path / "b", tmp_path / "a", np.zeros(1_040, np.bool_))
    import faiss

    index = faiss.read_index(str(tmp_path / "b"))  # which owns the two within it
    inner = faiss.downcast_index(faiss.extract_index_ivf(index))
    centroids = faiss.rev_swig_ptr(faiss.downcast_index(inner.quantizer).get_xb(), inner.nlist * inner.d)
    assert not centroids.any()


def test_rows_without_a_vector_are_not_in_it(tmp_path: Path) -> None:
    vectors = random_units(2_000, 8).astype(np.float16)
    present = np.arange(0, 2_000, 2)
    approximate.write(tmp_path / "a", Stack([vectors], 8), present)
    found = Cells(tmp_path / "a").candidates(random_units(1, 8)[0], None, 2_000)
    assert len(found)
    assert (found % 2 == 0).all()


def test_the_same_rows_make_the_same_file(tmp_path: Path, clustered: Stack) -> None:
    for name in ("a", "b"):
        approximate.write(tmp_path / name, clustered, np.arange(5_000))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("rows", "count"), [(1_000, 16), (200_000, 1_024), (1_000_000, 2_048), (30_000_000, 8_192)])
def test_cells_grow_with_the_square_root_of_the_rows(rows: int, count: int) -> None:
    assert approximate.cells(rows) == count
