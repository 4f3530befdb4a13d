"""signatures: in any pieces, mapped or not, they read like one array of all, which is the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.matching.leader_signatures import LeaderSignatures


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=8), st.integers(0, 2**32 - 1))
def test_pieces_are_one_array_and_maps_stay_on_disk(tmp_path_factory, pieces, seed):
    rng, folder, signatures = (
        np.random.default_rng(seed),
        Path(tmp_path_factory.mktemp("grids")),
        LeaderSignatures(3, 5),
    )
    everything = [np.zeros((0, 15), np.uint8)]
    for number, (size, mapped) in enumerate(pieces):
        own = rng.integers(0, 256, (size, 15), dtype=np.uint8)
        if mapped and size:
            (folder / f"{number}").write_bytes(own.tobytes())
            own = np.memmap(folder / f"{number}", np.uint8, "r").reshape(size, 15)[:: 1 + number % 2]
        signatures.add(own)
        everything.append(np.asarray(own))
    whole = np.concatenate(everything).reshape(-1, 3, 5)
    assert signatures.count == len(whole)
    leaders = rng.integers(0, max(1, len(whole)), 50 if len(whole) else 0)
    parts = rng.integers(0, 3, len(leaders))
    assert np.array_equal(signatures.of(leaders, parts), whole[leaders, parts])


def test_memory_grows_across_its_first_size():
    signatures, rows = (
        LeaderSignatures(1, 4),
        np.arange(4 * 5_000, dtype=np.uint32).view(np.uint8).reshape(-1, 16)[:, :4],
    )
    for start in range(0, 5_000, 700):
        signatures.add(rows[start : start + 700])
    at = np.arange(5_000)
    assert np.array_equal(signatures.of(at, np.zeros_like(at)), rows)
