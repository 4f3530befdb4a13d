"""Files of decisions, of samples and of a search index: their rows as decisions, in Python and in SQL.

decisions   what a stage dropped, or a trial kept (`pipeline.records.DECISION_SCHEMA`)
samples     what was packed (metadata beside the shards)
index       vectors that `wenlan-train embed` wrote, with their captions
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pipeline.records import sha256_hex
from pipeline.report.elsewhere import as_decided

SHOWN = ("subject", "id", "fetch_id", "source", "page_url", "url", "stage", "kept", "reason", "reasons", "evidence",
         "duplicate_of", "text")  # fmt: skip

NOTHING = (("pos", "UBIGINT"), ("number", "UBIGINT"), *((n, "BOOLEAN" if n == "kept" else "VARCHAR")
            for n in SHOWN if n != "reasons"))  # fmt: skip


def id_of_index(row_id: str) -> str:
    """The id of a row of a search index as rows here have it: a sample's key, or the sha256 of another name."""
    return row_id if re.fullmatch("[0-9a-f]{32,64}", row_id) else sha256_hex(row_id)


def _of_index(row: dict[str, Any]) -> dict[str, Any]:
    same = {name: row[name] or "" for name in ("source", "page_url")}
    named = {"candidate_id": id_of_index(row["id"]), "image_url": row["url"] or "", "sha256": ""}
    return {**as_decided({**same, **named, "texts": [{"text": row["caption"] or ""}]}), "row_id": row["id"]}


AS_DECISION: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "decisions": lambda row: row,
    "samples": as_decided,
    "index": _of_index,
}
"""A row of a file as the decision about it, by the file's layout."""

LISTED = {
    "decisions": SHOWN,
    "samples": ("candidate_id", "source", "page_url", "image_url", "sha256", "texts"),
    "index": ("id", "source", "page_url", "url", "caption"),
}
"""The columns that this needs."""

ID_OF_INDEX = "CASE WHEN regexp_full_match(id, '[0-9a-f]{32,64}') THEN id ELSE sha256(id) END"
"""`id_of_index` in SQL."""

_FATE_OF_KEPT = "'shard' AS stage, true AS kept, '' AS reason, '' AS evidence, '' AS duplicate_of"
SELECTED = {
    "decisions": "subject, id, fetch_id, source, page_url, url, stage, kept, reason, evidence, duplicate_of, text",
    "samples": "'candidate' AS subject, candidate_id AS id, sha256(image_url) AS fetch_id, source, page_url, "
    f"image_url AS url, {_FATE_OF_KEPT}, texts[1].text AS text",
    "index": f"'candidate' AS subject, {ID_OF_INDEX} AS id, "
    "sha256(coalesce(url, '')) AS fetch_id, coalesce(source, '') AS source, coalesce(page_url, '') AS page_url, "
    f"coalesce(url, '') AS url, {_FATE_OF_KEPT}, coalesce(caption, '') AS text",
}
"""The same in SQL."""
