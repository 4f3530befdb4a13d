"""Concepts of texts, beside a search for each entry alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.build import Balance, SpecError
from pipeline.texts.concepts import concepts, digest

WORDS = st.text("京东北路ａA1 ", min_size=1, max_size=4)


@given(st.lists(WORDS, min_size=1, max_size=12), st.text("京东北路aＡ1 ", max_size=20), st.integers(1, 3))
def test_an_entry_is_there_wherever_its_characters_stand_in_a_row(tmp_path_factory, words, text, least):
    file = tmp_path_factory.mktemp("list") / "words.txt"
    file.write_text("# a comment\n" + "".join(f"{word}\t17\n" for word in words), encoding="utf-8")
    known = concepts(Balance(entries=file.name, min_letters=least), str(file.parent))
    plain = {word.strip().replace("ａ", "a").replace("A", "a") for word in words}
    assert set(known.entries) == {word for word in plain if len(word) >= least}
    there = text.replace("Ａ", "a")
    assert [known.entries[number] for number in known.find(text)] == [word for word in known.entries if word in there]


@pytest.mark.drill(2)
def test_by_default_the_entries_are_jiebas_words():
    jieba = pytest.importorskip("jieba")
    jieba.initialize()
    known = concepts(Balance(), "")
    assert 200_000 < len(known.entries) < len(jieba.dt.FREQ)
    words = {known.entries[number] for number in known.find("點擊查看故宮雪景")}
    assert {"点击", "查看", "故宫", "雪景"} <= words
    assert all(len(word) > 1 for word in words)


def test_a_list_is_known_by_its_content_and_one_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a.txt").write_text("故宫\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("故宫\n", encoding="utf-8")
    assert digest(Balance(entries="a.txt"), str(tmp_path)) == digest(Balance(entries=str(tmp_path / "b.txt")), "")
    (tmp_path / "b.txt").write_text("雪景\n", encoding="utf-8")
    assert digest(Balance(entries="a.txt"), str(tmp_path)) != digest(Balance(entries="b.txt"), str(tmp_path))
    (tmp_path / "c.txt").write_bytes(b"\xb9\xca\xb9\xac")
    (tmp_path / "d.txt").write_text("# words\n\n京\n", encoding="utf-8")
    (tmp_path / "e.txt").write_text("故宫雪景，故宫\n", encoding="utf-8")
    monkeypatch.setattr("pipeline.texts.concepts.MOST_BYTES", 13)
    for name, why in (
        ("missing.txt", "cannot be read"),
        ("c.txt", r"not UTF-8 text \(byte 0\)"),
        ("d.txt", "no entry of 2 characters or more"),
        ("e.txt", "more than 13 bytes"),
    ):
        with pytest.raises(SpecError, match=rf"balance.entries: .*{name}.*{why}"):
            digest(Balance(entries=name), str(tmp_path))
