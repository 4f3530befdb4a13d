"""JSON Schema of a build spec, with every plug-in's options filled in: for editors.

    python -m pipeline.commands.schema        writes data_specs/schemas/build.schema.json

A spec that begins with `# yaml-language-server: $schema=schemas/build.schema.json` is completed and checked while it is
written. The schema is made from the models, and a test proves that the file is current.

Limits: checks that look at several fields at once are not in the schema; `wenlan-data plan` makes them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_specs.build import NAME, BuildSpec
from pipeline.plugins import Family, find, names

PATH = Path(__file__).parents[2] / "data_specs" / "schemas" / "build.schema.json"

_TAKEN = {"sources": ("base", "name", "source_kind", "max_drop"), "filters": ("base",), "detectors": ("base",)}
"""Fields of a plug-in's model that the pipeline sets or that the reference itself has."""


def schema() -> dict[str, Any]:
    """The schema (JSON Schema 2020-12)."""
    made = BuildSpec.model_json_schema()
    definitions: dict[str, Any] = made["$defs"]
    definitions["Filter"] = {"oneOf": [_plugin(definitions, "filters", n) for n in names("filters")]}
    definitions["Detector"] = {"oneOf": [_plugin(definitions, "detectors", n) for n in names("detectors")]}
    source = definitions["SourceRef"]["properties"]
    shared = {"name": {**source["name"], "pattern": NAME}, "source_kind": source["source_kind"]}
    optional = {"max_drop": source["max_drop"]}
    definitions["Source"] = {"oneOf": [_plugin(definitions, "sources", n, shared, optional) for n in names("sources")]}
    made["properties"]["sources"]["items"] = {"$ref": "#/$defs/Source"}
    made["properties"]["filters"]["items"] = {"$ref": "#/$defs/Filter"}
    definitions["Regions"]["properties"]["detectors"]["items"] = {"$ref": "#/$defs/Detector"}
    for name in ("SourceRef", "PluginRef"):
        definitions.pop(name, None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _plugin(
    definitions: dict[str, Any],
    family: Family,
    name: str,
    shared: dict[str, Any] | None = None,
    optional: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Schema of one plug-in as a spec refers to it; the models of its options go into `definitions`."""
    made = find(family, name).model_json_schema()
    definitions.update(made.pop("$defs", {}))
    own = {k: v for k, v in made["properties"].items() if k not in _TAKEN[family]}
    _one_or_many(own)
    key = "kind" if family == "sources" else "name"
    required = [key, *(shared or {}), *(k for k in made.get("required", []) if k in own)]
    return {
        "title": name,
        "description": made.get("description", ""),
        "type": "object",
        "properties": {key: {"const": name}, **(shared or {}), **(optional or {}), **own},
        "required": required,
        "additionalProperties": False,
    }


def _one_or_many(properties: dict[str, Any]) -> None:
    """`path` may be one string where a list is wanted: the models take both."""
    path = properties.get("path")
    if path is not None and path.get("type") == "array":
        properties["path"] = {
            "anyOf": [path, {"type": "string"}],
            **{k: path.pop(k) for k in ("title", "description", "default") if k in path},
        }


def text() -> str:
    """The schema as the file holds it."""
    return json.dumps(schema(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
