"""extras: without an extra, every command that needs it says so in one line, and what needs none works."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from data_specs.command import extras
from tests.places import ROOT

pytestmark = pytest.mark.slow

BARE = """
import importlib.metadata, importlib.machinery, json, re, sys
from packaging.requirements import Requirement

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

def add_required(name, known):
    for line in importlib.metadata.requires(name) or []:
        wanted = Requirement(line)
        if plain(wanted.name) not in known and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            known.add(plain(wanted.name))
            add_required(wanted.name, known)

base = {"wenlan"}
add_required("wenlan", base)
base |= {plain(Requirement(line).name) for line in BASE}
for name in sorted(base):
    add_required(name, base)
owners = importlib.metadata.packages_distributions()
hidden = {package for package, names in owners.items() if not base & set(map(plain, names))}
hidden -= set(sys.stdlib_module_names)

class Hiding:  # in the place of the finders that would find them
    find_distributions = importlib.machinery.PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            return None
        return importlib.machinery.PathFinder.find_spec(name, path, target)

for name in [name for name in sys.modules if name.partition(".")[0] in hidden]:
    del sys.modules[name]
sys.meta_path[:] = [importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, Hiding]

import contextlib, io
from pipeline import cli as data
from training import cli as train

data.check_ownership = train.check_ownership = lambda: None  # which reads what is installed here, once per command
answers = []
for program, *words in json.loads(sys.argv[1]):
    err, out = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        import pipeline.commands.terminal as terminal
        terminal.console.file = err
        try:
            code = (data if program == "wenlan-data" else train).main(words)
        except SystemExit as e:
            code = e.code
    answers.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""
"""A process in which only what a base install has can be imported; runs commands and prints [code, stdout, stderr]."""


def listed(key: str) -> list[str]:
    """Requirements of pyproject.toml: the dependencies, or those of an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {**project, **project["optional-dependencies"]}[key]


def in_a_base_install(*commands: list[str]) -> list[tuple[int, str, str]]:
    base = listed("dependencies")
    program = BARE.replace("BASE", json.dumps(base))
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [tuple(answer) for answer in json.loads(done.stdout)]


def test_a_command_that_needs_an_extra_names_it_in_one_line_and_exits_with_2(tmp_path):
    folder = str(tmp_path)
    (tmp_path / "a.warc").touch()
    commands = [
        ["wenlan-data", "plan", "data_specs/site_crawl.yaml"],
        ["wenlan-data", "build", "data_specs/site_crawl.yaml", "--out", folder],
        ["wenlan-data", "release", "copy", "x", "--store", folder, "--out", f"{folder}/new"],
        ["wenlan-train", "fit", "--recipe", "tiny", "--data", folder, "--out", folder],
        ["wenlan-train", "eval", folder, "--data", folder, "--task", "retrieval"],
        ["wenlan-train", "embed", folder, "--images", "a.jpg", "--out", "f"],
        ["wenlan-train", "export", folder, "--to", "onnx", "--out", "f"],
        ["wenlan-train", "import-brivl", "x.pth", "--out", folder],
    ]
    behind = [["wenlan-data", "verify", "s3://bucket/x"], ["wenlan-data", "init", "--from", "s3://bucket/x"]]
    *answers, of_verify, of_init, of_json = in_a_base_install(*commands, *behind, [*commands[0], "--json"])
    for (program, command, *_), (code, out, err) in zip(commands, answers, strict=True):
        extra = "pipeline" if program == "wenlan-data" else "training"
        assert (code, out) == (2, ""), (command, err)
        [line] = err.splitlines()
        assert line.startswith(f"{program} {command} needs the extra {extra} ("), line
        assert line.endswith(f": {extras.install(extra)}"), line
    assert [path.name for path in tmp_path.iterdir()] == ["a.warc"], "and nothing was written"
    for command, (code, _, err) in (("verify", of_verify), ("init", of_init)):
        line = f"wenlan-data {command} needs the extra s3 (s3fs is not installed): {extras.install('s3')}"
        assert (code, err.splitlines()) == (2, [line])
    code, out, err = of_json
    answer = json.loads(out)
    assert (answer["ok"], answer["code"], answer["error"], code) == (False, 2, err.strip(), 2)


def test_what_needs_no_extra_works_in_a_base_install(tmp_path, shards_of):
    commands = [["wenlan-data", "--help"], ["wenlan-train", "--help"], ["wenlan-data", "--version"]]
    commands += [["wenlan-train", "--version"], ["wenlan-data", "schema"], ["wenlan-data", "plugins", "--json"]]
    commands += [["wenlan-data", name, "--help"] for name in ("plan", "build", "init", "release")]
    commands += [["wenlan-train", name, "--help"] for name in ("fit", "embed")]
    commands += [["wenlan-data", "release", "list", "--store", str(tmp_path)]]
    whole = ["wenlan-data", "verify", str(shards_of)]
    *answers, (code, _, err), (full, _, line) = in_a_base_install(*commands, [*whole, "--quick"], whole)
    assert [code for code, _, _ in answers] == [0] * (len(commands) - 1) + [2]
    assert "not a STORE" in answers[-1][2]
    assert (code, err.splitlines()[-1]) == (0, f"{shards_of}: matches its manifest"), "sums need none, and pictures do"
    assert (full, line.startswith("wenlan-data verify needs the extra pipeline (")) == (2, True)
    assert json.loads(answers[4][1])["title"] == "BuildSpec"
    plugins = {own["name"]: own for own in json.loads(answers[5][1])["plugins"]}
    assert plugins["image_nsfw"]["missing_extra"] == "models"
    assert plugins["torchvision"]["missing_extra"] == "training"
    assert plugins["text_length"]["missing_extra"] == ""


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        ("w3lib.url", "p needs the extra pipeline (w3lib is not installed): HOW[pipeline]"),
        ("cv2", "p needs the extra pipeline (cv2 is not installed): HOW[pipeline]"),
        ("torch", "p needs the extra training (torch is not installed): HOW[training]"),
        ("s3fs", "p needs the extra s3 (s3fs is not installed): HOW[s3]"),
        ("nobodys", "p needs the package nobodys, which is not installed"),
        ("pipeline.no_such", None),
    ],
)
def test_the_extra_is_that_of_the_package(missing, line, monkeypatch):
    monkeypatch.setattr(extras, "install", lambda extra: f"HOW[{extra}]")
    assert extras.missing_line(ModuleNotFoundError("", name=missing), "p", "pipeline") == line


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        ({"url": "file:///a%20b", "dir_info": {}}, "pip install '/a b[s3]'"),
        ({"url": "file:///a", "dir_info": {"editable": True}}, "pip install -e '/a[s3]'"),
        (
            {"url": "file:///a/wenlan-1-py3-none-any.whl", "archive_info": {}},
            "pip install '/a/wenlan-1-py3-none-any.whl[s3]'",
        ),
        ({"url": "https://a.test/w.whl", "archive_info": {}}, "pip install 'wenlan[s3] @ https://a.test/w.whl'"),
        (
            {"url": "https://a.test/w.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pip install 'wenlan[s3] @ git+https://a.test/w.git@abc'",
        ),
    ],
)
def test_an_extra_comes_from_where_wenlan_came_from(origin, line, tmp_path, monkeypatch):
    """Oracle of what is no file: packaging."""
    written = tmp_path / "wenlan-1.dist-info"
    written.mkdir()
    (written / "METADATA").write_text("Metadata-Version: 2.1\nName: wenlan\nVersion: 1\n")
    (written / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert extras.install("s3") == line
    if " @ " in line:
        [requirement] = shlex.split(line)[2:]
        assert Requirement(requirement).extras == {"s3"}
    (written / "direct_url.json").unlink()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages/data_specs/command/extras.py"))
    assert extras.install("s3") == "pip install 'wenlan[s3]'", "from an index"


def test_an_extra_that_is_called_like_the_command_comes_first(monkeypatch):
    own = {"captions": frozenset({"jieba"}), "pipeline": frozenset({"jieba"}), "search": frozenset({"jieba", "faiss"})}
    monkeypatch.setattr(extras, "extras", lambda: own)
    line = extras.missing_line(ModuleNotFoundError("", name="jieba"), "wenlan-train search", "training")
    assert line == f"wenlan-train search needs the extra search (jieba is not installed): {extras.install('search')}"
    monkeypatch.setattr(extras, "extras", lambda: {name: own[name] for name in ("pipeline", "search")})
    line = extras.missing_line(ModuleNotFoundError("", name="jieba"), "wenlan-train embed", "training")
    assert line is not None
    assert "needs the extra search" in line, "not that of the other half, which brings Ray"


def test_the_names_of_packages_are_those_that_are_imported():
    """Here everything is installed: each package of each extra can be found."""
    assert {"pipeline", "models", "training", "onnx", "ray", "s3"} <= set(extras.extras())
    assert "all" not in extras.extras()
    for extra in ("pipeline", "models", "training", "onnx", "s3"):
        assert extras.is_installed(extra), extra


def test_everything_to_run_is_all_and_no_developers_tool_is_in_it():
    [everything] = listed("all")
    named = set(everything.removeprefix("wenlan[").removesuffix("]").split(","))
    assert named == set(extras.extras())
    assert "pytest" not in " ".join(line for extra in named for line in listed(extra))
    assert "'.[all,dev]'" in (ROOT / "Makefile").read_text(encoding="utf-8")
