"""Atomic writes of files and folders, and folders whose files are verified before they are read.

    atomic_file(out)        a temporary name beside `out` that is renamed at the end
    atomic_folder(folder)   the same for a folder, flushed to the disk, with an index of its files written last
    add_tensors(folder)     one more file in such a folder
    VerifiedFolder          a folder with such an index: sizes are compared at once, a file's sha256 when it is read

A killed process leaves a temporary file or folder, never half of what readers look for. A write that fails (a full
disk) leaves nothing, and is one line with the name of what was to be written. Files have the mode that the umask asks
for.

Limits: local disks. A file is read whole once to compare its sha256.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_specs.storage import whole_files
from data_specs.storage.whole_files import flush, sha256_of
from training.errors import CheckpointError, RunError, first_line

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT_VERSION = 2
"""Raised when a file of a checkpoint changes its meaning; a reader refuses every other one."""

INDEX = "checkpoint.json"
"""Names the files of a folder with their bytes and sha256; written last, so a folder that has it is whole."""

_ADVICE = "; use an earlier checkpoint of its run, or move this one away and run the same command again"
"""What to do about a damaged checkpoint."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_file(out: Path) -> Iterator[Path]:
    """Yields a temporary path that takes the name `out` when the block ends, deleted if it fails. Raises RunError."""
    check_name(out)
    with write_errors(out), whole_files.whole_file(out) as temporary:
        yield temporary


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `folder`, with an index of its files, when the block ends without error.

    An earlier folder of that name is replaced. It is moved aside first, and deleted when the other is in its place: a
    kill loses none of the two, and the next call here puts it back where it left a gap.
    """
    check_name(folder)
    folder = folder.resolve() if folder.is_symlink() else folder
    temporary, aside = (folder.with_name(f".{folder.name}.{mark}") for mark in (f"{os.getpid()}.tmp", "before"))
    shutil.rmtree(temporary, ignore_errors=True)
    _put_back(aside, folder)
    with write_errors(folder):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            files = {path.name: _describe(path) for path in sorted(temporary.iterdir())}
            index = {"checkpoint_version": CHECKPOINT_VERSION, "wenlan": _version(), "files": files}
            (temporary / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
            flush(temporary / INDEX)
            if folder.is_dir():
                folder.rename(aside)
            temporary.rename(folder)
        except BaseException:
            _put_back(aside, folder)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        flush(folder.parent)
        _put_back(aside, folder)


def check_name(out: Path) -> None:
    """Raise RunError for a path without a name, such as `.`: nothing beside it could be renamed to it."""
    if not out.name:
        raise RunError(str(out), "does not end in a name; give the path of the file or folder to write")


def _put_back(aside: Path, folder: Path) -> None:
    """Give a folder that was moved aside its name again, if none has it, and else delete it."""
    if not folder.exists() and aside.exists():
        aside.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def add_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file into a folder with an index, in place of an earlier one, and name it in the index.

    The index names it only while it is whole: a killed process leaves the folder without the file. Raises RunError.
    """
    with write_errors(folder / name):
        index = json.loads((folder / INDEX).read_bytes())
        if index["files"].pop(name, None) is not None:
            _write_index(folder, index)
        with atomic_file(folder / name) as temporary:
            write_tensors(temporary, tensors)
        index["files"][name] = _describe(folder / name)
        index["files"] = dict(sorted(index["files"].items()))
        _write_index(folder, index)


def _write_index(folder: Path, index: Mapping[str, Any]) -> None:
    with atomic_file(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    flush(folder)


@contextmanager
def write_errors(out: Path) -> Iterator[None]:
    """Turn an error of writing into a RunError that names `out`: the operating system's error often lacks the file."""
    try:
        yield
    except OSError as e:
        # A file that was only to be read, or a cache, has its own name in the error: it is not what was to be written.
        if e.filename is not None and not _belongs_to(Path(str(e.filename)).absolute(), out.absolute()):
            raise
        raise _write_error(out, e) from None
    except RuntimeError as e:
        # torch.save closes its archive, which fails again and hides why the archive could not be written.
        if isinstance(e.__context__, OSError) and e.__context__.errno in _FULL:
            raise _write_error(out, e.__context__) from None
        raise


def _belongs_to(path: Path, out: Path) -> bool:
    """True if a path is `out` or a folder that it lies in, or lies in it or in its temporary file or folder."""
    if path == out or path in out.parents or out in path.parents:
        return True
    return path.is_relative_to(out.parent) and path.relative_to(out.parent).parts[0].startswith(f".{out.name}.")


def _write_error(out: Path, error: OSError) -> RunError:
    advice = "; free some space and run the same command again" if error.errno in _FULL else ""
    return RunError(str(out), f"cannot be written: {error.strerror or first_line(error)}{advice}")


@dataclass(frozen=True, slots=True)
class VerifiedFolder:
    """A folder with an index: all its files are there in full size. `files`: sha256 by file name."""

    folder: Path
    files: Mapping[str, str]

    @staticmethod
    def open(folder: Path, needed: Collection[str] | None = None) -> VerifiedFolder:
        """Read the index and compare the files' sizes; only of those that are `needed`, if that is given.

        Raises CheckpointError: no index of ours, another version, a file that is missing or of another size.
        """
        name = str(folder / INDEX)
        try:
            index = json.loads((folder / INDEX).read_bytes())
            written = index["checkpoint_version"]
            files = {str(k): (int(v["bytes"]), str(v["sha256"])) for k, v in index["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise CheckpointError(name, "not the index of a wenlan checkpoint") from None
        if written != CHECKPOINT_VERSION:
            older = isinstance(written, int) and written < CHECKPOINT_VERSION
            problem = "is older than" if older else "is newer than"
            advice = "train again, or import again" if older else "upgrade wenlan"
            raise CheckpointError(
                name, f"checkpoint version {written} {problem} this wenlan reads ({CHECKPOINT_VERSION}); {advice}"
            )
        for file, (size, _) in files.items():
            if needed is not None and file not in needed:
                continue
            path = folder / file
            if path.parent != folder or not _is_file(path):
                raise CheckpointError(str(path)[:500], "missing from the checkpoint")
            if path.stat().st_size != size:
                problem = f"{path.stat().st_size} bytes, but {size} in checkpoint.json: truncated or replaced"
                raise CheckpointError(str(path), problem + _ADVICE)
        return VerifiedFolder(folder, {file: digest for file, (_, digest) in files.items()})

    def verified_path(self, file: str) -> Path:
        """Path of a file whose sha256 is the one in the index. Raises CheckpointError."""
        if file not in self.files:
            raise CheckpointError(
                str(self.folder / INDEX), f"does not list {file}; training cannot resume from this checkpoint"
            )
        path = self.folder / file
        if sha256_of(path) != self.files[file]:
            raise CheckpointError(str(path), f"its sha256 differs from checkpoint.json: damaged or replaced{_ADVICE}")
        return path

    def verify_all(self) -> None:
        """Compare the sha256 of every file. Raises CheckpointError on the first that differs."""
        for file in self.files:
            self.verified_path(file)

    def text(self, file: str) -> str:
        """Content of a UTF-8 file. Raises CheckpointError."""
        try:
            return self.verified_path(file).read_bytes().decode()
        except UnicodeDecodeError as e:
            raise CheckpointError(str(self.folder / file), f"not UTF-8 at byte {e.start}") from None

    def object(self, file: str) -> dict[str, Any]:
        """JSON object of a file. Raises CheckpointError."""
        try:
            value = json.loads(self.verified_path(file).read_bytes())
        except (ValueError, RecursionError) as e:  # ValueError also of a number of more than 4,300 digits
            raise CheckpointError(str(self.folder / file), f"not JSON ({e})") from None
        if not isinstance(value, dict):
            raise CheckpointError(str(self.folder / file), "not a JSON object")
        return value

    def tensors(self, file: str) -> dict[str, Tensor]:
        """All tensors of a safetensors file. Raises CheckpointError if it is damaged or a number is not finite."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.verified_path(file)
        try:
            tensors = load_file(path)
            damaged = [n for n, t in tensors.items() if t.is_floating_point() and not all_finite(t)]
        except (SafetensorError, KeyError, ValueError, RuntimeError) as e:  # a type that torch lacks, or cannot judge
            reason = first_line(e)
            raise CheckpointError(str(path), f"not a safetensors file ({reason})") from None
        if damaged:
            problem = f"{damaged[0]} contains NaN or infinity; the run had diverged before it was saved"
            raise CheckpointError(str(path), problem)
        return tensors


def all_finite(tensor: Tensor) -> bool:
    """True if no number of a floating-point tensor is NaN or infinite."""
    # A sum of which one number is not finite is not either; one that is too large is found by looking again.
    summed = tensor.dtype.itemsize > 1  # torch does not add up float8
    return (summed and bool(tensor.sum().isfinite())) or bool(tensor.isfinite().all())


def _is_file(path: Path) -> bool:
    """True if there is such a file; False also for a name that no file can have."""
    try:
        return path.is_file()
    except OSError:  # a name of thousands of characters, as a damaged index may hold
        return False


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file and flush it to the disk. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)  # of the umask, which cannot be asked for without changing it
    try:
        about = None if metadata is None else dict(metadata)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, metadata=about)
    except SafetensorError as e:  # as it reports a full disk: `I/O error: No space left on device (os error 28)`
        code = re.search(r"os error (\d+)", str(e))
        number = int(code.group(1)) if code else errno.EIO
        raise OSError(number, os.strerror(number) if code else first_line(e), str(path)) from None
    path.chmod(mode)  # safetensors renames a file of its own, of mode 0600, into place
    flush(path)


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _version() -> str:
    try:
        return version("wenlan")
    except PackageNotFoundError:
        return "unknown"
