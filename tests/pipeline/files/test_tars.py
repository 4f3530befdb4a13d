"""tars: a file that is hashed while it is written holds everything in order, and has the right sha256."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.files import tars
from pipeline.files.tars import HashedFile, TarWriter


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 9_000), max_size=40), st.integers(1, 20_000))
def test_what_is_written_is_there_in_order_with_its_digest(tmp_path: Path, sizes: list[int], batch: int) -> None:
    pieces = [bytes([i % 251]) * size for i, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tars, "BATCH", batch)
        with HashedFile(tmp_path / "file") as file:
            for piece in pieces:
                file.write(piece)
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)
    assert file.sha256 == hashlib.sha256(b"".join(pieces)).hexdigest()


def test_a_write_that_stops_short_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7_000]))
    with HashedFile(tmp_path / "file") as file:
        TarWriter(file).add("a", b"x" * 50_000)
    data = (tmp_path / "file").read_bytes()
    assert data == tars.ustar_header("a", 50_000) + b"x" * 50_000 + bytes(-50_000 % 512)
    assert file.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("count", [1, 40])
def test_a_full_disk_is_told_as_such(count: int) -> None:
    def fill() -> None:
        with HashedFile(Path("/dev/full")) as file:
            for _ in range(count):
                file.write(bytes(1 << 20))

    with pytest.raises(OSError, match="No space left") as caught:
        fill()
    assert caught.value.errno == errno.ENOSPC
