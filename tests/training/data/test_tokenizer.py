from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

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
    with pytest.raises(InputError, match=r"nothing.txt: not a readable vocabulary"):
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


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["gb2312", "bert_chinese"])
def test_a_text_of_stacked_marks_takes_no_minutes(name: str) -> None:
    """NFC and NFKC sort the marks of one letter by insertion: 0.8 MB of them took 269 s."""
    text = "a" + "\u0301\u0323" * 200_000
    assert len(load_tokenizer(name).encode(text, 80)) <= 80


TEXTS = ["红色的小船", "A small cat, on the hill!", "ｆｕｌｌ  width　字", "", "长" * 90]


def small_tokenizer(kind: str, folder: Path) -> None:
    """A tokenizer as models of a kind have it, trained on a few words and saved by transformers."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertTokenizer, PreTrainedTokenizerFast

    if kind == "ernie":
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"红色的小船长字", "small", "##s", "cat", "a"]
        BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, do_lower_case=True).save_pretrained(folder)
        return
    sentence_piece = kind == "xlm-roberta"
    marks = (
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if kind != "modernbert" else ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    )
    first, last, pad, unk = (
        ("<s>", "</s>", "<pad>", "<unk>") if kind != "modernbert" else ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
    )
    backend: Any = Tokenizer(models.Unigram() if sentence_piece else models.BPE())
    if sentence_piece:
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer: Any = trainers.UnigramTrainer(vocab_size=60, special_tokens=marks, unk_token=unk)
    else:
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "roberta")
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=marks, initial_alphabet=alphabet)
    backend.train_from_iterator(TEXTS * 20, trainer)
    around = [(mark, backend.token_to_id(mark)) for mark in (first, last)]
    backend.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=around)
    named = {"pad_token": pad, "unk_token": unk, "cls_token": first, "sep_token": last}
    PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["xlm-roberta", "roberta", "modernbert", "ernie"])
def test_any_tokenizer_of_transformers_gives_its_ids_and_survives_a_checkpoint(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from training.outputs.checkpoint import open_checkpoint, save_imported
    from training.resolve import resolve

    small_tokenizer(kind, tmp_path / "folder")
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path / "folder")
    ours = load_tokenizer(str(tmp_path / "folder"))
    save_imported(tmp_path / "ck", resolve("tiny"), ours, {"image_query.x": _one()}, {}, {}, {})
    read = open_checkpoint(tmp_path / "ck").tokenizer
    assert list(read.vocabulary) == list(ours.vocabulary)
    assert len(ours.vocabulary) == len(theirs)
    for text in TEXTS:
        for most in (5, 40):
            ids = theirs(text, truncation=True, max_length=most)["input_ids"]
            assert ours.encode(text, most) == read.encode(text, most) == ids
            assert len(ids) <= most
            assert ids[-1] == theirs.sep_token_id


def _one() -> Any:
    import torch

    return torch.zeros(1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cased", "cased with vocab.txt", "with a gap", "uncased"])
def test_a_bert_is_read_as_it_was_trained(kind: str, tmp_path: Path) -> None:
    """A cased one is not made lower case, and ids that are not in a row stay."""
    from transformers import AutoTokenizer, BertTokenizer

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "##s", "中", "国"]
    tokens += [] if kind == "uncased" else ["Hello"]
    ids = {token: number + 40 * (token == "国" and kind == "with a gap") for number, token in enumerate(tokens)}
    BertTokenizer(vocab=ids, do_lower_case=not kind.startswith("cased")).save_pretrained(tmp_path)
    if kind.endswith("vocab.txt"):
        (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(str(tmp_path))
    for text in ("Hello中国", "hellos 国"):
        assert ours.encode(text, 20) == theirs(text)["input_ids"]
    assert (type(ours).__name__ == "BertTokenizer") == (kind == "uncased")


def test_what_is_no_tokenizer_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer.json: not a tokenizer.json \("):
        load_tokenizer(str(tmp_path / "tokenizer.json"))
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match="not a readable vocabulary"):
        load_tokenizer(str(tmp_path / "x"))
    (tmp_path / "x" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match="neither a local vocabulary nor one on the hub"):
        load_tokenizer(str(tmp_path / "x"))
