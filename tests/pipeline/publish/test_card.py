"""The dataset card beside the manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from data_specs.build import BuildSpec
from data_specs.shard import read_manifest
from pipeline.publish import card
from pipeline.report.funnel import Funnel
from pipeline.store.build import Build

pytestmark = pytest.mark.slow  # all begin with a build


def test_the_card_says_what_a_hub_and_a_reader_need(shards_of: Path) -> None:
    text = (shards_of / "README.md").read_text("utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["language"] == ["zh"]
    assert [f["split"] for f in front["configs"][0]["data_files"]] == ["train", "dev", "val"]
    assert front["size_categories"] == ["n<1K"]
    for said in (
        "| pages | news | site | 36 | 20 |",
        "Of 54 candidates 30 were kept.",
        "owner@example.org",
        "`text_length`",
    ):
        assert said in text


@pytest.mark.parametrize("name", ["null", "2026", "true", "1e3", "2026-11-27", "no"])
def test_a_name_that_yaml_would_take_for_something_else_is_a_name(
    name: str, shards_of: Path, synthetic_build: Build
) -> None:
    spec, manifest = synthetic_build.spec.model_copy(update={"name": name}), read_manifest(shards_of)
    build = replace(synthetic_build, spec=spec)
    for text in (
        card.readme(build, manifest, Funnel({}), Funnel({})),
        card.release_files(spec, manifest)["README.md"].decode(),
    ):
        assert yaml.safe_load(text.split("---")[1])["pretty_name"] == name


def test_a_password_in_an_option_of_the_spec_is_in_no_file_of_the_dataset(
    shards_of: Path, synthetic_build: Build
) -> None:
    secret = "https://anna:geheim@lists.example.org"
    options = {"filters": [{"name": "lexicon", "lists": {"w": f"{secret}/w.txt"}}], "description": f"Of {secret}/"}
    raw = synthetic_build.spec.model_dump(mode="json") | options | {"base": "."}
    build = replace(synthetic_build, spec=BuildSpec.model_validate(raw))
    manifest = read_manifest(shards_of)
    written = card.files(build, manifest, Funnel({}), Funnel({}))
    for files in (written, card.release_files(build.spec, manifest)):
        assert not [name for name, data in files.items() if b"geheim" in data]
    assert b"https://lists.example.org/w.txt" in written["README.md"]
