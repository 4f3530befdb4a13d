"""Names and drawings as the packages have them, and packages by the demo's own command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.study.drawings import STYLES, Drawings, raster, read_emoji
from tests.benchmarks.study.features import flat
from tests.benchmarks.study.runs import tarballs_of
from training.errors import InputError

NOTO = STYLES[0]


def test_a_damaged_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "names.tgz").write_bytes(b"no tarball")
    with pytest.raises(InputError, match=r"names.tgz: zh/data.json cannot be read .* remove it"):
        read_emoji(tmp_path / "names.tgz")


def test_a_drawing_is_rastered_on_white_in_its_own_colours(study_folder: Path) -> None:
    drawings = Drawings(tarballs_of(study_folder))
    icons = drawings.codes(NOTO)
    picture = flat(raster(drawings.svg(NOTO, icons["1f400"]), 64), 64)
    assert picture.shape == (64, 64, 3)
    assert (picture[0, 0] == 255).all()
    fill = drawings.svg(NOTO, icons["1f400"]).partition("rgb(")[2].partition(")")[0]
    assert np.abs(picture[32, 32].astype(int) - [int(x) for x in fill.split(",")]).max() <= 1
