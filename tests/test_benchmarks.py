"""Benchmarks are run seldom, by people: here is seen that each starts, and that what they measure is a dataset."""

from __future__ import annotations

import ast
import importlib
import io
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline.publish import release
from pipeline.publish.verify import verify
from pipeline.stages import report
from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import builds
from tests.benchmarks.harness import at_most
from tests.benchmarks.harness import report as printed
from tests.places import ROOT

BENCHMARKS = ROOT / "tests/benchmarks"
OURS = {"data_specs", "pipeline", "training", "tests", "wenlan", *(path.stem for path in BENCHMARKS.glob("*.py"))}


@pytest.mark.slow
@pytest.mark.parametrize("name", benchmarks.NAMES)
def test_each_starts(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"tests.benchmarks.bench_{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        module.main()
    assert "--quick" in capsys.readouterr().out


def test_each_finds_what_it_imports_of_this_repository() -> None:
    """Also within functions, where the peers' and heavy packages are imported."""
    imports = {
        (node.module, alias.name, path.name)
        for path in BENCHMARKS.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS
        for alias in node.names
    }
    assert [of for of in sorted(imports) if not _has(of[0], of[1])] == []


def _has(module: str, name: str) -> bool:
    """Whether a module of this repository defines or imports a name, or a package has a module of this name."""
    path = ROOT.joinpath(*module.split("."))
    if any((path / f"{name}{end}").exists() for end in (".py", "/__init__.py")) or (path / name).is_dir():
        return True
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    defined = rf"^(?:def |class |async def )?{name}\b|^\w+, {name}\b.* = "
    imported = rf"^(?:from|import) .*\b{name}\b|^    (?:\w+ as )?{name},$"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return re.search(f"{defined}|{imported}", text, re.MULTILINE) is not None


def test_one_table_ends_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed({"slow": at_most(2.0, 1.0, "s"), "fast": at_most(0.5, 1.0, "s")})
    figures = json.loads(capsys.readouterr().out)["figures"]
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(benchmarks, "LOGS", tmp_path)
    monkeypatch.setattr(benchmarks, "run", lambda name, quick: figures if name == "words" else "no nginx here")
    (tmp_path / "results.json").write_text(json.dumps({"words": {"quick": {"fast": 0.7}}}))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "words", "fetch", "--quick", "--record"])
    assert benchmarks.main() == 1
    *_, slow, fast, lacking = (line.split() for line in capsys.readouterr().err.splitlines())
    assert slow == ["words.slow", "2.0", "s", "bar", "1.0", "DOES", "NOT", "HOLD"]
    assert fast == ["words.fast", "0.5", "s", "bar", "1.0", "holds", "quick,", "last", "0.7"]
    assert " ".join(lacking) == "no figures: fetch: no nginx here"
    assert json.loads((tmp_path / "results.json").read_text())["words"]["quick"]["fast"] == 0.5


@pytest.mark.slow
def test_the_builds_they_measure_are_sound_and_can_be_reported(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(picture, "JPEG")
    build = builds.made(tmp_path, 40, 0.5, 25, [picture.getvalue()], shared=False)
    builds.packed(build)
    release.publish(build)
    assert verify(Path(build.out) / "shards", quick=False) == []
    report.run_partition(build, "all")
    assert (Path(build.out) / "report/index.html").stat().st_size > 10_000
