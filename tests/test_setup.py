"""What runs before there is an environment: .ci/setup and the Makefile."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import ROOT

SETUP = ROOT / ".ci" / "setup"


def _fake_program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)


def _find(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", str(SETUP), "find"]
    return subprocess.run(command, env={"PATH": str(path), **environment}, capture_output=True, text=True, timeout=60)


def _fake_python(folder: Path, name: str, version: tuple[int, int]) -> None:
    """A Python that claims a version: it runs the finder's checks in the real one with sys.version_info replaced."""
    _fake_program(
        folder,
        name,
        f'[ "$1" = -c ] || exit 9\nexec {sys.executable} -c "import sys; sys.version_info = {version}\n'
        f"sys.executable = '{folder / name}'\n$2\"\n",
    )


@pytest.mark.slow
def test_finder_skips_what_does_not_run_or_does_not_fit(tmp_path: Path) -> None:
    _fake_program(tmp_path, "python3", 'echo "pyenv: python3: command not found" >&2; exit 127\n')
    _fake_python(tmp_path, "python3.13", (3, 15))
    _fake_python(tmp_path, "python3.12", (3, 10))
    _fake_python(tmp_path, "python3.11", (3, 11))
    done = _find(tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "python3.11"))


@pytest.mark.slow
def test_finder_prefers_python3_and_obeys_python(tmp_path: Path) -> None:
    _fake_python(tmp_path, "python3", (3, 13))
    _fake_python(tmp_path, "python3.11", (3, 11))
    assert _find(tmp_path).stdout.strip() == str(tmp_path / "python3")
    assert _find(tmp_path, PYTHON="python3.11").stdout.strip() == str(tmp_path / "python3.11")


def test_finder_without_a_fitting_python_says_what_it_wants(tmp_path: Path) -> None:
    _fake_python(tmp_path, "python3", (3, 15))
    done = _find(tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("wenlan needs Python 3.11 to 3.14 (tried: python3 ")
    assert done.stdout == ""


def test_make_help_lists_the_two_commands() -> None:
    if not shutil.which("make"):
        pytest.skip("make is not installed here")
    done = subprocess.run(["make", "-s", "-C", str(ROOT), "help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {"demo", "test", "check", "bench", "bench-venv", "clean"} <= {
        line.split()[1] for line in done.stdout.splitlines()
    }


def test_unpack_needs_no_dependency() -> None:
    """Setup runs it before anything is installed: only the standard library may be imported."""
    code = "import sys, tests.demo.job; print(sorted(m for m in sys.modules if m in ('rich', 'pydantic', 'yaml')))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.drill(20)
def test_pip_comes_from_debian_where_python_has_no_ensurepip(tmp_path: Path) -> None:
    """As on a Debian machine without python3-venv: the environment gets a working pip all the same."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        pytest.skip("apt-get or dpkg-deb is not installed here")
    python = tmp_path / "python-without-ensurepip"
    _fake_program(
        tmp_path,
        python.name,
        f'case "$*" in *ensurepip*) exit 1;; *"print(sys.executable)"*) echo {python}; exit;; esac\n'
        f'exec {sys.executable} "$@"\n',
    )
    command = ["/bin/sh", str(SETUP), "venv", str(tmp_path / "venv")]
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "PYTHON": str(python)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    if "could not be downloaded" in done.stderr:
        pytest.skip("no Debian mirror can be reached from here")
    assert done.returncode == 0, done.stderr
    pip = subprocess.run([tmp_path / "venv/bin/python", "-m", "pip", "--version"], capture_output=True, text=True)
    assert str(tmp_path / "venv") in pip.stdout

    marker = tmp_path / "venv" / "kept"
    marker.touch()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=60)
    assert marker.exists(), "an environment that works is kept"
