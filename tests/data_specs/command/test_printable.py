"""What is printed of strangers' texts: by Unicode's own tables nothing that commands a terminal or turns an order."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.command.printable import printable, printable_json, printable_line

EVIL = "\x1b]0;owned\x07\x1b[2J\u202egpj.exe\u2066\r\x9b31m\nWARNING wenlan: all is well"
ANY = st.text(st.characters() | st.sampled_from(EVIL + "\x7f\u2028\u061c\ud83d\x85"))


def _obeyed(char: str) -> bool:
    """Whether a terminal, or the bidirectional algorithm, obeys a character (Unicode's tables)."""
    formatting = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    marks = char in "\u200e\u200f\u061c"
    return (
        unicodedata.category(char) in ("Cc", "Zl", "Zp", "Cs") or unicodedata.bidirectional(char) in formatting or marks
    )


@pytest.mark.slow
@given(ANY)
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    assert not [char for char in printable(text) if _obeyed(char) and char not in "\n\t"]
    assert not [char for char in printable_line(text) if _obeyed(char) and char != "\t"]
    printable(text).encode()


@given(st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp"))))
def test_other_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == printable_line(text) == printable_json(text) == text


def test_escapes_are_those_of_python_and_json() -> None:
    assert printable_line("\x1b[2J\u202e\n\x9b") == "\\x1b[2J\\u202e\\n\\x9b"
    assert printable_json('["a\x7f"]') == '["a\\u007f"]', "ASCII has a control that JSON does not escape"
    assert printable("图\t片\n👨\u200d👩") == "图\t片\n👨\u200d👩", "joiners make emoji"


@given(ANY)
def test_json_has_the_same_value(text: str) -> None:
    written = printable_json(json.dumps([text], ensure_ascii=False))
    assert json.loads(written) == [text]
    assert not [char for char in written if _obeyed(char)]
