"""Safe printing of untrusted text: terminal control characters and bidirectional overrides are escaped.

Page titles, URLs, names of tar members and messages of parsers hold whatever their author wanted. On a terminal an
escape sequence renames the window, clears the screen or writes into a line above; a carriage return hides what stands
before it; a bidirectional control makes `gpj.exe` of `exe.jpg` (CVE-2021-42574, Unicode Technical Report 36). Here each
of them becomes the escape by which Python and JSON write it, so that it is seen, and does nothing.

Limits: letters that look like others stay, and so do joiners, which emoji and several scripts need.
"""

from __future__ import annotations

import re

_COMMANDS = "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line break, DEL, C1: what terminals obey
_DIRECTIONS = "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"  # bidirectional; two more line breaks
_SURROGATES = "\ud800-\udfff"  # no stream in UTF-8 takes half a character
_UNPRINTABLE = re.compile(f"[{_COMMANDS}{_DIRECTIONS}{_SURROGATES}]")
_UNPRINTABLE_IN_LINE = re.compile(f"[\n{_COMMANDS}{_DIRECTIONS}{_SURROGATES}]")
_OF_JSON = re.compile(f"[\x7f-\x9f{_DIRECTIONS}{_SURROGATES}]")


def printable(text: str) -> str:
    """A text with escapes (`\\x1b`, `\\u202e`) for control characters; line breaks and tabs stay."""
    return text if text.isascii() and text.isprintable() else _UNPRINTABLE.sub(_escape, text)


def printable_line(text: str) -> str:
    """The same as one line: a line break becomes `\\n`, so that a text cannot add a line to a log."""
    return text if text.isascii() and text.isprintable() else _UNPRINTABLE_IN_LINE.sub(_escape, text)


def printable_json(text: str) -> str:
    """The same JSON with such characters escaped; JSON itself escapes those below U+0020."""
    if text.isascii() and "\x7f" not in text:
        return text
    return _OF_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return "\\n" if code == 10 else f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
