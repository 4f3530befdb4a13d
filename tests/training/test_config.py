"""The config: every recipe is complete and survives JSON, and what a file says wrongly is one line that names it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from training.config import Config, Range, from_dict, to_dict
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
    with pytest.raises(ConfigError, match="optim must be an object"):
        from_dict(values | {"optim": 3}, "a/config.json")


def numeric_fields() -> Iterator[tuple[str, int, type]]:
    """Key, place in a tuple and type of every number of a config, but for one that may be minutes too."""
    for key, value in flatten("", to_dict(resolve("tiny"))).items():
        if key == "run.checkpoint_every":
            continue
        for place, number in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                yield key, place, type(number)


@pytest.mark.parametrize(("key", "place", "kind"), list(numeric_fields()))
def test_every_number_has_a_range_that_its_error_names(key: str, place: int, kind: type) -> None:
    """Read off the annotation, and tried: one number below the range, one above it where it ends."""
    values = to_dict(resolve("tiny"))
    *sections, name = key.split(".")
    record: Any = Config
    section = values
    for part in sections:
        record, section = record.__pydantic_fields__[part].annotation, section[part]
    field = record.__pydantic_fields__[name]
    of_tuple = get_args(field.annotation)
    metadata = of_tuple[place].__metadata__ if of_tuple else field.metadata
    (limits,) = [limit for m in metadata for limit in (m, *getattr(m, "metadata", ())) if isinstance(limit, Range)]
    for outside in (limits.low - 1, limits.high + 1):
        if not math.isfinite(outside):
            continue
        wrong = kind(outside)
        changed = section[name]
        if of_tuple:
            changed = [*changed]
            changed[place] = wrong
        before, section[name] = section[name], changed if of_tuple else wrong
        expected = f"{key}: {wrong} is out of range; it must be between {limits.low:g} and {limits.high:g}"
        with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
            from_dict(values)
        section[name] = before


@pytest.mark.parametrize("wrong", ["-1", "5 min", "often", "1.5", "true"])
def test_checkpoints_are_steps_or_minutes_apart(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"^--set run.checkpoint_every: .* is not a number of steps or minutes"):
        resolve("tiny", [f"run.checkpoint_every={wrong}"])
    run = resolve("tiny", ["run.checkpoint_every=2.5min"]).run
    assert (run.checkpoint_steps, run.checkpoint_minutes) == (0, 2.5)
    run = resolve("tiny", ["run.checkpoint_every=40"]).run
    assert (run.checkpoint_steps, run.checkpoint_minutes) == (40, 0)


def test_a_copy_with_changes_is_checked_too() -> None:
    config = resolve("tiny")
    with pytest.raises(ValidationError, match="0 is out of range; it must be between 1 and inf"):
        replace(config.moco, queue_size=0)
    with pytest.raises(ConfigError, match=r"^data.max_tokens: 16 exceeds text.max_positions"):
        replace(config, text=replace(config.text, max_positions=9))
    with pytest.raises(FrozenInstanceError):
        config.moco.queue_size = 7  # type: ignore[misc]


def test_probabilities_of_texts_are_not_below_0() -> None:
    with pytest.raises(ConfigError, match=r"^data.text_kinds.news.alt: -1.0 is out of range; it must be between 0 "):
        resolve("tiny", ['data.text_kinds={"news": {"alt": -1}}'])
