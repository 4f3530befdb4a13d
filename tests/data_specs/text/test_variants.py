"""variants: the groups of characters in the package are those of OpenCC."""

from __future__ import annotations

import importlib.metadata

import pytest

from data_specs.text.variants import variants
from tests.benchmarks.variant_groups import compute_variants


@pytest.mark.slow
def test_the_file_is_what_its_opencc_says() -> None:
    if importlib.metadata.version("opencc") != variants().opencc:
        pytest.skip(f"the file is of OpenCC {variants().opencc}, another one is installed")
    assert compute_variants() == variants()


def test_a_character_stands_in_one_group_and_a_simplified_one_stands_for_it() -> None:
    groups = variants().groups
    characters = "".join(groups)
    assert len(groups) > 4_000
    assert len(set(characters)) == len(characters)
    assert all(len(group) > 1 for group in groups)
    first = {character: group[0] for group in groups for character in group}
    assert "".join(first.get(character, character) for character in "紅燒肉裏裡髮發乾淨") == "红烧肉里里发发干净"
