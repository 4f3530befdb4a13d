"""compared_texts: what is read of texts of several runs is what was written of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.dedup.compared_texts import ComparedTexts, write_texts
from pipeline.matching import text_rows
from pipeline.matching.text_meetings import words_of


def test_texts_of_several_runs_are_read_by_their_numbers(tmp_path: Path) -> None:
    runs = [["红烧肉", "清蒸鱼", ""], [], ["今天天气很好我们去公园散步吧", "12 个鸡蛋"]]
    every = text_rows.made([text for own in runs for text in own], 0.7)
    paths, at = [], 0
    for number, own in enumerate(runs):
        texts = every.take(np.arange(at, at + len(own)))
        paths.append(tmp_path / str(number))
        write_texts(paths[-1], words_of(texts.ids), texts.sketches, 2 * np.arange(len(own)))
        at += len(own)
    stored = ComparedTexts(paths)
    assert stored.starts.tolist() == [0, 3, 3, 5]
    for numbers in ([0, 2, 3, 4], [1], [], [4]):
        some = np.array(numbers, np.int64)
        read, expected = stored.read(some), every.take(some)
        assert read.words.tolist() == words_of(expected.ids).tolist()
        for name in ("shingles", "starts", "numerals", "parity"):
            assert getattr(read.sketches, name).tolist() == getattr(expected.sketches, name).tolist(), name
    # the runs have 6, 1 and 4 texts, of which every other one stands for one before it
    assert stored.among_all(np.array([1, 2, 4]), np.array([0, 6, 7])).tolist() == [2, 4, 9]
