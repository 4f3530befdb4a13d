"""Stage rank: what dedup compares, prepared in parallel and sorted by rank.

Pairs rank by (larger image, candidate_id). A partition is a `run`: neighbouring partitions of filter, up to RUN pairs,
of which it writes the columns that the leader pass looks at: hashes, signatures, and of each text its id and sketch, so
that the one pass that must go in order (`pipeline.stages.lead`) does nothing that could be done beside it.
`merged` then reads all runs as one sequence by rank.

A sort within runs and a merge, and not one sort, because no step may hold all pairs: a run is held while it is written
(about 3 KB a pair), and the merge holds BUFFER rows, however many runs there are.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.files.digests import DIGEST, column_of, digests_of, unhex
from pipeline.matching import text_rows
from pipeline.records import TEXTS_TYPE
from pipeline.store.build import Build
from pipeline.store.partitions import Record, StageDir
from pipeline.store.stage import Stage, StageFile
from pipeline.texts.folding import normals

VERSION = 1
INPUTS: tuple[str, ...] = ("filter",)

RUN = 100_000
BUFFER = 20_000
ROW_GROUP = 1_000

RUN_SCHEMA = pa.schema(
    [
        ("position", pa.int32()),  # among the run's pairs by (order_key, candidate_id)
        ("candidate_id", DIGEST),
        ("fetch_id", DIGEST),
        ("sha256", DIGEST),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("phash", pa.list_(pa.uint64())),
        ("signature", pa.binary()),
        ("domain", pa.uint64()),  # of the page; 0 = none
        ("texts", TEXTS_TYPE),
        ("sketches", pa.list_(text_rows.FIELDS)),  # one for each of texts
    ]
)


def token(build: Build) -> Any:
    return {"run": RUN, "sketch": text_rows.token(build.spec.dedup.text_similarity)}


def partitions(build: Build) -> list[str]:
    """`iiiii-jjjjj-of-PPPPP`: partitions i to j of filter, both inclusive."""
    runs: list[list[str]] = []
    pairs = 0
    for record in build.stage("filter").records():
        if not runs or pairs + record.counts["kept"] > RUN:
            runs.append([])
            pairs = 0
        runs[-1].append(record.partition)
        pairs += record.counts["kept"]
    return [f"{run[0][:5]}-{run[-1]}" for run in runs]


def parts_of(run: str) -> list[str]:
    """The partitions of filter that a run is made of."""
    first, last, _, of = run.split("-")
    return [f"{i:05d}-of-{of}" for i in range(int(first), int(last) + 1)]


def pairs_of(build: Build, run: str, columns: list[str] | None = None) -> pa.Table:
    """The run's pairs (PAIR_SCHEMA) by (order_key, candidate_id)."""
    stage = build.stage("filter")
    tables = [stage.table(stage.record(part), columns=columns) for part in parts_of(run)]
    return pa.concat_tables(tables).combine_chunks()


def run_partition(build: Build, partition: str) -> None:
    """One run, by rank."""
    columns = ["candidate_id", "fetch_id", "sha256", "width", "height", "phash", "signature"]
    pairs = pairs_of(build, partition, [*columns, "page_url", "image_url", "texts"])
    table = prepared(pairs, build.spec.dedup.text_similarity)
    with build.stage("rank").attempt(partition) as attempt:
        attempt.write_table("parquet", table, row_group_size=ROW_GROUP)
        attempt.commit({"pairs": table.num_rows, "texts": len(table["texts"].combine_chunks().flatten())})


def prepared(pairs: pa.Table, threshold: float) -> pa.Table:
    """RUN_SCHEMA rows by rank, from rows of PAIR_SCHEMA; `position` is where a row stands in `pairs`.

    threshold: the similarity at which texts will be compared.
    """
    texts = pairs["texts"].combine_chunks() if pairs.num_rows else pa.array([], TEXTS_TYPE)
    flat = normals(texts.flatten().field("text").to_pylist())
    offsets = pc.subtract(texts.offsets, texts.offsets[0]) if len(texts) else pa.array([0], pa.int32())
    distinct = list(dict.fromkeys(flat))
    number = {text: i for i, text in enumerate(distinct)}
    which = pa.array([number[text] for text in flat], pa.int32())
    sketches = text_rows.made(distinct, threshold).columns().take(which)
    page, image = pairs["page_url"].to_pylist(), pairs["image_url"].to_pylist()
    columns = {
        "position": pa.array(np.arange(pairs.num_rows), pa.int32()),
        **{name: column_of(unhex(pairs[name].to_pylist())) for name in ("candidate_id", "fetch_id", "sha256")},
        **{name: pairs[name] for name in ("width", "height", "phash", "signature", "texts")},
        "domain": pa.array([domain_key(p or i) for p, i in zip(page, image, strict=True)], pa.uint64()),
        "sketches": pa.ListArray.from_arrays(offsets, sketches),
    }
    table = pa.table({name: columns[name] for name in RUN_SCHEMA.names}).cast(RUN_SCHEMA)
    keys = {"pixels": _pixels(table), "id": table["candidate_id"]}
    order = pc.sort_indices(pa.table(keys), sort_keys=[("pixels", "descending"), ("id", "ascending")])
    return table.take(order)


def merged(stage: StageDir, records: Sequence[Record], block: int) -> Iterator[tuple[pa.Table, Any]]:
    """All runs as one sequence by rank: (RUN_SCHEMA rows, run of each row as a number in `records`), `block` at a time.

    Holds BUFFER rows beside a block.
    """
    with contextlib.ExitStack() as files:
        paths = [files.enter_context(stage.file(record, "parquet")) for record in records]
        size = max(256, BUFFER // max(1, len(paths)))
        cursors = [_Cursor(str(path), size, number) for number, path in enumerate(paths)]
        if len(cursors) == 1:  # what most builds are: nothing to merge
            for table in cursors[0].tables(block):
                yield table, np.zeros(table.num_rows, np.int32)
            return
        keys = heapq.merge(*(cursor.keys() for cursor in cursors))
        while runs := [run for _, run in _some(keys, block)]:
            of_row = np.array(runs, np.int32)
            present, counts = np.unique(of_row, return_counts=True)
            taken = pa.concat_tables([cursors[run].take(n) for run, n in zip(present, counts, strict=True)])
            where = np.empty(len(of_row), np.int64)
            where[np.argsort(of_row, kind="stable")] = np.arange(len(of_row))
            yield taken.take(pa.array(where)).combine_chunks(), of_row


class _Cursor:
    """Reads one run in order: its keys ahead, its rows as they are taken."""

    def __init__(self, path: str, size: int, number: int) -> None:
        self._path, self._size, self._number = path, size, number
        self._ahead: deque[pa.Table] = deque()

    def tables(self, size: int) -> Iterator[pa.Table]:
        with pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(batch_size=size):
                yield pa.Table.from_batches([batch])

    def keys(self) -> Iterator[tuple[bytes, int]]:
        for table in self.tables(self._size):
            self._ahead.append(table)
            smaller = (np.iinfo(np.int64).max - _pixels(table).to_numpy()).astype(">u8")
            joined = np.concatenate([smaller.view(np.uint8).reshape(-1, 8), digests_of(table["candidate_id"])], axis=1)
            for key in np.ascontiguousarray(joined).view("V40").ravel().tolist():
                yield key, self._number

    def take(self, count: int) -> pa.Table:
        """The next `count` rows, of those whose keys were read."""
        parts = []
        while count:
            first = self._ahead.popleft()
            parts.append(first.slice(0, count))
            if first.num_rows > count:
                self._ahead.appendleft(first.slice(count))
            count -= parts[-1].num_rows
        return pa.concat_tables(parts)


def _some(keys: Iterator[tuple[bytes, int]], count: int) -> Iterator[tuple[bytes, int]]:
    for _, key in zip(range(count), keys, strict=False):  # in this order: no key is read and lost
        yield key


def _pixels(table: pa.Table) -> Any:
    return pc.multiply(table["width"].cast(pa.int64()), table["height"].cast(pa.int64()))


@functools.lru_cache(maxsize=1)
def _public_suffixes() -> Any:
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList()


@functools.lru_cache(maxsize=100_000)
def _domain_of_host(netloc: str) -> str:
    try:
        host = urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""
    last = host.rpartition(".")[2]
    if ":" in host or last.isdigit():  # an address has no parents
        return host
    return str(_public_suffixes().privatesuffix(host) or host) if host else ""


def domain_of(url: str) -> str:
    """The registered domain of a URL's host (publicsuffix.org), the host itself where it has none; "" for no host."""
    return _domain_of_host(_netloc(url))


def domain_key(url: str) -> int:
    """64 bits of a hash of the registered domain; 0 for none."""
    return _key_of_host(_netloc(url))


def _netloc(url: str) -> str:
    """Between the scheme and the path: splitting a URL in full costs more than all else that rank does with it."""
    return url.partition("://")[2].split("/", 1)[0].split("?", 1)[0]


@functools.lru_cache(maxsize=100_000)
def _key_of_host(netloc: str) -> int:
    domain = _domain_of_host(netloc)
    return int.from_bytes(hashlib.sha256(domain.encode()).digest()[:8], "big") if domain else 0


STAGE = Stage(
    name="rank",
    zh="排序",
    folder="ranked",
    inputs=INPUTS,
    version=VERSION,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=(StageFile("parquet", RUN_SCHEMA),),
    subject="",
    rewrites_others=False,
)
