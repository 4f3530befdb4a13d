"""Which distribution owns the import names `pipeline`, `training` and `data_specs` on this machine.

The names are common words, so another package may install folders of the same name and one of the two would be
imported by chance. Both command lines call `check_ownership` before anything else and stop with its sentence.

Limits: reads the metadata of installed distributions only; a stray folder on PYTHONPATH is not seen.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence

DISTRIBUTION = "wenlan"
PACKAGES = ("data_specs", "pipeline", "training")


def check_ownership(owners: Mapping[str, Sequence[str]] | None = None) -> str | None:
    """One sentence if another distribution provides one of our package names, else None.

    `owners` maps import names to distribution names; by default what is installed
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
    """Distribution name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
