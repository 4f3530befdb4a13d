"""The dataset card beside the manifest."""

from __future__ import annotations

from pathlib import Path

import yaml


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
