"""Saving in the background: checkpoints are written while the run goes on, and copied to a mirror on other storage.

`Saver.save` takes a copy of the tensors on the CPU and returns; a thread writes, flushes and renames, then copies the
folder to `run.mirror`, a folder or URL that fsspec opens, its checkpoint.json last. One write is under way at a time:
a second `save` waits for the first. What went wrong in the thread is raised by the next call.

Why a mirror of our own and not Ray Train's storage: the same run may go on under plain python, torchrun or Ray, on
machines that share no disk. `fetch` brings the newest whole checkpoint of the mirror into an empty run folder, and
`fetch_best` the one with the highest recall.

Limits: `run.save_in_background` holds one more copy of the training state in memory while it is written.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import posixpath
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from data_specs.storage import object_store
from data_specs.storage.object_store import reason, storage_errors
from data_specs.storage.store_lock import LockedError, check_locks, locked
from training.config import Config
from training.data.tokenizer import Tokenizer
from training.errors import ConfigError, InputError, RunError
from training.outputs import checkpoint
from training.outputs.atomic_files import INDEX
from training.outputs.checkpoint import Parts, RunState

if TYPE_CHECKING:
    import torch

    from training.moco import BriVL

LOG = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of one run, on the rank that writes. Use as a context: leaving it waits as `wait` does."""

    def __init__(self, run: Path, config: Config, tokenizer: Tokenizer) -> None:
        self._run, self._config, self._tokenizer = run, config, tokenizer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._underway: Future[None] | None = None
        checkpoint.clean(run)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._thread.shutdown(wait=True)
        try:
            self.wait()
        except Exception as e:
            if error is None:
                raise
            LOG.error("the last checkpoint was not saved: %s", e)  # beside what ended the run

    def save(self, model: BriVL, optimizer: torch.optim.Optimizer, state: RunState, *, best: bool = False) -> None:
        """Start writing the model in its present state. Raises the error of an earlier write, if it failed."""
        self.wait()
        parts = checkpoint.parts_of(model, optimizer, copied=self._config.run.save_in_background)
        context = contextvars.copy_context()  # with the lock that is held on the mirror
        self._underway = self._thread.submit(context.run, self._write, parts, state, best)
        if not self._config.run.save_in_background:
            self.wait()

    def wait(self) -> None:
        """Wait until every started write is on the disk (and on the mirror). Raises the error of a failed one."""
        underway, self._underway = self._underway, None
        if underway is not None:
            underway.result()

    def _write(self, parts: Parts, state: RunState, best: bool) -> None:
        keep_last = self._config.run.keep_last
        folder = checkpoint.write(self._run, parts, self._config, self._tokenizer, state, keep_last, best=best)
        if self._config.run.mirror:
            kept = [path.name for path in checkpoint.folders(self._run)]
            _copy(folder, self._config.run.mirror, kept)


def fetch(run: Path, mirror: str, name: str = "") -> None:
    """Copy the newest checkpoint of `mirror` into `run`, if it is newer than those in it; or the one of a name.

    Nothing is done where the mirror lacks such a checkpoint. Raises RunError.
    """
    fs, root = _filesystem(mirror)
    with storage_errors(mirror):
        whole = [step for step in _names(fs, root) if fs.exists(posixpath.join(root, step, INDEX))]
    wanted = name or max(whole, key=_step, default="")
    ours = checkpoint.latest(run)
    if wanted not in whole or (not name and ours is not None and checkpoint.step_of(ours) >= _step(wanted)):
        return
    _bring(fs, root, mirror, run / "checkpoints" / wanted)


def fetch_best(run: Path, mirror: str) -> None:
    """Copy the best checkpoint from `mirror` into `run` and name it `best`, unless `run` has a best one.

    Without it the next copy would remove it from the mirror too, as one that the run does not keep. Nothing is done
    where the mirror has it not. Raises RunError.
    """
    newest = checkpoint.latest(run)
    link = run / "checkpoints" / checkpoint.BEST
    if newest is None or link.exists():
        return
    try:
        opened = checkpoint.open_checkpoint(newest)
        best = f"step-{opened.state().best_step:08d}"
    except InputError:
        return  # going on from it says what is wrong
    if not opened.config.run.keep_best or not checkpoint.STEP_FOLDER.fullmatch(best):
        return
    folder = link.with_name(best)
    if not (folder / INDEX).is_file():
        fetch(run, mirror, best)
    if (folder / INDEX).is_file():
        checkpoint.name_best(folder)


def _bring(fs: Any, root: str, mirror: str, folder: Path) -> None:
    """Copy a checkpoint of a mirror to `folder`, whole or not at all. Raises RunError."""
    LOG.info("%s: fetched from %s", folder, mirror)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    source = posixpath.join(root, folder.name)
    try:
        with storage_errors(mirror):
            for path in fs.ls(source, detail=False):
                fs.get_file(path, str(temporary / posixpath.basename(path)))
        if not (folder / INDEX).is_file():
            shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError as e:
        shutil.rmtree(temporary, ignore_errors=True)
        if (folder / INDEX).is_file():
            return  # another process of this machine was quicker
        raise RunError(mirror, f"{folder.name} cannot be fetched ({e.strerror or e})") from None


@contextlib.contextmanager
def locked_mirror(mirror: str) -> Iterator[None]:
    """Be the only run that copies to `mirror`, where that is on an object store with locks. Raises RunError.

    On a disk nothing is locked: there the run's own folder is.
    """
    with contextlib.ExitStack() as held:
        if mirror.startswith(("s3://", "s3a://")):
            try:
                held.enter_context(locked(posixpath.join(mirror, "_lock"), 0.0))
            except LockedError as e:
                raise RunError(
                    mirror, f"another run is writing to it (its lock {e.strerror}); choose another"
                ) from None
        yield


@contextlib.contextmanager
def local_checkpoint(url: str) -> Iterator[Path]:
    """Yields a local copy of the checkpoint at `url`, or of a mirror's newest, deleted when the block ends.

    Raises RunError.
    """
    url = url.rstrip("/")
    fs, path = _filesystem(url)
    with tempfile.TemporaryDirectory(prefix="wenlan-") as scratch:
        run = Path(scratch)
        with _read_errors(url):
            is_one = fs.exists(posixpath.join(path, INDEX))
            mirror, _, name = url.rpartition("/") if is_one else (url, "", "")
            fetch(run, mirror, name)
        found = run / "checkpoints" / name if is_one else checkpoint.latest(run)
        if found is None or not found.is_dir():
            raise RunError(url, f"contains no checkpoint (no {INDEX}, and no folder step-N with one)")
        yield found


@contextlib.contextmanager
def _read_errors(url: str) -> Iterator[None]:
    """Convert errors as `storage_errors` does, and those of a web client, which name no URL, to RunError with it."""
    try:
        with storage_errors(url):
            yield
    except Exception as e:
        aiohttp = sys.modules.get("aiohttp")  # what has not imported it, which takes 0.2 s, has not raised it
        of_client = aiohttp is not None and isinstance(e, aiohttp.ClientError)
        if not of_client and (not isinstance(e, OSError) or e.filename is not None):
            raise
        raise RunError(url, f"cannot be read ({reason(e)})") from None


def copy_again(folder: Path, mirror: str) -> None:
    """Copy a checkpoint to the run's mirror that was added to after it was copied, unless it has been copied since.

    Raises RunError.
    """
    fs, root = _filesystem(mirror)
    index = posixpath.join(root, folder.name, INDEX)
    with storage_errors(mirror):
        if fs.exists(index) and fs.cat_file(index) == (folder / INDEX).read_bytes():
            return
    with locked_mirror(mirror):
        _copy(folder, mirror, [path.name for path in checkpoint.folders(folder.parent.parent)])


def _copy(folder: Path, mirror: str, kept: Sequence[str]) -> None:
    """Copy a checkpoint, its index last; remove those of the mirror that the run does not keep either."""
    fs, root = _filesystem(mirror)
    target = posixpath.join(root, folder.name)
    try:
        with storage_errors(mirror):
            fs.makedirs(target, exist_ok=True)
            for path in sorted(folder.iterdir(), key=lambda p: p.name == INDEX):
                check_locks()
                fs.put_file(str(path), posixpath.join(target, path.name))
            for name in _names(fs, root):
                if name not in kept:
                    object_store.delete(posixpath.join(mirror, name))
    except OSError as e:
        raise RunError(mirror, f"{folder.name} cannot be copied there ({e.strerror or e})") from None


def _names(fs: Any, root: str) -> list[str]:
    """Checkpoint folders of a mirror, whole or not."""
    try:
        listed = fs.ls(root, detail=False)
    except FileNotFoundError:
        return []
    names = (posixpath.basename(path.rstrip("/")) for path in listed)
    return sorted(name for name in names if checkpoint.STEP_FOLDER.fullmatch(name))


def _step(name: str) -> int:
    """Step of a checkpoint by its name: names of eight digits and of nine do not sort as their steps do."""
    return checkpoint.step_of(Path(name))


def _filesystem(mirror: str) -> tuple[Any, str]:
    try:
        fs, root = fsspec.core.url_to_fs(mirror, use_listings_cache=False)
    except (ValueError, ImportError) as e:
        raise ConfigError("run.mirror", f"{mirror}: cannot be opened ({e})") from None
    return fs, root
