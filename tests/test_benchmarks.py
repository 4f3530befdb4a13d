"""Benchmarks are run seldom, by people: here is seen that they still run, and that what they measure is a dataset."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from pipeline.publish import release
from pipeline.publish.verify import verify
from pipeline.stages import report
from tests.places import ROOT

BENCHMARKS = ROOT / "tests/benchmarks"

IMPORTS = """
import ast, importlib, pathlib, sys

here, root = map(pathlib.Path, sys.argv[1:])
sys.path[:0] = [str(here), str(root)]
own = {"pipeline", "training", "data_specs", "tests", "wenlan"}
own |= {path.stem for folder in (here, here.parent) for path in folder.glob("*.py")}
asked = {}
for path in sorted(here.glob("*.py")):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in own:
            for alias in node.names:
                asked.setdefault((node.module, alias.name), path.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in own:
                    asked.setdefault((alias.name, ""), path.name)
for (module, name), asking in asked.items():
    try:
        if name and not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")
        importlib.import_module(module)
    except ImportError as e:
        if e.name is None or e.name.split(".")[0] in own:  # not a package of a peer
            print(f"{asking}: {e}")
"""


@pytest.mark.drill(20)
def test_each_finds_what_it_imports_of_this_repository() -> None:
    words = [sys.executable, "-W", "ignore", "-c", IMPORTS, str(BENCHMARKS), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(words, cwd=ROOT.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not done.stdout.strip(), done.stdout


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tests/benchmarks/builds.py, whose builds most benchmarks of packed datasets are about."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("builds")


@pytest.mark.slow
def test_the_builds_they_measure_are_sound_and_can_be_reported(builds: ModuleType, tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(picture, "JPEG")
    build = builds.made(tmp_path, 40, 0.5, 25, [picture.getvalue()], shared=False)
    builds.packed(build)
    release.publish(build)
    assert verify(Path(build.out) / "shards", quick=False) == []
    report.run_partition(build, "all")
    assert (Path(build.out) / "report/index.html").stat().st_size > 10_000
