"""Drops texts that a language model finds too unlikely (lists of codes, word salad) or too likely (set phrases).

The perplexity is that of a KenLM model of words which the spec names, or without one that of jieba's dictionary alone:
how rare a text's words are, whatever their order. Off unless a spec names it.

    - name: text_perplexity
      model: zh_CN.lm              # for example Debian's libime-data-language-model (words, trigrams, CC0)
      max_perplexity: 100000

Needs: for `model` the package kenlm (`pip install kenlm`, which compiles it).

Thresholds: none by default. DanQing (arXiv 2601.10305) reports the share of its texts between 50 and 200 by a BERT,
which neither model here is: take the limits from the report's histogram.

Limits: captions of few words have extreme perplexities. A model of another segmentation knows few of jieba's words.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from data_specs.build import resolve_path
from data_specs.shard import Text
from data_specs.storage.whole_files import sha256_of
from pipeline.decisions import DropReason
from pipeline.filters import Drop, Limit, TextFilter
from pipeline.texts.density import cut, density


class TextPerplexity(TextFilter):
    """Perplexity of a text per word, to a language model."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"max_perplexity": 5e6}]})

    model: str = Field("", description="file of a word-level KenLM model; default: jieba's word frequencies")
    min_perplexity: float = Field(0.0, ge=0, description="minimum perplexity; 0: off")
    max_perplexity: float = Field(0.0, ge=0, description="maximum perplexity; 0: off")
    base: str = ""
    _sha256: str = PrivateAttr("")

    VERSION: ClassVar[int] = 1

    @model_validator(mode="after")
    def _model_can_be_read(self) -> TextPerplexity:
        if self.model:
            try:
                self._sha256 = sha256_of(self._file)
            except OSError as e:
                raise ValueError(f"{self._file}: cannot be read ({e.strerror})") from None
            _open_model(self._file, self._sha256)
        return self

    def identity(self) -> dict[str, Any]:
        """The plug-in's identity, with the digest of the model's content in place of its path."""
        identity = super().identity()
        identity["options"].pop("base", None)
        if self.model:
            identity["options"]["model"] = self._sha256
        return identity

    def limits(self) -> tuple[Limit, ...]:
        if self.model:  # the report cannot measure with a model
            return ()
        least = Limit("min_perplexity", "perplexity", DropReason.PERPLEXITY, least=self.min_perplexity)
        most = Limit("max_perplexity", "perplexity", DropReason.PERPLEXITY, most=self.max_perplexity)
        both = ((least, self.min_perplexity), (most, self.max_perplexity))
        return tuple(limit for limit, stated in both if stated)

    def check(self, text: Text) -> Drop | None:
        perplexity = self.perplexity(text.text)
        if perplexity < self.min_perplexity:
            return Drop(DropReason.PERPLEXITY, f"perplexity {_text(perplexity)}; needs {_text(self.min_perplexity)}")
        if self.max_perplexity and perplexity > self.max_perplexity:
            return Drop(DropReason.PERPLEXITY, f"perplexity {_text(perplexity)}; at most {_text(self.max_perplexity)}")
        return None

    def perplexity(self, text: str) -> float:
        if not self.model:
            return density(text).perplexity
        words = [word for word in cut(text) if any(map(str.isalnum, word))]
        return float(_open_model(self._file, self._sha256).perplexity(" ".join(words)))

    @property
    def _file(self) -> Path:
        return Path(resolve_path(self.base, self.model))


def _text(perplexity: float) -> str:
    """A perplexity as people read it: 513,000 and not 5.13e+05."""
    return f"{perplexity:.3g}" if not 1_000 <= perplexity < 1e12 else f"{float(f'{perplexity:.3g}'):,.0f}"


@functools.cache
def _open_model(file: Path, sha256: str) -> Any:
    """The model, opened once per process for each content."""
    try:
        import kenlm
    except ImportError:
        raise ValueError("model: the package kenlm is not installed; pip install kenlm") from None
    try:
        return kenlm.Model(str(file))
    except (OSError, RuntimeError, ValueError):
        raise ValueError(f"{file}: not a KenLM model") from None
