"""SQL of ids and of words, by DuckDB itself."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from pipeline.studio.sql import contains, head, quoted, settings, spelled, variants


def test_a_term_is_spelled_in_both_scripts() -> None:
    assert variants("红烧肉") == ["红烧肉", "紅燒肉"]
    assert variants("紅燒肉") == ["紅燒肉", "红烧肉"]
    assert variants("abc") == ["abc"]


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
    assert duckdb.sql(sql, params=[spelled(term), text]).fetchall() == [(holds,)]


def test_an_id_is_its_first_64_bits_and_nothing_where_it_is_none() -> None:
    rows = duckdb.sql(f"SELECT {head('id')} FROM (VALUES ('{'0f' * 32}'), ('')) v(id)").fetchall()
    assert rows == [(0x0F0F0F0F0F0F0F0F,), (None,)]


def test_a_path_with_a_quote_is_one_path(tmp_path: Path) -> None:
    folder = tmp_path / "it's"
    folder.mkdir()
    (folder / "a.csv").write_text("x\n1\n")
    assert duckdb.sql(f"SELECT * FROM read_csv('{quoted(str(folder / 'a.csv'))}')").fetchall() == [(1,)]


def test_the_database_loads_nothing_from_the_network_and_keeps_within_its_memory(tmp_path: Path) -> None:
    with duckdb.connect(config=settings(tmp_path)) as db:
        names = ("memory_limit", "autoinstall_known_extensions", "autoload_known_extensions")
        limit, *loads = (db.sql(f"SELECT current_setting('{name}')").fetchall()[0][0] for name in names)
    assert (limit, loads) == ("429.1 MiB", [False, False])
