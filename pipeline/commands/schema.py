"""JSON Schema of a build spec for editors, with the options of every plug-in filled in.

    python -m pipeline.commands.schema        writes data_specs/schemas/build.schema.json

An editor completes and checks a spec that begins with `# yaml-language-server: $schema=schemas/build.schema.json` as it
is typed. The schema is generated from the models, and a test proves that the file is current.

Limits: checks across several fields are not in the schema; `wenlan-data plan` makes them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_specs.build import NAME, BuildSpec
from pipeline.plugins import Family, find, names

PATH = Path(__file__).parents[2] / "data_specs" / "schemas" / "build.schema.json"

_RESERVED = {"sources": ("base", "name", "source_kind", "max_drop"), "filters": ("base",), "detectors": ("base",)}
"""Fields of a plug-in's model that are no options: the pipeline sets them, or the reference in the spec has them."""


def schema() -> dict[str, Any]:
    """The schema of a spec, in JSON Schema 2020-12."""
    spec = BuildSpec.model_json_schema()
    definitions: dict[str, Any] = spec["$defs"]
    definitions["Filter"] = {"oneOf": [_plugin(definitions, "filters", n) for n in names("filters")]}
    definitions["Detector"] = {"oneOf": [_plugin(definitions, "detectors", n) for n in names("detectors")]}
    source = definitions["SourceRef"]["properties"]
    shared = {"name": {**source["name"], "pattern": NAME}, "source_kind": source["source_kind"]}
    optional = {"max_drop": source["max_drop"]}
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
    model = find(family, name).model_json_schema()
    definitions.update(model.pop("$defs", {}))
    own = {k: v for k, v in model["properties"].items() if k not in _RESERVED[family]}
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
    """Content of the schema file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
