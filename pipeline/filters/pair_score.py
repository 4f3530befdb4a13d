"""Drops pairs whose picture and text match too badly or too well (by two towers), or keeps each source's best share.

Weak correlation is data: nothing is dropped by a score unless a spec names this filter. DanQing (arXiv 2601.10305)
keeps a band with both ends: what fits too well is often a picture of its own caption. Data Filtering Networks (arXiv
2309.17425) keep a share, the best first; here of each source, so that no source pays for another one's kind of text.

`top_share` counts the pairs of a source that are within the band. It is a share of what this build scores: pairs that
earlier builds of the dataset have seen, kept or not, are neither counted nor judged again, so two weeks of builds do
not keep what one build of both would. A band does, whatever the number of builds; the report says which score a share
came to. For another limit on old pairs, begin a new generation.

Needs: the section `pair_score` of the spec, with the towers; for a vocabulary of BERT or a tokenizer.json the extra
models.

Thresholds: none by default. DanQing's band is 0.231 to 0.438, by Chinese-CLIP's ViT-L/14; a cosine means nothing
without its model. A score is a rank and no verdict: of 840 pairs of 17 sites read by eye, 72% right, small towers that
were trained on the other half of those sites' 1,900 pairs have 64, 70, 67, 73 and 86% right by fifths of the score from
below. The kinds and words of texts alone, fitted to such a reading, say as little: 68, 63, 54, 76 and 98%, of sites
that it was not fitted to.

Limits: judges the primary text alone. A pair that the towers could not read is dropped as unreadable.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.filters import Drop, PairFilter
from pipeline.records import DropReason


class PairScore(PairFilter):
    """The cosine of a pair's features, within a band; and of that, a share of each source."""

    min_score: float = Field(-1, ge=-1, le=1, description="minimum score")
    max_score: float = Field(1, ge=-1, le=1, description="maximum score")

    def judge(self, score: float) -> Drop | None:
        if score < self.min_score:
            return Drop(DropReason.PAIR_SCORE_LOW, f"pair score {score:.4f}; at least {self.min_score:g}")
        if score > self.max_score:
            return Drop(DropReason.PAIR_SCORE_HIGH, f"pair score {score:.4f}; at most {self.max_score:g}")
        return None
