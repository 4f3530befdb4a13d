"""folding: what does not count when two texts are compared, and variants of a character as OpenCC has them."""

from __future__ import annotations

from importlib.metadata import version as opencc_version

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.text.folding import normal, normals
from data_specs.text.variants import variants


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("青蛙。", "青蛙"),
        ("ＡＢＣ　１２３", "abc123"),
        ("北京，故宫！", "北京故宫"),
        ("「红烧肉」的做法", "红烧肉的做法"),
        ("ﬁre①", "FIRE1"),
        ("  茶  ", "茶"),
        ("❤️ 茶", "❤茶"),
        ("葛\U000e0100", "葛"),
        ("紅燒肉裡的麵條", "红烧肉里的面条"),
        ("臺灣風景著名遊覽區", "台湾风景着名游览区"),
        ("什麼時候發財", "什么时候发财"),
    ],
)
def test_width_case_and_punctuation_do_not_count(a: str, b: str) -> None:
    assert normal(a) == normal(b)


@pytest.mark.slow
@pytest.mark.parametrize("conversion", ["s2t", "s2tw", "s2hk", "t2s", "tw2s", "hk2s"])
def test_every_form_of_a_character_is_the_same_as_opencc_has_it(conversion: str) -> None:
    import opencc

    if opencc_version("opencc") != variants().opencc:
        pytest.skip(f"variants are of OpenCC {variants().opencc}, another one is installed")
    characters = [chr(c) for c in range(0x3400, 0xA000)]
    converted = opencc.OpenCC(conversion).convert("\n".join(characters)).split("\n")
    single = [(a, b) for a, b in zip(characters, converted, strict=True) if len(b) == 1]
    assert normals([a for a, _ in single]) == normals([b for _, b in single])


@pytest.mark.slow
@given(st.text(max_size=30))
def test_normal_form_is_a_fixed_point(text: str) -> None:
    assert normal(normal(text)) == normal(text)
    assert bool(normal(text)) == bool(text.replace("\uffff", ""))
