"""Folders: what a finished file's mode is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pipeline.files.folder import Folder


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077, 0o027])
def test_files_have_the_mode_of_the_umask_and_private_ones_are_their_owners(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = Folder(str(tmp_path))
        folder.write("open", b"x")
        (tmp_path / "scratch").write_bytes(b"x")
        folder.take(tmp_path / "scratch", "private", private=True)
        assert os.umask(umask) == umask, "asking changes nothing"
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"open": 0o666 & ~umask, "private": 0o600}
