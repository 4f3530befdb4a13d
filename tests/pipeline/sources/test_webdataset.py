"""webdataset: tars of the webdataset package, our own shards, and tars that are broken."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import webdataset

from data_specs.shard import Sample, Text, encode_sample
from pipeline.errors import SourceError
from pipeline.records import Decision
from pipeline.sources.webdataset import WebDataset
from tests.candidates import put, read, texts


def tars(path: str | list[str]) -> WebDataset:
    return WebDataset.model_validate({"name": "s", "source_kind": "library", "path": path})


def tar(path: Path, members: dict[str, str | bytes]) -> None:
    with tarfile.open(path, "w") as f:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            f.addfile(info, io.BytesIO(data))


def test_tars_that_webdataset_wrote_are_read(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a-0.tar")) as f:
        f.write({"__key__": "k1", "jpg": b"\xff\xd8one", "txt": "故宫雪景"})
        f.write({"__key__": "k2", "png": b"two", "json": json.dumps({"alt": "云"}).encode()})
    source = tars(str(tmp_path / "*.tar"))
    one, two = read(source)
    assert (texts(one), texts(two)) == ([("caption", "故宫雪景")], [("alt", "云")])
    assert [source.read_image(c.image_url) for c in (one, two)] == [b"\xff\xd8one", b"two"]


def test_our_own_shards_are_a_source(tmp_path):
    sample = Sample(
        "c" * 64, "s", "news", "", "http://i/1", "a" * 64, 4, 4, (Text("caption", "题"), Text("alt", "别名"))
    )
    tar(tmp_path / "train-000000.tar", dict(encode_sample(sample, b"\xff\xd8picture")))
    source = tars(str(tmp_path / "train-000000.tar"))
    [candidate] = read(source)
    assert texts(candidate) == [("caption", "题"), ("alt", "别名")]
    assert source.read_image(candidate.image_url) == b"\xff\xd8picture"


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
    with pytest.raises(ValueError, match="runs a command"):
        tars("pipe:curl http://a/")
    tar(tmp_path / "x.tar", {})
    (tmp_path / "d").mkdir()
    tar(tmp_path / "d" / "x.tar", {})
    with pytest.raises(SourceError, match=r"x\.tar: source s: two tars have this name"):
        tars([str(tmp_path / "x.tar"), str(tmp_path / "d" / "x.tar")]).token()


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
