"""DuckDB as the studio asks it: bounded, through fsspec, with SQL of files, of ids and of words.

A word is looked for in both Chinese scripts, and letters in either case.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec

MEMORY = "450MB"
"""What DuckDB may take: with the process itself, less than 1 GB for any number of candidates."""

HAN = re.compile(r"[\u3400-\u9fff]")


def settings(scratch: Path) -> dict[str, Any]:
    """DuckDB's settings: bounded memory, no extension from the network, nothing written but in `scratch`."""
    return {
        "memory_limit": MEMORY,
        "temp_directory": str(scratch / "spill"),
        "threads": 2,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }


def use_file_systems(db: Any, urls: Sequence[str]) -> None:
    """Let DuckDB open URLs through fsspec, as everything of the pipeline does."""
    for scheme in {url.partition("://")[0] for url in urls if "://" in url}:
        db.register_filesystem(fsspec.filesystem(scheme))


def quoted(path: str) -> str:
    """A path within SQL quotes."""
    return path.replace("'", "''")


def parquet(urls: Sequence[str]) -> str:
    """SQL that reads these files as one table, with `file_row_number`."""
    names = ", ".join(f"'{quoted(url)}'" for url in urls)
    return f"read_parquet([{names}], file_row_number=true)"


def head(column: str) -> str:
    """The first 64 bits of an id."""
    return f"TRY_CAST('0x' || substr({column}, 1, 16) AS UBIGINT)"


def variants(term: str) -> list[str]:
    """A term in both Chinese scripts, itself first."""
    terms = dict.fromkeys([term])
    if HAN.search(term):
        terms |= dict.fromkeys(str(_opencc(way).convert(term)) for way in ("t2s", "s2t"))
    return list(terms)


@functools.cache
def _opencc(way: str) -> Any:
    import opencc

    return opencc.OpenCC(way)


def contains(column: str, term: str) -> str:
    """SQL of whether a term stands in a column; letters in either case."""
    return f"contains(lower({column}), ?)" if _cased(term) else f"contains({column}, ?)"


def spelled(term: str) -> str:
    """The value that `contains` is asked with."""
    return term.lower() if _cased(term) else term


def _cased(term: str) -> bool:
    return term.lower() != term.upper()
