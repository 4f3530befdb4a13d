"""Text to token ids: a character vocabulary that needs no download, or a BERT vocabulary from a local file.

`gb2312` is built from Python's own codec: the 6,763 hanzi of GB 2312-80 (rows 16-87), printable ASCII and the
punctuation of row 1. Text is folded by NFKC and lower case first, so that full-width letters share the ASCII ids. It
serves small text towers that start from nothing; a released text tower needs the vocabulary it was trained with, and
`bert_chinese` is that one: the 21,128 tokens of BERT-base-Chinese (google-research/bert, Apache-2.0), which the
RoBERTa-wwm models and BriVL-1.0 share. It lies beside this file, so that released weights need no download.

Any other tokenizer of transformers (SentencePiece, byte-level BPE: XLM-R, RoBERTa, ModernBERT, CLIP, SigLIP) is its
`tokenizer.json`, run by PyPI's `tokenizers`, which transformers itself does.

A vocabulary is written into every checkpoint as `vocab.txt`, one token per line, the line number is the id, and a
`tokenizer.json` beside it where there is one: ids can never drift between training and use.

Limits: characters outside the vocabulary are [UNK] (id 1), many traditional ones too. Padding (0) is the caller's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from training.errors import InputError, first_line

PAD, UNK, CLS, SEP = 0, 1, 2, 3
"""Ids of the character vocabularies; those of a BERT vocabulary are its own."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCAB_FILE, JSON_FILE = "vocab.txt", "tokenizer.json"
BERT_CHINESE = "bert_chinese"
_BERT_CHINESE_FILE = Path(__file__).with_name("bert_chinese.txt")

_READ = 10_000
"""Characters of a text that are looked at, or 8 per token where that is more: to normalise them takes time by the
square of their number where they are marks stacked on one letter, minutes for 1 MB."""

_HAN = "\u2e80-\u9fff\uf900-\ufaff"
_SPACE_BY_HAN = re.compile(rf"(?<=[{_HAN}])\s+|\s+(?=[{_HAN}])")


class Tokenizer(Protocol):
    """Interface of a tokenizer, as the loader needs it."""

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
            raise InputError("vocabulary", f"a character vocabulary begins with {' '.join(SPECIAL)}")
        self.vocabulary: Sequence[str] = tuple(vocabulary)
        self._ids = {token: number for number, token in enumerate(self.vocabulary)}

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Ids of `[CLS] characters [SEP]`; see `Tokenizer.encode`."""
        folded = " ".join(unicodedata.normalize("NFKC", _beginning(text, max_tokens)).lower().split())
        characters = _SPACE_BY_HAN.sub("", folded)[: max_tokens - 2]
        return [CLS, *(self._ids.get(c, UNK) for c in characters), SEP]


class BertTokenizer:
    """WordPiece of a BERT vocabulary through `transformers`; Chinese characters are single tokens there too."""

    def __init__(self, vocabulary: Sequence[str], subject: str) -> None:
        from transformers import BertTokenizer as Wordpiece

        missing = [token for token in SPECIAL if token not in vocabulary]
        if missing:
            raise InputError(subject, f"not a BERT vocabulary: it lacks {' '.join(missing)}")
        self.vocabulary: Sequence[str] = tuple(vocabulary)
        self._wordpiece: Any = Wordpiece(vocab={token: i for i, token in enumerate(vocabulary)}, do_lower_case=True)

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Ids of `[CLS] pieces [SEP]`; see `Tokenizer.encode`."""
        text = _beginning(text, max_tokens)
        ids: list[int] = self._wordpiece(text, truncation=True, max_length=max_tokens)["input_ids"]
        return ids


class JsonTokenizer:
    """A tokenizer by the content of its tokenizer.json."""

    def __init__(self, content: str, subject: str) -> None:
        from tokenizers import Tokenizer as Backend

        try:
            backend: Any = Backend.from_str(content)
        except Exception as e:  # the library's own type is Exception
            raise InputError(subject, f"not a tokenizer.json ({first_line(e)})") from None
        backend.no_padding()
        backend.no_truncation()
        self.content = str(backend.to_str())
        self._backend = backend
        ids: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        names = {number: token for token, number in ids.items()}
        self.vocabulary: Sequence[str] = tuple(names.get(i, f"[unused{i}]") for i in range(max(names, default=-1) + 1))

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Ids with the marks that the tokenizer puts around a text; see `Tokenizer.encode`."""
        self._backend.enable_truncation(max_tokens)
        ids: list[int] = self._backend.encode(_beginning(text, max_tokens)).ids
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


def load_tokenizer(name: str) -> Tokenizer:
    """Tokenizer by name: `gb2312`, `bert_chinese`, a vocabulary file, a tokenizer.json, a folder of transformers, or a
    hub name. Of a folder a BERT's `vocab.txt` is read first.

    Raises InputError when there is no such vocabulary.
    """
    if name == "gb2312":
        return CharTokenizer(gb2312_vocabulary())
    path = _BERT_CHINESE_FILE if name == BERT_CHINESE else Path(name)
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.endswith(".txt"):
        return _of_transformers(name)
    if path.is_dir() and not (path / VOCAB_FILE).is_file() and any(path.glob("tokenizer*")):
        return _of_transformers(name)
    path = path / VOCAB_FILE if path.is_dir() else path
    try:
        if path.suffix == ".json":
            return JsonTokenizer(path.read_text(encoding="utf-8"), name)
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        raise InputError(
            str(path),
            "no readable vocabulary; tokenizer is gb2312, bert_chinese, vocab.txt, tokenizer.json, or a folder of one",
        ) from None
    return from_vocabulary(lines[:-1] if lines[-1] == "" else lines, str(path))


def _of_transformers(name: str) -> Tokenizer:
    """The tokenizer of a local folder or of the hub: a BERT's by its vocabulary, any other as transformers runs it."""
    from transformers import AutoTokenizer

    try:
        published: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        ids: dict[str, int] = published.get_vocab()
        backend: Any = getattr(published, "backend_tokenizer", None)
    except Exception as e:  # transformers raises many types on a folder without, and on a foreign one
        raise InputError(name, f"neither a local vocabulary nor one on the hub ({first_line(e)})") from None
    if set(SPECIAL) <= ids.keys() and any(token.startswith("##") for token in ids):
        return BertTokenizer(sorted(ids, key=lambda token: ids[token]), name)
    if backend is None:
        raise InputError(name, "its tokenizer has no tokenizer.json; save it by transformers' fast tokenizer first")
    return JsonTokenizer(backend.to_str(), name)


def from_vocabulary(tokens: Sequence[str], subject: str) -> Tokenizer:
    """Tokenizer of a saved vocabulary: of characters if it begins as ours do, else WordPiece. Raises InputError."""
    if tuple(tokens[:4]) == SPECIAL and all(len(token) == 1 for token in tokens[4:]):
        return CharTokenizer(tokens)
    return BertTokenizer([token.rstrip("\r") for token in tokens], subject)


def vocabulary_text(tokenizer: Tokenizer) -> str:
    """Content of `vocab.txt`. A token with a line break in it, which no BERT has, is written with its escape."""
    return "".join(f"{_one_line(token)}\n" for token in tokenizer.vocabulary)


def _one_line(token: str) -> str:
    return token.replace("\n", "\\n") if "\n" in token else token
