"""Chinese captions of 1 to 40 characters for the benchmarks, made of real text by a seed, and copies of them.

Sentences come from the pages of the Debian handbook, the recipe pages of the corpus beside the repository and the
captions of the Tux Paint stamps, as far as they are there (`make demo` fetches two of the three). They are not many, so
the rest are sequences of jieba's dictionary words, drawn by their frequency in real Chinese.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import accumulate
from pathlib import Path

from data_specs.text.folding import normal, normals, numerals_of
from tests.benchmarks.harness import DEMO, SITE

PAGES = (DEMO / "handbook/zh-CN", SITE)
TABLE = DEMO / "stamps.csv"
LONGEST = 40

_END = re.compile(r"[。！？；\n]+")
_PAUSE = re.compile(r"(?<=[，、：,])")
_HAN = re.compile(r"[一-鿿]")
_NUMBER = re.compile(r"[\d.．]")
_DIGIT = re.compile(r"[0-9]")


def captions(count: int, seed: int) -> list[str]:
    """`count` captions in random order, no two alike in normal form; each real sentence before any made one."""
    rng = random.Random(seed)
    real = sentences()
    rng.shuffle(real)
    taken: dict[str, str] = {}
    _take(taken, real, count)
    made = _made(rng)
    while len(taken) < count:
        _take(taken, [next(made) for _ in range(max(1_000, count - len(taken)))], count)
    found = list(taken.values())
    rng.shuffle(found)
    return found


def sentences() -> list[str]:
    """Real sentences and phrases of at most LONGEST characters, each once, in a fixed order."""
    lines: list[str] = []
    for folder in PAGES:
        for page in sorted(folder.rglob("*.html")):
            lines += _lines(page)
    if TABLE.exists():
        with TABLE.open(encoding="utf-8") as rows:
            lines += [row["zh_cn"] for row in csv.DictReader(rows)]
    found: dict[str, None] = {}
    for line in lines:
        for sentence in _END.split(line):
            short = sentence.strip()
            for piece in [short] if len(short) <= LONGEST else _PAUSE.split(short):
                if len(piece) <= LONGEST and _HAN.search(piece):
                    found[piece.strip()] = None
    return list(found)


def _lines(page: Path) -> list[str]:
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(page.read_bytes().decode("utf-8", "replace"))
    tree.strip_tags(["script", "style", "nav"])
    return [line.strip() for line in tree.text(separator="").split("\n") if line.strip()]


def _take(taken: dict[str, str], texts: list[str], count: int) -> None:
    for short, text in zip(normals(texts), texts, strict=True):
        if len(taken) == count:
            return
        if short:
            taken.setdefault(short, text)


@cache
def _words() -> tuple[list[str], list[int]]:
    import jieba

    words, weights = [], []
    with (Path(jieba.__file__).parent / "dict.txt").open(encoding="utf-8") as lines:
        for line in lines:
            word, frequency, _ = line.split(" ")
            words.append(word)
            weights.append(int(frequency))
    return words, list(accumulate(weights))


def _made(rng: random.Random) -> Iterator[str]:
    words, weights = _words()
    while True:
        drawn = iter(rng.choices(words, cum_weights=weights, k=10_000))
        text, longest = "", rng.randint(1, LONGEST)
        for word in drawn:
            if len(text) + len(word) > longest and text:
                yield text
                text, longest = "", rng.randint(1, LONGEST)
            text += word[:LONGEST]


def copies(rng: random.Random) -> dict[str, Callable[[str], str | None]]:
    """For each kind what makes such a copy of a caption; None where the caption cannot have one."""
    import opencc

    traditional = [opencc.OpenCC(name).convert for name in ("s2t", "s2tw", "s2hk")]
    common = [c for c in {c for word in _words()[0] for c in word if _HAN.match(c)} if not c.isnumeric()]
    common.sort()

    def width(text: str) -> str | None:
        wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
        return wide if wide != text else f"\u3000{text} "

    def punctuation(text: str) -> str:
        at = rng.randint(0, len(text))
        while 0 < at < len(text) and _NUMBER.match(text[at - 1]) and _NUMBER.match(text[at]):
            at += 1  # a mark inside a number makes another number
        return text[:at] + rng.choice("，。！、 ·…“”《》") + text[at:] + rng.choice("。！…")

    def variant(text: str) -> str | None:
        found = rng.choice(traditional)(text)
        return found if found != text else None

    def changed(text: str) -> str | None:
        at = [i for i, c in enumerate(text) if _HAN.match(c) and not numerals_of([normal(c)])[0]]
        if len(normal(text)) < 10 or not at:
            return None
        spot, new = rng.choice(at), rng.choice(common)
        return text[:spot] + new + text[spot + 1 :] if normal(new) != normal(text[spot]) else None

    def digit(text: str) -> str | None:
        at = [m.start() for m in _DIGIT.finditer(text)]
        if not at:
            return None
        spot = rng.choice(at)
        return text[:spot] + str((int(text[spot]) + rng.randint(1, 9)) % 10) + text[spot + 1 :]

    return {
        "exact": lambda text: text,
        "width": width,
        "punctuation": punctuation,
        "traditional": variant,
        "one_changed": changed,
        "digit": digit,
    }
