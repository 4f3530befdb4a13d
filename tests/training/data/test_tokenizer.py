from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from training.data.tokenizer import CLS, SEP, UNK, from_vocabulary, load_tokenizer, vocabulary_text
from training.errors import InputError


def test_the_built_in_vocabulary_holds_all_hanzi_of_gb2312_and_ascii() -> None:
    tokens = load_tokenizer("gb2312").vocabulary
    assert sum("\u4e00" <= token <= "\u9fff" for token in tokens) == 6763
    assert set("abc019 !~，。、《》".replace("，", ",")) <= set(tokens)
    assert len(set(tokens)) == len(tokens)


def test_text_is_folded_and_marked() -> None:
    tokenizer = load_tokenizer("gb2312")
    ids = tokenizer.encode("红色 小船 ＡＢ\tc，𠮷", 40)
    assert (ids[0], ids[-1], ids[-2]) == (CLS, SEP, UNK)
    assert "".join(tokenizer.vocabulary[i] for i in ids[1:-2]) == "红色小船ab c,"


@pytest.mark.parametrize(("text", "count"), [("", 2), ("红" * 100, 8), ("红" * 6, 8), ("红" * 5, 7)])
def test_the_length_is_kept_and_the_end_mark_always_there(text: str, count: int) -> None:
    ids = load_tokenizer("gb2312").encode(text, 8)
    assert len(ids) == count
    assert ids[-1] == SEP


def test_a_saved_vocabulary_gives_the_same_ids() -> None:
    tokenizer = load_tokenizer("gb2312")
    again = from_vocabulary(vocabulary_text(tokenizer).split("\n")[:-1], "vocab.txt")
    assert again.encode("蓝天 sky 白云", 20) == tokenizer.encode("蓝天 sky 白云", 20)


def test_a_bert_vocabulary_is_read_from_file_or_folder(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "红", "船", "sky", "##line"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    for name in (tmp_path, tmp_path / "vocab.txt"):
        tokenizer = load_tokenizer(str(name))
        assert tokenizer.encode("红船 Skyline 山", 20) == [2, 5, 6, 7, 8, 1, 3]
        assert tokenizer.encode("红船红船红船", 5) == [2, 5, 6, 5, 3]


def test_what_is_no_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing.txt: no readable vocabulary"):
        load_tokenizer(str(tmp_path / "nothing.txt"))
    (tmp_path / "words.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"words.txt: not a BERT vocabulary"):
        load_tokenizer(str(tmp_path / "words.txt"))


def test_the_vocabulary_of_the_released_towers_needs_no_download() -> None:
    tokenizer = load_tokenizer("bert_chinese")
    vocabulary = tokenizer.vocabulary
    assert (len(vocabulary), len(set(vocabulary))) == (21128, 21128)
    digest = hashlib.sha256(vocabulary_text(tokenizer).encode()).hexdigest()
    assert digest == "45bbac6b341c319adc98a532532882e91a9cefc0329aa57bac9ae761c27b291c"  # of Google's vocab.txt
    assert [vocabulary[i] for i in (0, 100, 101, 102, 103)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = tokenizer.encode("红色小船 Sky", 80)
    assert (ids[0], ids[-1]) == (101, 102)
    assert [vocabulary[i] for i in ids[1:-1]] == ["红", "色", "小", "船", "sky"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["gb2312", "bert_chinese"])
def test_a_text_of_stacked_marks_takes_no_minutes(name: str) -> None:
    """NFC and NFKC sort the marks of one letter by insertion: 0.8 MB of them took 269 s."""
    text = "a" + "\u0301\u0323" * 200_000
    assert len(load_tokenizer(name).encode(text, 80)) <= 80
