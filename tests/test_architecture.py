"""The arrows of ARCHITECTURE.md, read from the import statements of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_specs", "pipeline", "training")


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def offenders(package: str, forbidden: tuple[str, ...], but: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        if str(path.relative_to(ROOT)) not in but
        for name in imports(path)
        if name.split(".")[0] in forbidden
    ]


def test_the_halves_never_import_each_other_and_the_leaf_imports_neither():
    assert offenders("pipeline", ("training",)) == []
    assert offenders("training", ("pipeline",)) == []
    assert offenders("data_specs", ("pipeline", "training")) == []


def test_dags_import_no_package_of_ours_and_no_ray():
    assert offenders("dags", (*PACKAGES, "ray", "torch")) == []


def test_ray_is_imported_where_it_is_needed_only():
    assert (
        offenders("pipeline", ("ray",), but=("pipeline/cluster.py", "pipeline/actors.py", "pipeline/observe.py")) == []
    )
    assert offenders("training", ("ray",), but=("training/run/ray_job.py",)) == []


def test_the_pipeline_needs_no_torch():
    """But for a detector that is nothing but torchvision's, and for making the weights of another one."""
    makes_weights = ("pipeline/proposals/net.py", "pipeline/proposals/train.py")
    but = ("pipeline/detectors/torchvision.py", *makes_weights)
    assert offenders("pipeline", ("torch", "torchvision", "timm", "transformers"), but) == []
    for path in modules("pipeline"):
        if path.parent.name != "proposals":
            assert not [name for name in imports(path) if name.startswith("pipeline.proposals")], path


def test_nothing_imports_the_command_lines():
    for package in PACKAGES:
        for path in modules(package):
            if path.name == "__main__.py":
                continue
            assert not {"pipeline.cli", "training.cli"} & set(imports(path)), path


def test_stages_do_not_import_the_page_that_runs_them():
    allowed = {"pipeline/run.py", *(f"pipeline/commands/{name}.py" for name in ("builds", "datasets", "store"))}
    for path in modules("pipeline"):
        if str(path.relative_to(ROOT)) not in allowed:
            assert "pipeline.run" not in set(imports(path)), f"{path}: cli -> commands -> run -> stages, never back"


def test_encoders_know_neither_the_method_nor_the_loop():
    above = {
        "training.moco",
        "training.run.train",
        "training.data",
        "training.outputs.checkpoint",
        "training.use.evaluate",
    }
    for path in modules("training/encoders"):
        assert not above & set(imports(path)), path


def test_no_module_is_called_like_one_of_the_standard_library():
    # plug-ins are named by the spec (`kind: site`), and nobody imports them but through `pipeline.plugins`
    plugins = {"sources", "filters", "detectors", "features", "encoders"}
    found = [p for package in PACKAGES for p in modules(package) if p.parent.name not in plugins]
    shadowing = [p for p in found if p.stem in sys.stdlib_module_names - {"__main__"}]
    assert shadowing == []


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
