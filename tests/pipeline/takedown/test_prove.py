"""`forget --prove` finds whatever a takedown has left, and nothing is left of it in any state of a build."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import cli, run
from pipeline.errors import NothingNew
from pipeline.publish import release
from pipeline.publish.verify import verify
from pipeline.stages import STAGES
from pipeline.store.build import Build
from pipeline.takedown import garbage, prove, rewrite_partitions
from tests import archived
from tests.parks import page, picture

pytestmark = pytest.mark.slow

Week = Callable[..., Build]
TEXT = "这是第1个页面的图片"


def proved(store: str, *words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str], dict[str, Any]]:
    """Exit code, findings of the first thing and its answer."""
    capsys.readouterr()
    code = cli.main(["forget", "--store", store, *words, "--json"])
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    [one, *_] = answer["proved"].values()
    return code, one["found"], one


@pytest.fixture
def states(week: Week, site: Any) -> Build:
    """The first of six builds that hold picture 1, each in another state; the site has a new picture for some."""
    expired = week("2026-11-01", until="report")
    release.publish(expired)
    for number, day in ((6, "2026-11-08"), (7, "2026-11-22")):
        text = f"另一张公园里的新照片{'甲乙'[number - 6]}"
        more = f"<p>{text}</p><img src='/{number}.jpg' alt='{text}'></body>".encode()
        site.pages[f"/{number - 4}.html"] = page(number - 4).replace(b"</body>", more)
        site.pages[f"/{number}.jpg"] = (200, {"Content-Type": "image/jpeg"}, picture(number))
        build = week(day, until="report")  # the second one is held by a gate: nobody publishes it
        if number == 6:
            release.publish(build)
            nothing_new = week("2026-11-15", until="report")
            with pytest.raises(NothingNew):
                release.publish(nothing_new)
    week("2026-11-29", until="fetch")
    week("2026-12-06", until="crawl")
    garbage.collect(expired.store, STAGES, keep=1)
    assert expired.history("extract") == []
    return expired


def grep(root: Path, needles: list[bytes]) -> list[str]:
    """An oracle of its own: the files in which some bytes are, packed or not."""
    found = []
    for path in sorted(root.rglob("*")):
        if not path.is_file() or "forgotten" in path.parts:
            continue
        data = path.read_bytes()
        contents = [data]
        if path.suffix == ".parquet":
            contents += [repr(row).encode() for row in pq.read_table(path).to_pylist()]
            contents += [
                value for row in pq.read_table(path).to_pylist() for value in row.values() if isinstance(value, bytes)
            ]
        elif path.suffix == ".gz":
            contents.append(gzip.decompress(data))
        elif path.suffix == ".tar":
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                contents += [tar.extractfile(member).read() for member in tar]  # type: ignore[union-attr]
        if any(needle in content for needle in needles for content in contents):
            found.append(str(path.relative_to(root)))
    return found


@pytest.mark.drill(12)
@pytest.mark.parametrize("by", ["url", "sha256", "like", "page", "domain"])
def test_nothing_of_what_is_taken_down_is_left_in_any_state_of_a_build(
    states: Build, site: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    store, file = states.store.url, tmp_path / "taken.jpg"
    file.write_bytes(picture(1))
    digest = hashlib.sha256(picture(1))
    needles = [picture(1), digest.hexdigest().encode(), digest.digest(), site.url("/1.jpg").encode(), TEXT.encode()]
    root = Path(states.out).parent
    assert len({name.split("/")[0] for name in grep(root, needles)}) == 7, "six builds and STORE"
    sought = ["--prove", str(file), "--prove", site.url("/1.jpg"), "--prove", TEXT]
    code, found, _ = proved(store, *sought, capsys=capsys)
    assert (code, len(found) > 10) == (1, True)
    named = {"url": site.url("/1.jpg"), "sha256": digest.hexdigest(), "like": str(file), "page": site.url("/1.html")}
    option = {"page": "--url"}.get(by, f"--{by}")
    assert cli.main(["forget", "--store", store, option, {**named, "domain": "127.0.0.1"}[by]]) == 0
    code, found, answer = proved(store, *sought, capsys=capsys)
    assert (code, found, answer["faults"]) == (0, [], [])
    assert len(answer["expected"]) == (by != "domain" and by != "page"), "the tombstone"
    assert grep(root, needles) == []
    if by != "domain":
        assert grep(root, [picture(2)]), "all else is there"
        assert verify(f"{store}/datasets/parks") == []


@pytest.mark.parametrize(("by", "until"), [("like", "report"), ("url", "extract")])
def test_what_was_taken_down_is_not_in_what_a_later_build_brings_back(
    week: Week,
    site: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    by: str,
    until: str,
) -> None:
    """The page that shows it was captured again, and its words stayed there until the next takedown."""
    first, file = week("2026-11-01", until="report"), tmp_path / "taken.jpg"
    release.publish(first)
    file.write_bytes(picture(1))
    named = {"url": site.url("/1.jpg"), "like": str(file)}[by]
    assert cli.main(["forget", "--store", first.store.url, f"--{by}", named]) == 0
    far = "".join(f"<p>公园的第{n}条路旁边种着{'桃李杏梅松柏竹柳'[n]}树，春天来的人很多</p>" for n in range(8))
    shown = "/moved.jpg" if by == "like" else "/1.jpg"
    images = [f"<img src='{path}' alt='{text}'>" for path, text in ((shown, TEXT), ("/6.jpg", "另一张公园的新照片"))]
    site.pages["/1.html"] = f"<html><body>{far}{far.join(images)}{far}</body></html>".encode()
    site.pages |= {shown: site.pages["/1.jpg"], "/6.jpg": (200, {"Content-Type": "image/jpeg"}, picture(6))}
    needles = [picture(1), TEXT.encode(), site.url("/1.jpg").encode(), site.url("/moved.jpg").encode()]
    second = week("2026-11-08", until="")
    if until == "extract":  # killed between captures and candidates
        remove = rewrite_partitions.remove
        with monkeypatch.context() as patch:

            def killed(*words: Any) -> None:
                remove(*words)
                raise KeyboardInterrupt

            patch.setattr(rewrite_partitions, "remove", killed)
            with pytest.raises(KeyboardInterrupt):
                list(run.run(second, until=until, here=True))
        assert grep(Path(first.out).parent, needles)
    list(run.run(second, until=until, here=True))
    assert grep(Path(first.out).parent, needles) == []
    sought = ["--prove", str(file), "--prove", site.url("/1.jpg"), "--prove", TEXT]
    assert proved(first.store.url, *sought, capsys=capsys)[:2] == (0, [])
    if until == "report":
        assert sum(release.publish(second).samples.values()) == 1, "the other picture of the page"
        assert {stage.name for stage in run.run(replace(second), here=True) if stage.ran} <= {"report"}
        assert second.fingerprints == week("2026-11-08", until="").fingerprints, "what it found leaves it as it is"
        list(run.run(week("2026-11-15", until=""), until="extract", here=True))  # knows the address without a request
        assert grep(Path(first.out).parent, needles) == []


def test_every_kind_of_trace_is_found(
    week: Week, site: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from tests.drawn import blobs, encoded

    build = week("2026-11-01", until="report")
    folder, file = Path(build.out), tmp_path / "sought.png"
    image = Image.fromarray(blobs(1, (320, 240)))
    file.write_bytes(encoded(image, "PNG"))
    (folder / "_index").mkdir()
    (folder / "_index/odd.bin").write_bytes(b"--" + hashlib.sha256(file.read_bytes()).digest() + b"--")
    shutil.copy(file, folder / "_index/copy")
    (folder / "log.txt").write_text("failed: 第1个页面", "gb18030")
    _, found, _ = proved(build.store.url, "--prove", str(file), capsys=capsys)
    said = "\n".join(found)
    assert f"{folder}/_index/odd.bin: its sha256, as bytes" in found
    assert f"{folder}/_index/copy: the file itself, by its sha256" in found
    tar = next(folder.glob("images/*.tar"))
    assert f"{tar} !" in said, "the same picture as JPEG"
    assert said.count("a picture that looks like it") >= 3
    _, found, _ = proved(build.store.url, "--prove", "第1个页面", capsys=capsys)
    assert f"{folder}/log.txt: the string, in gb18030" in found
    assert any(".parquet !texts.text rows " in line for line in found)
    assert any("warc.gz !@" in line for line in found)
    _, found, _ = proved(build.store.url, "--prove", site.url("/1.jpg"), capsys=capsys)
    assert any(line.endswith("/1.html: a page that shows the picture") for line in found), "as /1.jpg"
    names = f"{'a' * 95}名字/里的秘密.txt", f"mirror/{site.url('/1.jpg').partition('://')[2]}"
    (folder / "_index/names.tar").write_bytes(archived.tar(dict.fromkeys(names, b"x"), tarfile.USTAR_FORMAT))
    (folder / "_index/里的秘密").mkdir()
    (folder / "_index/里的秘密/empty").touch()
    _, found, _ = proved(build.store.url, "--prove", "名字/里的秘密", capsys=capsys)
    assert found == [f"{folder}/_index/names.tar !{names[0]}: its name"], "the header splits it"
    _, found, _ = proved(build.store.url, "--prove", "里的秘密/em", capsys=capsys)
    assert found == [f"{folder}/_index/里的秘密/empty: its name"]
    _, found, _ = proved(build.store.url, "--prove", site.url("/1.jpg"), capsys=capsys)
    assert f"{folder}/_index/names.tar !{names[1]}: its name" in found
    code, found, answer = proved(build.store.url, "--prove", " rows 0-", capsys=capsys)
    assert (code, found) == (0, []), "what it calls pieces itself is no name"
    (folder / "captures").rename(tmp_path / "captures")
    (folder / "captures").symlink_to(tmp_path / "captures")
    (tmp_path / "captures/loop").symlink_to(folder)
    _, linked, _ = proved(build.store.url, "--prove", TEXT, capsys=capsys)
    assert any(line.startswith(f"{folder}/captures/") for line in linked), "behind a link too"
    (folder / "gone").symlink_to(tmp_path / "unmounted")
    code, _, answer = proved(build.store.url, "--prove", "nowhere to be found", capsys=capsys)
    gone = f"{folder}/gone: not searched: a link to {tmp_path}/unmounted, which is not there; mount its disk"
    assert (code, answer["faults"]) == (1, [gone])
    (folder / "gone").unlink()
    typo = str(tmp_path / "typo")
    code, _, answer = proved(build.store.url, typo, "--prove", "nowhere to be found", capsys=capsys)
    assert (code, answer["faults"]) == (1, [f"{typo}: no such folder"])
    shutil.rmtree(folder)
    code, found, answer = proved(build.store.url, "--prove", "nowhere to be found", capsys=capsys)
    assert (code, found) == (1, [])
    assert answer["faults"][0].startswith(f"{folder}: not searched: the folder is gone")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prove", "ab"], "--prove ab: not a file, and too short for a string; at least 4 bytes"),
        (["--prove", "abcd", "--url", "http://a.cn/1.jpg"], "--prove only searches; run it without"),
    ],
)
def test_what_cannot_be_proved_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (tmp_path / "store.json").write_text('{"version": 3}')
    assert cli.main(["forget", "--store", str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_string_is_looked_for_in_every_encoding_that_a_page_or_a_file_may_have() -> None:
    found = {data for data, _ in prove.spellings(["番茄 & “é”"])}
    for form in ("番茄 & “é”", "番茄 &amp; “é”", r"\u756a\u8304 & \u201c\u00e9\u201d", "%E7%95%AA%E8%8C%84%20"):
        assert any(form.encode() in data for data in found), form
    assert "番茄 & “é”".encode("gb18030") in found
    assert "番茄 & “é”".encode("utf-16-le") in found
    assert "番茄".encode("big5") in {data for data, _ in prove.spellings(["番茄"])}
