"""What a person names: one file under all its names, and one line for what is ambiguous or unknown."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_specs.build import BuildSpec, SpecError
from data_specs.errors import WenlanError
from pipeline import cli, opening
from pipeline.report.explain import explain
from pipeline.store.build import Build
from pipeline.store.subjects import exactly, subject_of
from tests.drawn import blobs
from tests.stages import run_noted


def picture(path: Path, seed: int) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blobs(seed, (320, 240))).save(path)
    path.with_suffix(".txt").write_text(f"公园里的花草树木，第{seed}张", "utf-8")
    return path.read_bytes()


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A build over two folders that both have 同名.jpg; one file says that it came from the web."""
    for number, name in enumerate(["甲/旅行/一.jpg", "甲/同名.jpg", "乙/同名.jpg", "乙/网.jpg"]):
        picture(tmp_path / name, number)
    (tmp_path / "乙/网.json").write_text(json.dumps({"url": "https://img.example/w.jpg", "caption": "网上的照片"}))
    sources = [
        {"kind": "folder", "name": name, "source_kind": "library", "path": path}
        for name, path in (("a", "甲"), ("b", "乙"))
    ]
    spec = {"name": "photos", "contact": "mailto:a@b.c", "base": str(tmp_path), "sources": sources}
    made = opening.open_build(BuildSpec.model_validate(spec), str(tmp_path / "out"), str(tmp_path / "store"), "1")
    made.store.check()
    run_noted(made, "crawl", "extract", "admit", "fetch")
    return made


def ids(build: Build, named: str) -> set[str]:
    """Addresses of the images that are meant."""
    hashes = exactly(named, [build]).hashes
    rows = [row for table in build.tables("extract", "parquet", ["fetch_id", "image_url"]) for row in table.to_pylist()]
    return {row["image_url"] for row in rows if row["fetch_id"] in hashes}


ONE = "folder:///a/%E6%97%85%E8%A1%8C/%E4%B8%80.jpg"


@pytest.mark.slow
def test_one_file_under_all_its_names(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "甲/旅行/一.jpg"
    [key] = {
        row["candidate_id"]
        for table in build.tables("extract", "parquet", ["candidate_id", "image_url"])
        for row in table.to_pylist()
        if row["image_url"] == ONE
    }
    elsewhere = tmp_path / "copy.jpg"
    elsewhere.write_bytes(path.read_bytes())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.chdir(tmp_path)
    names = [
        str(path),
        path.as_uri(),
        "甲/旅行/一.jpg",
        "甲/../甲/旅行/一.jpg",
        "旅行/一.jpg",
        ONE,
        "folder:///a/旅行/一.jpg",
    ]
    for named in [*names, key, key[:32], f"{key[:32]}.jpg", key[:10].upper(), sha256, "copy.jpg"]:
        assert ids(build, named) == {ONE}, named


@pytest.mark.slow
def test_a_file_that_came_from_the_web_is_known_by_its_url_and_by_its_path(build: Build, tmp_path: Path) -> None:
    for named in ("https://img.example/w.jpg", "HTTPS://img.example:443/w.jpg", str(tmp_path / "乙/网.jpg")):
        assert ids(build, named) == {"https://img.example/w.jpg"}, named


@pytest.mark.slow
def test_what_is_ambiguous_or_unknown_is_one_line(build: Build, tmp_path: Path) -> None:
    both = "several sources contain this file: folder:///a/%E5%90%8C%E5%90%8D.jpg, folder:///b/%E5%90%8C%E5%90%8D.jpg"
    with pytest.raises(SpecError, match=both):
        subject_of("同名.jpg", [build])
    for named, said in {
        "无.jpg": f"looked up as the file .*无.jpg, and 无.jpg in the folders of the sources .*{tmp_path}/乙",
        "deadbeef": "has no key, ID or sha256 with this prefix",
    }.items():
        with pytest.raises(WenlanError, match=said):
            exactly(named, [build])
    for named in ("abc", "x" * 256, "a" * 256, "北" * 300, "a\0b"):
        with pytest.raises(SpecError, match="expected a URL, a file, or at least 8 digits"):
            subject_of(named, [build])
    for named in (f"{'x' * 256}.jpg", f"file:///{'x/' * 3_000}", "a\0.jpg", "file:///\0"):
        assert not subject_of(named, [build]).fetch_ids, "a name that no file can have"


@pytest.mark.slow
def test_explain_and_forget_understand_the_same_names(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "甲/短.jpg"
    picture(short, 9)
    short.with_suffix(".txt").write_text("short", "utf-8")
    made = opening.open_build(build.spec, build.out, build.store.url, "1")
    run_noted(made, "crawl", "extract", "admit", "fetch")
    [row] = explain(made, str(short))
    assert (row["reason"], row["url"]) == ("low_han_share", "folder:///a/%E7%9F%AD.jpg")
    assert cli.main(["explain", build.out, str(short)]) == 0
    assert cli.main(["explain", build.out, str(tmp_path / "甲/无.jpg")]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"looked up as the file {tmp_path}/甲/无.jpg of a source")

    def forget(*words: str) -> Any:
        code = cli.main(["forget", "--store", build.store.url, build.out, "--exact", "--json", *words])
        return code, json.loads(capsys.readouterr().out)

    path = tmp_path / "甲/旅行/一.jpg"
    for words in (["--item", str(path)], ["--url", path.as_uri()]):
        assert forget(*words, "--dry-run")[1]["builds"][0]["candidates"] == 1
    code, answer = forget("--item", "no/such.jpg")
    assert (code, answer["error"].partition(";")[0]) == (1, "no/such.jpg: no match")
    assert forget("--item", str(path))[1]["builds"][0]["images"] == 1
    assert forget("--item", str(path), "--dry-run")[1]["matched"] == 0
