"""Figures of captions, each against a second implementation: torchmetrics, and CIDEr-D from its formula."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from training.captions.metrics import Tokens, cider, figures, tokens_of

pytestmark = pytest.mark.usefixtures("one_thread")

CAPTIONS = ["一个红色的苹果放在木桌上", "两只小猫在沙发上睡觉", "一辆蓝色的汽车停在路边", "雪山"]
REFERENCES = [
    ["一个苹果放在桌子上", "木桌上有一个红色的苹果"],
    ["一只小猫在沙发上睡觉，旁边有一只狗", "小猫在睡觉"],
    ["路边停着一辆汽车。"],
    ["远处是一座雪山", "雪山上的云"],
]


def words(tokens: Tokens) -> tuple[list[list[str]], list[list[list[str]]]]:
    return [tokens_of(c, tokens) for c in CAPTIONS], [[tokens_of(r, tokens) for r in texts] for texts in REFERENCES]


@pytest.mark.slow
def test_tokens_are_words_or_characters_without_marks() -> None:
    assert tokens_of("一只　小猫,在睡觉。OK！", "characters") == [*"一只小猫在睡觉ok"]
    assert tokens_of("一个红色的苹果。", "jieba") == ["一个", "红色", "的", "苹果"]
    assert tokens_of("25℃ ３元", "characters") == ["2", "5", "°", "c", "3", "元"]


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["jieba", "characters"])
def test_bleu_is_that_of_torchmetrics(tokens: Tokens) -> None:
    from torchmetrics.functional.text import bleu_score  # here: it takes four seconds

    given, wanted = ([" ".join(w) for w in words(tokens)[0]], [[" ".join(w) for w in t] for t in words(tokens)[1]])
    found = figures(CAPTIONS, REFERENCES, tokens).bleu
    for n in (1, 2, 3, 4):
        assert found[n - 1] == pytest.approx(float(bleu_score(given, wanted, n_gram=n)), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["jieba", "characters"])
def test_rouge_l_is_made_of_the_longest_common_subsequences_of_torchmetrics(tokens: Tokens) -> None:
    """COCO's takes the best precision and the best recall of the references, and weighs recall by 1.2 squared."""
    from torchmetrics.text import rouge

    scorer, expected = rouge.ROUGEScore(rouge_keys="rougeL", tokenizer=str.split, normalizer=lambda t: t), []
    for given, wanted in zip(*words(tokens), strict=True):
        parts = [scorer(" ".join(given), " ".join(text)) for text in wanted]
        precision, recall = (max(float(p[f"rougeL_{name}"]) for p in parts) for name in ("precision", "recall"))
        expected.append(2.44 * precision * recall / (recall + 1.44 * precision) if precision else 0.0)
    found = figures(CAPTIONS, REFERENCES, tokens)
    assert found.rouge_l_N == pytest.approx(expected, abs=1e-6)
    assert found.rouge_l == pytest.approx(np.mean(expected), abs=1e-6)


def cider_d(given: list[list[str]], wanted: list[list[list[str]]]) -> list[float]:
    """CIDEr-D as its paper writes it (arXiv 1411.5726, equation 5 and section 5), sigma 6, in plain loops."""

    def grams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

    scores = []
    for caption, references in zip(given, wanted, strict=True):
        of_orders = []
        for n in (1, 2, 3, 4):
            images_with = Counter(gram for texts in wanted for gram in {g for text in texts for g in grams(text, n)})

            def weigh(
                counts: Counter[tuple[str, ...]], images_with: Counter[tuple[str, ...]] = images_with
            ) -> dict[tuple[str, ...], float]:
                return {g: c * math.log(len(wanted) / max(1, images_with[g])) for g, c in counts.items()}

            total = 0.0
            for reference in references:
                ours, theirs = weigh(grams(caption, n)), weigh(grams(reference, n))
                dot = sum(min(value, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, value in ours.items())
                norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
                total += (dot / norms if norms else 0.0) * math.exp(-((len(caption) - len(reference)) ** 2) / 72)
            of_orders.append(10 * total / len(references))
        scores.append(sum(of_orders) / 4)
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["jieba", "characters"])
def test_cider_is_that_of_its_formula(tokens: Tokens) -> None:
    expected, found = cider_d(*words(tokens)), figures(CAPTIONS, REFERENCES, tokens)
    assert found.cider_N == pytest.approx(expected, rel=1e-6)
    assert cider(CAPTIONS, REFERENCES, tokens) == found.cider == pytest.approx(found.cider_N.mean())


def test_the_references_themselves_are_the_best_captions() -> None:
    best = figures([texts[0] for texts in REFERENCES], [[texts[0]] for texts in REFERENCES], "characters")
    assert best.bleu == pytest.approx((1, 1, 1, 1))
    assert best.rouge_l == 1
    assert best.cider > figures(CAPTIONS, REFERENCES, "characters").cider
