"""Drops texts with a word from a list. wenlan ships no lists: a spec names files of unwanted words.

    - name: lexicon
      lists: {politics: lists/politics.txt, adult: lists/adult.txt}     # UTF-8, one word per line, # begins a comment
      allow: [北京大学]                                                  # innocent words that contain a listed one

All words are searched for at once (Aho-Corasick) in the bare form of a text (`pipeline.texts.forms`): width, case,
Traditional characters, spaces and inserted marks do not hide one. A match there is then checked against the text
itself:

- a word of Latin letters or digits must be a word there (av is not in save), written as listed, in one piece, or with
  a mark between every two of its letters (s.e.x), not over a gap that only parts words (`mass age`);
- a Chinese word may have spaces and stray marks anywhere (法*轮 功), but a comma, a full stop or a bracket between two
  letters parts words (我们学习。近平顶山), unless marks stand between all of them;
- a match inside an allowed word does not count.

Needs: your own lists of words.

Thresholds: min_letters is ours.

Limits: the lists decide; one that holds 网络 drops every caption about networks. Words of one letter are ignored,
unless `min_letters` says otherwise. Homophones and split characters are not undone: list them.
"""

from __future__ import annotations

import hashlib
import itertools
from functools import cache
from typing import Any

import fsspec
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from data_specs.build import resolve_path
from data_specs.shard import Text
from pipeline.errors import SourceError
from pipeline.files.inputs import faults, reason
from pipeline.filters import Drop, TextFilter
from pipeline.rows.decisions import DropReason
from pipeline.texts.forms import bare, even, positions

_PARTING = frozenset("，。！？；：、“”‘’「」『』《》〈〉（）【】()[]{};!?\n\r\t")
_Files = tuple[tuple[str, str, str], ...]
"""(name of the list, path or URL, sha256 of its content)"""


class Lexicon(TextFilter):
    """Lists of words that a text must not hold."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"lists": {"unwanted": "unwanted.txt"}}]})

    lists: dict[str, str] = Field(min_length=1, description="name of a list -> its file: UTF-8, one word per line")
    allow: tuple[str, ...] = Field((), description="longer words inside which a listed word is ignored")
    min_letters: int = Field(2, ge=1, description="listed words with fewer letters and digits are ignored")
    base: str = ""
    _files: _Files = PrivateAttr(())

    @model_validator(mode="after")
    def _lists_can_be_read(self) -> Lexicon:
        files = []
        for name, path in sorted(self.lists.items()):
            file = resolve_path(self.base, path)
            digest, words = _read(file)
            if not any(len(bare(word)) >= self.min_letters for word in words):
                raise ValueError(f"{file}: contains no word of {self.min_letters} letters or more")
            files.append((name, file, digest))
        self._files = tuple(files)
        return self

    def identity(self) -> dict[str, Any]:
        """The plug-in's identity, with digests of the lists' contents in place of their paths."""
        identity = super().identity()
        identity["options"].pop("base")
        identity["options"]["lists"] = {name: digest for name, _, digest in self._files}
        return identity

    def check(self, text: Text) -> Drop | None:
        # not self._files: pydantic looks for it among all other attributes first, for as long as the search takes
        files: _Files = (self.__pydantic_private__ or {})["_files"]
        return _searcher(files, self.allow, self.min_letters).check(text.text)


def _read(path: str) -> tuple[str, list[str]]:
    """(sha256 of a list, its words, each once). Raises ValueError with one line that names the file."""
    try:
        with fsspec.open(path, "rb") as file:
            data = bytes(file.read())
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8 text (byte {e.start})") from None
    except faults(ValueError, ImportError) as e:
        raise ValueError(f"{path}: cannot be read ({reason(e)})") from None
    words = (line.strip() for line in text.splitlines())
    return hashlib.sha256(data).hexdigest(), list(dict.fromkeys(w for w in words if w and not w.startswith("#")))


class _Searcher:
    """The automata for the words and the allowed words of one configuration."""

    def __init__(self, listed: dict[str, list[tuple[str, str]]], allow: tuple[str, ...]) -> None:
        """`listed`: bare form -> (name of its list, the word as listed) of each word that has it."""
        from ahocorasick_rs import AhoCorasick

        self._bare = list(listed)
        self._listed = list(listed.values())
        self._words = AhoCorasick(self._bare)
        self._allowed = AhoCorasick(sorted({bare(word) for word in allow} - {""}))

    def check(self, text: str) -> Drop | None:
        letters = bare(text)
        matches = self._words.find_matches_as_indexes(letters, overlapping=True)
        if not matches:
            return None
        allowed = self._allowed.find_matches_as_indexes(letters, overlapping=True)
        at, plain = positions(text), even(text)
        for number, start, end in sorted(matches, key=lambda match: (match[1], -match[2], match[0])):
            if any(s <= start and end <= e for _, s, e in allowed):
                continue
            for name, word in self._listed[number]:
                if _is_word_there(self._bare[number], word, text, plain, at[start:end]):
                    return Drop(DropReason.LISTED_WORD, f"{name}: {word}")
        return None


def _is_word_there(letters: str, word: str, text: str, plain: str, at: list[int]) -> bool:
    """True if the letters of a text at the positions `at` are the word, and not parts of others.

    letters: the word's bare form; plain: the text's even form.
    """
    before, after = plain[at[0] - 1] if at[0] else "", plain[at[-1] + 1 : at[-1] + 2]
    if (_is_latin(letters[0]) and _is_latin(before)) or (_is_latin(letters[-1]) and _is_latin(after)):
        return False
    gaps = [text[a + 1 : b] for a, b in itertools.pairwise(at)]
    if all(gaps) or not any(gaps):  # a mark between every two letters, or in one piece
        return True
    own_positions = positions(word)  # a word that is listed with marks of its own may be written with them
    if plain[at[0] : at[-1] + 1] == even(word)[own_positions[0] : own_positions[-1] + 1]:
        return True
    return not letters.isascii() and not any(_PARTING & set(gap) for gap in gaps)


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()


@cache
def _searcher(files: _Files, allow: tuple[str, ...], min_letters: int) -> _Searcher:
    """The searcher of a configuration, built once per process. Raises SourceError if a list changed since planning."""
    listed: dict[str, list[tuple[str, str]]] = {}
    for name, path, digest in files:
        current, words = _read(path)
        if current != digest:
            raise SourceError(path, f"list {name} has changed since the build was opened")
        for word in words:
            letters = bare(word)
            if len(letters) >= min_letters:
                listed.setdefault(letters, []).append((name, word))
    return _Searcher(listed, allow)
