"""Drops texts with little content: no noun, mostly stop words, few and common words, or unknown characters.

Off unless a spec names it: a caption of two verbs may be just right for its picture. What counts as a noun, a content
word or a stop word is in `pipeline.texts.density`. A text is looked at whole: a long paragraph passes where its
sentences alone would not.

Thresholds: min_nouns 1 and max_unknown 5 are DanQing's (arXiv 2601.10305), which counts unknown tokens of a BERT where
this filter counts characters outside GBK. DanQing also drops texts whose token entropy is below 0.0006; it does not say
of what. Read as here, the sum of -p ln p over a text's distinct words with p a word's share of a large corpus, that
drops captions of one rare word (口水鸡), good ones among them, so that it is off by default. max_stop_share is ours.

Limits: jieba's dictionary decides; a name that it lacks is cut into characters. Captions in the classical language or
in dialect have other function words.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict, Field

from data_specs.shard import Text
from pipeline.filters import Drop, Limit, TextFilter
from pipeline.rows.decisions import DropReason
from pipeline.texts.density import density, outside_gbk


class TextDensity(TextFilter):
    """Nouns, content words, stop words and entropy of a text."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"min_nouns": 1, "min_entropy": 6e-4}]})

    min_nouns: int = Field(1, ge=0, description="minimum number of nouns; 0: off")
    min_content_share: float = Field(0.0, ge=0, le=1, description="minimum share of content words; 0: off")
    max_stop_share: float = Field(0.75, gt=0, le=1, description="maximum share of stop words; 1: off")
    min_entropy: float = Field(0.0, ge=0, description="minimum entropy of the words, in nats; 0: off")
    max_unknown: int = Field(5, ge=0, description="maximum number of characters outside GBK")

    VERSION: ClassVar[int] = 2

    def limits(self) -> tuple[Limit, ...]:
        limits = (
            Limit("min_nouns", "nouns", DropReason.NO_NOUN, least=self.min_nouns),
            Limit("min_content_share", "content_share", DropReason.FEW_CONTENT_WORDS, least=self.min_content_share),
            Limit("min_entropy", "word_entropy", DropReason.TEXT_ENTROPY, least=self.min_entropy),
            Limit("max_stop_share", "stop_share", DropReason.STOP_WORDS, most=self.max_stop_share),
        )
        return tuple(limit for limit in limits if limit.least > 0 or limit.most < 1)

    def check(self, text: Text) -> Drop | None:
        if len(text.text) > self.max_unknown and (count := outside_gbk(text.text)) > self.max_unknown:
            return Drop(DropReason.UNKNOWN_CHARACTERS, f"{count} unknown characters; at most {self.max_unknown}")
        counts = density(text.text)
        if counts.nouns < self.min_nouns:
            return Drop(DropReason.NO_NOUN, f"{counts.nouns} nouns; needs {self.min_nouns}")
        if counts.content_share < self.min_content_share:
            evidence = f"{counts.content} of {counts.words} words are content words; needs {self.min_content_share:.0%}"
            return Drop(DropReason.FEW_CONTENT_WORDS, evidence)
        if counts.stop_share > self.max_stop_share:
            evidence = f"{counts.stop} of {counts.words} words are stop words; at most {self.max_stop_share:.0%}"
            return Drop(DropReason.STOP_WORDS, evidence)
        if counts.entropy < self.min_entropy:
            return Drop(DropReason.TEXT_ENTROPY, f"entropy {counts.entropy:.2g}; needs {self.min_entropy:g}")
        return None
