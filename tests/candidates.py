"""What table sources read: files to read from, the rows that come out, and their texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.rows.account import Account
from pipeline.sources import TableSource


def put(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def read(source: TableSource) -> list[Any]:
    return [row for part in range(source.parts()) for row in source.read(part, Account())]


def texts(candidate: Any) -> list[tuple[str, str]]:
    return [(t.kind, t.text) for t in candidate.texts]
