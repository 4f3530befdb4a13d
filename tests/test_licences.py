"""No licence comes in by an extra unseen."""

from __future__ import annotations

import importlib.metadata
import tomllib
from email.message import Message
from typing import Any, cast

import pytest

from tests import licences
from tests.places import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("extra", licences.SHIPPED, ids=lambda extra: extra or "none")
def test_no_extra_brings_a_strong_copyleft_or_a_package_without_a_licence(extra: str) -> None:
    assert licences.packages(extra), "the walk finds what is installed"
    assert licences.refused(extra) == []


@pytest.mark.slow
def test_what_is_argued_states_no_licence_or_a_strong_copyleft() -> None:
    installed = {p.name: p for extra in licences.SHIPPED for p in licences.packages(extra)}
    for name in licences.ARGUED.keys() & installed.keys():  # torch without CUDA brings none
        assert not installed[name].licence or licences.is_strong_copyleft(installed[name].licence)


def test_a_package_without_a_licence_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    brought = [licences.Package(name, "1", "") for name in ("cuda-toolkit", "unheard-of")]
    monkeypatch.setattr(licences, "packages", lambda extra: brought)
    assert [p.name for p in licences.refused("pipeline")] == ["unheard-of"]


@pytest.mark.slow
def test_the_walk_goes_through_extras_of_extras_and_no_others() -> None:
    base = {p.name for p in licences.packages("")}
    pipeline = {p.name for p in licences.packages("pipeline")}
    assert {"numpy", "pyarrow", "pydantic-core"} <= base < pipeline
    assert {"ray", "img2dataset", "aiohttp-cors"} <= pipeline, "aiohttp-cors: of ray[default]"
    assert "torch" not in base
    assert "mypy" not in pipeline, "of dev"
    assert "pi-heif" in {p.name for p in licences.packages("all")} - pipeline


def test_every_extra_that_is_shipped_is_looked_at() -> None:
    declared = set(importlib.metadata.metadata("wenlan").get_all("Provides-Extra") or ())
    assert declared == {*licences.SHIPPED, "all", "dev"} - {""}


@pytest.mark.parametrize(
    ("licence", "refused"),
    [
        ("GPL-3.0-or-later", True),
        ("GNU General Public License v2 (GPLv2)", True),
        ("GNU Affero General Public License v3", True),
        ("AGPL-3.0-only", True),
        ("MIT AND GPL-2.0-only", True),
        ("SSPL-1.0", True),
        ("CC-BY-NC-4.0", True),
        ("MIT OR GPL-2.0-or-later", False),
        ("LGPL-3.0-or-later", False),
        ("GNU Lesser General Public License v3 (LGPLv3)", False),
        ("Mozilla Public License 2.0 (MPL 2.0)", False),
        ("Apache-2.0", False),
    ],
)
def test_what_counts_as_a_strong_copyleft(licence: str, refused: bool) -> None:
    assert licences.is_strong_copyleft(licence) == refused


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License-Expression": "MIT", "License": "old"}, "MIT"),
        ({"Classifier": "License :: OSI Approved :: BSD License", "License": "see file"}, "BSD License"),
        ({"Classifier": "License :: OSI Approved", "License": "Apache 2.0\nlong text"}, "Apache 2.0"),
        ({"License": "UNKNOWN"}, ""),
        ({}, ""),
    ],
)
def test_the_licence_is_the_one_that_the_metadata_states(fields: dict[str, str], licence: str) -> None:
    message = Message()
    for name, value in fields.items():
        message[name] = value

    class Distribution:
        metadata = message

    assert licences.licence_of(cast(Any, Distribution())) == licence


def test_the_package_is_under_apache_alone_and_names_what_it_holds_of_others() -> None:
    """The weights of detector `proposals` are trained on what permits it; NOTICE says on what."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE", "NOTICE"])
    assert not [path for top in ("pipeline", "training", "data_specs") for path in (ROOT / top).rglob("*.license")]
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    named = {"@lobehub/fluent-emoji-3d": "MIT License", "@iconify-json/noto": "Apache License 2.0"}
    named |= {"HowToCook": "public", "torchvision": "BSD 3-Clause"}
    for name, licence in named.items():
        assert any(name in line and licence in line for line in notice.splitlines()), name
