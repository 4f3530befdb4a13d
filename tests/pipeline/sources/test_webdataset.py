"""webdataset: tars of the webdataset package, our own shards, and tars that are broken."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import base_plus_ext, group_by_keys

from data_specs.shard import Sample, Text, encode_sample
from pipeline.errors import SourceError
from pipeline.files.tar_members import _JoinedTar
from pipeline.rows.decisions import Decision
from pipeline.rows.records import PROVENANCE, Provenance, candidate_rows, sha256_hex
from pipeline.sources import FileSource
from pipeline.sources._look import Budget
from pipeline.sources.webdataset import WebDataset, _key_and_suffix, _samples
from pipeline.store.build import sha256_of
from pipeline.store.commits import DECISIONS
from pipeline.takedown.forget import Request, forget
from tests import archived
from tests.candidates import put, read, texts
from tests.drawn import encoded
from tests.places import ROOT

PNG = encoded(Image.new("RGB", (8, 8)), "PNG")


def tars(path: str | list[str]) -> WebDataset:
    return WebDataset.model_validate({"name": "s", "source_kind": "library", "path": path})


def tar(path: Path, members: dict[str, str | bytes]) -> None:
    path.write_bytes(archived.tar(members))


def test_tars_that_webdataset_wrote_are_read(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a-0.tar")) as f:
        f.write({"__key__": "k1", "jpg": b"\xff\xd8one", "txt": "故宫雪景"})
        f.write({"__key__": "k2", "png": b"two", "json": json.dumps({"alt": "云"}).encode()})
    source = tars(str(tmp_path / "*.tar"))
    one, two = read(source)
    assert (texts(one), texts(two)) == ([("caption", "故宫雪景")], [("alt", "云")])
    assert [source.read_image(c.image_url) for c in (one, two)] == [b"\xff\xd8one", b"two"]


@pytest.mark.slow
def test_pictures_of_many_tars_are_read_in_any_order_and_each_tar_is_indexed_once(tmp_path, monkeypatch):
    for number in range(100):  # a partition of fetch has pictures of all tars of a source, in the order of a hash
        tar(tmp_path / f"{number:03d}.tar", {f"{name}.jpg": f"{number} {name}" for name in "abc"})
    source, opened, looked = tars(str(tmp_path / "*.tar")), [], []
    whole, every = _JoinedTar.open, FileSource.files
    monkeypatch.setattr(_JoinedTar, "open", lambda *args, **more: opened.append(1) or whole(*args, **more))
    monkeypatch.setattr(FileSource, "files", lambda self: looked.append(1) or every(self))
    for name in "cab":
        for number in range(100):
            url = f"webdataset:///s/{number:03d}.tar/{name}.jpg"
            assert source.read_image(url) == f"{number} {name}".encode()
    assert (len(opened), len(looked)) == (100, 1)
    assert source.read_image("webdataset:///s/000.tar/d.jpg") is None


def test_a_tar_that_comes_changes_or_goes_is_seen(tmp_path):
    source = tars(str(tmp_path / "*.tar"))
    tar(tmp_path / "a.tar", {"1.jpg": "one", "2.jpg": "first"})
    assert source.read_image("webdataset:///s/a.tar/1.jpg") == b"one"
    assert source.read_image("webdataset:///s/b.tar/1.jpg") is None
    tar(tmp_path / "b.tar", {"1.jpg": "two"})
    assert source.read_image("webdataset:///s/b.tar/1.jpg") == b"two"
    tar(tmp_path / "a.tar", {"2.jpg": "another"})
    assert source.read_image("webdataset:///s/a.tar/2.jpg") == b"another"
    (tmp_path / "a.tar").unlink()
    assert source.read_image("webdataset:///s/a.tar/2.jpg") is None
    (tmp_path / "b.tar").unlink()
    with pytest.raises(SourceError, match="no file matches"):
        source.read_image("webdataset:///s/b.tar/1.jpg")


def test_samples_of_one_key_have_their_own_pictures(tmp_path):
    """Tars that were joined into one file number their samples anew."""
    joined = b""
    for words in ("云海", "雪山", "江水"):
        tar(tmp_path / "one.tar", {f"{n}.{kind}": f"{words}{n}" for n in range(3) for kind in ("jpg", "txt")})
        joined += (tmp_path / "one.tar").read_bytes()
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "a.tar").write_bytes(joined)
    source = tars(str(tmp_path / "all" / "a.tar"))
    rows = read(source)
    assert len({row.image_url for row in rows}) == len({row.candidate_id for row in rows}) == 9
    assert rows[3].image_url == "webdataset:///s/a.tar/0.jpg?2"
    for row in rows:
        assert (source.read_image(row.image_url) or b"").decode() == row.texts[0].text
    for gone in ("0.jpg?4", "0.jpg?0", "0.jpg?x?", "9.jpg?1"):
        assert source.read_image(f"webdataset:///s/a.tar/{gone}") in (None, "云海0".encode())


def test_a_name_twice_in_one_sample_is_a_decision_and_the_first_is_the_picture(tmp_path):
    (tmp_path / "a.tar").write_bytes(archived.tar([("1.jpg", "before"), ("1.jpg", "after!"), ("1.txt", "text")]))
    source = tars(str(tmp_path / "a.tar"))
    candidate, refused = read(source)
    assert source.read_image(candidate.image_url) == b"before"
    assert "1.jpg: the sample has another file with the suffix jpg" in refused.evidence


def test_our_own_shards_are_a_source(tmp_path):
    sample = Sample(
        "c" * 64, "s", "news", "", "http://i/1", "a" * 64, 4, 4, (Text("caption", "题"), Text("alt", "别名"))
    )
    tar(tmp_path / "train-000000.tar", dict(encode_sample(sample, b"\xff\xd8picture")))
    source = tars(str(tmp_path / "train-000000.tar"))
    [candidate] = read(source)
    assert texts(candidate) == [("caption", "题"), ("alt", "别名")]
    assert candidate.image_url == "http://i/1"
    assert source.read_image(candidate.provenance.stored_at) == b"\xff\xd8picture"


def test_where_a_picture_came_from_is_what_its_json_says(tmp_path):
    digest = "AB" * 32
    members = {
        # as img2dataset writes it; as others do; nothing; what is no web address
        "k1": {"url": "HTTP://Img.Example:80/a b.jpg?x=1#f", "sha256": digest, "caption": "一", "license": " CC-BY "},
        "k2": {"image_url": "https://img.example/2.jpg", "page_url": "https://www.example/p.html", "caption": "二"},
        "k3": {"caption": "三", "url": None, "sha256": "12"},
        "k4": {"caption": "四", "url": "file:///etc/passwd", "page_url": "javascript:x", "licence": "CC0"},
        "k5": {"caption": "五", "url": "http://user:pa55@img.example/5.jpg"},
    }
    parts = {}
    for key, value in members.items():
        parts |= {f"{key}.jpg": key, f"{key}.json": json.dumps(value)}
    tar(tmp_path / "a.tar", parts)
    source = tars(str(tmp_path / "a.tar"))
    one, two, three, four, five = read(source)
    stored = "webdataset:///s/a.tar/{}.jpg".format
    assert (one.image_url, two.image_url) == ("http://img.example/a%20b.jpg?x=1", "https://img.example/2.jpg")
    assert [c.image_url for c in (three, four, five)] == [stored("k3"), stored("k4"), stored("k5")]
    assert [c.page_url for c in (one, two, four)] == ["", "https://www.example/p.html", ""]
    assert one.provenance == Provenance(stored("k1"), digest.lower(), "CC-BY")
    assert (two.provenance, three.provenance) == (Provenance(stored("k2")), None)
    assert four.provenance == Provenance(licence="CC0")
    assert five.provenance is None
    assert [source.read_image(c.provenance.stored_at) for c in (one, two)] == [b"k1", b"k2"]
    assert (source.read_image(one.image_url), source.read_image(three.image_url)) == (None, b"k3")
    assert [c.origin for c in (one, three)] == ["a.tar/k1", "a.tar/k3"]

    named = {"name": "s", "source_kind": "library", "path": str(tmp_path / "a.tar"), "fields": {"url": "page_url"}}
    assert read(WebDataset.model_validate(named))[1].image_url == "https://www.example/p.html"
    named["fields"] = {"url": []}
    assert read(WebDataset.model_validate(named))[1].image_url == stored("k2")


@pytest.mark.slow
def test_a_picture_with_a_url_is_read_from_its_tar_and_found_by_takedowns(tmp_path, serve, make_build, run_stage):
    web = serve()
    urls = [web.url(f"/{i}.jpg") for i in range(4)]
    digests = [sha256_hex(f"at its URL {i}") for i in range(4)]
    parts = {}
    for i, url in enumerate(urls):
        value = {"caption": f"第{i}幅图画的说明文字", "url": url, "sha256": digests[i]}
        parts |= {f"k{i}.jpg": picture(i), f"k{i}.json": json.dumps(value)}
    tar(tmp_path / "a.tar", parts)
    source = {"kind": "webdataset", "name": "s", "source_kind": "library", "path": str(tmp_path / "a.tar")}
    build = make_build(web, sources=[source])
    build = replace(build, fingerprints={name: sha256_hex(name) for name in build.passes})
    run_stage(build, "extract", "admit", "fetch")
    [record] = build.stage("fetch").records()
    rows = build.stage("fetch").table(record).to_pylist()
    assert {row["image_url"]: row["sha256"] for row in rows} == {
        url: hashlib.sha256(picture(i)).hexdigest() for i, url in enumerate(urls)
    }
    assert web.asked == []

    build.store.check()
    for request, remaining in (
        (Request(urls=[urls[0]], exact=True), urls[1:]),
        (Request(sha256s=[digests[1]], exact=True), urls[2:]),
        (Request(domains=[web.host], exact=True), []),
    ):
        assert forget(build.store, [build], request)["matched"] >= 1
        [record] = build.stage("fetch").records()
        assert {row["image_url"] for row in build.stage("fetch").table(record).to_pylist()} == set(remaining)
        [record] = build.stage("extract").records()
        assert build.stage("extract").table(record, PROVENANCE).num_rows == len(remaining)
    later = replace(build, out=str(tmp_path / "later"))
    run_stage(later, "extract", "admit")
    [record] = later.stage("admit").records()
    assert (record.counts["kept"], record.counts["dropped"]) == (0, 4)


def test_a_picture_that_left_its_tar_is_not_asked_for_on_the_web(tmp_path, serve, make_build, run_stage):
    web = serve({"/0.jpg": (200, {"Content-Type": "image/jpeg"}, picture(0))})
    value = json.dumps({"caption": "一幅图画的说明文字", "url": web.url("/0.jpg")})
    tar(tmp_path / "a.tar", {"k.jpg": picture(0), "k.json": value})
    source = {"kind": "webdataset", "name": "s", "source_kind": "library", "path": str(tmp_path / "a.tar")}
    build = make_build(web, sources=[source])
    build = replace(build, fingerprints={name: sha256_hex(name) for name in build.passes})
    run_stage(build, "extract", "admit")
    tar(tmp_path / "a.tar", {"k2.jpg": picture(0)})
    run_stage(build, "fetch")
    [record] = build.stage("fetch").records()
    [decision] = build.stage("fetch").table(record, DECISIONS).to_pylist()
    assert (decision["reason"], decision["evidence"]) == ("bad_url", "its source no longer contains this picture")
    assert web.asked == []


def picture(seed: int) -> bytes:
    return encoded(Image.new("RGB", (64, 64), (40 * seed, 20, 200)))


def test_samples_without_picture_or_text_are_decisions(tmp_path):
    tar(
        tmp_path / "a.tar",
        {"d/k1.JPG": b"1", "d/k1.txt": "好", "k2.txt": "无图", "k3.jpg": b"3", "k4.jpg": b"4", "k4.json": "{"},
    )
    source = tars(str(tmp_path / "a.tar"))
    first, *others = read(source)
    assert source.read_image(first.image_url) == b"1"
    assert [d.reason for d in others if isinstance(d, Decision)] == ["bad_row", "no_text", "bad_row"]


def test_bad_tars_are_one_error_that_names_the_file(tmp_path):
    (tmp_path / "no.tar").write_bytes(b"no tar" * 1000)
    tar(tmp_path / "cut.tar", {"k.jpg": b"1" * 5000, "k.txt": "好"})
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:3000])
    for name in ("no.tar", "cut.tar"):
        with pytest.raises(SourceError, match=name.replace(".", r"\.")):
            read(tars(str(tmp_path / name)))
    with pytest.raises(ValueError, match="commands are not allowed"):
        tars("pipe:curl http://a/")
    tar(tmp_path / "x.tar", {})
    (tmp_path / "d").mkdir()
    tar(tmp_path / "d" / "x.tar", {})
    with pytest.raises(SourceError, match=r"x\.tar: source s: two tars have this name"):
        tars([str(tmp_path / "x.tar"), str(tmp_path / "d" / "x.tar")]).token()


def test_a_packed_tar_is_refused_before_all_its_pictures_are_missed(tmp_path):
    tar(tmp_path / "a.tar", {"k.jpg": "one", "k.txt": "故宫雪景"})
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    for look in (read, lambda source: source.look(Budget())):
        with pytest.raises(SourceError, match=r"a\.tar\.gz: .* decompress it"):
            look(tars(str(tmp_path / "a.tar.gz")))


def test_what_a_build_keeps_of_a_rewritten_text_comes_back_with_it(tmp_path):
    kept = {
        "texts": [{"kind": "caption", "text": "简体", "original": "簡體"}, {"kind": "alt", "text": "云", "original": 3}]
    }
    put(tmp_path, {"a.jpg": b"A", "a.json": json.dumps(kept)})
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.jpg", "a.json"):
            tar.add(tmp_path / name, name)
    [candidate] = read(tars(str(tmp_path / "x.tar")))
    assert candidate.texts == (Text("caption", "简体", "簡體"), Text("alt", "云"))


def test_links_and_climbing_names_in_a_tar_read_nothing_outside(tmp_path):
    (tmp_path / "secret.txt").write_text("root:x:0:0", encoding="utf-8")
    place = tmp_path / "in"
    place.mkdir()
    with tarfile.open(place / "a.tar", "w") as f:
        for kind, name, target in [
            (tarfile.SYMTYPE, "a.txt", "../secret.txt"),
            (tarfile.LNKTYPE, "b.txt", "../secret.txt"),
            (tarfile.SYMTYPE, "b.jpg", "/etc/passwd"),
            (tarfile.FIFOTYPE, "c.txt", ""),
            (tarfile.CHRTYPE, "d.txt", ""),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            f.addfile(info)
        for name, data in {"../../e.jpg": b"\xff\xd8e", "../../e.txt": "海".encode(), "a.jpg": b"\xff\xd8a"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            f.addfile(info, io.BytesIO(data))
    source = tars(str(place / "a.tar"))
    got = read(source)
    assert "root:x" not in repr(got)
    [climbing] = [entry for entry in got if not isinstance(entry, Decision)]
    assert texts(climbing) == [("caption", "海")]
    assert source.read_image(climbing.image_url) == b"\xff\xd8e", "of the tar: no file is opened by that name"
    for name in ("b.jpg", "../../secret.txt", "../secret.txt", "%2Fetc%2Fpasswd"):
        assert source.read_image(f"webdataset:///s/a.tar/{name}") is None
        assert source.read_image(f"webdataset:///s/..%2F..%2Fsecret.txt/{name}") is None
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "in", "secret.txt"]


@pytest.mark.parametrize("path", ["pipe:touch ran", ["a.tar", "pipe:touch ran; cat x.tar"]])
def test_a_pipe_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="commands are not allowed"):
        tars(path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_belongs_to_no_sample_is_a_decision(tmp_path):
    passed_over = {"._k.jpg": b"0", "__meta__/x": b"0"}
    tar(tmp_path / "a.tar", {"d/0001": b"1", "k.jpg": b"2", "k.txt": "云", ".jpg": b"3", **passed_over})
    sample, *others = read(tars(str(tmp_path / "a.tar")))
    assert texts(sample) == [("caption", "云")]
    assert [(d.reason, d.evidence) for d in others] == [
        ("no_text", "a.tar, .jpg"),
        ("bad_row", "a.tar: d/0001 does not belong to a sample (KEY.SUFFIX)"),
    ]


def test_every_numbered_picture_of_a_sample_is_a_candidate_with_its_own_texts_or_those_of_the_sample(tmp_path):
    one, two = ({"caption": f"第{n}张", "url": f"http://i/{n}.jpg"} for n in (1, 2))
    members = {"a.0.jpg": b"0", "a.1.JPG": b"1", "a.2.bin": PNG, "a.1.txt": "第一张", "a.txt": "一组照片"}
    members |= {"b.0.jpg": b"b0", "b.1.jpg": b"b1", "b.1.json": json.dumps(one), "b.json": json.dumps(two)}
    tar(tmp_path / "a.tar", members)
    source = tars(str(tmp_path / "a.tar"))
    rows = read(source)
    assert [(row.image_url, texts(row)) for row in rows] == [
        ("webdataset:///s/a.tar/a.0.jpg", [("caption", "一组照片")]),
        ("webdataset:///s/a.tar/a.1.JPG", [("caption", "第一张")]),
        ("webdataset:///s/a.tar/a.2.bin", [("caption", "一组照片")]),
        ("http://i/2.jpg", [("caption", "第2张")]),
        ("http://i/1.jpg", [("caption", "第1张")]),
    ]
    places = [row.provenance.stored_at if row.provenance else row.image_url for row in rows]
    assert [source.read_image(place) for place in places] == [b"0", b"1", PNG, b"b0", b"b1"]
    assert len(set(candidate_rows(rows, 0)["candidate_id"].to_pylist())) == 5


def test_of_several_pictures_of_a_sample_one_is_its_candidate_and_the_others_are_decisions(tmp_path):
    tar(tmp_path / "a.tar", {"a.mask.png": b"m", "a.jpg": b"A", "a.txt": "云"})
    picture, mask = read(tars(str(tmp_path / "a.tar")))
    assert (picture.image_url, texts(picture)) == ("webdataset:///s/a.tar/a.jpg", [("caption", "云")])
    why = "a.tar, a: one picture is taken, jpg; mask.png is another one without a number"
    assert (mask.reason, mask.evidence, mask.url) == ("bad_row", why, "webdataset:///s/a.tar/a.mask.png")


def test_a_member_is_a_picture_by_its_first_bytes_too(tmp_path):
    members = {
        "a.img": PNG,
        "a.txt": "云",
        "b": PNG,
        "b.caption": "海",
        "c.jfif": b"C",
        "c.jfif.txt": "山",
        "d.cls": "7",
    }
    tar(tmp_path / "a.tar", members)
    source = tars(str(tmp_path / "a.tar"))
    *rows, none = read(source)
    assert [(row.origin, texts(row)) for row in rows] == [
        ("a.tar/a", [("caption", "云")]),
        ("a.tar/b", [("caption", "海")]),
        ("a.tar/c", [("caption", "山")]),
    ]
    assert [source.read_image(row.image_url) for row in rows] == [PNG, PNG, b"C"]
    assert none.evidence == "a.tar, d: no picture"


def test_names_in_the_encoding_of_a_chinese_windows_are_names(tmp_path):
    place, key = tmp_path / os.fsdecode("表.tar".encode("gbk")), os.fsdecode("云".encode("gbk"))
    tar(place, {f"{key}.jpg": b"A", f"{key}.txt": "云"})
    source = tars(str(tmp_path / "*.tar"))
    sha256_of(source.token())
    [sample] = read(source)
    assert texts(sample) == [("caption", "云")]
    assert source.read_image(sample.image_url) == b"A"
    candidate_rows([sample], 0)


@given(st.text("ab./云_- \n", max_size=12))
def test_keys_and_suffixes_are_those_of_webdataset(name: str) -> None:
    assert _key_and_suffix(name) == (base_plus_ext(name) if base_plus_ext(name)[0] is not None else (name, ""))


@given(st.lists(st.text("ab.J", min_size=1, max_size=4), max_size=12))
def test_samples_are_those_of_webdataset(names: list[str]) -> None:
    theirs, ours = list[Exception](), list[ValueError]()
    files = [{"fname": name, "data": number, "__url__": ""} for number, name in enumerate(names)]
    samples = list(group_by_keys(files, _key_and_suffix, handler=lambda e: theirs.append(e) is None))
    for sample in samples:
        del sample["__url__"]
    assert list(_samples(((name, number) for number, name in enumerate(names)), ours)) == samples
    assert [str(e).partition(":")[0] for e in ours] == [str(e.args[0]).partition(":")[0] for e in theirs]


@pytest.mark.slow
def test_reading_tars_imports_no_torch(tmp_path: Path) -> None:
    """As webdataset does, which takes seconds of each worker."""
    tar(tmp_path / "a.tar", {"1.jpg": b"A", "1.txt": "云"})
    code = f"""
import sys
from pipeline.rows.account import Account
from pipeline.sources.webdataset import WebDataset
source = WebDataset(name="s", source_kind="web", path=({str(tmp_path / "a.tar")!r},))
[file] = source.files()
print(len(list(source.entries_of(0, file, Account()))), {{"torch", "webdataset"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 set()"
