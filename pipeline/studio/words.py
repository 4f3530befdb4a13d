"""Words that people search for, as DuckDB looks for them: in both Chinese scripts, and letters in either case."""

from __future__ import annotations

import functools
import re
import string
from typing import Any
from urllib.parse import quote

HAN = re.compile(r"[\u3400-\u9fff]")


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


def search_value(term: str) -> str:
    """The value that `contains` is asked with."""
    return term.lower() if _cased(term) else term


def in_addresses(terms: list[str]) -> list[str]:
    """Spellings of a term in addresses, which are canonical: Chinese characters as %XX, hosts in small letters."""
    return list(dict.fromkeys([*(quote(term, safe=string.punctuation) for term in terms), terms[0].lower()]))


def _cased(term: str) -> bool:
    return term.lower() != term.upper()
