"""Names and drawings as the packages have them, and packages by the demo's own command."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from training.errors import InputError
from training.study.drawings import NAMES, STYLES, Drawings, bare, needed, packages, raster, read_emoji
from training.study.features import flat
from training.study.runs import tarballs_of

NOTO = STYLES[0]


def test_packages_that_are_there_are_found_by_the_demos_command_without_a_network(study_folder: Path) -> None:
    found = packages(study_folder / "packages", [NOTO])
    assert {package: path.name for package, path in found.items()} == {
        package: path.name for package, path in tarballs_of(study_folder).items() if package in needed([NOTO])
    }


def test_an_emoji_has_its_chinese_name_and_keywords(study_folder: Path) -> None:
    emoji = read_emoji(tarballs_of(study_folder)[NAMES])
    assert (emoji[0].code, len(emoji[0].name), emoji[0].keywords[0]) == ("1f400", 3, "动物")
    assert len(emoji) == 48


def test_flags_and_components_are_left_out(tmp_path: Path) -> None:
    entries = [{"hexcode": f"1F40{i}", "label": str(i), "order": i, "group": i} for i in range(10)]
    file = tmp_path / "data.json"
    file.write_text(json.dumps([*entries, {"hexcode": "1F1E6", "label": "letter"}]))
    with tarfile.open(tmp_path / "names.tgz", "w:gz") as archive:
        archive.add(file, "package/zh/data.json")
    assert [e.name for e in read_emoji(tmp_path / "names.tgz")] == ["0", "1", "3", "4", "5", "6", "7", "8"]


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


def test_selectors_are_no_part_of_a_code() -> None:
    assert bare("2764-FE0F-200D-1F525") == "2764-200d-1f525"


def test_styles_of_one_family_are_on_one_side() -> None:
    assert {s.part for s in STYLES if s.name.startswith("Fluent")} == {"val"}
    assert {s.part for s in STYLES if s.name.startswith("Noto")} == {"train"}
    assert {s.part for s in STYLES} == {"train", "dev", "val"}
