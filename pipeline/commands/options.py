"""Descriptions of the options of a spec and its plug-ins, read from the models: nothing is typed twice.

Names, types, bounds, defaults and descriptions come from the JSON Schema that pydantic makes of a model; what a plug-in
does, needs and took its thresholds from stands in the docstring of its file, in paragraphs that begin with `Needs:`,
`Thresholds:` and `Limits:`.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from data_specs.command.extras import is_installed
from pipeline.plugins import Family, Plugin, find

NO_OPTIONS = ("base", "name", "source_kind")
"""Fields of plug-ins that a spec does not write as options: the pipeline sets them, or the reference has them."""

_IN_EXAMPLE = 3
"""Options of an example that is made of defaults."""

_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "multipleOf": "a multiple of",
}
_TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "null": "null"}


@dataclass(frozen=True)
class Option:
    """One option. `default` is a JSON value, None for a required one; `options`: those of a nested mapping."""

    name: str
    type: str
    required: bool
    default: Any
    description: str
    options: tuple[Option, ...] = ()

    def to_json(self) -> dict[str, Any]:
        nested = {"options": [option.to_json() for option in self.options]} if self.options else {}
        told = {"name": self.name, "type": self.type, "required": self.required, "default": self.default}
        return {**told, "description": self.description, **nested}


@dataclass(frozen=True)
class About:
    """Paragraphs of the docstring of a plug-in's file; "" for a missing one."""

    summary: str  # the first sentence
    text: str  # the paragraphs without a name of their own
    needs: str
    thresholds: str
    limits: str

    @property
    def missing_extra(self) -> str:
        extra = re.search(r"the extra (\w+)", self.needs)
        return extra[1] if extra and not is_installed(extra[1]) else ""


@functools.cache
def options_of(model: type[BaseModel]) -> tuple[Option, ...]:
    """The options of a plug-in, or of a part of a spec, in the order of its fields."""
    schema = model.model_json_schema()
    options = _options(schema, schema.get("$defs", {}))
    return tuple(o for o in options if o.name not in NO_OPTIONS) if issubclass(model, Plugin) else options


def _options(schema: dict[str, Any], definitions: dict[str, Any]) -> tuple[Option, ...]:
    required = schema.get("required", ())
    options = []
    for name, own in schema.get("properties", {}).items():
        nested = _options(definitions.get(own.get("$ref", "").rpartition("/")[2], {}), definitions)
        kind = "mapping" if nested else _type(own, definitions)
        options.append(Option(name, kind, name in required, own.get("default"), own.get("description", ""), nested))
    return tuple(options)


def _type(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A type in words, with its bounds: `whole number, at least 1`."""
    if "$ref" in schema:
        return _type(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    if alternatives := schema.get("anyOf", schema.get("oneOf")):
        kinds = list(dict.fromkeys(_type(one, definitions) for one in alternatives if one.get("type") != "null"))
        return f"{kinds[0]}, or one per key" if kinds[1:] == [f"mapping to {kinds[0]}"] else " or ".join(kinds)
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])}: {_type(schema['prefixItems'][0], definitions)}"
        return f"list of {_type(schema.get('items', {}), definitions)}"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"mapping to {_type(values, definitions)}" if isinstance(values, dict) else "mapping"
    bounds = [f"{words} {schema[key]:g}" for key, words in _BOUNDS.items() if key in schema]
    return ", ".join([_TYPES.get(schema.get("type", ""), "anything"), *bounds])


def example_of(family: Family, name: str) -> dict[str, Any]:
    """Options of a plug-in as an example: that of its model's schema, else its first options with their defaults."""
    plugin = find(family, name)
    extra = plugin.model_config.get("json_schema_extra")
    examples = extra.get("examples") if isinstance(extra, dict) else None
    if isinstance(examples, list) and isinstance(examples[0], dict):
        return dict(examples[0])
    return {option.name: option.default for option in options_of(plugin)[:_IN_EXAMPLE]}


def about(plugin: type[Plugin]) -> About:
    """Returns the paragraphs of a plug-in's file."""
    module = inspect.getmodule(plugin)
    named = {"Needs": "", "Thresholds": "", "Limits": ""}
    text = []
    for paragraph in inspect.cleandoc((module and module.__doc__) or "").split("\n\n"):
        name, colon, rest = paragraph.partition(":")
        if colon and name in named:
            named[name] = " ".join(rest.split())
        else:
            text.append(paragraph)
    first = " ".join(text[0].split()).removeprefix(f"{plugin.plugin_name()}: ")
    first = f"{first[0].upper()}{first[1:]}"
    summary = re.split(r"(?<=[^.]\.) (?=[A-Z])|(?<=[.]) Off unless", first, maxsplit=1)[0]
    return About(summary, "\n\n".join(text), named["Needs"], named["Thresholds"], named["Limits"])


def as_yaml(value: Any) -> str:
    """A JSON value as YAML on one line, as it would stand behind `key: `."""
    if isinstance(value, str) and value == "":
        return '""'
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip() or json.dumps(value)
