"""Concepts in texts: the entries of a word list that occur in a text, anywhere, as MetaCLIP matches its metadata.

Entries and texts are compared in their even form (`pipeline.texts.forms`): width, case and Traditional characters do
not matter. Chinese lacks spaces, so an entry matches wherever its characters stand in a row (京东 in 北京东路): a
substring, as in MetaCLIP (arXiv 2309.16671), in time that does not depend on the number of entries (Aho-Corasick).

The list is a file, one entry per line, of which what follows a tab is not read (rime-essay's frequencies), or the words
of jieba's dictionary, which come with it.

Limits: the automaton of 350,000 entries takes 90 MB per process and a second to build.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import fsspec

from data_specs.build import Balance, SpecError, resolve_path
from pipeline.files.inputs import faults, reason
from pipeline.texts.forms import even

MOST_BYTES = 200_000_000
"""Largest size of a word list: fifty times rime-essay's."""


@dataclass(frozen=True, slots=True)
class Concepts:
    """Entries [E] of a list in their even form, in the list's order, each once."""

    entries: Sequence[str]
    _automaton: Any

    def find(self, text: str) -> list[int]:
        """Numbers of the entries that occur in a text, ascending, each once."""
        return sorted({match[0] for match in self._automaton.find_matches_as_indexes(even(text), overlapping=True)})


def digest(balance: Balance, base: str) -> str:
    """sha256 of the content of the word list. Raises SpecError that names a file which cannot be used."""
    content = _content(balance, base)
    if next(_words(content, balance.min_letters), None) is None:
        problem = f"no entry of {balance.min_letters} characters or more, one per line (min_letters)"
        raise SpecError([f"balance.entries: {resolve_path(base, balance.entries)}: {problem}"])
    return hashlib.sha256(content).hexdigest()


def concepts(balance: Balance, base: str) -> Concepts:
    """The concepts of a spec, built once per process."""
    content = _content(balance, base)
    return _build(content, balance.min_letters)


def _content(balance: Balance, base: str) -> bytes:
    if not balance.entries:
        return resources.files("jieba").joinpath("dict.txt").read_bytes().replace(b" ", b"\t")
    path = resolve_path(base, balance.entries)
    try:
        with fsspec.open(path, "rb") as file:
            data = bytes(file.read(MOST_BYTES + 1))
        if len(data) > MOST_BYTES:
            raise SpecError([f"balance.entries: {path}: more than {MOST_BYTES:,} bytes; is it a list of words?"])
        data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise SpecError([f"balance.entries: {path}: not UTF-8 text (byte {e.start})"]) from None
    except faults(ValueError, ImportError) as e:
        raise SpecError([f"balance.entries: {path}: cannot be read ({reason(e)})"]) from None
    return data


@functools.lru_cache(maxsize=2)
def _build(content: bytes, min_letters: int) -> Concepts:
    from ahocorasick_rs import AhoCorasick, Implementation

    entries = list(dict.fromkeys(_words(content, min_letters)))
    # of the three implementations the fastest on captions, and a quarter of the memory of the automaton with all edges
    automaton = AhoCorasick(entries, implementation=Implementation.ContiguousNFA)
    return Concepts(entries, automaton)


def _words(content: bytes, min_letters: int) -> Iterator[str]:
    """The entries of a list that are long enough, in their even form."""
    for line in content.decode("utf-8-sig").splitlines():
        word = "" if line.startswith("#") else even(line.partition("\t")[0].strip())
        if len(word) >= max(1, min_letters):
            yield word
