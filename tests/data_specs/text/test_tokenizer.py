"""tokenizer: the ids of a BERT vocabulary are those of transformers, whatever the text holds."""

from __future__ import annotations

import json
import pickle
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.text.tokenizer import (
    CLS,
    SEP,
    BertTokenizer,
    CharTokenizer,
    JsonTokenizer,
    VocabularyError,
    from_vocabulary,
    gb2312_vocabulary,
    vocabulary_text,
)
from training.data.tokenizer import load_tokenizer

SMALL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "红", "船", "sky", "##line", "a", "##b", "!", "é", "e", "你")


@cache
def both(kind: str) -> tuple[Any, Any]:
    """Ours and transformers' of a vocabulary."""
    from transformers import BertTokenizer as Wordpiece

    vocabulary = load_tokenizer("bert_chinese").vocabulary if kind == "chinese" else SMALL
    ids = {token: i for i, token in enumerate(vocabulary)}
    return BertTokenizer(vocabulary, "vocab.txt"), Wordpiece(vocab=ids, do_lower_case=True)


PIECES = [
    "红船",
    "Skyline",
    "ab",
    " ",
    "\t",
    "é",
    "É",
    "ＡＢ",
    "[SEP]",
    "[MASK]",
    "[CLS]x",
    "\u0301",
    "\x00",
    "\u200b",
    "𠮷",
]


@pytest.mark.slow
@settings(deadline=None)
@pytest.mark.parametrize("kind", ["chinese", "small"])
@given(text=st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=12).map("".join), most=st.integers(3, 20))
def test_ids_are_those_of_transformers(kind: str, text: str, most: int) -> None:
    ours, theirs = both(kind)
    assert ours.encode(text, most) == theirs(text, truncation=True, max_length=most)["input_ids"]


def test_a_vocabulary_comes_back_from_its_text() -> None:
    for tokens in (gb2312_vocabulary(), SMALL):
        tokenizer = from_vocabulary(tokens, "vocab.txt")
        again = from_vocabulary(vocabulary_text(tokenizer).split("\n")[:-1], "vocab.txt")
        assert type(again) is type(tokenizer)
        assert again.encode("红色的船 sky", 9) == tokenizer.encode("红色的船 sky", 9)


def test_a_tokenizer_crosses_to_another_process() -> None:
    for tokenizer in (BertTokenizer(SMALL, "vocab.txt"), CharTokenizer(gb2312_vocabulary())):
        again = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301
        assert again.encode("红船 sky", 9) == tokenizer.encode("红船 sky", 9)
        assert again.encode("红船" * 9, 5)[-1] == SEP
        assert again.encode("", 5) == [CLS, SEP]


def test_a_text_has_a_token_also_where_a_tokenizer_puts_no_marks() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend: Any = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "sky": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = JsonTokenizer(backend.to_str(), "tokenizer.json")
    assert [tokenizer.encode(text, 3) for text in ("", " ", "sky")] == [[0], [0], [2]]


def test_what_is_no_vocabulary_is_named() -> None:
    for make, line in (
        (lambda: BertTokenizer(["a"], "v.txt"), r"^v.txt: not a BERT vocabulary: it lacks \[PAD\]"),
        (lambda: CharTokenizer(["a"]), r"^vocabulary: a character vocabulary begins with \[PAD\]"),
        (lambda: JsonTokenizer("{}", "t.json"), r"^t.json: not a tokenizer.json"),
    ):
        with pytest.raises(VocabularyError, match=line) as raised:
            make()
        assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # noqa: S301


def test_a_tokenizer_with_an_id_of_billions_is_refused_and_ends_no_process() -> None:
    """300 bytes: the library writes a name for every id up to it, and aborts when there is no memory left."""
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 4_000_000_000}, "unk_token": "[UNK]"}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    content = json.dumps({"version": "1.0", **parts, "added_tokens": [], "model": model})
    with pytest.raises(VocabularyError, match=r"^t.json: has a token with id 4,000,000,000; ids must be below"):
        JsonTokenizer(content, "t.json")
