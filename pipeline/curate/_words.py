"""Chance that the primary text of a pair says what its picture shows, from the texts of the pair alone.

A logistic regression over the kind and the words of the primary text and what the other texts repeat of it. Its weights
are fitted to pairs of real sites that people read: tests/benchmarks/words.csv has their features and marks, and
`python -m tests.benchmarks.bench_words` fits the weights again and says what the scores are worth on other sites.

Limits: the picture is not looked at, so the fluent caption of a neighbouring picture has a high score. A picture with
many texts has a low one, since it was merged from lists of posts, or is the stock picture of a theme.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.texts.characters import HAN
from pipeline.texts.density import density

VERSION = 2
"""Raised when the same texts get other scores."""

ID = f"words-{VERSION}"

_SCREEN = re.compile("点[击擊]|[选選][择擇]|打[开開]|[显顯]示|界面|窗口|按[钮鈕]|如[图圖]")
"""Words of steps and of what a screen shows."""

INTERCEPT = 0.32

WEIGHTS = {
    "caption": -0.37,
    "surrounding": -1.21,
    "title": -0.71,
    "page": -1.34,
    "length": 0.08,
    "nouns": 1.59,
    "content": 0.73,
    "repeated": 0.85,
    "screen": 2.3,
    "texts": -1.45,
}


def features_of(texts: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Values by name of WEIGHTS. texts: those of a pair, {kind, text}, the primary one first."""
    kind, text = texts[0]["kind"], texts[0]["text"]
    own, rest = density(text), " ".join(other["text"] for other in texts[1:])
    pairs = {text[at : at + 2] for at in range(len(text) - 1) if HAN.match(text, at)}
    return {
        "caption": kind == "caption",
        "surrounding": kind == "surrounding",
        "title": kind == "title",
        "page": kind in ("abstract", "content", "tag"),
        "length": math.log(len(text)),
        "nouns": min(own.nouns, 4) / 4,
        "content": own.content_share,
        "repeated": sum(pair in rest for pair in pairs) / max(len(pairs), 1),
        "screen": _SCREEN.search(text) is not None,
        "texts": min(len(texts), 8) / 8,
    }


def chances(pairs: Sequence[Sequence[Mapping[str, str]]]) -> npt.NDArray[np.float64]:
    """[N] the chance of each pair, given by its texts."""
    sums = [INTERCEPT + math.fsum(WEIGHTS[name] * x for name, x in features_of(texts).items()) for texts in pairs]
    return np.array([1 / (1 + math.exp(-own)) for own in sums])
