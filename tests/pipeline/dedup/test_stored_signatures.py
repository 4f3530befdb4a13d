"""stored_signatures: grids and whole signatures of any images, from the files of several runs."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from pipeline.dedup.stored_signatures import StoredSignatures
from pipeline.pictures.signatures import GRIDS, SIZE
from tests.detailed import drawn_details


def test_images_of_several_runs_are_read_by_their_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    every = rng.integers(0, 256, (9, GRIDS, SIZE), dtype=np.uint8)
    starts = np.array([0, 4, 4, 9])
    for number, (low, high) in enumerate(itertools.pairwise(starts)):
        (tmp_path / str(number)).write_bytes(every[low:high].tobytes())
    details = drawn_details(rng, 9, 2, 1, share=0.5)
    for number, (low, high) in enumerate(itertools.pairwise(starts)):
        with (tmp_path / f"{number}.details").open("wb") as file:
            details.take(np.arange(low, high)).write(file)
    paths = [[tmp_path / f"{number}{suffix}" for number in range(3)] for suffix in ("", ".details")]
    images, grids = np.array([8, 0, 4, 3, 0]), np.array([1, 0, 2, 0, 3])
    with StoredSignatures(*paths, starts) as stored:
        assert (stored.signatures(images) == every[images].reshape(5, -1)).all()
        assert (stored.grids(images, grids) == every[images, grids]).all()
        for asked in (images, np.arange(9), np.setdiff1d(np.arange(9), details.of)):
            own, expected = stored.details(asked), details.take(asked)
            assert own.of.tolist() == expected.of.tolist()
            assert np.array_equal(own.stored, expected.stored)
        assert stored.signatures(images[:0]).shape == (0, GRIDS * SIZE)


def test_a_file_that_is_not_there_leaves_none_open(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        StoredSignatures([tmp_path / "0", tmp_path / "1"], [], np.zeros(3, np.int64))
