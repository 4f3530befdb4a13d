"""folder: versions, the lock, and scores between the quantiles of a background."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_specs.search.folder import INDEX, Background, IndexFault, IndexInfo, exclusive, read_index
from data_specs.search.index import IndexWriter
from data_specs.search.search import SearchIndex
from tests.indexed import make, named, random_units
from training.outputs import background as of_checkpoint

ABOUT = IndexInfo(name="test", width=8, images=True, texts=False)


def test_a_rate_is_the_share_of_rows_that_unrelated_ones_make() -> None:
    """Benjamini and Hochberg's, by hand; of a cosine beyond the ranking at most."""
    background = Background(cosines=(0.0, 0.5, 0.8, 0.9), shares=(0.0, 0.5, 0.9, 1.0))
    ranked = [0.8, 0.65, 0.6, 0.5]  # 10 rows: 1, 3, 3.67 and 5 unrelated ones are expected to be as near
    assert background.rates(ranked, ranked, 10) == pytest.approx([1, 1, 1, 1])
    assert background.rates(ranked, ranked, 2) == pytest.approx([0.2, 0.22 / 0.9, 0.22 / 0.9, 0.25], abs=1e-3)
    assert background.rates([0.1], ranked, 2) == pytest.approx([0.45])
    beyond = [float(background.rates([cosine], [cosine], 2)[0]) for cosine in (0.95, 0.9, 0.85)]
    assert 0 < beyond[0] < beyond[1] < beyond[2] < 0.2  # the tail goes on above the largest that was measured
    assert background.rates([0.3], [], 2) == pytest.approx([1.0])


def test_a_score_is_that_of_the_checkpoint_s_background() -> None:
    cosines = np.random.default_rng(0).normal(0.1, 0.1, 5_000).astype(np.float32)
    original = of_checkpoint.Background.of(cosines, 50, 100)
    ours = Background(cosines=tuple(original.cosines_Q.tolist()), shares=tuple(original.shares_Q.tolist()))
    asked = np.linspace(-1, 1, 999)
    assert np.array_equal(ours.score(asked), original.score(asked))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "line"),
    [
        (1, "version 1 is older than this wenlan reads; delete it and embed again"),
        (3, "version 3 is newer than this wenlan reads (2); upgrade wenlan"),
    ],
)
def test_an_index_of_another_version_is_one_line(tmp_path: Path, version: int, line: str) -> None:
    path = make(tmp_path, named(3), random_units(3, 8)) / INDEX
    path.write_text(path.read_text().replace('"version": 2', f'"version": {version}'))
    for use in (SearchIndex.open, lambda folder: IndexWriter.begin(folder, ABOUT).__enter__()):
        with pytest.raises(IndexFault, match=re.escape(f"{path}: {line}")):
            use(tmp_path)


@pytest.mark.slow
def test_an_index_names_no_file_outside_of_its_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "i", named(3), random_units(3, 8))
    text = (folder / INDEX).read_text()
    for place in ("/etc/passwd", "../other/img_emb_0000.npy", "http://a.example/x.npy"):
        (folder / INDEX).write_text(text.replace("img_emb/img_emb_0000.npy", place))
        with pytest.raises(IndexFault, match=f"names a file outside its folder: {place}"):
            read_index(folder)


@pytest.mark.slow
def test_one_process_writes_an_index_at_a_time(tmp_path: Path) -> None:
    code = "from data_specs.search.folder import exclusive; from pathlib import Path\n"
    code += f"with exclusive(Path({str(tmp_path)!r})): pass"
    with IndexWriter.begin(tmp_path, ABOUT):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "another command is writing this index; wait until it has ended, or stop it" in other.stderr
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(IndexFault, match="cannot be opened"), exclusive(tmp_path / "none"):
        pass
