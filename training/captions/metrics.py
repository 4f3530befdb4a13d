"""Metrics of captions against references: BLEU, ROUGE-L and CIDEr, as papers on captioning print them.

    BLEU-1 .. BLEU-4    of the whole set, the closest reference's length     pycocoevalcap (COCO's own code), Python
    ROUGE-L             mean over the images, beta 1.2                       pycocoevalcap, Python
    CIDEr               the variant CIDEr-D, 0 to 10, document frequencies   pycocoevalcap, Python
                        from the set's references

Tokens are jieba's words, as AI Challenger's evaluation takes them, or characters. Marks and spaces are not tokens, as
COCO's tokenizer leaves punctuation out; text is folded by NFKC and lower case. Papers print all figures x 100.

Limits: CIDEr of one set cannot be compared with that of another: its frequencies differ. METEOR is left out: its stems,
synonyms and paraphrases are English.
"""

from __future__ import annotations

import logging
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from training.captions.decoder import normal_caption

Tokens = Literal["jieba", "characters"]

COCO = "pycocoevalcap"

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CaptionFigures:
    """Figures of N captions as shares (CIDEr: 0 to 10), and those of each image [N]."""

    bleu: tuple[float, float, float, float]
    rouge_l: float
    cider: float
    cider_N: Scores
    rouge_l_N: Scores

    def to_json(self) -> dict[str, float]:
        """The figures of the set by name: bleu_1 .. bleu_4, rouge_l, cider."""
        bleu = {f"bleu_{number}": value for number, value in enumerate(self.bleu, 1)}
        return {**bleu, "rouge_l": self.rouge_l, "cider": self.cider}


def implementations() -> dict[str, str]:
    """Package and version behind each figure."""
    coco = f"{COCO} {version(COCO)}"
    return {"bleu": coco, "rouge_l": coco, "cider": f"{coco} (CIDEr-D)"}


def tokens_of(text: str, tokens: Tokens) -> list[str]:
    """The tokens of a caption: words of jieba, or characters; without marks and spaces."""
    text = normal_caption(text).lower()
    if tokens == "characters":
        return [character for character in text if _is_counted(character)]
    return [word for word in _jieba().lcut(text) if any(map(_is_counted, word))]


@cache
def _jieba() -> Any:
    """The module jieba, loaded quietly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and pkg_resources in jieba's own source
        import jieba

        jieba.setLogLevel(logging.CRITICAL)  # it prints the traceback of a cache that it cannot write, and goes on
        jieba.initialize()
    return jieba


def figures(captions: Sequence[str], references: Sequence[Sequence[str]], tokens: Tokens) -> CaptionFigures:
    """Figures of N captions against the references of each, one or more."""
    from pycocoevalcap.bleu.bleu import Bleu

    given, wanted = _tokenise(captions, references, tokens)
    bleu, _ = Bleu(4).compute_score(wanted, given, verbose=0)
    rouge_l, cider = rouge_l_of(given, wanted), cider_of(given, wanted)
    one, two, three, four = (float(value) for value in bleu)
    return CaptionFigures(
        bleu=(one, two, three, four),
        rouge_l=float(rouge_l.mean()),
        cider=float(cider.mean()),
        cider_N=cider,
        rouge_l_N=rouge_l,
    )


def cider(captions: Sequence[str], references: Sequence[Sequence[str]], tokens: Tokens) -> float:
    return float(cider_of(*_tokenise(captions, references, tokens)).mean())


_Texts = dict[int, list[str]]
"""Tokens, joined by spaces, of one caption or of the references of each image: what pycocoevalcap reads."""


def cider_of(given: _Texts, wanted: _Texts) -> Scores:
    """CIDEr-D of each caption [N]."""
    from pycocoevalcap.cider.cider import Cider

    return np.asarray(Cider().compute_score(wanted, given)[1], np.float64)


def rouge_l_of(given: _Texts, wanted: _Texts) -> Scores:
    """ROUGE-L of each caption [N]."""
    from pycocoevalcap.rouge.rouge import Rouge

    return np.asarray(Rouge().compute_score(wanted, given)[1], np.float64)


def _tokenise(captions: Sequence[str], references: Sequence[Sequence[str]], tokens: Tokens) -> tuple[_Texts, _Texts]:
    given = {n: [" ".join(tokens_of(caption, tokens))] for n, caption in enumerate(captions)}
    wanted = {n: [" ".join(tokens_of(text, tokens)) for text in texts] for n, texts in enumerate(references)}
    return given, wanted


def _is_counted(character: str) -> bool:
    """True if a character is a letter, a digit or a sign such as ℃: no mark and no space."""
    return unicodedata.category(character)[0] in "LNMS"
