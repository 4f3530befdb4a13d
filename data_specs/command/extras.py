"""Optional dependencies: the extra that provides a missing package, read from the distribution's metadata.

A base install has neither the pipeline's packages nor the trainer's. A command that needs one of them imports it in its
function; the command lines turn the ModuleNotFoundError into the one line of `missing_line`.

Limits: names of packages are derived from those of their distributions, but for the few in `_IMPORTED_AS`.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

from data_specs.command.ownership import DISTRIBUTION, PACKAGES

_IMPORTED_AS = {
    "faiss_cpu": "faiss",
    "opencv_python_headless": "cv2",
    "pillow": "PIL",
    "standard_imghdr": "imghdr",  # before Python 3.13 of the standard library
}
"""Packages by their distribution, where the names differ by more than a hyphen."""

_FOR_PEOPLE = ("all", "dev")
"""Extras that no command asks for: everything, and the tools of developers."""


@functools.cache
def extras() -> dict[str, frozenset[str]]:
    """The import names of the packages of each extra; empty where wenlan runs without being installed."""
    import importlib.metadata

    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    packages: dict[str, set[str]] = {}
    for requirement in requirements:
        of = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        name = re.match(r"[\w.-]+", requirement)
        if of and name and of[1] not in _FOR_PEOPLE:
            plain = re.sub(r"[-.]", "_", name[0]).lower()
            packages.setdefault(of[1], set()).add(_IMPORTED_AS.get(plain, plain))
    return {extra: frozenset(own) for extra, own in packages.items()}


def is_installed(extra: str) -> bool:
    """True if every package of an extra can be found; none is imported."""
    return all(importlib.util.find_spec(package) is not None for package in extras().get(extra, ()))


def require(package: str) -> None:
    """Raise the ModuleNotFoundError of a package that is missing, before a command has written anything."""
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def missing_line(error: ImportError, command: str, own: str) -> str | None:
    """One line that names the extra to install; None if the missing module is wenlan's own.

    error: what an import raised, or fsspec because of it; command: what was called, for example `wenlan-data plan`;
    own: the extra of its half, preferred where several extras have the package; one that is called like the command
    comes before it.
    """
    import importlib.metadata

    cause = error if isinstance(error, ModuleNotFoundError) else error.__cause__
    if not isinstance(cause, ModuleNotFoundError) or isinstance(cause, importlib.metadata.PackageNotFoundError):
        return None
    package = (cause.name or "").partition(".")[0]
    if not package or package in PACKAGES:
        return None
    having = sorted(extra for extra, packages in extras().items() if package in packages)
    if not having and extras() and is_installed(own):  # a foreign package: those of the extras are there
        return f"{command} needs the package {package}, which is not installed"
    named = command.rpartition(" ")[2]  # `wenlan-train search` and the extra `search`
    if own != "pipeline":
        having = [extra for extra in having if extra != "pipeline"] or having  # the other half's, which is far larger
    extra = named if named in having else own if own in having or not having else having[0]
    return f"{command} needs the extra {extra} ({package} is not installed): {install(extra)}"


def install(extra: str) -> str:
    """The command that installs an extra from wenlan's own origin: a checkout, a wheel, a repository.

    From an index it is asked for by its name alone. Source: PEP 610, direct_url.json.
    """
    import importlib.metadata

    named, root = f"{DISTRIBUTION}[{extra}]", Path(__file__).parents[2]
    installed = importlib.metadata.distributions(name=DISTRIBUTION)
    written = (distribution.read_text("direct_url.json") for distribution in installed)
    origin = json.loads(next(filter(None, written), "{}"))
    if not origin and (root / "pyproject.toml").is_file():  # run from a checkout that is not installed
        origin = {"url": root.as_uri(), "dir_info": {"editable": True}}
    url, repository = origin.get("url", ""), origin.get("vcs_info")
    if repository:
        named += f" @ {repository['vcs']}+{url}@{repository['commit_id']}"
    elif url.startswith("file:"):
        named = f"{unquote(urlsplit(url).path)}[{extra}]"
    elif url:
        named += f" @ {url}"
    return f"pip install {'-e ' * origin.get('dir_info', {}).get('editable', False)}{shlex.quote(named)}"
