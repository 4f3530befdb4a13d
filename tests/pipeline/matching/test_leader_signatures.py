"""signatures: in any pieces, mapped or not, they read like one array of all, which is the oracle; so do details."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.matching.leader_signatures import LeaderSignatures
from pipeline.matching.looks import NO_DETAILS, Details
from pipeline.pictures import details
from pipeline.pictures.signatures import GRIDS, SIZE


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=8), st.integers(0, 2**32 - 1))
def test_pieces_are_one_array_and_maps_stay_on_disk(tmp_path_factory, pieces, seed):
    rng, folder = np.random.default_rng(seed), Path(tmp_path_factory.mktemp("grids"))
    signatures, width = LeaderSignatures(), GRIDS * SIZE
    everything, every = [np.zeros((0, width), np.uint8)], dict[int, bytes]()
    for number, (size, mapped) in enumerate(pieces):
        own = rng.integers(0, 256, (size, width), dtype=np.uint8)
        if mapped and size:
            (folder / f"{number}").write_bytes(own.tobytes())
            own = np.memmap(folder / f"{number}", np.uint8, "r").reshape(size, width)[:: 1 + number % 2]
        of = np.flatnonzero(rng.random(len(own)) < 0.4)
        fine = Details(of, rng.integers(0, 256, (len(of), details.SIZE), dtype=np.uint8))
        every |= {
            int(at) + sum(map(len, everything)): row.tobytes() for at, row in zip(fine.of, fine.stored, strict=True)
        }
        if mapped:
            with (folder / f"{number}.details").open("wb") as file:
                fine.write(file)
            fine = Details.read(folder / f"{number}.details")
            assert not len(fine) or isinstance(fine.stored, np.memmap)
        signatures.add(own, fine)
        everything.append(np.asarray(own))
    whole = np.concatenate(everything).reshape(-1, GRIDS, SIZE)
    leaders = rng.integers(0, max(1, len(whole)), 50 if len(whole) else 0)
    parts = rng.integers(0, GRIDS, len(leaders))
    assert np.array_equal(signatures.grids(leaders, parts), whole[leaders, parts])
    found = signatures.details(leaders)
    assert dict(zip(found.of.tolist(), (row.tobytes() for row in found.stored), strict=True)) == {
        at: every[leader] for at, leader in enumerate(leaders.tolist()) if leader in every
    }


def test_memory_grows_across_its_first_size():
    rows = np.random.default_rng(0).integers(0, 256, (5_000, GRIDS * SIZE), dtype=np.uint8)
    signatures = LeaderSignatures()
    for start in range(0, 5_000, 700):
        signatures.add(rows[start : start + 700], NO_DETAILS)
    at = np.arange(5_000)
    assert np.array_equal(signatures.grids(at, np.zeros_like(at)), rows[:, :SIZE])
    assert not len(signatures.details(at))
