"""text_perplexity: by the dictionary alone, and by a model of KenLM that is written here."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from data_specs.build import SpecError
from data_specs.shard import Text
from pipeline.filters import TextFilter
from pipeline.filters.text_perplexity import TextPerplexity
from pipeline.plugins import configure
from tests.judged import reason

ARPA = """\\data\\
ngram 1=5
ngram 2=2

\\1-grams:
-2.0\t<unk>
-99\t<s>\t-0.3
-1.0\t</s>
-1.0\t故宫\t-0.3
-1.5\t雪景\t-0.3

\\2-grams:
-0.2\t<s> 故宫
-0.1\t故宫 雪景

\\end\\
"""


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    pytest.importorskip("kenlm", reason="kenlm is not installed")
    file = tmp_path / "two.arpa"
    file.write_text(ARPA, encoding="utf-8")
    return file


def test_without_a_model_rare_words_are_unlikely():
    f = TextPerplexity(min_perplexity=1_000, max_perplexity=1e6)
    assert reason(f, "的") == "perplexity"  # the most frequent word
    assert reason(f, "夏日海边日落风景") == ""
    assert reason(f, "鱻鱻鱻鱻") == "perplexity"
    assert reason(TextPerplexity(), "鱻鱻鱻鱻") == ""
    said = f.check(Text("alt", "鱻鱻鱻鱻"))
    assert said is not None
    assert re.fullmatch(r"perplexity [\d,]+; at most 1,000,000", said.evidence)


def test_a_model_scores_words_in_their_order(arpa):
    f = TextPerplexity(model=str(arpa))
    # log10: <s> 故宫 -0.2, 故宫 雪景 -0.1, then </s> by backing off: -0.3 - 1.0; KenLM's mean is over words and </s>
    assert f.perplexity("故宫雪景") == pytest.approx(10 ** ((0.2 + 0.1 + 1.3) / 3), rel=1e-5)
    assert f.perplexity("雪景故宫") > f.perplexity("故宫雪景")
    assert reason(TextPerplexity(model=str(arpa), max_perplexity=5), "雪景，故宫") == "perplexity"
    assert reason(TextPerplexity(model=str(arpa), max_perplexity=5), "故宫，雪景") == ""
    assert not math.isinf(f.perplexity(""))


def test_the_content_of_a_model_is_its_identity(arpa, tmp_path):
    copy = tmp_path / "copy.arpa"
    copy.write_bytes(arpa.read_bytes())
    one = configure("filters", "text_perplexity", {"model": "two.arpa"}, TextFilter, base=str(tmp_path))
    assert one.identity() == TextPerplexity(model=str(copy)).identity()
    copy.write_text(ARPA.replace("-1.5", "-1.6"), encoding="utf-8")
    assert one.identity() != TextPerplexity(model=str(copy)).identity()


def test_a_file_that_is_no_model_is_a_fault_of_the_spec(tmp_path):
    pytest.importorskip("kenlm", reason="kenlm is not installed")
    (tmp_path / "notes.txt").write_text("no model", encoding="utf-8")
    for name, why in (("notes.txt", "not a KenLM model"), ("missing.lm", "cannot be read (No such file")):
        with pytest.raises(SpecError, match=r"filters\[0\]") as raised:
            configure("filters", "text_perplexity", {"model": name}, TextFilter, "filters[0]", str(tmp_path))
        assert why in str(raised.value)
