"""corpus: captions, URL table, layout from Debian packages, emoji pages."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo import corpus as demo_corpus
from tests.demo.corpus import Emoji, chinese_captions, write_pages
from tests.demo.packages import DemoError
from tests.places import ROOT


def test_captions_are_the_two_chinese_lines() -> None:
    text = "A frog.\nzh.utf8=错\nzh_CN.utf8=青蛙 = 蛙。 \r\nzh_TW.utf8=青蛙\nzu.utf8=Isele\n".encode()
    assert chinese_captions(text) == ("青蛙 = 蛙。", "青蛙")


def _stamp(folder: Path, name: str, captions: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.png").write_bytes(b"\x89PNG " + name.encode())
    if captions is not None:
        (folder / f"{name}.txt").write_text(captions, encoding="utf-8")


def _debian_tree(share: Path) -> None:
    """What `dpkg-deb -x` leaves of both packages, as far as the demo reads it."""
    _stamp(share / "tuxpaint/stamps/food", "red apple", "Apple.\nzh_CN.utf8=苹果。\nzh_TW.utf8=蘋果\n")
    _stamp(share / "tuxpaint/stamps/animals/birds", "owl", "Owl.\nzh_CN.utf8=猫头鹰。\n")
    _stamp(share / "tuxpaint/stamps/animals", "cat", "Cat.\nde.utf8=Katze\n")
    _stamp(share / "tuxpaint/stamps/animals", "cat_mirror", None)
    for edition in ("de-DE", "zh-CN", "zh-TW"):
        page = share / "doc/debian-handbook/html" / edition / "index.html"
        page.parent.mkdir(parents=True)
        page.write_text(edition)
    (share / "doc/tuxpaint-stamps-default").mkdir(parents=True)
    for package in ("debian-handbook", "tuxpaint-stamps-default"):
        (share / "doc" / package / "copyright").write_text("GPL-2")


def _fake_debian(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for apt-get and dpkg-deb; the list tells what was downloaded."""
    downloaded: list[str] = []

    def download(package: str, into: Path, private: Path) -> Path:
        downloaded.append(package)
        return into / f"{package}_1_all.deb"

    def unpack(deb: Path, into: Path) -> None:
        if deb.name.startswith("tuxpaint"):
            _debian_tree(into / "usr" / "share")

    monkeypatch.setattr(demo_corpus, "have_apt", lambda: True)
    monkeypatch.setattr(demo_corpus, "download_deb", download)
    monkeypatch.setattr(demo_corpus, "unpack_deb", unpack)
    return downloaded


def test_corpus_from_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded = _fake_debian(monkeypatch)
    assert demo_corpus.prepare(tmp_path, lambda line: None)
    with (tmp_path / "stamps.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {
            "image_url": "http://127.0.0.1:18462/animals/birds/owl.png",
            "zh_cn": "猫头鹰。",
            "zh_tw": "",
            "category": "animals/birds",
        },
        {
            "image_url": "http://127.0.0.1:18462/food/red%20apple.png",
            "zh_cn": "苹果。",
            "zh_tw": "蘋果",
            "category": "food",
        },
    ]
    assert (tmp_path / "stamps" / "food" / "red apple.png").is_file()
    assert not (tmp_path / "stamps" / "animals" / "cat.png").exists()
    assert sorted(p.name for p in (tmp_path / "handbook").iterdir()) == ["robots.txt", "zh-CN", "zh-TW"]
    assert "GPL-2" in (tmp_path / "licences" / "LICENCES.md").read_text()
    assert not (tmp_path / ".new").exists()
    assert not demo_corpus.prepare(tmp_path, lambda line: None)
    assert downloaded == ["debian-handbook", "tuxpaint-stamps-default"]


def test_package_without_the_expected_folder_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_debian(monkeypatch)
    monkeypatch.setattr(demo_corpus, "unpack_deb", lambda deb, into: None)
    with pytest.raises(DemoError, match=r"no longer holds /usr/share/doc|no longer holds .*zh-CN"):
        demo_corpus.prepare(tmp_path, lambda line: None)
    assert not (tmp_path / "corpus.json").exists()


def test_emoji_pages_are_reached_from_the_index(tmp_path: Path) -> None:
    emojis = [
        Emoji("1F34E", "苹果", "蘋果", ("水果",), "食物", "水果"),
        Emoji("1F431", "猫 & <狗>", "貓", (), "动物", "哺乳动物"),
    ]
    write_pages(emojis, tmp_path)
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    pages = sorted(p.name for p in tmp_path.glob("group-*.html"))
    assert len(pages) == 2
    assert all(f'href="{page}"' in index for page in pages)
    text = "".join((tmp_path / page).read_text(encoding="utf-8") for page in pages)
    assert '<img src="images/1F34E.png" alt="苹果">' in text
    assert "猫 &amp; &lt;狗&gt;" in text


def test_neither_apt_nor_npm_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.demo", "corpus"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "apt-get" in done.stderr
    assert "npm" in done.stderr
    assert "neither is on PATH" in done.stderr
