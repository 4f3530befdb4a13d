"""Makes pipeline/texts/characters.txt, and measures how pages that declare no charset are read.

    python -m tests.benchmarks.charset_tables learn PO        PO/zh, PO/ja, PO/ko: trees of .po files
    python -m tests.benchmarks.charset_tables measure TEXTS   TEXTS/zh.NAME.txt, zh-Hant. ja. ko.: documents, UTF-8

The table is of Python's documentation in Simplified Chinese, Japanese and Korean (python/python-docs-zh-cn 3.13,
-ja 3.11, -ko 3.9, CC0), for Chinese with as much weight of jieba's dictionary (MIT); Traditional Chinese is Simplified
Chinese as OpenCC converts it for Taiwan.

`measure` cuts texts to a number of bytes beyond ASCII, encodes them, and counts the pages whose text comes back. Of 300
pages, in per cent, of texts that the table was not made of (Debian's manual pages, reference, handbook, guides for
maintainers, FAQ, the help of GIMP and LibreOffice, poems); in brackets by the share of everyday characters, as before:

    bytes beyond ASCII             10             30            100          1,000
    zh gb18030            99.7 (98.7)   100.0 (99.7)  100.0 (100.0)  100.0 (100.0)
    zh utf-8            100.0 (100.0)  100.0 (100.0)  100.0 (100.0)  100.0 (100.0)
    zh hz                  93.7 (0.0)     97.3 (0.0)    100.0 (0.0)    100.0 (0.0)
    zh-Hant gb18030      100.0 (73.0)   100.0 (75.7)   100.0 (92.0)   100.0 (99.3)
    zh-Hant big5         100.0 (99.7)  100.0 (100.0)  100.0 (100.0)  100.0 (100.0)
    zh-Hant utf-8       100.0 (100.0)  100.0 (100.0)  100.0 (100.0)  100.0 (100.0)
    ja euc_jp              99.3 (0.0)    100.0 (0.0)    100.0 (0.0)    100.0 (0.0)
    ja cp932              100.0 (0.0)    100.0 (0.0)    100.0 (0.0)    100.0 (0.0)
    ko euc_kr              99.3 (0.0)    100.0 (0.0)    100.0 (0.0)    100.0 (0.0)
    ko cp949               99.0 (0.0)    100.0 (0.0)    100.0 (0.0)    100.0 (0.0)

chardet 7.7.0 (40 pages) and charset-normalizer 3.5.3 (10 pages) read 85 to 100 and 80 to 100 of 30 bytes, HZ apart, and
less of long gb18030 pages than was read before: 75 of 3,000 bytes, and 50 of 1,000.

Of pages that declare nothing with 30, 60, 100 and 300 bytes of other texts (.mo files of Debian's packages, Rust by
Example in Japanese, HowToCook, 472 pages of blogs), 1,000 of each text in EUC-JP, Shift_JIS, EUC-KR, Big5, gb18030 and
UTF-8, two of 84,000 are read in another charset: 「封筒 prc3 封筒 prc4」, a list of sizes of paper; none is refused.

Of 60,000 Chinese pages, from 4 bytes beyond ASCII on, that declare nothing, what they are, or another charset, 54,256
were read before and 59,903 are; 29 that were read are not, all of them of at most 12 bytes.
"""

from __future__ import annotations

import argparse
import math
import random
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

LENGTHS = (10, 30, 60, 100, 200, 500, 1_000, 3_000)
"""Bytes beyond ASCII of the pages that are measured."""

CHARSETS = (
    *(("zh", name) for name in ("gb18030", "utf-8", "hz")),
    *(("zh-Hant", name) for name in ("gb18030", "big5", "utf-8")),
    *(("ja", name) for name in ("euc_jp", "cp932")),
    *(("ko", name) for name in ("euc_kr", "cp949")),
)
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("learn", "measure"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pages", type=int, default=300, help="of a charset and a length")
    args = parser.parse_args()
    if args.what == "learn":
        TABLE.write_text("\n".join(_lines(args.folder)) + "\n", encoding="utf-8")
    else:
        _measure(args.folder, args.pages)


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


def _measure(folder: Path, pages: int) -> None:
    print(f"{'':16}" + "".join(f"{length:>8}" for length in LENGTHS))
    for language, name in CHARSETS:
        documents = [p.read_text(encoding="utf-8").split("\0") for p in sorted(folder.glob(f"{language}.*.txt"))]
        cells = []
        for length in LENGTHS:
            drawn = random.Random(f"{language} {name} {length}")
            right = [_is_read(text, name) for text in _texts(documents, name, length, pages, drawn)]
            cells.append(f"{100 * sum(right) / len(right):8.1f}")
        print(f"{language + ' ' + name:16}" + "".join(cells), flush=True)


def _texts(documents: list[list[str]], name: str, length: int, pages: int, drawn: random.Random) -> Iterator[str]:
    """Texts with so many bytes beyond ASCII in a charset, each from the beginning of a paragraph."""
    codec = "gb2312" if name == "hz" else name
    made = 0
    while made < pages:
        paragraphs = drawn.choice(drawn.choice(documents)).split("\n")
        text, beyond = "", 0
        for ch in " ".join(paragraphs[drawn.randrange(len(paragraphs)) :])[: 2 * length]:
            try:
                own = ch.encode(codec)
            except UnicodeEncodeError:
                continue
            if own.decode(charset.codec_of(codec) or codec, "replace") != ch:
                continue  # cp932 has two forms of some marks; Python writes rare hangul as parts in EUC-KR
            text, beyond = text + ch, beyond + sum(byte >= 0x80 for byte in own)
            if beyond >= length:
                made += 1
                yield text
                break


def _is_read(text: str, name: str) -> bool:
    page = f'<html><head><title>x</title></head><body><p>{text}</p><img src="a.jpg"></body></html>'
    decoded = charset.decode(page.encode(name), "")
    return decoded is not None and text in decoded[0]


if __name__ == "__main__":
    main()
