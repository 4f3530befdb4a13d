"""The order of a candidate's texts, of which the first becomes its primary text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import BuildSpec
from data_specs.shard import Text, TextKind
from pipeline.rows.records import Candidate


@dataclass(frozen=True)
class TextOrder:
    """The order of a candidate's texts: by kind, and within a kind as they stand on the page.

    left_out: kinds that the spec does not list; a candidate loses its texts of them. sentences: whether what `extract`
    has put before the page's title stays there, in its order. It does so with what is said beside a picture where the
    title is that of several, before an alt that others have (`pipeline.pages.page`).
    """

    kinds: tuple[str, ...] = ()
    sentences: bool = False
    left_out: frozenset[str] = frozenset()

    @classmethod
    def of(cls, spec: BuildSpec) -> TextOrder:
        usual, listed = BuildSpec.model_fields["text_kinds"].default, spec.text_kinds
        in_order = listed == tuple(kind for kind in usual if kind in listed)
        return cls(usual if in_order else listed, in_order, frozenset(usual) - frozenset(listed))

    def rank(self, kind: TextKind) -> int:
        return self.kinds.index(kind) if kind in self.kinds else len(self.kinds)

    def ranks(self, kinds: pa.Array, ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[T] ranks of texts in lists that are sorted, sentences just before titles; ends [T]: where the list of each
        text ends.
        """
        indexes = pc.fill_null(pc.index_in(kinds, value_set=pa.array(self.kinds, pa.string())), len(self.kinds))
        ranks: npt.NDArray[np.int64] = indexes.to_numpy(zero_copy_only=False).astype(np.int64)
        if self.sentences:
            title, nearby = (pc.equal(kinds, kind).to_numpy(zero_copy_only=False) for kind in ("title", "surrounding"))
            titles = np.where(title, np.arange(len(kinds)), len(kinds))
            next_title = np.minimum.accumulate(titles[::-1])[::-1]
            ranks *= 2
            ranks[nearby & (next_title < ends)] = 2 * self.rank("title") - 1
            of_list = ends * (2 * len(self.kinds) + 2)  # what stands behind another text of its list stays there
            ranks = np.maximum.accumulate(ranks + of_list) - of_list
        return ranks

    def sorted(self, candidate: Candidate) -> list[Text]:
        """The texts of a candidate, the one that should be its primary text first."""
        texts = candidate.texts
        if len(texts) == 1:
            return list(texts)
        titles = [at for at, text in enumerate(texts) if text.kind == "title"]
        by_title = titles[0] if self.sentences and titles and candidate.origin == candidate.page_url else 0
        ranked, highest = [], 0
        for at, text in enumerate(texts):
            rank = self.rank("title" if at < by_title and text.kind == "surrounding" else text.kind)
            highest = max(highest, rank) if at < by_title else 0
            ranked.append((max(rank, highest), at, text))
        return [text for _, _, text in sorted(ranked, key=lambda entry: entry[:2])]
