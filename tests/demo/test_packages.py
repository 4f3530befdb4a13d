"""packages: the real apt-get with private lists, and stand-ins for its failures."""

from __future__ import annotations

import io
import subprocess
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


@pytest.mark.skipif(not Path("/usr/lib/apt/apt-helper").is_file(), reason="needs apt")
def test_an_index_is_what_all_suites_have_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suite in ("stable", "updates"):
        (tmp_path / suite).write_text(f"{suite}\n")
    _fake_program(
        tmp_path / "bin",
        "apt-get",
        f'case "$*" in *update) echo "E: no network" >&2; exit 100;; *dep11/names.yml*) ls {tmp_path}/[su]*;; esac\n',
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    index = demo_packages.download_index("dep11/names.yml", tmp_path / "kept")
    assert index.read_text() == "stable\nupdates\n"
    with pytest.raises(DemoError, match=r"index dep11/other.yml could not be downloaded: E: no network"):
        demo_packages.download_index("dep11/other.yml", tmp_path / "kept")


@pytest.mark.drill(30)
def test_real_apt_with_private_lists(tmp_path: Path) -> None:
    """The way of a machine with empty package lists, with the real apt-get and a small package."""
    if not demo_packages.have_apt():
        pytest.skip("apt-get or dpkg-deb is not installed here")
    options = demo_packages.apt_options(tmp_path / "apt", own_lists=True)
    before = _system_lists()

    def apt(*words: str) -> subprocess.CompletedProcess[bytes]:
        command = ["apt-get", "-q", *options, *words]
        return subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, timeout=250)

    assert apt("download", "hostname").returncode != 0, "private lists start empty"
    if apt("update").returncode != 0:
        pytest.skip("no Debian mirror can be reached from here")
    assert apt("download", "hostname").returncode == 0
    (deb,) = tmp_path.glob("hostname_*.deb")
    demo_packages.unpack_deb(deb, tmp_path / "out")
    assert any(path.name == "hostname" and path.is_file() for path in (tmp_path / "out").rglob("hostname"))
    assert _system_lists() == before, "the system's own lists are left alone"


def _system_lists() -> dict[str, float]:
    return {path.name: path.stat().st_mtime for path in Path("/var/lib/apt/lists").glob("*_*")}


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


def test_npm_tarball_with_a_damaged_byte_names_the_file(tmp_path: Path) -> None:
    """Wherever it is: what the decompressor takes for sound is seen by the checksum at the end."""
    sound = tmp_path / "one-1.0.0.tgz"
    with tarfile.open(sound, "w:gz") as archive:
        for n in range(2):
            data = " ".join("云山水花"[(i * i + n) % 7 % 4] for i in range(40_000)).encode()
            member = tarfile.TarInfo(f"package/{n}.txt")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    demo_packages.unpack_npm(sound, tmp_path / "sound", [""])
    data, damaged = sound.read_bytes(), tmp_path / "two-1.0.0.tgz"
    for at in range(60, len(data), len(data) // 40):
        damaged.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(DemoError, match=r"two-1.0.0.tgz: cannot be unpacked .*; remove the file and start again"):
            demo_packages.unpack_npm(damaged, tmp_path / "out", [""])
