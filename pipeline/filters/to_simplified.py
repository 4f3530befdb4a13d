"""Converts Traditional Chinese to Simplified with OpenCC, and keeps the original as well. Off unless a spec names it.

For models that are to see one script: a text in both scripts is then one text, in a sample, in dedup and in a
vocabulary. The original goes into KEY.json as `original` of its text; training does not read it.

Limits: what OpenCC knows; `t2s` changes the script, not the words (軟體 becomes 软体, with `tw2sp` 软件).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Literal

from pydantic import Field

from data_specs.shard import Text
from pipeline.filters import TextFilter


class ToSimplified(TextFilter):
    """Traditional to Simplified."""

    config: Literal["t2s", "tw2s", "tw2sp", "hk2s"] = Field("t2s", description="OpenCC configuration")
    keep_original: bool = Field(True, description="keep the original text in addition to the converted one")

    def rewrite(self, text: Text) -> Text:
        simplified = simplifier(self.config)(text.text)
        if simplified == text.text:
            return text
        original = text.original or text.text
        return replace(text, text=simplified, original=original if self.keep_original else "")


@cache
def simplifier(config: str) -> Callable[[str], str]:
    """OpenCC's conversion."""
    import opencc

    convert: Callable[[str], str] = opencc.OpenCC(config).convert
    return convert
