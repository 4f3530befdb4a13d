"""Words that people search for, by DuckDB itself."""

from __future__ import annotations

import duckdb
import pytest

from pipeline.studio.words import contains, in_addresses, search_value, variants


def test_a_term_is_spelled_in_both_scripts() -> None:
    assert variants("红烧肉") == ["红烧肉", "紅燒肉"]
    assert variants("紅燒肉") == ["紅燒肉", "红烧肉"]
    assert variants("abc") == ["abc"]


@pytest.mark.parametrize(
    ("address", "term"),
    [
        ("folder:///a/%E7%85%A7%E7%89%87/IMG_1.jpg", "照片/IMG"),
        ("https://a.cn/%E7%85%A7%E7%89%87/1.jpg", "照片"),
        ("https://img.a.cn/1.jpg?x=(1)%20", "IMG.A.cn"),
        ("https://a.cn/X?x=(1)%20", "X?x=(1)%20"),
    ],
)
def test_an_address_is_found_by_what_people_read(address: str, term: str) -> None:
    assert any(spelling in address for spelling in in_addresses(variants(term)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "term", "holds"),
    [
        ("A Cat", "cat", True),
        ("a cat", "CAT", True),
        ("红烧肉", "烧", True),
        ("红烧肉", "猫", False),
        ("5%", "%", True),
    ],
)
def test_letters_are_found_in_either_case_and_signs_are_no_pattern(text: str, term: str, holds: bool) -> None:
    sql = f"SELECT {contains('t', term)} FROM (SELECT ? AS t)"
    assert duckdb.sql(sql, params=[search_value(term), text]).fetchall() == [(holds,)]
