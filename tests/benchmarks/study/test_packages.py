"""Pairs out of packages that are there already: nothing is downloaded."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tests.benchmarks.study import packages
from tests.benchmarks.study.packages import Kept, lay_out
from tests.demo.packages import DemoError

_MAP = """<map><mapFile>china.png</mapFile><name>China</name>
<division><name>Anhui</name><flag>anhui.png</flag></division><division><name>Water</name></division></map>"""

_UNITS = """#textdomain units
[unit_type]
    id=Archer
    name= _ "Archer"
    image="units/archer.png~RC(red)"
    description= _ "An elf."
    [attack]
        description=_"bow"
        icon=attacks/bow.png
    [/attack]
    [standing_anim]
        description=_"bow"
        image="{LAMP 18 18}LONG.png"
    [/standing_anim]
[/unit_type]
"""


def _mo(path: Path, texts: dict[str, str]) -> None:
    """A catalog as gettext has it: little-endian, sorted, without a hash table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **texts}.items())
    strings = [[s.encode() for s in side] for side in zip(*pairs, strict=True)]
    tables, at, data = [], 28 + 16 * len(pairs), b""
    for side in strings:
        for string in side:
            tables += [len(string), at + len(data)]
            data += string + b"\0"
    head = [0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 28 + 16 * len(pairs)]
    path.write_bytes(b"".join(n.to_bytes(4, "little") for n in [*head, *tables]) + data)


def _unpacked(kept: Kept, package: str, files: dict[str, str]) -> Path:
    share = kept.folder / "unpacked" / package / "usr/share"
    for name, content in {f"doc/{package}/copyright": "GPL", **files}.items():
        (share / name).parent.mkdir(parents=True, exist_ok=True)
        (share / name).write_text(content, encoding="utf-8")
    return share


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "downloads", tmp_path / "licences")


def _labels(folder: Path) -> dict[str, dict[str, str]]:
    files = {str(path.relative_to(folder).with_suffix("")): path for path in folder.rglob("*.json")}
    assert {name for name in files if (folder / name).is_file()} == files.keys()
    return {name: json.loads(path.read_text("utf-8")) for name, path in files.items()}


def test_maps_and_flags_have_the_names_of_their_own_map(kept: Kept, tmp_path: Path) -> None:
    drawn = {"kgeography/china.kgm": _MAP, "kgeography/china.png": "", "kgeography/flags/anhui.png": ""}
    share = _unpacked(kept, "kgeography-data", drawn)
    names = {"china.kgm\4China": "中国", "china.kgm\4Anhui": "安徽", "asia.kgm\4Anhui": "别的"}
    _mo(share / "locale/zh_CN/LC_MESSAGES/kgeography.mo", names)
    assert lay_out(packages.atlas(kept), tmp_path / "atlas") == 2
    expected = {"kgeography/china.png": {"caption": "中国"}, "kgeography/flags/anhui.png": {"caption": "安徽"}}
    assert _labels(tmp_path / "atlas") == expected
    assert (tmp_path / "licences" / "kgeography-data").read_text() == "GPL"


def test_units_and_weapons_have_the_texts_of_their_own_tag(kept: Kept, tmp_path: Path) -> None:
    game = "games/wesnoth/1.18"
    files = {
        f"{game}/data/units.cfg": _UNITS.replace("LONG", 300 * "_"),
        f"{game}/data/core/images/units/archer.png": "",
    }
    share = _unpacked(kept, "wesnoth-1.18-data", {**files, f"{game}/data/core/images/attacks/bow.png": ""})
    for campaign in packages.CAMPAIGNS:
        _unpacked(kept, f"wesnoth-1.18-{campaign}", {})
    catalog = share / game / "locale/zh_CN/LC_MESSAGES/units.mo"
    _mo(catalog, {"Archer": "弓箭手", "An elf.": "一个精灵。", "bow": "弓"})
    lay_out(packages.wesnoth(kept), tmp_path / "wesnoth")
    archer = {"caption": "弓箭手", "content": "一个精灵。"}
    assert _labels(tmp_path / "wesnoth") == {"core/units/archer.png": archer, "core/attacks/bow.png": {"caption": "弓"}}


def _qm(path: Path, texts: dict[str, str]) -> None:
    """A catalogue as Qt's lrelease has it: a section of hashes, then messages of translation, context, source, end."""

    def field(tag: int, content: bytes) -> bytes:
        return bytes([tag]) + len(content).to_bytes(4, "big") + content

    messages = (
        field(3, b.encode("utf-16-be")) + b"\7\xff\xff\xff\xff" + field(6, a.encode()) for a, b in texts.items()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(16) + field(0x42, bytes(8)) + field(0x69, b"".join(m + b"\1" for m in messages)))


def test_the_sky_has_chinese_names_and_figures_the_licence_of_their_culture(kept: Kept, tmp_path: Path) -> None:
    nebulae, inuit = "stellarium/nebulae/default", "stellarium/skycultures/inuit"
    names = (
        '# names\nNGC  224   _("Andromeda Galaxy") # WK\nNGC  224   _("Great Nebula")\nNGC  224   _("Untold")\n'
        'SH2  224   _("Other")\n'
    )
    files = {
        f"{nebulae}/names.dat": names,
        f"{nebulae}/n224-dss.png": "",
        f"{nebulae}/sh2-224.png": "",
        f"{nebulae}/rho-a00.png": "",
        f"{inuit}/dogs.png": "",
        f"{inuit}/constellationsart.fab": "# art\nDog dogs.png 1 2 3\nCup cup.png 1 2 3\n",
        f"{inuit}/constellation_names.eng.fab": 'Dog\t"Qimmiit"\t_("Dogs")\n',
        f"{inuit}/info.ini": "[info]\nlicense = GPL-2\n",
    }
    share = _unpacked(kept, "stellarium-data", files)
    chinese = {"Andromeda Galaxy": "仙女座星系", "Great Nebula": "大星云", "Dogs": "狗群", "Other": "别的"}
    _qm(share / "stellarium/translations/stellarium-skycultures/zh_CN.qm", chinese)
    assert lay_out(packages.stellarium(kept), tmp_path / "sky") == 3
    assert _labels(tmp_path / "sky") == {
        "n224-dss.png": {"caption": "仙女座星系", "tag": "大星云"},
        "sh2-224.png": {"caption": "别的"},
        "inuit/dogs.png": {"caption": "狗群", "licence": "GPL-2"},
    }


def test_an_icon_has_the_licence_of_its_program_or_the_package_that_names_it(kept: Kept, tmp_path: Path) -> None:
    icons = kept.folder / "icons"
    icons.mkdir(parents=True)
    entries = [
        {"Name": {"zh_CN": name}, "Icon": {"cached": [{"name": f"{package}.png"}]}, "Package": package, **stated}
        for name, package, stated in (("地图", "maps", {"ProjectLicense": "MIT"}), ("时钟", "clock", {}))
    ]
    for entry in entries:
        (icons / f"{entry['Package']}.png").touch()
    (kept.folder / "Components-amd64.yml").write_text("\n---\n".join(map(json.dumps, entries)), encoding="utf-8")
    tarfile.open(kept.folder / "icons-128x128.tar", "w").close()
    lay_out(packages.apps(kept), tmp_path / "apps")
    licences = {name: row["licence"] for name, row in _labels(tmp_path / "apps").items()}
    assert licences == {"maps.png": "MIT", "clock.png": "copyright file of Debian's clock"}


def test_a_source_that_broke_off_is_laid_out_again_and_a_whole_one_is_kept(tmp_path: Path) -> None:
    def broken():
        yield "a.png", b"a", {"caption": "甲"}
        raise DemoError("no network")

    folder = tmp_path / "source"
    with pytest.raises(DemoError):
        lay_out(broken(), folder)
    assert not folder.exists()
    rows = [
        ("a.png", b"a", {"caption": "甲", "tag": "a", "licence": "MIT"}),
        ("a.png", b"again", {"caption": "乙"}),
        ("b.png", b"b", {"caption": "b", "licence": "MIT"}),
    ]
    assert lay_out(iter(rows), folder) == 1
    assert _labels(folder) == {"a.png": {"caption": "甲", "licence": "MIT"}}
    assert lay_out(broken(), folder) == 1, "nothing is read again"


def test_a_program_without_a_chinese_name_has_its_summary_as_caption(kept: Kept) -> None:
    kept.folder.mkdir()
    (kept.folder / "Components-amd64.yml").write_text(
        "---\nFile: DEP-11\n---\n"
        "Name: {C: Maps, zh_TW: 地圖, zh-Hans-CN: 地图}\nSummary: {zh_CN: 看地图}\nIcon: {stock: maps}\n---\n"
        "Name: {C: Git, zh-CN: Git}\nSummary: {zh-Hant: 版本}\nDescription: {zh-TW: <p>甲</p> <p>乙</p>}\n",
        encoding="utf-8",
    )
    [_, maps, git] = [texts for _, texts in packages._programs(kept)]
    assert maps == {"caption": "地图", "abstract": "看地图", "content": ""}
    assert git == {"caption": "版本", "abstract": "", "content": " 甲 乙 "}
