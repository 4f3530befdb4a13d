"""Makes pipeline/texts/characters.txt, by which pages that declare no charset are read.

    python -m tests.benchmarks.charset_tables PO        PO/zh, PO/ja, PO/ko: trees of .po files

The table is of Python's documentation in Simplified Chinese, Japanese and Korean (python/python-docs-zh-cn 3.13,
-ja 3.11, -ko 3.9, CC0), for Chinese with as much weight of jieba's dictionary (MIT); Traditional Chinese is Simplified
Chinese as OpenCC converts it for Taiwan.

Pages whose text came back, in per cent of 300, of texts that the table was not made of (Debian's manual pages,
reference, handbook, the help of GIMP and LibreOffice, poems), with 10 and 30 bytes beyond ASCII: Simplified Chinese in
gb18030 99.7 and 100, in HZ 93.7 and 97.3; Traditional Chinese in gb18030 and Big5 100; Japanese in EUC-JP 99.3 and 100,
in cp932 100; Korean 99 and 100; UTF-8 100. chardet 7.7.0 and charset-normalizer 3.5.3 read 85 to 100 and 80 to 100 of
30 bytes. Of 84,000 pages of other texts in six charsets, two were read in another one, and none was refused.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.texts import charset

TABLE = Path(charset.__file__).with_name("characters.txt")
FREQUENT = 1_200
"""Characters of a language in the table. Of 300, 1.5% of gb18030 texts of 10 bytes are read as another charset, of
1,200 and of 2,500 none."""

RAREST = 25
"""A character that is less likely than by so many steps is left to what holds for its range."""

_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="PO")
    TABLE.write_text("\n".join(_lines(parser.parse_args().folder)) + "\n", encoding="utf-8")


def _lines(folder: Path) -> Iterator[str]:
    import jieba
    import opencc

    yield "# Characters by language and likelihood: e to the power of -0.5 times the number. Made of Python's"
    yield "# documentation (CC0) and of jieba's dictionary (MIT) by tests/benchmarks/charset_tables.py."
    with jieba.get_dict_file() as f:
        words = [(word, int(times)) for word, times, _ in (line.decode().split(" ") for line in f)]
    texts = {name: [(text, 1) for text in _translations(folder / name)] for name in ("zh", "ja", "ko")}
    yield from _levels("zh", _counts(texts["zh"]), _counts(words))
    convert = opencc.OpenCC("s2tw").convert
    yield from _levels("zh-Hant", *(_counts((convert(t), n) for t, n in counted) for counted in (texts["zh"], words)))
    yield from _levels("ja", _counts(texts["ja"]))
    yield from _levels("ko", _counts(texts["ko"]))


def _translations(folder: Path) -> Iterator[str]:
    """The translated texts of .po files, each once."""
    seen = set()
    for file in sorted(folder.rglob("*.po")):
        for entry in file.read_text(encoding="utf-8").split("\n\n"):
            text = "".join(_STRING.findall(entry.partition("\nmsgstr")[2]))
            if "#, fuzzy" not in entry and 'msgid ""\nmsgstr' not in entry and text not in seen:
                seen.add(text)
                yield text


def _counts(texts: Iterable[tuple[str, int]]) -> Counter[str]:
    """Characters of texts, each of which counts so often."""
    counts = Counter[str]()
    for text, times in texts:
        for ch, n in Counter(text).items():
            if "\x80" <= ch <= "\uffff" and ch.isprintable():
                counts[ch] += n * times
    return counts


def _levels(language: str, *counted: Counter[str]) -> Iterator[str]:
    """A line for each step of likelihood. counted: of corpora that count alike."""
    share = defaultdict[str, float](float)
    for counts in counted:
        for ch, n in counts.items():
            share[ch] += n / counts.total() / len(counted)
    by_step: dict[int, list[str]] = {}
    for ch in sorted(share, key=lambda ch: (-share[ch], ch))[:FREQUENT]:
        if (step := round(-math.log(share[ch]) / charset.STEP)) < RAREST:
            by_step.setdefault(step, []).append(ch)
    for step, characters in by_step.items():
        yield f"{language} {step} {''.join(sorted(characters))}"


if __name__ == "__main__":
    main()
