"""text_order: which of a candidate's texts comes first, alone and in a list of lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from data_specs.build import BuildSpec
from data_specs.shard import TEXT_KINDS, Text, TextKind
from pipeline.rows.records import Candidate
from pipeline.texts.text_order import TextOrder

KINDS = BuildSpec.model_fields["text_kinds"].default
PAGE = TextOrder(KINDS, sentences=True)


def candidate(kinds: list[TextKind], origin: str = "http://a.cn/") -> Candidate:
    texts = tuple(Text(kind, f"{kind} {at}") for at, kind in enumerate(kinds))
    return Candidate("s", "blog", origin, "http://a.cn/", "http://a.cn/1.jpg", texts)


def kinds_of(texts: list[Text]) -> list[TextKind]:
    return [text.kind for text in texts]


def test_what_a_page_puts_before_its_title_stays_there_and_what_a_table_has_goes_by_kind() -> None:
    kinds: list[TextKind] = ["surrounding", "alt", "title", "caption", "surrounding"]
    assert kinds_of(PAGE.sorted(candidate(kinds))) == ["caption", "surrounding", "alt", "title", "surrounding"]
    by_kind = ["caption", "alt", "title", "surrounding", "surrounding"]
    assert kinds_of(PAGE.sorted(candidate(kinds, origin="row 1"))) == by_kind
    assert kinds_of(TextOrder(KINDS).sorted(candidate(kinds))) == by_kind


@given(st.lists(st.lists(st.sampled_from(TEXT_KINDS), min_size=1, max_size=6), min_size=1, max_size=5))
def test_the_ranks_of_a_sorted_list_never_fall_whatever_lists_stand_beside_it(lists: list[list[TextKind]]) -> None:
    in_order = [kinds_of(PAGE.sorted(candidate(kinds))) for kinds in lists]
    ends = np.repeat(np.cumsum([len(kinds) for kinds in in_order]), [len(kinds) for kinds in in_order])
    ranks = PAGE.ranks(pa.array([kind for kinds in in_order for kind in kinds]), ends).tolist()
    for kinds in in_order:
        own, ranks = ranks[: len(kinds)], ranks[len(kinds) :]
        assert own == sorted(own)
        assert own == PAGE.ranks(pa.array(kinds), np.full(len(kinds), len(kinds))).tolist()
