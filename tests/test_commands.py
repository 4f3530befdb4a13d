"""Every command that wenlan prints works: those of its documents, of --help, and of its messages.

A command of a document or of an example of --help is taken word for word by the parser of its program; names of
recipes, settings, stages, plug-ins, extras, modules, files and targets of make exist. A message cannot be parsed, since
prose follows a command in it: its command and options exist. A word of capitals or `...` stands for another one.

The commands of README and of the guide to datasets are run in their order, in a folder that holds what they name.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.command.command_line import Parser
from pipeline import cli as data_cli
from pipeline import run
from tests import archived
from tests.drafted import WORDS, picture
from tests.places import ROOT
from training import cli as train_cli

PROGRAMS = {"wenlan-data": data_cli, "wenlan-train": train_cli}
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "ARCHITECTURE.md", "pipeline/README.md", "training/README.md"),
    *("dags/README.md", "tests/benchmarks/README.md", "pipeline/detectors/README.md"),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_STARTS = re.compile(
    r"^(?:[A-Z_]+=\S+ )*"
    r"(?:wenlan-data|wenlan-train|make|pip|python|\.venv/bin/python|pytest|torchrun|ray job submit|docker|kubectl)\b"
)
_PLACEHOLDER = re.compile(r"\.\.\.|\{.*|[A-Z][A-Z_.|]*(?::\w+)?|[\w-]+:DIR")


def blocks(document: str) -> list[str]:
    """Commands that a document shows as code, without comments and prompts, in their order."""
    lines, fence = list[str](), ""
    for line in (ROOT / document).read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.strip().startswith("```"):
            fence = "" if fence else line.strip()
        elif fence == "```" or (not fence and re.match(r" {4}(?: {3})?\S", line)):
            lines += re.sub(r"\s{2,}#.*", "", line.strip().removeprefix("$ ")).split(";  ")
    return [line for line in lines if _STARTS.match(line)]


def spans(document: str) -> list[str]:
    """Commands in the sentences of a document."""
    text = re.sub(r"(?ms)^ *```.*?^ *```$", "", (ROOT / document).read_text(encoding="utf-8"))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text) if _STARTS.match(span)]


@functools.cache
def parser_of(program: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = PROGRAMS[program]._parser()
    return parser


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


def examples() -> list[str]:
    own = (parser for program in PROGRAMS for parser in parsers(parser_of(program)))
    return [line for parser in own if isinstance(parser, Parser) for line in parser.examples]


def messages() -> Iterator[tuple[str, str]]:
    """(file and line, text from a command to the end of its sentence) of each string of the code."""
    files = (path for folder in ("pipeline", "training", "data_specs") for path in (ROOT / folder).rglob("*.py"))
    for path in sorted(
        [*files, ROOT / "wenlan.py", *(ROOT / "dags").glob("*.py"), *(ROOT / "tests/demo").glob("*.py")]
    ):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(own.value) if isinstance(own, ast.Constant) else "{}" for own in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                text = node.value
            else:
                continue
            for found in re.finditer(r"\b(?:wenlan-(?:data|train)|make) (?:[^;:`)\n,]|,(?! or))*", text):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", found[0]


def fault(command: str, whole: bool) -> str:
    """What is wrong with a command; "" for a sound one. whole: nothing but the command is given."""
    command = re.sub(r"^(?:\w+=\S+ )+", "", command.partition(" > ")[0].partition(" && ")[0])
    try:
        first, *words = shlex.split(command) if whole else command.split()
    except ValueError as e:
        return str(e)
    if first == "ray" and "--" in words:
        first, *words = words[words.index("--") + 1 :]
    if first in ("python", ".venv/bin/python", "torchrun") and "-m" in words:
        module, *words = words[words.index("-m") + 1 :]
        if module in ("pipeline", "training"):
            first = {"pipeline": "wenlan-data", "training": "wenlan-train"}[module]
        else:
            return "" if module == "pip" or importlib.util.find_spec(module) else f"no module {module}"
    if first in PROGRAMS:
        return _fault_of_words(parser_of(first), words, whole) or _fault_of_names(words)
    if first == "make":
        return _fault_of_target(words, whole)
    if first == "pip":
        extras = {name for listed in re.findall(r"\[([a-z0-9,]+)\]", command) for name in listed.split(",")}
        if unknown := extras - set(PROJECT["optional-dependencies"]):
            return f"no extras {unknown}"
        versions = re.findall(r"wenlan-([\d.]+)-", command)
        return "" if set(versions) <= {PROJECT["version"]} else f"not the version {PROJECT['version']}"
    files = [word for word in words if word.startswith(("dags/", "tests/", "data_specs/"))]
    return next((f"no file {file}" for file in files if not (ROOT / file).exists()), "")


def _fault_of_target(words: list[str], whole: bool) -> str:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words if whole else words[:1]:
        name, is_variable, _ = word.partition("=")
        known = f"$({name})" in makefile or f"$({name}," in makefile or f"$(if $({name})" in makefile
        if not (known or name == "PYTHON" if is_variable else re.search(rf"(?m)^{re.escape(name)}:", makefile)):
            return f"make knows no {name}"
    return ""


def _fault_of_words(parser: argparse.ArgumentParser, words: list[str], whole: bool) -> str:
    """What is wrong with the words behind a program: by its parser, or else by the names of commands and options."""
    if whole and not any(word.strip("[]") == "..." for word in words):
        try:
            parser.parse_args(words)
        except (argparse.ArgumentError, Exception) as e:
            return str(e)
        except SystemExit as e:  # --version
            return str(e.code or "")
        return ""
    while nested := [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]:
        if not words or words[0] == "--help" or _PLACEHOLDER.fullmatch(words[0]):
            return ""
        if words[0].strip(".,'") not in nested[0].choices:
            return f"no command {words[0]}"
        parser, words = nested[0].choices[words[0].strip(".,'")], words[1:]
    options = {name: action for action in parser._actions for name in action.option_strings}
    for word, value in itertools.zip_longest(words, words[1:], fillvalue=""):
        name = word.strip("[](),.'").partition("=")[0]
        if not re.fullmatch(r"--[a-z-]+", name):
            continue
        if name not in options:
            return f"{parser.prog} has no {name}"
        choices, value = options[name].choices, value.strip("[](),.'")
        if choices and value and value not in choices and not _PLACEHOLDER.fullmatch(value):
            return f"{name} {value}: not one of {choices}"
    return ""


def _fault_of_names(words: list[str]) -> str:
    """What is wrong with names that no parser checks: recipes, their settings, stages and plug-ins."""
    from pipeline.commands.plugins import FAMILIES, _known
    from pipeline.stages import ORDER
    from training import resolve

    values = dict(itertools.pairwise(words))
    recipe = values.get("--recipe", "starter")
    if recipe not in resolve.known_recipes() and not _PLACEHOLDER.fullmatch(recipe):
        return f"no recipe {recipe}"
    if words[:1] == ["fit"]:
        settings = [word.partition("=")[0] for before, word in itertools.pairwise(words) if before == "--set"]
        if unknown := set(settings) - set(resolve.known_keys()) - {"KEY"}:
            return f"no settings {unknown}"
    if values.get("--until", "report") not in ORDER:
        return f"no stage {values['--until']}"
    named = words[1] if words[:1] == ["plugins"] and len(words) > 1 else "text_length"
    if named not in {*FAMILIES, *(name for _, name in _known())} and not _PLACEHOLDER.fullmatch(named):
        return f"no plug-in {named}"
    return ""


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands_of_a_document_are_taken_word_for_word(document: str) -> None:
    shown = [(command, fault(command, whole=True)) for command in blocks(document)]
    named = [(command, fault(command, whole=False)) for command in spans(document)]
    assert not [pair for pair in shown + named if pair[1]]


def test_the_examples_of_help_are_taken_word_for_word() -> None:
    assert not [pair for line in examples() if (pair := (line, fault(line, whole=True)))[1]]


@pytest.mark.slow
def test_the_commands_in_messages_exist() -> None:
    prose = re.compile(r"^wenlan-data is running|^make (?!gpu-|bench-|dags-|setup|demo|test|check|study)")
    found = [(place, text, fault(text, whole=False)) for place, text in messages() if not prose.search(text)]
    assert len(found) > 100
    assert not [own for own in found if own[2]]


NOT_RUN = re.compile(
    r"^wenlan-data studio|^wenlan-train (?:serve|import-brivl)|brivl_|\bdemo\b"  # run until Ctrl-C, weights, a corpus
    r"|^wenlan-data build (?:best|all)\.yaml"  # specs that name the towers of a training
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the inputs that the documents name, and a STORE's builds that run in this process, without Ray."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(60):
        (tmp_path / f"photos/{number}.jpg").write_bytes(picture(number))
        (tmp_path / f"photos/{number}.txt").write_text(f"{WORDS[number % 6]}，第{number}张", encoding="utf-8")
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(picture(ord(name[0])))
    (tmp_path / "texts.txt").write_text("红色的花\n海边的日落\n", encoding="utf-8")
    rows = {"url": [f"https://img.example.org/{n}.jpg" for n in range(6)], "caption": WORDS}
    pq.write_table(pa.table(rows), tmp_path / "table.parquet")
    warc = archived.page("https://cooking.example.org/", "1.jpg")
    (tmp_path / "crawl.warc.gz").write_bytes(warc)
    (tmp_path / "site.warc.gz").write_bytes(warc + archived.jpeg("https://cooking.example.org/1.jpg", picture(0)))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/0.tar").write_bytes(archived.tar({"1.jpg": picture(1), "1.txt": WORDS[1]}))
    monkeypatch.setattr(run, "run", functools.partial(run.run, here=True))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("document", "programs"),
    [
        ("README.md", ["wenlan-data"]),
        ("pipeline/README.md", ["wenlan-data"]),
        pytest.param("README.md", ["wenlan-data", "wenlan-train"], marks=pytest.mark.drill(60)),
    ],
)
def test_the_commands_of_a_guide_run_in_their_order(
    document: str, programs: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in blocks(document):
        first, *words = shlex.split(command)
        if first not in programs or NOT_RUN.search(command):
            continue
        words = [str(path) for word in words for path in (sorted(Path().glob(word)) if "*" in word else [word])]
        if "runs/1" in words and not Path("runs/1").exists():  # of recipe tiny, where the document trains for days
            assert train_cli.main(["fit", "--recipe", "tiny", "--data", "builds/1", "--out", "runs/1"]) == 0
        if "changed.yaml" in words:
            text = Path("my-first.yaml").read_text(encoding="utf-8")  # which ends with its filters
            Path("changed.yaml").write_text(f"{text}  - name: image_frames\n", encoding="utf-8")
        assert PROGRAMS[first].main(words) == 0, f"{command}: {capsys.readouterr().err}"
    if document == "pipeline/README.md":
        [shown] = re.findall(r"(?ms)^```yaml\n(.*?)^```$", (ROOT / document).read_text(encoding="utf-8"))
        assert Path("my-first.yaml").read_text(encoding="utf-8") == shown
