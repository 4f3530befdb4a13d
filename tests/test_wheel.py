"""The wheel as a user has it: its files, and its commands in an environment that knows nothing of the working tree.

`make wheels` does the same with every extra in fresh environments of each Python; here the dependencies are those of
this environment, so that it takes seconds and no network.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.places import ROOT

pytestmark = pytest.mark.slow

PACKAGES = ("data_specs", "pipeline", "training")
NO_PART = ("__pycache__", ".pyc", "README.md")
"""What lies in the packages' folders and is of use to developers only."""

pytest.importorskip("setuptools", "77", reason="no setuptools that builds the wheel")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(wheel, sdist), built from a copy of the tree by the backend that pyproject.toml names."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "wenlan.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tree / name)
    build = "import sys; from setuptools.build_meta import *; out = sys.argv[1]; build_sdist(out); build_wheel(out)"
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=tree, check=True, capture_output=True)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def _sources() -> set[str]:
    """Files of the packages, those that the wheel must hold."""
    files = {
        path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()
    }
    return {"wenlan.py"} | {file for file in files if not any(part in file for part in NO_PART)}


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))).decode()
        licences = {name.partition("/licenses/")[2] for name in wheel.namelist() if "/licenses/" in name}
        modes = {info.external_attr >> 16 & 0o777 for info in wheel.infolist()}
    assert names == _sources()
    assert licences == {"LICENSE", "NOTICE"}
    assert "License-Expression: Apache-2.0\n" in metadata
    assert not [mode for mode in modes if mode & 0o002], "not everybody may write"


def test_the_sdist_holds_what_the_wheel_is_built_from(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    assert _sources() | {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert not [name for name in names if name.startswith(("tests/", "dags/", ".venv"))]


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment with the wheel, and behind it the packages of this one."""
    place = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, str(built[0])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours = next(place.glob("lib/python3*/site-packages"))
    (ours / "behind.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    return place / "bin"


def _run(installed: Path, folder: Path, name: str, *words: str) -> str:
    done = subprocess.run([str(installed / name), *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_commands_of_the_wheel_run_without_the_working_tree(installed: Path, tmp_path: Path) -> None:
    where = _run(installed, tmp_path, "python", "-c", "import pipeline, training, data_specs as d; print(d.__file__)")
    assert str(installed.parent) in where, "what runs is what was installed"
    version = _run(installed, tmp_path, "wenlan-data", "--version").split()[1]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"(?m)^## \[(.*?)\]", changes)[1] == version, "the version that the changes are of"
    assert "fit" in _run(installed, tmp_path, "wenlan-train", "--help")
    assert "text_length" in _run(installed, tmp_path, "wenlan-data", "plugins")
    schema = _run(installed, tmp_path, "wenlan-data", "schema")
    assert schema == (ROOT / "data_specs/schemas/build.schema.json").read_text(encoding="utf-8")


def test_a_plan_of_a_small_spec_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (320, 240)).save(tmp_path / "photos/1.jpg")
    (tmp_path / "photos/1.txt").write_text("公园里的一张照片", encoding="utf-8")
    source = "{kind: folder, name: mine, source_kind: library, path: photos}"
    (tmp_path / "s.yaml").write_text(f"name: tried\ncontact: mailto:a@b.cn\nsources:\n- {source}\n", encoding="utf-8")
    assert "1 picture" in _run(installed, tmp_path, "wenlan-data", "plan", "s.yaml")
