"""Checks that no other installed distribution provides `pipeline`, `training`, `data_specs` or `wenlan`.

The names are common words. If another package installs folders of the same names, chance decides which one is imported.
Both command lines call `check_ownership` before anything else, and stop with its message.

`importlib.metadata.packages_distributions` knows the same of every import name there is, for which it parses all
metadata and makes a path of each installed file: 0.3 s of every command. Here a list of files is searched as a string,
and the metadata read only of a distribution whose list holds one of our names.

Limits: it reads the metadata of installed distributions only; a stray folder on PYTHONPATH is not seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

DISTRIBUTION = "wenlan"
"""The distribution that should provide PACKAGES."""
PACKAGES = ("data_specs", "pipeline", "training", "wenlan")


def check_ownership(owners: Mapping[str, Sequence[str]] | None = None) -> str | None:
    """A message if another distribution provides one of PACKAGES, otherwise None.

    owners: distribution names by import name; by default those of the installed distributions (`installed_owners`).
    """
    installed = installed_owners() if owners is None else owners
    for package in PACKAGES:
        others = sorted({name for name in installed.get(package, ()) if _normal(name) != DISTRIBUTION})
        if others:
            return (
                f"the import name '{package}' is also provided by the installed distribution {', '.join(others)}; "
                f"uninstall it or install {DISTRIBUTION} into an environment of its own"
            )
    return None


def installed_owners(names: Sequence[str] = PACKAGES) -> dict[str, list[str]]:
    """Names of the installed distributions that provide each of some import names.

    By what they declare (top_level.txt), else by their list of files, as `packages_distributions` does it.
    """
    import importlib.metadata

    owners: dict[str, list[str]] = {}
    for distribution in importlib.metadata.distributions():
        declared = (distribution.read_text("top_level.txt") or "").split()
        listed = "" if declared else f"\n{distribution.read_text('RECORD') or distribution.read_text('SOURCES.txt')}"
        for name in names:
            if name in declared or f"\n{name}/" in listed or f"\n{name}.py," in listed or f"\n{name}.py\n" in listed:
                owners.setdefault(name, []).append(distribution.metadata["Name"])
    return owners


def _normal(name: str) -> str:
    """A distribution name normalised as in PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()
