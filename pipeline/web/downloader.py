"""Runs img2dataset's `Downloader` over some URLs in this process.

Used of img2dataset (https://github.com/rom1504/img2dataset): its `Downloader`, that is the bound on images that wait in
memory, the retries, and the statistics per shard in its own format. Its command line is not used:
it writes shards of its own (no partition that is committed, no reason per failure, no cache across builds), re-encodes
images, and starts its own processes. Its HTTP is not used either: `urllib.request.urlopen`, which it calls, goes
through the opener that is installed around `download` (`pipeline.web.image_opener`). Its threads are those of `_Pool`.

Its module is loaded without its package's `__init__`, which imports what only the command line needs: torch, pandas,
albumentations (which asks the network for a newer version of itself) and wandb. That would be 4 to 10 seconds and
330 MB of every worker, measured with img2dataset 1.47.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import queue
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa

from pipeline.errors import StageError

Accept = Callable[[str, bytes | None, str], None]
"""Takes the result for one URL: (url, bytes or None, error message). Called from one thread, in order of arrival."""


def download(urls: list[str], accept: Accept, *, threads: int, retries: int, timeout_s: float) -> dict[str, Any]:
    """Download URLs; returns img2dataset's statistics. Raises what `accept` raises, after all URLs have been tried."""
    writer = _Writer(accept)
    with tempfile.TemporaryDirectory(prefix="wenlan-fetch-") as folder:
        shard = f"{folder}/urls.arrow"
        table = pa.table({"url": urls})
        with pa.OSFile(shard, "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
            out.write_table(table)
        downloader_class()(
            sample_writer_class=lambda *_: writer,
            resizer=lambda stream, _: (stream.read(), None, None, None, None, None),  # the bytes as they came
            thread_count=threads,
            save_caption=False,
            extract_exif=False,
            output_folder=folder,
            column_list=["url"],
            timeout=timeout_s,
            number_sample_per_shard=max(10, len(urls)),  # it takes the logarithm to base 10 for the digits of a key
            oom_shard_count=1,
            compute_hash=None,
            verify_hash_type=None,
            encode_format="jpg",
            retries=retries,
            user_agent_token=None,
            disallowed_header_directives=None,  # it lets `noai, max-image-preview:large` pass; the opener does not
        ).download_shard((0, shard))
        writer.check()
        stats: dict[str, Any] = json.loads(Path(f"{folder}/0_stats.json").read_text(encoding="utf-8"))
        return stats


@functools.cache
def downloader_class() -> Any:
    """img2dataset's `Downloader`, loaded as the module's docstring says.

    Nothing stays in `sys.modules`, so that whoever imports img2dataset afterwards gets it whole.
    """
    spec = importlib.util.find_spec("img2dataset")
    if spec is None or spec.submodule_search_locations is None:
        raise StageError("fetch", "img2dataset is not installed; install wenlan[pipeline]")
    before = {name: module for name, module in sys.modules.items() if _is_stand_in(name)}
    package = ModuleType("img2dataset")  # an empty package at the right place: its modules can be imported from it
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules |= {"img2dataset": package, "wandb": before.get("wandb", ModuleType("wandb"))}
    try:
        module = importlib.import_module("img2dataset.downloader")
        module.ThreadPool = _Pool  # type: ignore[attr-defined]
        return module.Downloader
    finally:
        for name in [name for name in sys.modules if _is_stand_in(name)]:
            del sys.modules[name]
        sys.modules |= before


def _is_stand_in(name: str) -> bool:
    """Whether a module is replaced while the downloader is loaded."""
    return name == "wandb" or name.partition(".")[0] == "img2dataset"


class _Pool:
    """What the downloader uses of `multiprocessing.pool.ThreadPool`: threads that fetch, and results as they arrive.

    In a ThreadPool every URL passes through two more threads, one that hands out tasks and one that collects results.
    Here a thread takes its next URL itself, since waking a thread costs as much as reading the headers of a response.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._taking = threading.Lock()
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ended = False

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()

    def imap_unordered(self, fetch: Callable[[Any], Any], rows: Iterator[Any]) -> Iterator[Any]:
        """The result for each row in order of arrival. `rows` may wait until results have been taken."""
        for number in range(self._threads):
            name = f"wenlan-fetch-{number}"
            threading.Thread(target=self._work, args=(fetch, rows), name=name, daemon=True).start()
        for _ in range(self._threads):
            while (result := self._results.get()) is not _END:
                yield result

    def _work(self, fetch: Callable[[Any], Any], rows: Iterator[Any]) -> None:
        try:
            while not self._ended:
                with self._taking:
                    row = next(rows, _END)
                if row is _END:
                    break
                self._results.put(fetch(row))
        finally:
            self._results.put(_END)

    def terminate(self) -> None:
        """Take no more rows."""
        self._ended = True

    def join(self) -> None:
        """Nothing to wait for: once all results are taken, no thread has anything left to do."""


_END = object()


class _Writer:
    """img2dataset's sample writer: passes each result on. Its caller swallows exceptions, so the first one is kept."""

    def __init__(self, accept: Accept) -> None:
        self._accept = accept
        self._failure: Exception | None = None

    def write(self, data: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
        """Called by img2dataset for each sample."""
        if self._failure is None:
            try:
                self._accept(meta["url"], data, meta["error_message"] or "")
            except Exception as e:
                self._failure = e

    def close(self) -> None:
        """Called by img2dataset at the end; there is nothing to close."""

    def check(self) -> None:
        """Raise what went wrong."""
        if self._failure is not None:
            raise self._failure
