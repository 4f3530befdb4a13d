"""packages: the real apt-get with private lists, and stand-ins for its failures."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tests.demo import packages as demo_packages
from tests.demo.packages import DemoError


def _fake_program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)


def test_lists_are_fetched_only_when_the_system_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    has_lists = tmp_path / "has-lists"
    _fake_program(
        tmp_path / "bin",
        "apt-get",
        f'echo "$@" >> {calls}\n'
        f'case "$*" in *update) : > {has_lists};; *"download one")'
        f" if [ -e {has_lists} ]; then : > one_1_all.deb;"
        ' else echo "E: Unable to locate package one" >&2; exit 100; fi;;\n'
        '*) echo "E: Unable to locate package two" >&2; exit 100;; esac\n',
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    deb = demo_packages.download_deb("one", tmp_path / "packages", tmp_path / "apt")
    assert deb == tmp_path / "packages" / "one_1_all.deb"
    steps = calls.read_text().splitlines()
    assert [step.split()[-2:] for step in steps] == [["download", "one"], steps[1].split()[-2:], ["download", "one"]]
    assert steps[1].endswith("update")
    private = f"Dir::State={tmp_path / 'apt' / 'state'}"
    assert [private in step for step in steps] == [False, True, True]
    assert all(f"Dir::Cache={tmp_path / 'apt' / 'cache'}" in step for step in steps)

    calls.unlink()
    assert demo_packages.download_deb("one", tmp_path / "packages", tmp_path / "apt") == deb
    assert not calls.exists(), "a package that was downloaded is kept"

    with pytest.raises(DemoError, match=r"Debian package two could not be downloaded: E: Unable to locate package two"):
        demo_packages.download_deb("two", tmp_path / "packages", tmp_path / "apt")
    assert [p.name for p in (tmp_path / "packages").iterdir()] == ["one_1_all.deb"]


def test_npm_tarball_that_reaches_outside_is_refused(tmp_path: Path) -> None:
    tarball = tmp_path / "p-1.tgz"
    _tarball(tarball, {"package/zh/../../evil": b"x"})
    with pytest.raises(DemoError, match=r"p-1\.tgz: holds .* outside the package"):
        demo_packages.unpack_npm(tarball, tmp_path / "out", ["zh/"])
    assert not (tmp_path / "evil").exists()


def _tarball(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
