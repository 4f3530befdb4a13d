"""Drops pairs whose picture and text match too badly or too well, or keeps each source's best share.

Weak correlation is data: nothing is dropped by a score unless a spec names this filter. DanQing (arXiv 2601.10305)
keeps a band with both ends: what fits too well is often a picture of its own caption. Data Filtering Networks (arXiv
2309.17425) keep a share, the best first; here of each source, so that no source pays for another one's kind of text.

`top_share` counts the pairs of a source that are within the band. It is a share of what this build scores: pairs that
earlier builds of the dataset have seen, kept or not, are neither counted nor judged again, so two weeks of builds do
not keep what one build of both would. A band does, whatever the number of builds; the report says which score a share
came to. For another limit on old pairs, begin a new generation.

Needs: the section `pair_score` of the spec. Empty (`pair_score: {}`), it scores by words alone; else it names two
towers, which need the extra models with a vocabulary of BERT or a tokenizer.json.

Thresholds: none by default. By words a score is the chance that the text says what the picture shows. Of 946 pairs of
34 sites that people read, 75% were right; scored by weights fitted to the other sites, the fifths from below were
right in 46, 72, 83, 86 and 89%, so that `top_share: 0.8` keeps 82% right, 0.7 keeps 84%
(tests/benchmarks/bench_words.py). The measures were chosen on 22 of the sites; of the other 12, weights fitted before
they were read kept 81% at 0.7. By towers it is a cosine, which means nothing without its model: DanQing's band is
0.231 to 0.438 by Chinese-CLIP's ViT-L/14. Towers trained on a small build say less than words: of 840 other pairs, 72%
right, fifths of 64, 70, 67, 73 and 86%.

Limits: judges the primary text alone. A pair that the towers could not read is dropped as unreadable. Words know
nothing of the picture, and prefer texts that name things to those that tell of them.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.filters import Drop, PairFilter
from pipeline.rows.decisions import DropReason


class PairScore(PairFilter):
    """The score of a pair, within a band; and of that, a share of each source."""

    min_score: float = Field(-1, ge=-1, le=1, description="minimum score")
    max_score: float = Field(1, ge=-1, le=1, description="maximum score")

    def judge(self, score: float) -> Drop | None:
        if score < self.min_score:
            return Drop(DropReason.PAIR_SCORE_LOW, f"pair score {score:.4f}; at least {self.min_score:g}")
        if score > self.max_score:
            return Drop(DropReason.PAIR_SCORE_HIGH, f"pair score {score:.4f}; at most {self.max_score:g}")
        return None
