"""What several tests begin with is made once."""

from __future__ import annotations

import shutil
from pathlib import Path


class Kept:
    """A folder that is put back as it was for each test, at its place, so that paths written in it stay true."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._copy = folder, folder.with_name(f"{folder.name}-kept")
        shutil.copytree(self._folder, self._copy)

    def restore(self) -> None:
        shutil.rmtree(self._folder)
        shutil.copytree(self._copy, self._folder)
