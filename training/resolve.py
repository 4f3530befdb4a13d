"""Resolution of a config: from the name of a recipe and `--set` overrides.

    resolve("tiny", ["moco.queue_size=512", "run.batch_size=64"])

A recipe is a public function of training/recipes.py. An override is read by the type of its field: JSON, or bare words
where the field is text; values are checked only when all of them are set, so keys that must fit each other may come in
any order.

Limits: an override replaces a whole value; one key of a mapping cannot be set by itself.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
from collections.abc import Callable, Sequence
from typing import Any, get_origin

from pydantic import TypeAdapter

from training import recipes
from training.config import Config, Record, fields_of, from_dict, read_record, suggestion, to_dict
from training.errors import ConfigError

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def known_recipes() -> dict[str, Callable[..., Config]]:
    """Every recipe by its name: the public functions that training/recipes.py defines."""
    return {
        name: value
        for name, value in vars(recipes).items()
        if isinstance(value, types.FunctionType) and value.__module__ == recipes.__name__ and not name.startswith("_")
    }


def known_keys(*sections: str) -> list[str]:
    """Every key that `--set` takes, dotted, in the order of the config; `sections`: those within one section."""
    keys = []
    for name, kind in fields_of(sections).items():
        keys += known_keys(*sections, name) if dataclasses.is_dataclass(kind) else [".".join((*sections, name))]
    return keys


def fine_tunes(recipe: str) -> bool:
    """True if a recipe derives its config from the checkpoint that the run starts from."""
    function = known_recipes().get(recipe)
    return function is not None and bool(inspect.signature(function).parameters)


def resolve(recipe: str, overrides: Sequence[str] = (), begin: Config | None = None) -> Config:
    """The config of a recipe with overrides such as `moco.queue_size=512`; the last one on a key counts.

    begin: the config of the checkpoint that the run begins from; a recipe that fine-tunes needs it, others do not look.

    Raises ConfigError on an unknown recipe or key and on a value of the wrong type or range.
    """
    known = known_recipes()
    if recipe not in known:
        hint = suggestion(recipe, known)
        there = f"known recipes: {', '.join(sorted(known))}"
        raise ConfigError(f"recipe {recipe}", f"unknown; {hint + ' ' if hint else ''}{there}")
    if fine_tunes(recipe):
        if begin is None:
            raise ConfigError(f"recipe {recipe}", "fine-tunes a checkpoint; give it with --init")
        values = to_dict(known[recipe](begin))
    else:
        values = to_dict(known[recipe]())
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}", "write it as key=value, for example moco.queue_size=512")
        _set(values, key.strip(), value)
    return from_dict(values, "--set", separator=" ")


def apply_overrides(record: Record, overrides: Sequence[str]) -> Record:
    """A record of plain fields, such as the config of a captioner, with overrides such as `layers=4`.

    Raises ConfigError on an unknown key and on a value of the wrong type or range.
    """
    adapter = TypeAdapter(type(record))
    values: dict[str, Any] = adapter.dump_python(record, mode="json")
    fields = {field.name: field.type for field in dataclasses.fields(record)}  # type: ignore[arg-type]
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}", f"write it as key=value, for example {next(iter(fields))}=8")
        if key.strip() not in fields:
            hint = suggestion(key, fields)
            raise ConfigError(f"--set {key}", f"unknown key; {hint or 'known keys: ' + ', '.join(fields)}")
        values[key.strip()] = _parse(None, value)
    return read_record(adapter, values, "--set", separator=" ")


def _set(values: dict[str, Any], key: str, text: str) -> None:
    """Put the value that `text` means into the nested dict `values`. Raises ConfigError on an unknown key."""
    *sections, name = key.split(".")
    for number, part in enumerate((*sections, name)):
        fields = fields_of(sections[:number])
        if part not in fields:
            known = [one for one, kind in fields_of([]).items() if dataclasses.is_dataclass(kind)]
            elsewhere = " or ".join(f"{one}.{name}" for one in known if name in fields_of([one]))
            hint = f"did you mean {elsewhere}?" if elsewhere else suggestion(part, fields)
            raise ConfigError(f"--set {key}", f"unknown key {part}; {hint or 'there are ' + ', '.join(fields)}")
        is_section, is_last = dataclasses.is_dataclass(fields[part]), number == len(sections)
        if is_section and is_last:
            raise ConfigError(f"--set {key}", f"set one of its keys, {key}.NAME")
        if not is_section and not is_last:
            raise ConfigError(f"--set {key}", f"{part} is a value and does not have keys")
        if is_last:
            values[part] = _parse(fields[part], text)
        else:
            values = values[part]


def _parse(hint: Any, text: str) -> Any:
    """JSON where the field is not a text; a bare word stays a string, and the config's check judges it."""
    if hint is str:
        return text
    if get_origin(hint) is tuple and not text.lstrip().startswith("["):
        text = f"[{text}]"
    if hint is bool and text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # ValueError also of a number of more than 4,300 digits
        return text
