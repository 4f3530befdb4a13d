"""The index of a place: one row for each candidate with the columns that need a join, in a file that DuckDB queries.

Made once in the background, in bounded memory (DuckDB spills to the disk), and kept in BUILD/studio, so that a build
opens at once from the second time on. It holds ids cut to 64 bits, names of sources and reasons, and numbers: no text
and no address, so a takedown leaves nothing in it, and since it is named by the files that it was made from, none is
used that is older than the build's records.

    kind              of the primary text: extract's candidates; of samples, their shard
    width, height     of the picture as fetched: fetch joined with measure; of samples, as stored
    cluster           how many candidates have the same leader, itself included
    new               whether the baseline build decided on the same candidate

The value of each facet is a small number (`code_column`), whose meaning stands in the table `codes` with how many rows
have it: where nothing is chosen yet nothing is counted, and a million rows are counted by a dozen facets in a fraction
of a second.

Limits: 64 bits tell a billion candidates apart but for one chance in forty. Where the build's folder is not a local one
that can be written, or several builds are shown, the index lies in a temporary folder and is made again each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.store.build import Build
from pipeline.store.frames import Frames
from pipeline.store.sql import Tables, head, parquet, quoted
from pipeline.studio.catalog import Catalog, code_column
from pipeline.studio.similar import ID_OF_INDEX

VERSION = 4
"""Raised when the index has other columns, or the same input gives other values."""

LEFT_S = 3600.0
"""Seconds without a write after which a half-made index counts as abandoned."""


class Preparation:
    """Makes the index of a catalog, or finds it. state: "preparing", "ready", or "failed" with `fault` in words."""

    def __init__(self, catalog: Catalog, baseline: Build | None, folder: Path) -> None:
        self.catalog, self.baseline, self._folder = catalog, baseline, folder
        self.state, self.fault, self.share, self.seconds = "preparing", "", 0.0, 0.0
        self._stopped, self._after_s, self._woken = False, 0.0, threading.Event()
        self._tables: Tables | None = None
        self._thread = threading.Thread(target=self._run, name="studio-index", daemon=True)

    def start(self, after_s: float = 0.0) -> None:
        """Begin, after some seconds if the index is not there yet; one that is there is used at once."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / self._file_name
        if path.exists():
            with contextlib.suppress(Exception):  # damaged, or of another DuckDB: made again
                self.catalog.use_index(str(path))
                self.state, self.share = "ready", 1.0
                return
        self._after_s = after_s
        self._thread.start()

    def stop(self) -> None:
        """Give up what is not ready, and wait for the thread."""
        self._stopped = True
        self._woken.set()
        with contextlib.suppress(Exception):
            if self._tables is not None:
                self._tables.interrupt()
        if self._thread.is_alive():
            self._thread.join()

    def wait(self) -> None:
        """Until it is ready or has failed."""
        if self._thread.is_alive():
            self._thread.join()

    @property
    def _file_name(self) -> str:
        import duckdb

        base = [part.url for part in Frames.of(self.baseline).parts("decisions")] if self.baseline else []
        value = (VERSION, duckdb.__version__, self.catalog.digest, base)
        return f"index-{hashlib.sha256(repr(value).encode()).hexdigest()[:16]}.duckdb"

    def _run(self) -> None:
        self._woken.wait(self._after_s)
        began, path = time.monotonic(), self._folder / self._file_name
        partial = self._folder / f".{uuid.uuid4().hex[:8]}.duckdb"
        try:
            self._make(partial)
            if self._stopped:
                return
            partial.replace(path)
            self.catalog.use_index(str(path))
            self.state, self.share = "ready", 1.0
            self._sweep(path)
        except Exception as e:
            fault = e.message if isinstance(e, PipelineError) else str(e).splitlines()[0][:200]
            self.state, self.fault = "failed", fault
        finally:
            self.seconds = time.monotonic() - began
            for left in self._folder.glob(f"{partial.name}*"):
                left.unlink(missing_ok=True)

    def _sweep(self, path: Path) -> None:
        """Delete indexes of other files, and what a killed studio left half made."""
        for other in self._folder.glob("index-*.duckdb"):
            if other != path:
                other.unlink(missing_ok=True)
        for left in self._folder.glob(".*.duckdb*"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > LEFT_S:
                    left.unlink()

    def _make(self, path: Path) -> None:
        others = {} if self.baseline is None else {"earlier": Frames.of(self.baseline)}
        with Tables(self.catalog.frames, others, only_present=True) as self._tables:
            self._tables.execute("SET preserve_insertion_order = false")
            self._tables.execute(f"ATTACH '{quoted(str(path))}' AS made")
            self._tables.open_files(source.part for source in self.catalog.sources)
            self._tables.put("sources", self.catalog.numbered)
            self._tables.execute(f"CREATE TEMP VIEW listed AS {self.catalog.decisions_sql}")
            steps = list(self._steps())
            for number, step in enumerate(steps):
                if self._stopped:
                    return
                self._tables.execute(step)
                self.share = (number + 1) / (len(steps) + 1)
            self._tables.execute("DETACH made")

    def _steps(self) -> Iterator[str]:
        yield (
            f"CREATE TEMP TABLE kinds AS SELECT {head('candidate_id')} AS cid, any_value(texts[1].kind) AS kind "
            "FROM candidates GROUP BY 1"
        )
        yield _stored(self.catalog)
        yield (
            f"CREATE TEMP TABLE pictures AS SELECT fid, any_value(width) AS width, any_value(height) AS height "
            f"FROM (SELECT {head('fetch_id')} AS fid, {head('sha256')} AS sha FROM fetched WHERE ok) "
            f"JOIN (SELECT *, {head('sha256')} AS sha FROM measures) USING (sha) GROUP BY fid"
        )
        yield (
            f"CREATE TEMP TABLE groups AS SELECT {head('duplicate_of')} AS leader, count(*) AS count FROM listed "
            "WHERE duplicate_of <> '' AND duplicate_of <> id GROUP BY 1"
        )
        earlier = "FROM earlier.decisions" if self.baseline is not None else "FROM (SELECT '' AS id) WHERE false"
        yield f"CREATE TEMP TABLE before AS SELECT DISTINCT {head('id')} AS cid {earlier}"
        yield self._join_sql()
        yield "CREATE TABLE made.codes (facet VARCHAR, value VARCHAR, code UINTEGER, count UBIGINT)"
        for name, facet in self.catalog.facets.items():
            yield from _values(name, facet.expression)
        yield self._codes_sql()

    def _join_sql(self) -> str:
        new = "NULL::VARCHAR" if self.baseline is None else (
            "CASE WHEN d.subject <> 'candidate' THEN NULL WHEN b.cid IS NULL THEN 'new' ELSE 'seen' END"
        )  # fmt: skip
        return f"""
            CREATE TEMP TABLE joined AS
            SELECT d.*, coalesce(s.kind, k.kind) AS kind, s.split, coalesce(s.width, p.width) AS width,
                coalesce(s.height, p.height) AS height,
                CASE WHEN d.subject = 'candidate' THEN coalesce(g.count, 0) + 1 END::INTEGER AS cluster,
                {new} AS new
            FROM (SELECT {self.catalog.columns_sql}, {head("fetch_id")} AS fid FROM listed) d
            LEFT JOIN kinds k USING (cid) LEFT JOIN stored s ON s.cid = d.cid AND d.kept
            LEFT JOIN pictures p USING (fid) LEFT JOIN groups g ON g.leader = d.leader
            LEFT JOIN before b ON b.cid = d.cid"""

    def _codes_sql(self) -> str:
        """The index itself: numbers only, in the order of the files."""
        codes = ", ".join(
            f"enum_code(({facet.expression})::values_{name}) AS {code_column(name)}"
            for name, facet in self.catalog.facets.items()
        )
        return f"CREATE TABLE made.prepared AS SELECT pos, cid, leader, {_SORTED}, {codes} FROM joined ORDER BY pos"


_SORTED = "width, height, cluster"
"""Columns that a listing may be in the order of."""


def _values(name: str, expression: str) -> Iterator[str]:
    """Number the values of a facet, and count them."""
    kind = f"values_{name}"
    yield f"CREATE TEMP TYPE {kind} AS ENUM (SELECT DISTINCT {expression} AS value FROM joined ORDER BY value)"
    yield (
        f"INSERT INTO made.codes SELECT '{name}', value, enum_code(value::{kind}), count FROM "
        f"(SELECT {expression} AS value, count(*) AS count FROM joined GROUP BY value)"
    )


def _stored(catalog: Catalog) -> str:
    """Samples: of the present shards, and rows of a search index."""
    sides = "nullif(width, 0) AS width, nullif(height, 0) AS height"
    columns = f"texts[1].kind AS kind, nullif(split, '') AS split, {sides}"
    indexes = [source.part.url for source in catalog.sources if source.layout == "index"]
    rows = f"SELECT {head('candidate_id')} AS cid, {columns} FROM samples"
    rows += f" UNION ALL SELECT {head(f'({ID_OF_INDEX})')}, {columns} FROM {parquet(indexes)}" if indexes else ""
    values = ", ".join(f"any_value({name}) AS {name}" for name in ("kind", "split", "width", "height"))
    return f"CREATE TEMP TABLE stored AS SELECT cid, {values} FROM ({rows}) GROUP BY cid"
