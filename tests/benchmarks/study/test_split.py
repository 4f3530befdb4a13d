"""No emoji and none of its forms stands on both sides of the split."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.study.split import family, part_of

_TONES = [f"1f3f{digit}" for digit in "bcdef"]
_BASES = st.integers(0x1F400, 0x1FAFF).map(lambda code: f"{code:x}").filter(lambda code: code not in _TONES)


@given(base=_BASES, tone=st.sampled_from(_TONES), sign=st.sampled_from(["", "2640", "2642"]), selector=st.booleans())
def test_tones_signs_and_selectors_do_not_move_an_emoji(base: str, tone: str, sign: str, selector: bool) -> None:
    form = "-".join([base, tone, *(["fe0f"] if selector else []), *(["200d", sign, "fe0f"] if sign else [])])
    assert family(form.upper()) == family(base)
    assert part_of(form) == part_of(base)


def test_forms_of_one_person_are_one_family() -> None:
    firefighters = ["1f9d1-200d-1f692", "1f468-200d-1f692", "1f469-1f3fd-200d-1f692"]
    assert len({family(code) for code in firefighters}) == 1
    assert len({family(code) for code in ("1f468", "1f469", "1f9d1", "1f468-200d-1f9b0")}) == 1
    assert len({family(code) for code in ("1f478", "1f934", "1fac5")}) == 1  # princess, prince, person with crown
