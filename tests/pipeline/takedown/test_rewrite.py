"""rewrite: rows that a takedown removes go, decisions lose their names and still add up, borrowed texts go back."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.shard import KEY_LENGTH
from pipeline.files.digests import DIGEST
from pipeline.rows.decisions import Decision, decision_rows
from pipeline.rows.records import sha256_hex
from pipeline.store.takedowns import NO_TAKEDOWNS, Takedowns, domain_hashes
from pipeline.takedown.rewrite import BorrowedTexts, Removal

NAMES = [sha256_hex(str(number)) for number in range(6)]
removals = st.sets(st.sampled_from(NAMES))


@pytest.mark.slow
@given(removals)
def test_rows_are_recognised_by_the_first_name_that_their_table_has(hashes: set[str]) -> None:
    removal = Removal(hashes, NO_TAKEDOWNS)
    stay = [name not in hashes for name in NAMES]
    columns = {
        "candidate_id": pa.array(NAMES),
        "sha256": pa.array([bytes.fromhex(name) for name in NAMES], DIGEST),
        "key": pa.array([name[:KEY_LENGTH] for name in NAMES]),
    }
    for name, column in columns.items():
        table = pa.table({name: column, "row": range(6)})
        remaining = removal.remaining_rows(table)
        assert (remaining is None) == all(stay)
        assert (table if remaining is None else remaining)["row"].to_pylist() == [n for n in range(6) if stay[n]]
    both = pa.table({"candidate_id": columns["candidate_id"], "sha256": columns["sha256"][::-1]})
    assert removal.mask(both).to_pylist() == [not own for own in stay], "the candidate decides"
    assert removal.remaining_rows(pa.table({"row": range(6)})) is None


@pytest.mark.slow
@given(removals, st.lists(st.booleans(), min_size=6, max_size=6))
def test_decisions_lose_their_names_once_and_a_sample_becomes_a_drop(hashes: set[str], kept: list[bool]) -> None:
    decisions = [
        Decision("candidate", name, "f", "s", "http://p/", "http://i/", "shard", own, reason, reasons, "why", "", "文")
        for name, own in zip(NAMES, kept, strict=True)
        for reason, reasons in [("", ()) if own else ("timeout", ("timeout",))]
    ]
    table, removal = decision_rows(decisions), Removal(hashes, NO_TAKEDOWNS)
    blanked = removal.blanked(table)
    assert (blanked is None) == (not hashes)
    if blanked is None:
        return
    assert blanked.schema.equals(table.schema)
    assert removal.blanked(blanked) is None, "the second time nothing is left to do"
    for before, after in zip(table.to_pylist(), blanked.to_pylist(), strict=True):
        if before["id"] not in hashes:
            assert after == before
            continue
        assert [after[name] for name in ("url", "page_url", "text", "evidence")] == [""] * 4
        assert (after["id"], after["kept"]) == (before["id"], False)
        reason = "forgotten" if before["kept"] else "timeout"
        assert (after["reason"], after["reasons"]) == (reason, [reason])


def test_a_page_goes_by_its_url_or_its_domain() -> None:
    removal = Removal({sha256_hex("http://a.cn/1")}, Takedowns(frozenset(domain_hashes("b.cn"))))
    pages = ["http://a.cn/1", "http://a.cn/2", "http://www.b.cn/"]
    assert [removal.page(url) for url in pages] == [True, False, True]
    assert removal.mask(pa.table({"url": pages, "sha256": NAMES[:3]})).to_pylist() == [True, False, True]
    assert removal.mask(pa.table({"host": ["a.cn", "b.cn", "m.b.cn"]})).to_pylist() == [False, True, True]


def sample(name: str, *texts: str) -> dict[str, Any]:
    leaders = [sha256_hex(text) for text in texts]
    return {"candidate_id": name, "texts": [{"kind": "alt", "text": text} for text in texts], "text_leaders": leaders}


def test_a_kept_sample_returns_the_texts_of_a_removed_copy_and_its_own_stay() -> None:
    borrowed = BorrowedTexts({NAMES[0]: {"自己的"}, NAMES[1]: {"甲", "乙"}})
    rows = [sample(NAMES[0], "主要的", "借来的", "自己的"), sample(NAMES[1], "甲", "乙"), sample(NAMES[2], "丙", "丁")]
    table = pa.Table.from_pylist(rows)
    returned = borrowed.remaining_rows(None, table)
    assert returned is not None
    assert returned.to_pylist() == [sample(NAMES[0], "主要的", "自己的"), *rows[1:]], "the primary text is its own"
    assert borrowed.remaining_rows(None, returned) is None, "nothing changes the second time"
    assert borrowed.remaining_rows(table.slice(2), table) == table.slice(2), "what remains is not widened again"
    assert BorrowedTexts({}).remaining_rows(None, table) is None
