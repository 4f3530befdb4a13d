"""The templates that stage `admit` has learnt, in a file of its folder (`_templates.json`).

`pipeline.stages._templates` learns and applies them; the report shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_specs.shard import canonical_json
from pipeline.store.build import Build
from pipeline.store.rewrite import Removal

FILE = "_templates.json"


def read(build: Build) -> list[dict[str, Any]] | None:
    """Rows with host, group and the fields of a `pipeline.texts.templates.Template`; None if none were learnt yet."""
    stage = build.stage("admit")
    value = stage.folder.find_json(FILE, {})
    rows: list[dict[str, Any]] | None = value.get("templates")
    return rows if value.get("fingerprint") == stage.fingerprint else None


def write(build: Build, rows: Sequence[dict[str, Any]]) -> None:
    stage = build.stage("admit")
    stage.folder.write(FILE, canonical_json({"fingerprint": stage.fingerprint, "templates": list(rows)}))


def forget(build: Build, removal: Removal) -> None:
    """Remove the templates of hosts that are taken down, and all examples, which may be texts of what is."""
    stage = build.stage("admit")
    value = stage.folder.find_json(FILE, {"templates": []})
    rows = value["templates"]
    kept = [{**row, "example": ""} for row in rows if not removal.page(f"http://{row['host']}/")]
    if kept != rows:
        stage.folder.write(FILE, canonical_json({**value, "templates": kept}))
