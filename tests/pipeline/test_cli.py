"""`wenlan-data`: one object or one line for each fault, whatever the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pipeline import cli
from pipeline.commands import schema
from tests.places import ROOT


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.mark.slow
def test_programs_get_one_object_whatever_happens(tmp_path, capsys, monkeypatch):
    (tmp_path / "bad.yaml").write_text("name: a\nsources: [\n")
    for words, code, error in (
        (["plan", str(tmp_path / "bad.yaml"), "--json"], 2, "is not YAML"),
        (["status", str(tmp_path), "--json"], 1, "not a build (no build.json)"),
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
    monkeypatch.setattr("pipeline.opening.reopen", lambda out: 1 // 0)
    assert cli.main(["status", str(tmp_path), "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"] == "ZeroDivisionError: integer division or modulo by zero"
    assert "Traceback (most recent call last)" in printed.err, "of a fault of ours"


def test_a_traceback_shows_no_password_and_commands_no_terminal(tmp_path, capsys, monkeypatch):
    def fail(out: str) -> None:
        raise RuntimeError("https://anna:geheim@images.example.org/1.jpg: \x1b[2J")

    monkeypatch.setattr("pipeline.opening.reopen", fail)
    assert cli.main(["status", str(tmp_path), "--json"]) == 1
    printed = capsys.readouterr()
    for said in (printed.err, printed.out):
        assert "https://images.example.org/1.jpg" in said
        assert "geheim" not in said
        assert "\x1b" not in said


@pytest.mark.slow
def test_a_missing_spec_and_a_folder_without_a_build_are_named(tmp_path, capsys):
    assert cli.main(["build", str(tmp_path / "no.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert lines(capsys) == [f"wenlan-data: {tmp_path}/no.yaml: cannot be read: No such file or directory"]
    for command in (["status"], ["report"], ["publish"]):
        assert cli.main([*command, str(tmp_path)]) == 1
        assert lines(capsys) == [f"wenlan-data: {tmp_path}: not a build (no build.json)"]


def test_accepting_a_gate_needs_a_reason(capsys, tmp_path):
    assert cli.main(["publish", str(tmp_path), "--accept", "min_samples"]) == 2
    assert lines(capsys) == ["wenlan-data: --accept needs --because TEXT, the reason that the manifest records"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["publish", "b", "--because", "looked at"], "--because needs --accept GATE"),
        (["regions", "stats", "--store", "s", "--detector", "grid-1"], "regions stats: --detector, --before"),
        (["forget", "--store", "s", "--item", "x", "--exact", "--distance", "3"], "--distance cannot be used"),
    ],
)
def test_no_option_is_accepted_and_ignored(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["build", "s.yaml", "--out", "b"], ["try", "s.yaml", "--on", "b"]])
def test_workers_that_a_cluster_leaves_without_effect_are_told_and_refuse_no_scheduled_command(
    words, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*words, "--workers", "2", "--address", "auto"]) in (1, 2)
    told, refused = lines(capsys)
    assert told.startswith("--workers is ignored")
    assert "s.yaml" in refused or "b: " in refused


def test_verify_of_what_is_no_dataset_names_the_manifest(capsys, tmp_path):
    assert cli.main(["verify", str(tmp_path)]) == 1
    assert "manifest.json" in capsys.readouterr().err


@pytest.mark.drill(1)
def test_programs_get_their_object_whatever_the_locale_can_write():
    """A path in another script, and an emoji, which GBK lacks."""
    words, encoding = [sys.executable, "-m", "pipeline"], "gbk"
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([*words, "status", "/nowhere/第一😀", "--json"], cwd=ROOT, env=env, capture_output=True)
    assert (done.returncode, done.stdout.count(b"\n")) == (1, 1), done.stderr
    assert json.loads(done.stdout.decode(encoding))["error"] == "/nowhere/第一😀: not a build (no build.json)"
    done = subprocess.run([*words, "schema"], cwd=ROOT, env=env, capture_output=True)
    assert json.loads(done.stdout.decode(encoding)) == json.loads(schema.PATH.read_bytes())
