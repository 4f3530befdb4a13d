"""Choice of the text that a sample is trained on in an epoch: by its source kind's probabilities, without boilerplate.

Beside the kinds that are stored there are two that BriVL trained on and that are made of the surrounding text: `easy`,
its first 128 characters, and `first`, its first sentence without the closing mark (training/data/released_rows.py).

What a page says under any picture (查看源网页, 图片来自网络, IMG_1234.jpg) describes none. A dataset that the pipeline
built has little of it; plain tars of others have more. It is left out with `data.boilerplate_dropout`, unless the
sample has nothing else.

All of it follows from (seed, epoch, KEY), so it does not depend on the worker. Limits: a few well-known phrases, not a
classifier.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from training.config import DERIVED_KINDS, DataConfig
from training.data.index import Row, RowText
from training.data.order import fraction
from training.data.released_rows import derived

_PHRASES = (
    "查看源网页|查看原图|点击查看大图|点击查看|点击图片|展开全文|阅读全文|图片来自网络|图片来源网络|图片来源于网络|"
    "网络图片|资料图片?|图片加载中|暂无图片|分享图片|untitled|no image|image|图片|图"
)
# No two neighbouring parts take the same characters: else a line of dashes is tried in all ways to share it out.
_BOILERPLATE = re.compile(
    rf"\W*(?:{_PHRASES})\W*"
    r"|(?:\W*(?:img|dsc|image|pic|photo|微信图片|截图))?[\d_\W]*(?:\.(?:jpe?g|png|gif|webp|bmp)\W*)?",
    re.IGNORECASE,
)


def choose_text(row: Row, config: DataConfig, seed: int, epoch: int) -> RowText:
    """The text of a row for one epoch, by the probabilities of its source kind.

    Probabilities are rescaled to the kinds the row has; several texts of one kind share its probability. The first text
    is taken for "primary", for a source kind without probabilities and where none of the kinds is there.
    """
    texts = _informative(row, config.boilerplate_dropout, seed, epoch)
    kinds = config.text_kinds
    weights: Mapping[str, float] = {} if isinstance(kinds, str) else kinds.get(row.source_kind, {})
    offered = [*texts, *_derived(texts, weights)]
    counts = {kind: sum(text.kind == kind for text in offered) for kind in weights}
    shares = [weights.get(text.kind, 0.0) / max(counts.get(text.kind, 1), 1) for text in offered]
    rest = fraction("text", seed, epoch, row.key) * sum(shares)
    for text, share in zip(offered, shares, strict=True):
        rest -= share
        if share and rest < 0:
            return text
    return texts[0]


def is_boilerplate(text: str) -> bool:
    """True if a text is only a boilerplate phrase, a number or a file name."""
    return _BOILERPLATE.fullmatch(text) is not None


def _informative(row: Row, dropout: float, seed: int, epoch: int) -> Sequence[RowText]:
    """The row's texts without boilerplate; all of them where no other remains."""
    if not dropout or len(row.texts) == 1:
        return row.texts
    informative = [
        text
        for number, text in enumerate(row.texts)
        if not is_boilerplate(text.text) or fraction("boilerplate", seed, epoch, row.key, number) >= dropout
    ]
    return informative or row.texts


def _derived(texts: Sequence[RowText], weights: Mapping[str, float]) -> list[RowText]:
    """`easy` and `first` of every surrounding text, where they are asked for, with its leader."""
    wanted = [kind for kind in DERIVED_KINDS if kind in weights]
    surrounding = [text for text in texts if text.kind == "surrounding"]
    return [
        RowText(kind, derived(kind, text.text) or text.text, text.leader) for text in surrounding for kind in wanted
    ]
