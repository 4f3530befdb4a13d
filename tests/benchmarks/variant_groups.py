"""Makes data_specs/text/variants.txt: groups of Han characters, by the conversions of the installed OpenCC."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

from data_specs.text.variants import FILE, Variants

HAN = ((0x2E80, 0x2FE0), (0x3400, 0xA000), (0xF900, 0xFB00), (0x20000, 0x323B0))
"""Half-open ranges of code points that OpenCC is asked for: radicals, the blocks and extensions of Han characters."""

CONVERSIONS = ("s2t", "t2s", "s2tw", "tw2s", "s2hk", "hk2s")
"""OpenCC's, between simplified characters and the traditional ones of its own standard, of Taiwan and of Hong Kong."""


def compute_variants() -> Variants:
    """The groups, computed with the installed OpenCC."""
    return Variants(importlib.metadata.version("opencc"), tuple(sorted(_groups())))


def _groups() -> Iterator[str]:
    forms: dict[str, list[str]] = {}  # character -> its variants, itself included; variants share one list
    simplified: dict[str, str] = {}
    for name in CONVERSIONS:
        pairs = list(_converted(name))
        for one, other in pairs:
            mine, others = forms.setdefault(one, [one]), forms.setdefault(other, [other])
            if mine is not others:
                mine += others
                forms |= dict.fromkeys(others, mine)
        simplified |= dict(pairs) if name == "t2s" else {}
    for same in {id(same): same for same in forms.values()}.values():
        first = min((simplified.get(c, c) for c in same), key=lambda c: (not _in_gb2312(c), c))
        yield first + "".join(sorted(set(same) - {first}))


def _converted(name: str) -> Iterator[tuple[str, str]]:
    """(Han character, what it becomes) for each that one of CONVERSIONS replaces by one other character."""
    import opencc

    characters = [chr(c) for low, high in HAN for c in range(low, high)]
    converted = opencc.OpenCC(name).convert("\n".join(characters)).split("\n")
    for one, other in zip(characters, converted, strict=True):
        if one != other and len(other) == 1:
            yield one, other


def _in_gb2312(character: str) -> bool:
    try:
        return bool(character.encode("gb2312"))
    except UnicodeEncodeError:
        return False


if __name__ == "__main__":
    version, groups = compute_variants()
    head = f"# Variants of Han characters, by the conversions of OpenCC (Apache-2.0) {version}"
    FILE.write_text("\n".join([head, *groups, ""]), encoding="utf-8")
    print(f"{FILE}: {len(groups):,} groups")
