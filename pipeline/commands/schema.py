"""JSON Schema of a build spec for editors, including the options of every plug-in.

    wenlan-data schema                        prints data_specs/schemas/build.schema.json
    python -m pipeline.commands.schema        rewrites it

An editor completes and checks a spec that begins with `# yaml-language-server: $schema=schemas/build.schema.json` as it
is typed. The schema is generated from the models, and a test proves that the file is current.

Limits: checks across several fields are not in the schema; `wenlan-data plan` makes them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_specs.command import answers
from data_specs.command.command_line import completed_by
from data_specs.errors import SpecError
from data_specs.names import NAME
from pipeline.commands.terminal import Commands, command

if TYPE_CHECKING:
    from pipeline.plugins import Family

PATH = Path(__file__).parents[2] / "data_specs" / "schemas" / "build.schema.json"

SUFFIX = ".schema.json"


def add_schema(commands: Commands) -> None:
    parser = command(
        commands,
        "schema",
        _print,
        "print a JSON Schema, for completion and checks in an editor",
        "wenlan-data schema > build.schema.json",
        "wenlan-data schema build",
    )
    name = parser.add_argument("name", nargs="?", default="build", metavar="NAME", help=f"one of {', '.join(_names())}")
    completed_by(name, lambda **_: _names())


def _print(args: argparse.Namespace) -> dict[str, Any]:
    """Print the schema on stdout; with --json it is part of the one line there instead."""
    if args.name not in _names():
        raise SpecError([f"{args.name}: no such schema; expected one of {', '.join(_names())}"])
    schema = json.loads(PATH.with_name(f"{args.name}{SUFFIX}").read_text(encoding="utf-8"))
    if not args.json:
        sys.stdout.write(f"{answers.to_json(schema, indent=1)}\n")
    return {"schema": schema}


def _names() -> list[str]:
    return sorted(path.name.removesuffix(SUFFIX) for path in PATH.parent.glob(f"*{SUFFIX}"))


def schema() -> dict[str, Any]:
    """The schema of a spec, in JSON Schema 2020-12."""
    from data_specs.build import BuildSpec
    from pipeline.plugins import names

    spec = BuildSpec.model_json_schema()
    definitions: dict[str, Any] = spec["$defs"]
    definitions["Filter"] = {"oneOf": [_plugin(definitions, "filters", n) for n in names("filters")]}
    definitions["Detector"] = {"oneOf": [_plugin(definitions, "detectors", n) for n in names("detectors")]}
    source = definitions["SourceRef"]["properties"]
    shared = {"name": {**source["name"], "pattern": NAME}, "source_kind": source["source_kind"]}
    optional = {name: value for name, value in source.items() if name not in ("kind", *shared)}
    definitions["Source"] = {"oneOf": [_plugin(definitions, "sources", n, shared, optional) for n in names("sources")]}
    spec["properties"]["sources"]["items"] = {"$ref": "#/$defs/Source"}
    spec["properties"]["filters"]["items"] = {"$ref": "#/$defs/Filter"}
    definitions["Regions"]["properties"]["detectors"]["items"] = {"$ref": "#/$defs/Detector"}
    for name in ("SourceRef", "PluginRef"):
        definitions.pop(name, None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **spec}


def _plugin(
    definitions: dict[str, Any],
    family: Family,
    name: str,
    shared: dict[str, Any] | None = None,
    optional: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Schema of a reference to one plug-in, with its options; models of nested options are added to `definitions`.

    shared: required properties beside the options; optional: further properties.
    """
    from pipeline.commands.options import NO_OPTIONS
    from pipeline.plugins import find

    model = find(family, name).model_json_schema()
    definitions.update(model.pop("$defs", {}))
    own = {k: v for k, v in model["properties"].items() if k not in (*NO_OPTIONS, *(optional or {}))}
    _one_or_many(own)
    key = "kind" if family == "sources" else "name"
    required = [key, *(shared or {}), *(k for k in model.get("required", []) if k in own)]
    return {
        "title": name,
        "description": model.get("description", ""),
        "type": "object",
        "properties": {key: {"const": name}, **(shared or {}), **(optional or {}), **own},
        "required": required,
        "additionalProperties": False,
    }


def _one_or_many(properties: dict[str, Any]) -> None:
    """Allow one string for a `path` that is a list: the models accept both."""
    path = properties.get("path")
    if path is not None and path.get("type") == "array":
        properties["path"] = {
            "anyOf": [path, {"type": "string"}],
            **{k: path.pop(k) for k in ("title", "description", "default") if k in path},
        }


def text() -> str:
    return json.dumps(schema(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
