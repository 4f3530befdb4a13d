"""command_line: help with examples that parse, versions, and answers to a shell that completes."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_specs.command.command_line import Parser
from tests.places import ROOT

HALVES = {"wenlan-data": "pipeline", "wenlan-train": "training"}


def parser_of(program: str) -> Parser:
    parser = importlib.import_module(f"{HALVES[program]}.cli")._parser()
    assert isinstance(parser, Parser)
    return parser


def parsers(parser: Parser) -> Iterator[Parser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


COMMANDS = [(program, own.prog) for program in HALVES for own in parsers(parser_of(program))]


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_the_help_of_every_command_ends_with_its_examples(program, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    parser = parser_of(program)
    [own] = [one for one in parsers(parser) if one.prog == command]
    assert own.examples
    shown = own.format_help()
    assert shown.splitlines()[-len(own.examples) - 1 :] == ["examples:", *(f"  {line}" for line in own.examples)]
    assert own.format_help() == shown
    assert all(line.startswith(command) for line in own.examples)


@pytest.mark.slow
def test_help_is_coloured_on_a_terminal_alone(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    assert "\x1b[" not in parser_of("wenlan-data").format_help()
    program = "from pipeline.cli import _parser; _parser().parse_args(['plan', '--help'])"
    forced = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "FORCE_COLOR": "1"}, capture_output=True, text=True
    )
    assert "\x1b[" in forced.stdout
    assert "wenlan-data plan my-first.yaml" in forced.stdout.replace("\x1b[0m", "").replace("\x1b[39m", "")


HEAVY = {"ray", "torch", "cv2", "pandas", "img2dataset", "transformers", "onnxruntime", "webdataset", "duckdb"}
"""Packages that no command line imports before a command runs."""


@pytest.mark.slow
@pytest.mark.parametrize("program", HALVES)
@pytest.mark.parametrize("words", [["--version"], ["--help"], ["plan", "--help"], ["fit", "--help"], ["--no-such"]])
def test_what_needs_no_command_imports_none_of_its_packages(program, words):
    never = HEAVY | {"pyarrow", "numpy", "pydantic", "fsspec", "yaml", "asyncio", "importlib.metadata"}
    never -= {"importlib.metadata"} if "--version" in words else set()
    code = f"import sys\nfrom {HALVES[program]}.cli import main\n"
    code += f"try:\n    code = main({words})\nexcept SystemExit as e:\n    code = e.code\n"
    code += f"print(code, {never} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *shown, last = done.stdout.splitlines()
    known = words[-1] == "--version" or (
        words[0] in ("--help", {"wenlan-data": "plan", "wenlan-train": "fit"}[program])
    )
    assert last == f"{0 if known else 2} set()"
    if "--version" in words:
        assert shown[0].startswith("wenlan ")
        for distribution in ("ray", "torch"):
            assert f"{distribution} {importlib.metadata.version(distribution)}" in shown[0]
        assert f"Python {platform.python_version()}" in shown[0]


def completions(line: str, folder: Path) -> list[str]:
    """What the shell gets that asks about a line, by argcomplete's protocol; nothing heavy may be imported for it."""
    program = shlex.split(line)[0]
    answer = folder / "answer"
    code = f"import atexit, os, sys\nsys.argv = [{program!r}]\nleave = os._exit\n"
    code += f"heavy = {HEAVY | {'pipeline.stages'}}\n"
    code += "os._exit = lambda status: leave(9 if heavy & set(sys.modules) else status)\n"
    code += f"from {HALVES[program]}.cli import main\nmain()"
    environment = {**os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line}
    environment |= {"COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [word.rstrip() for word in answer.read_text(encoding="utf-8").split("\n")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("wenlan-data pl", {"plan", "plugins"}),
        ("wenlan-data build a.yaml --until f", {"fetch", "filter"}),
        ("wenlan-data build a.yaml --no", {"--no-crawl"}),
        ("wenlan-data plugins image_s", {"image_sides", "image_sharpness"}),
        ("wenlan-data plan ", {"mine.yaml", "folder/", "-h", "--help", "--json", "--out", "--store"}),
        ("wenlan-data release ro", {"rollback"}),
        ("wenlan-train fit --recipe bri", {"brivl_b5_base", "brivl_b7_large", "brivl2_b7_large"}),
        ("wenlan-train fit --set optim.lr_f", {"optim.lr_factor="}),
        ("wenlan-train embed x --texts no", {"notes.txt"}),
    ],
)
def test_a_shell_completes_commands_options_names_and_files(line, words, tmp_path):
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder").mkdir()
    answer = set(completions(line, tmp_path))
    assert words <= answer
    assert "notes.txt" not in answer or "notes.txt" in words, "only a specification stands there"


def test_the_stages_that_a_shell_is_told_are_the_stages():
    from data_specs.command.command_line import plugin_files
    from pipeline.stages import STAGES

    assert set(plugin_files(ROOT / "pipeline" / "stages")) == set(STAGES)


def test_a_mistyped_command_or_choice_is_told_what_may_be_meant(capsys):
    data_main, train_main = (importlib.import_module(f"{half}.cli").main for half in ("pipeline", "training"))
    for main, words, meant in (
        (data_main, ["pln", "x.yaml"], "plan"),
        (data_main, ["export", "builds/1", "--to", "parket"], "parquet"),
        (train_main, ["evl", "runs/1"], "eval"),
    ):
        assert main(words) == 2
        assert capsys.readouterr().err.endswith(f"; did you mean {meant}?\n")
    assert data_main(["zzz"]) == 2
    assert "did you mean" not in capsys.readouterr().err
