"""_stored_signatures: grids and whole signatures of any images, from the files of several runs."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from pipeline.pictures.signatures import GRIDS, SIZE
from pipeline.stages import _stored_signatures
from pipeline.stages._stored_signatures import StoredSignatures
from tests.detailed import drawn_details


@pytest.mark.parametrize("read", [0, 1 << 30])
def test_images_of_several_runs_are_read_by_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: int
) -> None:
    monkeypatch.setattr(_stored_signatures, "READ", read)
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
    stored = StoredSignatures(*paths, starts)
    images, grids = np.array([8, 0, 4, 3, 0]), np.array([1, 0, 2, 0, 3])
    for _ in range(2):  # what was given back is read again
        assert (stored.whole(images) == every[images].reshape(5, -1)).all()
        assert (stored.grids(images, grids) == every[images, grids]).all()
        for asked in (images, np.arange(9), np.setdiff1d(np.arange(9), details.of)):
            own, expected = stored.details(asked), details.take(asked)
            assert own.of.tolist() == expected.of.tolist()
            assert np.array_equal(own.stored, expected.stored)
    assert stored.whole(images[:0]).shape == (0, GRIDS * SIZE)
