"""Checks that no other installed distribution provides `pipeline`, `training`, `data_specs` or `wenlan`.

The names are common words. If another package installs folders of the same names, chance decides which one is imported.
Both command lines call `check_ownership` before anything else, and stop with its message.

Limits: it reads the metadata of installed distributions only; a stray folder on PYTHONPATH is not seen.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence

DISTRIBUTION = "wenlan"
"""The distribution that should provide PACKAGES."""
PACKAGES = ("data_specs", "pipeline", "training", "wenlan")


def check_ownership(owners: Mapping[str, Sequence[str]] | None = None) -> str | None:
    """A message if another distribution provides one of PACKAGES, otherwise None.

    owners: distribution names by import name; by default those of the installed distributions
    (`importlib.metadata.packages_distributions`).
    """
    installed = importlib.metadata.packages_distributions() if owners is None else owners
    for package in PACKAGES:
        others = sorted({name for name in installed.get(package, ()) if _normal(name) != DISTRIBUTION})
        if others:
            return (
                f"the import name '{package}' is also provided by the installed distribution {', '.join(others)}; "
                f"uninstall it or install {DISTRIBUTION} into an environment of its own"
            )
    return None


def _normal(name: str) -> str:
    """A distribution name normalised as in PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()
