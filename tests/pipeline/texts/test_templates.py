"""Templates: what very many texts of a site share is cut, and what names their subjects is not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.texts.templates import MIN_TEXTS, Template, Templates, learn

DISHES = [
    a + b for a in "红清白糖醋酱油焖炒煎" for b in ("烧肉", "蒸鱼", "切鸡", "排骨", "里脊", "牛肉", "豆腐", "茄子")
]


def learnt(texts: list[str], rate: float = 1.0) -> set[tuple[str, str]]:
    return {(t.side, t.text) for t in learn(texts, rate)}


def test_a_wrapper_around_most_texts_is_learnt_and_cut_on_both_sides():
    texts = [f"這是一張有關標題為 {dish} 的圖片" for dish in DISHES]
    templates = Templates(learn([*texts, "故宫雪景", "黄山云海"]))
    assert {(t.side, t.text) for t in templates.templates} == {("begins", "這是一張有關標題為 "), ("ends", " 的圖片")}
    assert templates.cut("這是一張有關標題為 葱烧海参 的圖片")[0] == "葱烧海参"
    assert templates.cut("葱烧海参") == ("葱烧海参", None)
    assert templates.cut("這是一張有關標題為 的圖片")[0] == "", "there was nothing else"


def test_a_prefix_of_hundreds_of_texts_is_cut_with_its_bracket_whatever_their_share():
    prefixed = [f"关注公众号【{dish}{n}号】" for dish in DISHES for n in ("一", "二")]
    others = [f"{chr(0x4E00 + 7 * n)}{chr(0x5000 + 3 * n)}说明文字" for n in range(900)]
    templates = Templates(learn([*prefixed, *others]))
    assert templates.cut("关注公众号【葱烧海参】")[0] == "葱烧海参"
    assert not learnt([*prefixed[:60], *others]), "sixty of a thousand are not hundreds"
    assert learnt([*prefixed[:60], *others], rate=0.1), "they are, if the sample holds a tenth of the texts"


def test_numbers_of_a_template_are_one_and_the_end_of_a_gallery_is_learnt():
    templates = Templates(learn([f"{dish}-预览图-{n}" for n, dish in enumerate(DISHES)]))
    assert templates.cut("葱烧海参-预览图-512")[0] == "葱烧海参"


def test_names_by_a_system_and_chance_beginnings_are_no_templates():
    names = [f"{chr(0x4E00 + 7 * n)}{chr(0x5000 + 3 * n)}{chr(0x5200 + 5 * n)}" for n in range(300)]
    assert not learnt([f"“{name}”滤镜选项" for name in names[:80]] + names), "a quotation mark is no separator"
    assert not learnt([f"北京{name}" for name in names]), "two letters that all texts have may be what they speak of"
    assert not learnt([f"The {name} curve" for name in names]), "a space after a Latin word separates nothing"
    assert not learnt([f"黄山云海日出{n}" for n in range(300)]), "they differ in a number only"
    assert not learnt([f"某某网【{name}】" for name in names[: MIN_TEXTS - 1]])


@given(st.lists(st.text(st.sampled_from("图片的【】 -红烧1")), max_size=60), st.randoms(use_true_random=False))
def test_the_order_of_texts_does_not_matter_and_a_cut_only_takes_away(texts, dice):
    distinct = list(dict.fromkeys(texts))
    templates = learn(distinct)
    shuffled = list(distinct)
    dice.shuffle(shuffled)
    assert learn(shuffled) == templates
    cutter = Templates([*templates, Template("begins", "红烧", 20), Template("ends", "0", 20)])
    for text in distinct:
        remaining, template = cutter.cut(text)
        assert remaining in text
        assert (template is None) == (remaining == text) or not text


@pytest.mark.slow
def test_many_texts_are_learnt_in_no_more_than_the_time_to_sort_them():
    dice = random.Random(1)
    texts = {"".join(dice.choices("红烧肉鱼鸡豆腐茄子", k=40)) for _ in range(4_000)} | {"红" * n for n in range(2_000)}
    assert learn(sorted(texts)) == []
