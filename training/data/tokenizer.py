"""Sources of vocabularies: the built-in ones, files, folders of transformers, checkpoints, classes of other packages.

`gb2312` serves small text towers that start from nothing; a released text tower needs the vocabulary it was trained
with, and `bert_chinese` is that one: the 21,128 tokens of BERT-base-Chinese (google-research/bert, Apache-2.0), which
the RoBERTa-wwm models and BriVL-1.0 share. It lies beside this file, so that released weights need no download.

How they make ids of texts is `data_specs.text.tokenizer`, which an index that is searched without torch shares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_specs.text import tokenizer as of_vocabulary
from data_specs.text.tokenizer import (
    CLS,
    PAD,
    SEP,
    SPECIAL,
    UNK,
    BertTokenizer,
    CharTokenizer,
    JsonTokenizer,
    Tokenizer,
    VocabularyError,
    gb2312_vocabulary,
    vocabulary_text,
)
from training.config import DataConfig
from training.errors import ConfigError, InputError, first_line
from training.plug_ins import declared_as, import_installed

__all__ = [
    "CLS",
    "PAD",
    "SEP",
    "SPECIAL",
    "UNK",
    "BertTokenizer",
    "CharTokenizer",
    "JsonTokenizer",
    "Tokenizer",
    "from_vocabulary",
    "gb2312_vocabulary",
    "is_code",
    "json_tokenizer",
    "load_tokenizer",
    "vocabulary_text",
    "with_class",
]

VOCAB_FILE, JSON_FILE = "vocab.txt", "tokenizer.json"
GB2312, BERT_CHINESE = "gb2312", "bert_chinese"
_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_HAS_UPPER_CASE = re.compile("(##)?[a-z]*[A-Z][A-Za-z]*")
"""Matches a token with upper case; [CLS] and the like do not match."""

_BERT_CHINESE_FILE = Path(__file__).with_name("bert_chinese.txt")


def is_code(name: str) -> bool:
    """True for a class of an installed package, `acme.words:Words`: no vocabulary says what it makes of a text."""
    return _CODE.fullmatch(name) is not None


def with_class(data: DataConfig) -> DataConfig:
    """The config whose tokenizer is the class that an entry point names, so that a checkpoint names the class."""
    built_in = data.tokenizer in (GB2312, BERT_CHINESE)
    named = None if built_in else declared_as(data.tokenizer, "data.tokenizer")
    return data if named is None else replace(data, tokenizer=named)


def load_tokenizer(name: str) -> Tokenizer:
    """Tokenizer by name: `gb2312`, `bert_chinese`, a vocabulary file, a tokenizer.json, a folder of transformers, a hub
    name, or a class. Of a folder a BERT's `vocab.txt` is read first, unless its tokenizer_config.json keeps upper case.

    Raises InputError if it cannot be found, ConfigError for a class.
    """
    if is_code(name):
        found = import_installed(name, "data.tokenizer")
        if not isinstance(found, type) or not hasattr(found, "encode"):  # a function is never called
            raise ConfigError("data.tokenizer", f"{name} is not a class with `encode` and `vocabulary`")
        made: Tokenizer = found()
        return made
    if name == GB2312:
        return CharTokenizer(gb2312_vocabulary())
    path = _BERT_CHINESE_FILE if name == BERT_CHINESE else Path(name)
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.endswith(".txt"):
        return _of_transformers(name)
    if path.is_dir() and any(path.glob("tokenizer*")) and (not (path / VOCAB_FILE).is_file() or _keeps_case(path)):
        return _of_transformers(name)
    path = path / VOCAB_FILE if path.is_dir() else path
    try:
        if path.suffix == ".json":
            return json_tokenizer(path.read_text(encoding="utf-8"), name)
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        raise InputError(
            str(path),
            "not a readable vocabulary; give gb2312, bert_chinese, a vocab.txt, a tokenizer.json, or the folder of one",
        ) from None
    return from_vocabulary(lines[:-1] if lines[-1] == "" else lines, str(path))


def _keeps_case(folder: Path) -> bool:
    """True if a folder's tokenizer_config.json says that texts are not made lower case."""
    try:
        return json.loads((folder / "tokenizer_config.json").read_bytes())["do_lower_case"] is False
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _of_transformers(name: str) -> Tokenizer:
    """The tokenizer of a local folder or of the hub: a BERT's by its vocabulary, any other as transformers runs it.

    As transformers runs it also a BERT's whose ids are not in a row, or that keeps upper case and has tokens of it:
    bert-base-chinese keeps it without such tokens, so that lower case reads more.
    """
    from transformers import AutoTokenizer

    try:
        published: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        ids: dict[str, int] = published.get_vocab()
        backend: Any = getattr(published, "backend_tokenizer", None)
    except Exception as e:  # transformers raises many types on a folder without, and on a foreign one
        raise InputError(name, f"neither a local vocabulary nor one on the hub ({first_line(e)})") from None
    in_a_row = sorted(ids.values()) == list(range(len(ids)))
    cased = getattr(published, "do_lower_case", True) is False and any(map(_HAS_UPPER_CASE.fullmatch, ids))
    if set(SPECIAL) <= ids.keys() and any(token.startswith("##") for token in ids) and in_a_row and not cased:
        return from_vocabulary(sorted(ids, key=lambda token: ids[token]), name)
    if backend is None:
        raise InputError(name, "tokenizer.json is missing; save it with transformers' fast tokenizer first")
    return json_tokenizer(backend.to_str(), name)


def from_vocabulary(tokens: Sequence[str], subject: str) -> Tokenizer:
    """Tokenizer of a saved vocabulary: characters if it begins like ours, else WordPiece. Raises InputError."""
    try:
        return of_vocabulary.from_vocabulary(tokens, subject)
    except VocabularyError as e:
        raise InputError(e.subject, e.problem) from None


def json_tokenizer(content: str, subject: str) -> JsonTokenizer:
    """Tokenizer of a tokenizer.json. Raises InputError."""
    try:
        return JsonTokenizer(content, subject)
    except VocabularyError as e:
        raise InputError(e.subject, e.problem) from None
