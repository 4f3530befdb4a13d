"""The config: every recipe is complete and survives JSON, and what a file says wrongly is one line that names it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from pydantic import ValidationError

from training.config import from_dict, to_dict
from training.errors import ConfigError
from training.resolve import fine_tunes, known_recipes, resolve
from training.run.resume import flatten


@pytest.mark.parametrize("recipe", list(known_recipes()))
def test_a_recipe_survives_json_and_names_itself(recipe: str) -> None:
    config = resolve(recipe, (), resolve("tiny") if fine_tunes(recipe) else None)
    assert config.recipe == recipe
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_from_dict_names_file_and_key() -> None:
    values = to_dict(resolve("tiny"))
    with pytest.raises(ConfigError, match=r"^a/config.json: moco.tempreature: unknown key; did you mean temp"):
        from_dict(values | {"moco": values["moco"] | {"tempreature": 1}}, "a/config.json")
    del values["optim"]["clip"]  # as if written before there was such a key
    assert from_dict(values) == resolve("tiny")
    with pytest.raises(ConfigError, match=r"^a/config.json: seed: missing$"):
        from_dict({key: value for key, value in values.items() if key != "seed"}, "a/config.json")
    with pytest.raises(ConfigError, match=r"^a/config.json: optim: 3: input should be an object$"):
        from_dict(values | {"optim": 3}, "a/config.json")


def numeric_fields() -> Iterator[tuple[str, Any]]:
    """Key and value of every number of a config, but for one that may be minutes too."""
    for key, value in flatten("", to_dict(resolve("tiny"))).items():
        numbers = value if isinstance(value, list) else [value]
        if key != "run.checkpoint_every" and numbers and all(type(number) in (int, float) for number in numbers):
            yield key, value


def test_every_number_has_a_lower_limit() -> None:
    for key, value in numeric_fields():
        below = [-1e30 for _ in value] if isinstance(value, list) else type(value)(-1e30)
        with pytest.raises(ConfigError, match=f"^--set {re.escape(key)}: -.*: input should be greater than or equal"):
            resolve("tiny", [f"{key}={json.dumps(below)}"])


@pytest.mark.parametrize("wrong", ["-1", "5 min", "often", "1.5", "true"])
def test_checkpoints_are_steps_or_minutes_apart(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"^--set run.checkpoint_every: .*: not a number of steps or minutes"):
        resolve("tiny", [f"run.checkpoint_every={wrong}"])
    run = resolve("tiny", ["run.checkpoint_every=2.5min"]).run
    assert (run.checkpoint_steps, run.checkpoint_minutes) == (0, 2.5)
    run = resolve("tiny", ["run.checkpoint_every=40"]).run
    assert (run.checkpoint_steps, run.checkpoint_minutes) == (40, 0)


def test_a_copy_with_changes_is_checked_too() -> None:
    config = resolve("tiny")
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        replace(config.moco, queue_size=0)
    with pytest.raises(ConfigError, match=r"^data.max_tokens: 16 exceeds text.max_positions"):
        replace(config, text=replace(config.text, max_positions=9))
    with pytest.raises(FrozenInstanceError):
        config.moco.queue_size = 7  # type: ignore[misc]


def test_probabilities_of_texts_are_not_below_0() -> None:
    with pytest.raises(ConfigError, match=r"^--set data.text_kinds.news.alt: -1: input should be greater than"):
        resolve("tiny", ['data.text_kinds={"news": {"alt": -1}}'])
