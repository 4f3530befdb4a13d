"""Text to token ids, the same in training and in searches without torch.

A character vocabulary, a BERT vocabulary (WordPiece), or any tokenizer of transformers by its tokenizer.json, run by
PyPI's `tokenizers`, which transformers itself does. `training.data.tokenizer` says where vocabularies come from.

`gb2312` is built from Python's own codec: the 6,763 hanzi of GB 2312-80 (rows 16-87), printable ASCII and the
punctuation of row 1. Text is folded by NFKC and lower case first, so that full-width letters share the ASCII ids.

A vocabulary is written into every checkpoint and into the metadata of an ONNX file as text, one token per line, the
line number is the id, and a tokenizer.json beside it where there is one: ids can never drift between training and use.

Limits: characters outside the vocabulary are [UNK] (id 1), many traditional ones too. Padding (0) is the caller's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

from data_specs.shard import ContractError

PAD, UNK, CLS, SEP = 0, 1, 2, 3
"""Ids of the character vocabularies; those of a BERT vocabulary are its own."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")

_READ = 10_000
"""Characters of a text that are looked at, or 8 per token where that is more: to normalise them takes time by the
square of their number where they are marks stacked on one letter, minutes for 1 MB."""

MOST_IDS = 1 << 20
"""Largest id of a tokenizer.json, up to which a list is made: XLM-V's million is the largest vocabulary."""

_HAN = "\u2e80-\u9fff\uf900-\ufaff"
_SPACE_BY_HAN = re.compile(rf"(?<=[{_HAN}])\s+|\s+(?=[{_HAN}])")


class VocabularyError(ContractError):
    """Raised for an unusable vocabulary. `subject` names it, `problem` says why."""

    def __init__(self, subject: str, problem: str) -> None:
        super().__init__(subject, problem)  # both in args: errors cross processes by pickle
        self.subject, self.problem = subject, problem

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}"


class Tokenizer(Protocol):
    """Interface of a tokenizer for the loader."""

    @property
    def vocabulary(self) -> Sequence[str]:
        """Tokens; the index is the id."""
        ...

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Ids with the start and end marks, at most `max_tokens` (>= 3) of them; the end mark is always there."""
        ...


class CharTokenizer:
    """Tokenizer with one token per character."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        if tuple(vocabulary[:4]) != SPECIAL:
            raise VocabularyError("vocabulary", f"a character vocabulary begins with {' '.join(SPECIAL)}")
        self.vocabulary: Sequence[str] = tuple(vocabulary)
        self._ids = {token: number for number, token in enumerate(self.vocabulary)}

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Ids of `[CLS] characters [SEP]`; see `Tokenizer.encode`."""
        folded = " ".join(unicodedata.normalize("NFKC", _beginning(text, max_tokens)).lower().split())
        characters = _SPACE_BY_HAN.sub("", folded)[: max_tokens - 2]
        return [CLS, *(self._ids.get(c, UNK) for c in characters), SEP]


class BertTokenizer:
    """WordPiece of a BERT vocabulary, as transformers' BertTokenizer does it; Chinese characters are single tokens."""

    def __init__(self, vocabulary: Sequence[str], subject: str) -> None:
        from tokenizers import Tokenizer as Backend
        from tokenizers import models, normalizers, pre_tokenizers, processors

        missing = [token for token in SPECIAL if token not in vocabulary]
        if missing:
            raise VocabularyError(subject, f"not a BERT vocabulary: it lacks {' '.join(missing)}")
        self.vocabulary: Sequence[str] = tuple(vocabulary)
        ids = {token: i for i, token in enumerate(vocabulary)}
        backend: Any = Backend(models.WordPiece(ids, unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        marks = [(mark, ids[mark]) for mark in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
        backend.add_special_tokens(["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"])  # read as such in a text too
        self._backend = backend

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Ids of `[CLS] pieces [SEP]`; see `Tokenizer.encode`."""
        return _truncated(self._backend, text, max_tokens)


class JsonTokenizer:
    """A tokenizer by the content of its tokenizer.json."""

    def __init__(self, content: str, subject: str) -> None:
        from tokenizers import Tokenizer as Backend

        try:
            backend: Any = Backend.from_str(content)
        except Exception as e:  # the library's own type is Exception
            problem = (str(e).splitlines() or [""])[0] or type(e).__name__
            raise VocabularyError(subject, f"not a tokenizer.json ({problem})") from None
        ids: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        if (last := max(ids.values(), default=0)) > MOST_IDS:  # before it is written out, which would end the process
            raise VocabularyError(subject, f"has a token with id {last:,}; ids must be below {MOST_IDS:,}")
        backend.no_padding()
        backend.no_truncation()
        self.content = str(backend.to_str())
        self._backend = backend
        names = {number: token for token, number in ids.items()}
        self.vocabulary: Sequence[str] = tuple(names.get(i, f"[unused{i}]") for i in range(max(names, default=-1) + 1))

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Ids with the marks that the tokenizer puts around a text; see `Tokenizer.encode`.

        Of an empty text, where it puts none, one 0: what a shorter text of a batch is padded with.
        """
        return _truncated(self._backend, text, max_tokens) or [PAD]


def _truncated(backend: Any, text: str, max_tokens: int) -> list[int]:
    if backend.truncation is None or backend.truncation["max_length"] != max_tokens:
        backend.enable_truncation(max_tokens)
    ids: list[int] = backend.encode(_beginning(text, max_tokens)).ids
    return ids


def _beginning(text: str, max_tokens: int) -> str:
    return text[: max(_READ, 8 * max_tokens)]


@cache
def gb2312_vocabulary() -> tuple[str, ...]:
    """Special tokens, printable ASCII without capitals, row 1 punctuation, 6,763 hanzi; folded, without repeats."""
    characters = [chr(code) for code in range(0x20, 0x7F)]
    characters += [_decode(0xA1, low) for low in range(0xA1, 0xFF)]
    characters += [_decode(high, low) for high in range(0xB0, 0xF8) for low in range(0xA1, 0xFF)]
    folded = [unicodedata.normalize("NFKC", c).lower() for c in characters]
    return (*SPECIAL, *dict.fromkeys(c for c in folded if len(c) == 1))


def _decode(high: int, low: int) -> str:
    return bytes((high, low)).decode("gb2312", errors="ignore")


def from_vocabulary(tokens: Sequence[str], subject: str) -> Tokenizer:
    """Tokenizer of a saved vocabulary: of characters if it begins as ours do, else WordPiece.

    Raises VocabularyError.
    """
    if tuple(tokens[:4]) == SPECIAL and all(len(token) == 1 for token in tokens[4:]):
        return CharTokenizer(tokens)
    return BertTokenizer([token.rstrip("\r") for token in tokens], subject)


def vocabulary_text(tokenizer: Tokenizer) -> str:
    """Content of `vocab.txt`. A token with a line break in it, which no BERT has, is written with its escape."""
    return "".join(f"{_one_line(token)}\n" for token in tokenizer.vocabulary)


def _one_line(token: str) -> str:
    return token.replace("\n", "\\n") if "\n" in token else token
