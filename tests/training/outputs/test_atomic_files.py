"""Files and folders are whole or not there, and what an index vouches for is verified when it is read."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from training.errors import CheckpointError, RunError
from training.outputs.atomic_files import (
    INDEX,
    VerifiedFolder,
    all_finite,
    atomic_file,
    atomic_folder,
    write_errors,
    write_tensors,
)


def interrupted(writing: AbstractContextManager[Path], name: str) -> None:
    with writing as temporary:
        (temporary / name if name else temporary).write_text("half")
        raise KeyboardInterrupt


def test_a_file_appears_when_it_is_whole_and_an_interrupted_one_leaves_the_earlier(tmp_path: Path) -> None:
    out = tmp_path / "sub" / "a.txt"
    with atomic_file(out) as temporary:
        temporary.write_text("first")
        assert not out.exists()
    with pytest.raises(KeyboardInterrupt):
        interrupted(atomic_file(out), "")
    assert out.read_text() == "first"
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_appears_with_its_index_and_an_interrupted_one_leaves_the_earlier(tmp_path: Path) -> None:
    folder = tmp_path / "ck"
    with atomic_folder(folder) as temporary:
        (temporary / "a.json").write_text('{"x": 1}')
        assert not folder.exists()
    with pytest.raises(KeyboardInterrupt):
        interrupted(atomic_folder(folder), "b.json")
    assert [path.name for path in tmp_path.iterdir()] == ["ck"]
    assert set(json.loads((folder / INDEX).read_text())["files"]) == {"a.json"}
    assert VerifiedFolder.open(folder).object("a.json") == {"x": 1}
    with atomic_folder(folder) as temporary:
        (temporary / "c.txt").write_text("红船")
    assert sorted(path.name for path in folder.iterdir()) == ["c.txt", INDEX]
    assert VerifiedFolder.open(folder).text("c.txt") == "红船"


@pytest.mark.slow
def test_a_folder_that_is_replaced_is_lost_by_no_kill(tmp_path: Path) -> None:
    """Killed before each of the calls that change names, and tried again by a command that fails."""
    for calls in range(1, 20):
        folder = tmp_path / str(calls) / "ck"
        with atomic_folder(folder) as temporary:
            (temporary / "a.txt").write_text("old")
        child = os.fork()
        if not child:
            left = iter(range(calls - 1))

            def before(call: Callable[..., None], left: Iterator[int] = left) -> Callable[..., None]:
                def called(*given: Any, **named: Any) -> None:
                    if next(left, None) is None:
                        os._exit(9)
                    call(*given, **named)

                return called

            os.rename, os.unlink, os.rmdir = before(os.rename), before(os.unlink), before(os.rmdir)
            with atomic_folder(folder) as temporary:
                (temporary / "a.txt").write_text("new")
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with pytest.raises(KeyboardInterrupt):
            interrupted(atomic_folder(folder), "b.txt")
        assert VerifiedFolder.open(folder).text("a.txt") in ("old", "new")
        if not ended:
            break
    assert (ended, VerifiedFolder.open(folder).text("a.txt")) == (0, "new")
    assert [path.name for path in folder.parent.iterdir()] == ["ck"]


def test_a_file_in_place_of_a_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "ck").write_text("mine")
    for _ in range(2):
        with pytest.raises(RunError, match="ck: cannot be written: Not a directory"), atomic_folder(tmp_path / "ck"):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["ck"]
        assert (tmp_path / "ck").read_text() == "mine"


def test_a_folder_that_is_a_link_stays_one_when_it_is_replaced(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "there") as temporary:
        (temporary / "a.txt").write_text("old")
    (tmp_path / "link").symlink_to("there")
    with atomic_folder(tmp_path / "link") as temporary:
        (temporary / "a.txt").write_text("new")
    assert VerifiedFolder.open(tmp_path / "there").text("a.txt") == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]
    assert (tmp_path / "link").is_symlink()


def test_a_file_is_verified_when_it_is_read_and_only_one_that_the_index_names(tmp_path: Path) -> None:
    folder = tmp_path / "ck"
    with atomic_folder(folder) as temporary:
        (temporary / "a.json").write_text('{"x": 1}')
    sealed = VerifiedFolder.open(folder)
    (folder / "a.json").write_text('{"x": 2}')
    with pytest.raises(CheckpointError, match=r"a.json: its sha256 differs from checkpoint.json"):
        sealed.object("a.json")
    (folder / "b.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"checkpoint.json: does not list b.json"):
        sealed.object("b.json")
    (folder / "a.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"a.json: 2 bytes, but 8 in checkpoint.json"):
        VerifiedFolder.open(folder)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """A write beyond so many bytes of a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_disk_without_room_is_one_line_with_the_name_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    tensor = torch.zeros(50_000)

    def write(path: Path) -> None:
        if kind == "safetensors":
            write_tensors(path, {"a": tensor})
            return
        with path.open("wb") as file:
            torch.save({"a": tensor}, file)

    line = rf"^{tmp_path}/sub/out: cannot be written: File too large; free some space and run the same command again$"
    with files_up_to(100_000):
        with pytest.raises(RunError, match=line), atomic_file(tmp_path / "sub" / "out") as temporary:
            write(temporary)
        with pytest.raises(RunError, match=line), atomic_folder(tmp_path / "sub" / "out") as temporary:
            write(temporary / "a")
    assert list((tmp_path / "sub").iterdir()) == []


@pytest.mark.parametrize("writing", [atomic_file, atomic_folder])
@pytest.mark.parametrize("out", [".", "/"])
def test_what_has_no_name_is_refused_in_one_line(
    writing: Callable[[Path], AbstractContextManager[Path]], out: str
) -> None:
    with pytest.raises(RunError, match=f"{re.escape(out)}: does not end in a name"), writing(Path(out)):
        pass


def test_what_cannot_be_written_is_told_apart_from_what_lies_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "1"
    for own in ("runs", "runs/1", "runs/1/log.txt", "runs/.1.tmp", "runs/.1.77.tmp/config.json"):
        with pytest.raises(RunError, match=rf"^{out}: cannot be written: Permission denied$"), write_errors(out):
            raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / own))
    for other in ("runs/.cache/index.parquet", "runs/10/log.txt", "runs/data/x.tar", "run"):
        with pytest.raises(PermissionError), write_errors(out):
            raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / other))


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_mode_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "ck") as temporary:
            write_tensors(temporary / "a.safetensors", {"a": torch.zeros(3)})
            (temporary / "b.json").write_text("{}")
        with atomic_file(tmp_path / "out.safetensors") as temporary:
            write_tensors(temporary, {"a": torch.zeros(3)}, {"about": "this"})
    finally:
        os.umask(before)
    files = [*(tmp_path / "ck").iterdir(), tmp_path / "out.safetensors"]
    assert len(files) == 4
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_tensor_is_finite_where_each_number_is(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    for numbers in ([], [0.0, -1.0], [largest] * 9, [-largest] * 9):  # the sums of the last two are not
        assert all_finite(torch.tensor(numbers, dtype=torch.float64).to(dtype))
    for wrong in (float("nan"), float("inf"), -float("inf")):
        assert not all_finite(torch.tensor([1.0, wrong, largest, -float("inf")]).to(dtype))
        assert not all_finite(torch.tensor([1.0] * 9 + [wrong]).to(dtype))
