"""What several tests begin with is made once."""

from __future__ import annotations

import shutil
from pathlib import Path


class Kept:
    """A folder that is put back as it was for each test, at its place, so that paths written in it stay true.

    Names of one file stay names of one file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._copy = folder, folder.with_name(f"{folder.name}-kept")
        _copy(self._folder, self._copy)

    def restore(self) -> None:
        shutil.rmtree(self._folder)
        _copy(self._copy, self._folder)


def _copy(source: Path, target: Path) -> None:
    first: dict[int, str] = {}

    def copy(source: str, target: str) -> None:
        if (name := first.setdefault(Path(source).stat().st_ino, target)) == target:
            shutil.copy2(source, target)
        else:
            Path(target).hardlink_to(name)

    shutil.copytree(source, target, copy_function=copy)
