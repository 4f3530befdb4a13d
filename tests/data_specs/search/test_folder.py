"""folder: scores between the quantiles of a background, and one owner at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.search.folder import Background, IndexFault, read_index, sole_owner
from tests.indexed import make, named, random_units
from training.outputs import background as of_checkpoint


def test_a_score_is_that_of_the_checkpoint_s_background() -> None:
    cosines = np.random.default_rng(0).normal(0.1, 0.1, 5_000).astype(np.float32)
    original = of_checkpoint.Background.of(cosines, 50, 100)
    ours = Background(cosines=tuple(original.cosines_Q.tolist()), shares=tuple(original.shares_Q.tolist()))
    asked = np.linspace(-1, 1, 999)
    assert np.array_equal(ours.score(asked), original.score(asked))


@given(st.floats(-0.5, 1.5), st.lists(st.floats(-1, 1, width=32), max_size=30))
def test_the_least_cosine_of_a_score_divides_all_cosines(score: float, cosines: list[float]) -> None:
    background = Background(cosines=(-0.5, 0.1, 0.3, 0.7), shares=(0.0, 0.5, 0.99, 1.0))
    least = background.least(score)
    for cosine in np.array(cosines, np.float32):
        assert (float(cosine) >= least) == (float(background.score(cosine)) >= score)


def test_one_process_rewrites_an_index_at_a_time(tmp_path: Path) -> None:
    folder = make(tmp_path / "i", named(3), random_units(3, 8))
    code = "from data_specs.search.folder import sole_owner; from pathlib import Path\n"
    code += f"with sole_owner(Path({str(folder)!r})): pass"
    with sole_owner(folder):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "another command rewrites this index; run this one again when it is done" in other.stderr
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(IndexFault, match="cannot"), sole_owner(tmp_path / "none"):
        pass


def test_an_index_names_no_file_outside_of_its_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "i", named(3), random_units(3, 8))
    text = (folder / "index.json").read_text()
    for place in ("/etc/passwd", "../other/img_emb_0000.npy", "http://a.example/x.npy"):
        (folder / "index.json").write_text(text.replace("img_emb/img_emb_0000.npy", place))
        with pytest.raises(IndexFault, match=f"names a file outside of its folder: {place}"):
            read_index(folder)
