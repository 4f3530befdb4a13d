"""`wenlan-data` where no build is needed: usage, plans, and one line for each fault."""

from __future__ import annotations

import base64
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import cli
from tests.places import SPECS


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_every_shipped_spec_plans_and_says_what_it_misses(path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = cli.main(["plan", str(path), "--json", "--offline"])
    plan = json.loads(capsys.readouterr().out)
    if code == 2:
        assert f"{path}: {path.parent.parent}" in plan["error"]  # its own folder, or the demo's corpus
    else:
        assert code == 0
        assert {stage["state"] for stage in plan["stages"].values()} == {"to run"}
    assert list(tmp_path.iterdir()) == []


def test_a_spec_that_is_no_yaml_is_named_with_its_line(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("name: a\nsources: [\n")
    assert cli.main(["plan", str(tmp_path / "bad.yaml")]) == 2
    [line] = lines(capsys)
    assert line.startswith(f"wenlan-data: {tmp_path}/bad.yaml:3: is not YAML: ")


def test_all_faults_of_a_spec_are_told_at_once(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(
        "name: a\ncontact: a@b.example\n"
        "sources: [{kind: sight, name: x, source_kind: news}]\n"
        "filters: [{name: text_length, min_char: 2}, {name: image_side}]\n"
    )
    assert cli.main(["plan", str(tmp_path / "s.yaml")]) == 2
    assert [line.removeprefix(f"wenlan-data: {tmp_path}/s.yaml: ") for line in lines(capsys)] == [
        "sources[0]: 'sight' is not one of the sources; did you mean site?",
        "filters[0].min_char: unknown option; did you mean min_chars?",
        "filters[1]: 'image_side' is not one of the filters; did you mean image_sides?",
    ]


def test_programs_get_one_object_whatever_happens(tmp_path, capsys, monkeypatch):
    (tmp_path / "bad.yaml").write_text("name: a\nsources: [\n")
    for words, code, error in (
        (["plan", str(tmp_path / "bad.yaml"), "--json"], 2, "is not YAML"),
        (["status", str(tmp_path), "--json"], 1, "holds no build (no build.json)"),
        (["verify", str(tmp_path), "--json"], 1, "manifest.json"),
        (["build", "--json"], 2, "wenlan-data build: error: the following arguments are required: SPEC, --out"),
        (["biuld", "--json"], 2, "invalid choice: 'biuld'"),
        (["gc", "--keep", "x", "--store", "s", "--js"], 2, "argument --keep: invalid int value: 'x'"),
    ):
        assert cli.main(words) == code
        printed = capsys.readouterr()
        [line] = printed.out.splitlines()
        answer = json.loads(line)
        assert (answer["ok"], answer["code"]) == (False, code)
        assert error in answer["error"]
        assert error in printed.err
    assert cli.main(["biuld"]) == 2
    assert capsys.readouterr().out == ""
    with monkeypatch.context() as patch:
        patch.setattr(cli, "check_ownership", lambda: "the import name 'pipeline' is also provided by x")
        assert cli.main(["status", str(tmp_path), "--json"]) == 2
        assert "also provided by x" in json.loads(capsys.readouterr().out)["error"]
    monkeypatch.setattr("pipeline.run.reopen", lambda out: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["status", str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out)["error"] == "ZeroDivisionError: integer division or modulo by zero"


def test_a_missing_spec_and_a_folder_without_a_build_are_named(tmp_path, capsys):
    assert cli.main(["build", str(tmp_path / "no.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert lines(capsys) == [f"wenlan-data: {tmp_path}/no.yaml: cannot be read: No such file or directory"]
    for command in (["status"], ["report"], ["publish"]):
        assert cli.main([*command, str(tmp_path)]) == 1
        assert lines(capsys) == [f"wenlan-data: {tmp_path}: holds no build (no build.json)"]


def test_an_unknown_stage_is_bad_usage(capsys, tmp_path):
    site = next(path for path in SPECS if path.stem == "site_crawl")
    assert cli.main(["build", str(site), "--out", str(tmp_path / "out"), "--until", "shards"]) == 2
    [line] = lines(capsys)
    assert "--until shards: no such stage; one of crawl, extract" in line


def test_accepting_a_gate_needs_a_reason(capsys, tmp_path):
    assert cli.main(["publish", str(tmp_path), "--accept", "min_samples"]) == 2
    assert lines(capsys) == ["wenlan-data: --accept needs --because TEXT: who reads the manifest must know why"]


def test_verify_of_what_is_no_dataset_names_the_manifest(capsys, tmp_path):
    assert cli.main(["verify", str(tmp_path)]) == 1
    assert "manifest.json" in capsys.readouterr().err


@pytest.fixture
def read_only() -> Iterator[Path]:
    """An empty folder that this process may not write, though the tests run as root."""
    with tempfile.TemporaryDirectory(prefix="wenlan-") as name:
        folder = Path(name)
        (folder / "it").mkdir()
        folder.chmod(0o755)
        (folder / "it").chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield folder / "it"
        finally:
            if root:
                os.seteuid(0)
            (folder / "it").chmod(0o755)


_SPEC: dict[str, Any] = {"name": "trial", "contact": "owner@example.org"}
_TABLE = {"path": "t.tsv", "columns": {"texts": {"caption": "text"}}}
_SPEC |= {"sources": [{"kind": "url_table", "name": "t", "source_kind": "library", **_TABLE}]}


@pytest.mark.parametrize("place", ["out", "store", "new"])
def test_a_folder_that_may_not_be_written_is_one_line(read_only, place, capsys):
    with tempfile.TemporaryDirectory(prefix="wenlan-") as name:
        (Path(name) / "s.yaml").write_text(yaml.safe_dump(_SPEC))
        (Path(name) / "t.tsv").write_text("image_url\ttext\nhttp://example.org/a.jpg\t雪后的黄山\n")
        out = {"out": read_only, "new": read_only / "a" / "b"}.get(place, Path(name) / "out")
        store = read_only if place == "store" else Path(name) / "store"
        code = cli.main(["build", f"{name}/s.yaml", "--out", str(out), "--store", str(store), "--until", "extract"])
    assert code == 1
    [line] = lines(capsys)
    assert line.startswith(f"wenlan-data: {read_only}")
    assert line.endswith("cannot be written (Permission denied)")


def test_an_index_that_may_not_be_written_is_one_line(read_only, capsys):
    assert cli.main(["report", "--index", str(read_only)]) == 1
    [line] = lines(capsys)
    assert line.startswith(f"wenlan-data: {read_only}")


def test_a_source_behind_a_password_is_read_and_its_password_is_never_shown(tmp_path, capsys):
    class Guarded(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_known = self.headers.get("Authorization") == f"Basic {base64.b64encode(b'user:pa55').decode()}"
            self.send_response(200 if is_known and self.path == "/t.tsv" else 401)
            self.send_header("Content-Length", str(len(content) if self.command == "GET" else 0))
            self.end_headers()
            self.wfile.write(content if self.command == "GET" else b"")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    content = b"image_url\ttext\nhttp://example.org/a.jpg\t\xe5\xb1\xb1\n"
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        codes = []
        for password in ("pa55", "wr0ng"):
            path = f"http://user:{password}@127.0.0.1:{server.server_port}/t.tsv"
            (tmp_path / "s.yaml").write_text(
                yaml.safe_dump({**_SPEC, "sources": [{**_SPEC["sources"][0], "path": path}]})
            )
            words = ["plan", str(tmp_path / "s.yaml"), "--out", str(tmp_path / password), "--json", "--offline"]
            codes.append(cli.main(words))
            printed = capsys.readouterr()
            assert ("cannot be looked at" in printed.out) == (password == "wr0ng"), printed
            assert password not in printed.out + printed.err
        server.shutdown()
    assert codes == [0, 2]


@pytest.mark.parametrize("record", ["[]", "{}", '{"spec": {}}', '"x"', "nonsense"])
def test_a_build_json_that_is_none_is_one_line(record, capsys, tmp_path):
    (tmp_path / "build.json").write_text(record)
    for command in (["status"], ["explain", str(tmp_path), "x"], ["report"], ["publish"]):
        words = command if len(command) > 1 else [*command, str(tmp_path)]
        assert cli.main(words) == 1
        [line] = lines(capsys)
        assert line.startswith(f"wenlan-data: {tmp_path}/build.json: ")


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("--snapshot", "../x", "--snapshot ../x: letters, digits and . _ - only, since it becomes part of file names"),
        ("--workers", "-1", "--workers -1: a number of CPUs, 0 for all of them"),
    ],
)
def test_an_option_that_cannot_be_meant_is_bad_usage(option, value, line, capsys, tmp_path):
    (tmp_path / "photos").mkdir()
    spec = tmp_path / "s.yaml"
    spec.write_text(
        "{name: a, contact: a@b.example, sources: [{kind: folder, name: x, source_kind: news, path: photos}]}"
    )
    assert cli.main(["build", str(spec), "--out", str(tmp_path / "out"), option, value]) == 2
    assert lines(capsys) == [f"wenlan-data: {line}"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("record", ["[]", '{"version": "a"}', "{}"])
def test_a_store_json_that_is_none_is_one_line(record, capsys, tmp_path):
    (tmp_path / "store.json").write_text(record)
    assert cli.main(["release", "list", "--store", str(tmp_path)]) == 1
    assert lines(capsys) == [f"wenlan-data: {tmp_path}/store.json: is not the record of a STORE"]
