"""The small text tower."""

from __future__ import annotations

import pytest

from training.errors import ConfigError
from training.moco import BriVL
from training.resolve import resolve


def test_char_text_has_positions_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"^text\.position_embedding: char_text has positions of its own$"):
        BriVL(resolve("tiny", ["text.position_embedding=true"]))
