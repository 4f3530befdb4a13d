from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from data_specs.command.ownership import PACKAGES, check_ownership, installed_owners


def test_alone_and_under_another_spelling_of_the_name_it_is_silent() -> None:
    owners = {"pipeline": ["wenlan"], "training": ["Wenlan", "wenlan"], "data_specs": ["wenlan"], "numpy": ["numpy"]}
    assert check_ownership(owners) is None


def test_another_distribution_is_named_with_the_package_it_claims() -> None:
    sentence = check_ownership({"pipeline": ["wenlan"], "training": ["wenlan", "gym-tools"]})
    assert sentence is not None
    assert "'training'" in sentence
    assert "gym-tools" in sentence
    assert "\n" not in sentence


def test_this_environment_is_clean() -> None:
    assert check_ownership() is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "file", "content"),
    [
        ("Gym_Tools-1.0.dist-info", "top_level.txt", "gym\npipeline\n"),
        ("Gym_Tools-1.0.dist-info", "RECORD", "gym/a.py,sha256=x,1\npipeline/__init__.py,sha256=x,1\n"),
        ("Gym_Tools-1.0.dist-info", "RECORD", "pipeline.py,sha256=x,1\n"),
        ("Gym_Tools-1.0.egg-info", "SOURCES.txt", "setup.py\npipeline/__init__.py\n"),
    ],
)
def test_whoever_installs_a_folder_or_a_module_of_our_name_is_found(
    folder: str, file: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / folder
    place.mkdir()
    name = "PKG-INFO" if folder.endswith(".egg-info") else "METADATA"
    (place / name).write_text("Metadata-Version: 2.1\nName: Gym.Tools\nVersion: 1.0\n", encoding="utf-8")
    (place / file).write_text(content, encoding="utf-8")
    other = tmp_path / "harmless-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: harmless\nVersion: 1.0\n", encoding="utf-8")
    (other / "RECORD").write_text("x/pipeline/a.py,,\npipelines/a.py,,\npipeline.pyi,,\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert "Gym.Tools" in (check_ownership() or "")
    assert "harmless" not in (check_ownership() or "")


@pytest.mark.drill(2)
def test_it_says_of_this_environment_what_importlib_says() -> None:
    """The oracle: all import names of this environment that a distribution of Python files provides."""
    everything = importlib.metadata.packages_distributions()
    names = [name for name in everything if name.isidentifier() and not name.startswith("_")]
    ours = installed_owners(names)
    packages = [name for name in names if name in ours]
    assert len(packages) > 100
    assert {name: sorted(set(ours[name])) for name in packages} == {n: sorted(set(everything[n])) for n in packages}
    assert set(installed_owners()) == set(PACKAGES) & set(everything)
