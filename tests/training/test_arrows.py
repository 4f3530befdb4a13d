"""The floors of `training`: a folder or module imports what lies on a lower floor, or its own folder, and nothing else.

Read from the import statements of every file, wherever in it they stand.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("config", "records", "device"),
    ("method", "towers", "recipes"),
    ("encoders", "resolve"),
    ("data", "moco"),
    ("outputs",),
    ("weights",),
    ("evaluation",),
    ("use",),
    ("run",),
    ("captions", "serve"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""From the ground up: cli -> commands -> {captions, serve} -> run -> use -> evaluation -> weights -> outputs ->
{data, moco} -> encoders -> {method, towers} -> config."""

FILES = sorted((ROOT / "training").rglob("*.py"))


def floor(part: str) -> int:
    return next(number for number, parts in enumerate(FLOORS) if part in parts)


def part_of(module: str) -> str:
    """The folder of a module of `training`, or the module itself where it lies in none."""
    return module.split(".")[1]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, at load or later."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            # `from package import module` imports the module as well.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module


def named_in_calls(path: Path) -> Iterator[str]:
    """Strings that are handed to what imports, or looks for what is imported, by name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called.rpartition(".")[2] in ("import_module", "__import__", "find_spec") or called == "sys.modules.get":
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def test_every_folder_and_module_has_a_floor() -> None:
    parts = {part_of(module_of(path)) for path in FILES if path.parent != ROOT / "training" or path.stem != "__init__"}
    assert parts == {part for parts in FLOORS for part in parts}


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "training")))
def test_nothing_imports_its_own_floor_or_a_higher_one(path: Path) -> None:
    module = module_of(path)
    if module == "training":
        assert not [name for name in imports(path) if name.startswith("training")]
        return
    mine = part_of(module)
    others = {part_of(name) for name in imports(path) if name.startswith("training.")} - {mine}
    assert {other for other in others if floor(other) >= floor(mine)} == set()


@pytest.mark.slow
def test_no_module_imports_itself_by_way_of_others() -> None:
    known = {module_of(path) for path in FILES}
    edges = {module_of(path): {name for name in imports(path) if name in known} for path in FILES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, (*way, module))
            done.add(module)

    for module in sorted(known):
        visit(module, ())


@pytest.mark.slow
def test_ray_is_imported_by_the_ray_job_and_the_replicas_alone_and_by_no_detour() -> None:
    """A training on Ray and a server on Ray share nothing but the start of it: each has its module."""
    for path in FILES:
        if path not in (ROOT / "training" / "run" / "ray_job.py", ROOT / "training" / "serve" / "replicas.py"):
            names = [*imports(path), *named_in_calls(path)]
            assert not [name for name in names if name.split(".")[0] == "ray"], path


def test_encoders_are_found_by_name_and_know_neither_data_nor_method() -> None:
    for path in (ROOT / "training" / "encoders").glob("*.py"):
        parts = {part_of(name) for name in imports(path) if name.startswith("training.")}
        assert parts <= {"config", "errors", "records", "towers", "encoders"}, path
