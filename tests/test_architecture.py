"""The arrows of ARCHITECTURE.md, read from the import statements of every module."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import ROOT

PACKAGES = ("data_specs", "pipeline", "training")


@functools.cache
def parsed(path: Path) -> ast.Module:
    """A module, parsed once for all tests."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(parsed(path)))


@functools.cache
def imports(path: Path, *, top_level_only: bool = False) -> tuple[str, ...]:
    return tuple(_imports(path, top_level_only))


def _imports(path: Path, top_level_only: bool) -> Iterator[str]:
    for node in parsed(path).body if top_level_only else nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(package: str) -> list[Path]:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    return paths


def offenders(package: str, forbidden: tuple[str, ...], but: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        if str(path.relative_to(ROOT)) not in but
        for name in imports(path)
        if name.split(".")[0] in forbidden
    ]


@pytest.mark.slow
def test_the_halves_import_each_other_in_one_place_and_the_leaf_imports_neither():
    assert offenders("pipeline", ("training",)) == []
    detector = "training/use/detector.py"  # boxes for pictures of strangers: the one arrow between the halves, lazy
    assert offenders("training", ("pipeline",), but=(detector,)) == []
    assert "pipeline" not in {name.split(".")[0] for name in imports(ROOT / detector, top_level_only=True)}
    allowed = ("pipeline.errors", "pipeline.store.boxes")
    named = {name for name in imports(ROOT / detector) if name.startswith("pipeline")}
    assert all(name.startswith(allowed) for name in named), named
    assert offenders("data_specs", ("pipeline", "training")) == []


@pytest.mark.slow
def test_the_facade_is_the_one_place_that_knows_both_halves_and_nothing_imports_it():
    """And importing it imports neither: it costs milliseconds and needs no package but the base ones."""
    for package in (*PACKAGES, "dags"):
        assert offenders(package, ("wenlan",)) == []
    facade = ROOT / "wenlan.py"
    assert {name.split(".")[0] for name in imports(facade)} >= {"pipeline", "training"}
    assert {name.split(".")[0] for name in imports(facade, top_level_only=True)} <= sys.stdlib_module_names


def test_dags_import_no_package_of_ours_and_no_ray():
    assert offenders("dags", (*PACKAGES, "ray", "torch")) == []


@pytest.mark.slow
def test_ray_is_imported_where_it_is_needed_only():
    """However it is spelled: `sys.modules.get("ray")` and `import_module("ray")` are imports too."""
    for package, but in RAY.items():
        assert offenders(package, ("ray",), but=but) == []
        for path in modules(package):
            if str(path.relative_to(ROOT)) not in but:
                assert not [s for s in module_names_in_strings(path) if s.split(".")[0] == "ray"], path


RAY = {
    "pipeline": ("pipeline/cluster.py", "pipeline/processes/actors.py", "pipeline/processes/observe.py"),
    "training": ("training/run/ray_job.py", "training/serve/replicas.py"),
}


def module_names_in_strings(path: Path) -> Iterator[str]:
    """Literal arguments of the calls and subscripts in which the name of a module could hide."""
    if "ray" not in path.read_text(encoding="utf-8"):
        return
    for node in nodes(path):
        values: list[ast.expr] = []
        if isinstance(node, ast.Call):
            if ast.unparse(node.func).endswith(("import_module", "__import__", "find_spec", "modules.get")):
                values = node.args
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("modules"):
            values = [node.slice]
        yield from (v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str))


FLOORS = {
    "pipeline": (
        ("urls",),
        ("errors",),
        ("files", "rows"),
        ("pictures", "plugins", "processes", "texts"),
        ("detectors", "features", "filters", "matching", "pages", "sources"),
        ("store",),
        ("cluster", "dedup", "model_runner", "report", "web"),
        ("curate", "exports", "publish"),
        ("stages", "takedown"),
        ("opening", "pass_runner"),
        ("run",),
        ("studio",),
        ("commands",),
        ("cli",),
        ("__main__",),
    ),
    "training": (
        ("errors",),
        ("config", "records", "device"),
        ("method", "towers", "recipes", "plug_ins"),
        ("encoders", "objectives", "resolve"),
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
    ),
}
"""Files and folders of both halves, lowest first: each imports lower floors only. The picture in ARCHITECTURE.md."""


def runtime_imports(path: Path) -> Iterator[str]:
    """As `imports`, full names only, and without what only type checkers see."""
    hidden = {
        id(inner)
        for node in nodes(path)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in nodes(path):
        if isinstance(node, ast.Import) and id(node) not in hidden:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and id(node) not in hidden:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", FLOORS)
def test_every_folder_has_a_floor_and_imports_lower_ones_only(package: str) -> None:
    floor_of = {name: number for number, floor in enumerate(FLOORS[package]) for name in floor}
    read = runtime_imports if package == "pipeline" else imports  # whose types name no higher floor either
    folders, upward = {"__init__"}, []
    for path in modules(package):
        here = path.relative_to(ROOT).parts[1].removesuffix(".py")
        folders.add(here)
        allowed = {name for name, floor in floor_of.items() if floor < floor_of.get(here, -1)}
        for name in read(path):
            if name.startswith(f"{package}.") and name.split(".")[1] not in {here, *allowed}:
                upward.append(f"{path.relative_to(ROOT)} imports {name}")
    assert upward == []
    assert folders == {"__init__", *floor_of}


def test_no_stage_imports_a_stage():
    """What stages share lies below them, or in a helper `_*.py` beside them."""
    stages = {p.stem for p in (ROOT / "pipeline/stages").glob("[!_]*.py")}
    for path in (ROOT / "pipeline/stages").glob("*.py"):
        others = {f"pipeline.stages.{name}" for name in stages - {path.stem}}
        named = {other for other in others for name in imports(path) if f"{name}.".startswith(f"{other}.")}
        assert path.name == "__init__.py" or not named, f"{path.name}: {named}"


@pytest.mark.slow
def test_modules_import_in_no_circle():
    paths = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for package in PACKAGES for p in modules(package)}
    graph = {
        name: {target for raw in runtime_imports(path) for target in (raw, raw.rpartition(".")[0]) if target in paths}
        for name, path in paths.items()
    }
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name] - {name}):
                walk(target, (*above, name))
            done.add(name)

    for name in sorted(graph):
        walk(name, ())


def test_only_the_store_knows_how_records_lie_on_disk():
    """Names of the layout that `StageDir` and `KeyRange` own are spelled out there and nowhere else."""
    layout = re.compile(r"^[^\s]*(?:\b_records\b|_stage\.json|-of-)[^\s]*$")
    owners = {"pipeline/store/partitions.py", "pipeline/store/ranges.py"}
    for path in modules("pipeline"):
        if str(path.relative_to(ROOT)) not in owners:
            for node in nodes(path):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    assert not layout.search(node.value), f"{path}:{node.lineno}: {node.value}"


def test_the_pipeline_needs_no_torch():
    """But for a detector that is nothing but torchvision's."""
    but = ("pipeline/detectors/torchvision.py",)
    assert offenders("pipeline", ("torch", "torchvision", "timm", "transformers"), but) == []


def test_what_is_installed_imports_no_test():
    """The demo and the study are in tests/: programs of a checkout."""
    for package in (*PACKAGES, "dags"):
        assert offenders(package, ("tests",)) == []


def test_nothing_imports_the_command_lines():
    for package in PACKAGES:
        for path in modules(package):
            if path.name == "__main__.py":
                continue
            assert not {"pipeline.cli", "training.cli"} & set(imports(path)), path


def test_encoders_are_found_by_name_and_know_neither_data_nor_method() -> None:
    for path in modules("training/encoders"):
        parts = {name.split(".")[1] for name in imports(path) if name.startswith("training.")}
        assert parts <= {"config", "errors", "records", "towers", "encoders", "plug_ins"}, path


def test_no_module_is_called_like_one_of_the_standard_library():
    # plug-ins are named by the spec (`kind: site`), and nobody imports them but through `pipeline.plugins`
    plugins = {"sources", "filters", "detectors", "encoders", "objectives", "exports"}
    named = [p for package in PACKAGES for p in modules(package) if p.parent.name not in plugins]
    shadowing = [p for p in named if p.stem in sys.stdlib_module_names - {"__main__"}]
    assert shadowing == []


TESTED_ELSEWHERE = {
    "pipeline/errors.py": "tests/test_errors.py: the tree; test_unreadable.py: what parsers raise",
    "pipeline/dedup/copies.py": "test_leader_input.py: the passes together decide what the definition says",
    "pipeline/dedup/earlier.py": "test_leader_input.py: pieces of earlier builds, of any size, that may be lost",
    "pipeline/dedup/edges.py": "test_leader_input.py",
    "pipeline/dedup/leader_output.py": "test_leader_input.py: what it writes is what the definition says",
    "pipeline/dedup/piece.py": "test_leader_input.py: what it writes is what copies and edges read",
    "pipeline/dedup/signatures.py": "test_leader_input.py",
    "pipeline/matching/image_keys.py": "test_image_edges.py: keys of builds of any size miss nothing",
    "pipeline/filters/han_share.py": "test_text_filters.py: one table of four filters",
    "pipeline/curate/judging.py": "the judges that it asks: curate/test_*.py",
    "pipeline/opening.py": "test_run.py, test_build.py: what the same command does in each state of a folder",
    "pipeline/takedown/removed_content.py": "test_forget.py: a takedown from its request to the last byte",
    "pipeline/takedown/rewrite_shards.py": "test_forget.py",
}
"""Modules of more than 100 lines whose tests are in a file of another name, and why."""


def test_the_test_of_a_module_has_its_path_and_name():
    """A helper `_*.py` of a folder may be tested with what uses it; what holds little needs no file of its own."""
    without = {
        str(path.relative_to(ROOT))
        for package in ("data_specs", "pipeline")
        for path in modules(package)
        if not path.name.startswith("_") and len(path.read_text(encoding="utf-8").splitlines()) > 100
        if not (ROOT / "tests" / path.relative_to(ROOT).with_name(f"test_{path.name}")).exists()
    }
    assert without == set(TESTED_ELSEWHERE)


def test_tests_and_dags_are_no_packages():
    assert list((ROOT / "tests").rglob("__init__.py")) == []
    assert list((ROOT / "dags").rglob("__init__.py")) == []


def test_dag_files_are_not_called_like_a_package():
    assert not {p.stem for p in (ROOT / "dags").glob("*.py")} & {*PACKAGES, "tests", "dags"}


@pytest.mark.parametrize(
    "heavy", ["ray", "torch", "img2dataset", "cv2", "transformers", "timm", "onnxruntime", "pandas"]
)
def test_command_lines_start_without_heavy_imports(heavy):
    """`wenlan-data --help` must answer at once: whatever the command line imports at load is followed and searched."""
    for start in ("pipeline.cli", "training.cli"):
        seen, waiting = set(), [start]
        while waiting:
            name = waiting.pop()
            path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
            path = path if path.exists() else path.with_suffix("") / "__init__.py"
            if name in seen or not path.exists():
                continue
            seen.add(name)
            for target in imports(path, top_level_only=True):
                assert target.split(".")[0] != heavy, f"{name} imports {target} at load"
                waiting.append(target)


def test_the_top_level_has_the_folders_that_it_is_meant_to_have() -> None:
    """Tracked folders only: what a run leaves behind must not be committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    folders = {path.split("/")[0] for path in listed.splitlines() if "/" in path}
    assert folders == {".ci", "dags", "data_specs", "pipeline", "tests", "training"}
