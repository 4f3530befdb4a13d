"""Galleries of verses for the search page, made of npm's `chinese-poetry`: what the paper's applications searched in.

    OUT/poems.txt      sentences of 唐诗三百首 and 宋词三百首: picture -> sentence, as MatchSoul did
    OUT/songs.txt      lines of all 宋词 and 元曲, which were sung: picture -> song line, as Soul-Music did
    OUT/LICENCE.txt    the package's terms (MIT) and where it came from
    OUT/packages/      the package as downloaded, 85 MB: kept, so that it is not downloaded twice

A line is a verse, a tab, and who wrote it and where it stands: `wenlan-train embed --texts` embeds the verse and keeps
the rest beside it, and the page takes such a file as a collection of one's own. Verses are in simplified characters,
as most of what a model is trained on (the package has Tang poems in traditional ones).

Limits: a gallery of more than `most` verses is thinned by a hash of each, so that a smaller one is part of a larger
one. Titles of the package are taken as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.demo.packages import DemoError, download_npm, unpack_npm

PACKAGE = "chinese-poetry"
MOST = 20_000
"""Verses of a gallery: minutes of embedding on one core by a large text tower, seconds by the demo's."""

_SHORTEST, _LONGEST = 4, 48
_DOUBTFUL = re.compile(r"[□\ufffd?*{}\[\]［］()（）〔〕/<>a-zA-Z0-9]")
"""Lost characters, stage directions and editors' notes."""


@dataclass(frozen=True, slots=True)
class Verse:
    """A verse in simplified characters, and what stands under it: 苏轼《水调歌头》."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Gallery:
    """A text file of verses. files: globs below the package's `dist`."""

    name: str
    files: tuple[str, ...]


GALLERIES = (
    Gallery("poems", ("quantangshi/唐诗三百首.json", "songci/宋词三百首.json")),
    Gallery("songs", ("songci/ci.song.*.json", "yuanqu/yuanqu.json")),
)

_READ = ("唐诗三百首", "宋词三百首", "ci.song.", "yuanqu")
"""How the names of the files begin that are read: the package unpacks to 350 MB, these are a tenth of it."""


def make(out: Path, most: int, say: Callable[[str], None]) -> list[Path]:
    """Write the galleries into the folder `out`; returns their files. `say` gets a line per step.

    Raises DemoError with one sentence: no npm, no network, a damaged package.
    """
    say(f"npm's {PACKAGE}, 85 MB, unless it is there")
    tarball = download_npm(PACKAGE, out / "packages")
    unpacked = out / ".new"
    shutil.rmtree(unpacked, ignore_errors=True)
    folders = sorted({f"dist/{file.rpartition('/')[0]}/" for gallery in GALLERIES for file in gallery.files})
    unpack_npm(tarball, unpacked, ["LICENSE", *(f"{folder}{kind}" for folder in folders for kind in _READ)])
    made = []
    for gallery in GALLERIES:
        files = [file for glob in gallery.files for file in sorted((unpacked / "dist").glob(glob))]
        if not files:
            raise DemoError(f"{tarball}: has no {gallery.files[0]}; this release of {PACKAGE} is laid out otherwise")
        verses = thinned({verse.text: verse for file in files for verse in verses_of(file)}, most)
        path = out / f"{gallery.name}.txt"
        path.write_text("".join(f"{verse.text}\t{verse.source}\n" for verse in verses), encoding="utf-8")
        say(f"{path}: {len(verses):,} verses")
        made.append(path)
    terms = (unpacked / "LICENSE").read_text(encoding="utf-8") if (unpacked / "LICENSE").exists() else "MIT\n"
    told = f"poems.txt and songs.txt are made of {tarball.stem} of npm, licence MIT:\n\n{terms}"
    (out / "LICENCE.txt").write_text(told, encoding="utf-8")
    shutil.rmtree(unpacked)
    return made


def verses_of(file: Path) -> Iterator[Verse]:
    """The verses of a file of the package: [{author, paragraphs, title | rhythmic}, ...]. Raises DemoError."""
    try:
        works = json.loads(file.read_bytes())
        for work in works:
            title = str(work.get("title") or work.get("rhythmic") or "")
            source = _simplified(f"{work.get('author') or '佚名'}{f'《{title}》' if title else ''}")
            for paragraph in work["paragraphs"]:
                for text in _sentences(_simplified(re.sub(r"\s+", "", str(paragraph)))):
                    if _SHORTEST <= len(text) <= _LONGEST and not _DOUBTFUL.search(text):
                        yield Verse(text, " ".join(source.split()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise DemoError(f"{file.name}: not the file that {PACKAGE} had ({type(e).__name__}: {e})") from None


def _sentences(paragraph: str) -> list[str]:
    """A paragraph as it is, or, if it is long, its sentences."""
    paragraph = paragraph.replace("？。", "？")
    return [paragraph] if len(paragraph) <= _LONGEST else re.findall(r"[^。！？]+[。！？]*", paragraph)


def thinned(verses: dict[str, Verse], most: int) -> Sequence[Verse]:
    """At most so many of the verses, in their order: those whose hashes are least."""
    if len(verses) <= most:
        return list(verses.values())
    least = sorted(verses, key=lambda text: hashlib.sha256(text.encode()).digest())[:most]
    chosen = set(least)
    return [verse for text, verse in verses.items() if text in chosen]


def _simplified(text: str) -> str:
    return str(_converter().convert(text))


@cache
def _converter() -> Any:
    import opencc

    return opencc.OpenCC("t2s")
