"""The index of a place: one row for each candidate with the columns that need a join, in a file that DuckDB queries.

Made once in the background, in bounded memory (DuckDB spills to the disk), and kept in BUILD/studio, so that a build
opens at once from the second time on. It holds ids cut to 64 bits, names of sources and reasons, and numbers: no text
and no address, so a takedown leaves nothing in it, and since it is named by the files that it was made from, none is
used that is older than the build's records.

    kind              of the primary text: extract's candidates; of samples, their shard
    width, height     of the picture as fetched: fetch joined with measure; of samples, as stored
    sharpness ...     of measure; score_NAME: STORE's scores of a model, by the picture's sha256
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
import functools
import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_specs.build import SpecError
from pipeline.errors import ModelError, PipelineError
from pipeline.filters import PixelFilter, pixel_filters
from pipeline.records import FETCH_SCHEMA
from pipeline.store.build import Build
from pipeline.store.frames import SAMPLES, Frames, Part
from pipeline.store.recorded_files import RecordedFiles
from pipeline.store.sql import head, parquet, settings
from pipeline.studio.catalog import Catalog, at_hand, code_column
from pipeline.studio.facets import score_column
from pipeline.studio.layouts import ID_OF_INDEX

VERSION = 3
"""Raised when the index has other columns, or the same input gives other values."""

LEFT_S = 3600.0
"""Seconds without a write after which a half-made index counts as abandoned."""


def score_filters(frames: Frames) -> dict[str, tuple[PixelFilter, Build]]:
    """Filters of the builds' specs whose models are installed here, by name, each with a build that has it."""
    found: dict[str, tuple[PixelFilter, Build]] = {}
    for build in frames.builds:
        for own in pixel_filters(build.spec):
            with contextlib.suppress(ModelError, SpecError):
                if own.score_id:
                    found.setdefault(own.plugin_name(), (own, build))
    return found


class Preparation:
    """Makes the index of a catalog, or finds it. state: "preparing", "ready", or "failed" with `fault` in words."""

    def __init__(self, catalog: Catalog, baseline: Build | None, folder: Path, scratch: Path) -> None:
        self.catalog, self.baseline, self._folder, self._scratch = catalog, baseline, folder, scratch
        self.state, self.fault, self.share, self.seconds = "preparing", "", 0.0, 0.0
        self._stopped, self._after_s, self._woken = False, 0.0, threading.Event()
        self._db: Any = None
        self._thread = threading.Thread(target=self._run, name="studio-index", daemon=True)

    def start(self, after_s: float = 0.0) -> None:
        """Begin, after some seconds if the index is not there yet; one that is there is used at once."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / self._name
        if path.exists():
            with contextlib.suppress(Exception):  # damaged, or of another DuckDB: made again
                self.catalog.use(str(path))
                self.state, self.share = "ready", 1.0
                return
        self._after_s = after_s
        self._thread.start()

    def stop(self) -> None:
        """Give up what is not ready, and wait for the thread."""
        self._stopped = True
        self._woken.set()
        with contextlib.suppress(Exception):
            self._db.interrupt()
        if self._thread.is_alive():
            self._thread.join()

    def wait(self) -> None:
        """Until it is ready or has failed."""
        if self._thread.is_alive():
            self._thread.join()

    @property
    def _name(self) -> str:
        import duckdb

        base = [part.url for part in Frames.of(self.baseline).parts("decisions")] if self.baseline else []
        scores = [(name, f.score_id, b.store.features(f.score_id).commits()) for name, (f, b) in self._scores.items()]
        value = (VERSION, duckdb.__version__, self.catalog.digest, base, scores, self.catalog.columns)
        return f"index-{hashlib.sha256(repr(value).encode()).hexdigest()[:16]}.duckdb"

    @property
    def _scores(self) -> dict[str, tuple[PixelFilter, Build]]:
        own = score_filters(self.catalog.frames)
        return {name: own[name] for name in self.catalog.scores if name in own}

    def _run(self) -> None:
        self._woken.wait(self._after_s)
        began, path = time.monotonic(), self._folder / self._name
        partial = self._folder / f".{uuid.uuid4().hex[:8]}.duckdb"
        try:
            self._make(partial)
            if self._stopped:
                return
            partial.replace(path)
            self.catalog.use(str(path))
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
        import duckdb

        frames = self.catalog.frames
        with contextlib.closing(duckdb.connect(str(path), config=settings(self._scratch))) as db:
            self._db = db
            db.execute("SET preserve_insertion_order = false")
            RecordedFiles(db).add(source.part for source in self.catalog.sources)
            db.execute("CREATE TEMP TABLE sources (number UBIGINT, build VARCHAR)")
            numbered = [(number, source.part.build) for number, source in enumerate(self.catalog.sources)]
            if numbered:
                db.executemany("INSERT INTO sources VALUES (?, ?)", numbered)
            db.execute(f"CREATE TEMP VIEW decisions AS {self.catalog.decisions_sql}")
            steps = list(self._steps(frames))
            for number, step in enumerate(steps):
                if self._stopped:
                    return
                db.execute(step())
                self.share = (number + 1) / (len(steps) + 1)

    def _steps(self, frames: Frames) -> Iterator[Callable[[], str]]:
        yield lambda: _kinds(frames)
        yield lambda: _stored(self.catalog)
        yield lambda: _pictures(frames, self._scores)
        yield lambda: _GROUPS
        yield lambda: _baseline(self.baseline)
        yield lambda: self._joined()
        yield lambda: "CREATE TABLE codes (facet VARCHAR, value VARCHAR, code UINTEGER, count UBIGINT)"
        for name, facet in self.catalog.facets.items():
            yield functools.partial(_values, name, facet.expression)
        yield self._coded

    def _joined(self) -> str:
        scores = "".join(f", p.{score_column(name)}" for name in self.catalog.scores)
        new = "NULL::VARCHAR" if self.baseline is None else (
            "CASE WHEN d.subject <> 'candidate' THEN NULL WHEN b.cid IS NULL THEN 'new' ELSE 'seen' END"
        )  # fmt: skip
        return f"""
            CREATE TEMP TABLE joined AS
            SELECT d.*, coalesce(s.kind, k.kind) AS kind, s.split, coalesce(s.width, p.width) AS width,
                coalesce(s.height, p.height) AS height, p.sharpness, p.entropy, p.blankness,
                CASE WHEN d.subject = 'candidate' THEN coalesce(g.count, 0) + 1 END::INTEGER AS cluster,
                {new} AS new{scores}
            FROM (SELECT {self.catalog.columns_sql}, {head("fetch_id")} AS fid FROM decisions) d
            LEFT JOIN kinds k USING (cid) LEFT JOIN stored s ON s.cid = d.cid AND d.kept
            LEFT JOIN pictures p USING (fid) LEFT JOIN groups g ON g.leader = d.leader
            LEFT JOIN baseline b ON b.cid = d.cid"""

    def _coded(self) -> str:
        """The index itself: numbers only, in the order of the files."""
        codes = ", ".join(
            f"enum_code(({facet.expression})::values_{name}) AS {code_column(name)}"
            for name, facet in self.catalog.facets.items()
        )
        return f"CREATE TABLE prepared AS SELECT pos, cid, leader, {_SORTED}, {codes} FROM joined ORDER BY pos"


_SORTED = "width, height, cluster, sharpness"
"""Columns that a listing may be in the order of."""


def _values(name: str, expression: str) -> str:
    """Number the values of a facet, and count them."""
    kind = f"values_{name}"
    return (
        f"CREATE TEMP TYPE {kind} AS ENUM (SELECT DISTINCT {expression} AS value FROM joined ORDER BY value); "
        f"INSERT INTO codes SELECT '{name}', value, enum_code(value::{kind}), count FROM "
        f"(SELECT {expression} AS value, count(*) AS count FROM joined GROUP BY value)"
    )


def _kinds(frames: Frames) -> str:
    urls = [part.url for part in at_hand(frames.parts("candidates"))]
    if not urls:
        return "CREATE TEMP TABLE kinds (cid UBIGINT, kind VARCHAR)"
    return (
        f"CREATE TEMP TABLE kinds AS SELECT {head('candidate_id')} AS cid, any_value(texts[1].kind) AS kind "
        f"FROM {parquet(urls)} GROUP BY 1"
    )


def _stored(catalog: Catalog) -> str:
    """Samples: of the present shards, or rows of a search index."""
    shards = [part.url for part in at_hand(catalog.frames.parts(SAMPLES))]
    indexes = [source.part.url for source in catalog.sources if source.layout == "index"]
    tables = [
        f"SELECT {head(column)} AS cid, texts[1].kind AS kind, nullif(split, '') AS split, nullif(width, 0) AS width, "
        f"nullif(height, 0) AS height FROM {parquet(urls)}"
        for column, urls in (("candidate_id", shards), (f"({ID_OF_INDEX})", indexes))
        if urls
    ]
    if not tables:
        return "CREATE TEMP TABLE stored (cid UBIGINT, kind VARCHAR, split VARCHAR, width INTEGER, height INTEGER)"
    columns = ", ".join(f"any_value({name}) AS {name}" for name in ("kind", "split", "width", "height"))
    return f"CREATE TEMP TABLE stored AS SELECT cid, {columns} FROM ({' UNION ALL '.join(tables)}) GROUP BY cid"


def _pictures(frames: Frames, scores: dict[str, tuple[PixelFilter, Build]]) -> str:
    fetched = _fetched_files(frames)
    measured = [part.url for part in at_hand(frames.parts("measures"))]
    names = "".join(f", any_value({score_column(name)}) AS {score_column(name)}" for name in scores)
    if not fetched or not measured:
        absent = "".join(f", {score_column(name)} FLOAT" for name in scores)
        return (
            "CREATE TEMP TABLE pictures (fid UBIGINT, width INTEGER, height INTEGER, sharpness FLOAT, entropy FLOAT, "
            f"blankness FLOAT{absent})"
        )
    joins, columns = "", ""
    for name, (own, build) in scores.items():
        cache = build.store.features(own.score_id)
        files = [cache.folder.at(commit) for commit in cache.commits()]
        table = (
            f"(SELECT {head('sha256')} AS sha, any_value(score) AS score FROM {parquet(files)} GROUP BY 1)"
            if files
            else "(SELECT NULL::UBIGINT AS sha, NULL::FLOAT AS score WHERE false)"
        )
        joins += f" LEFT JOIN {table} {score_column(name)}_of ON {score_column(name)}_of.sha = f.sha"
        columns += f", {score_column(name)}_of.score AS {score_column(name)}"
    shapes = "width, height, sharpness, entropy, blankness"
    values = ", ".join(f"any_value({name}) AS {name}" for name in shapes.split(", "))
    return (
        f"CREATE TEMP TABLE pictures AS SELECT fid, {values}{names} FROM ("
        f"SELECT f.fid, m.* EXCLUDE (sha){columns} FROM "
        f"(SELECT {head('fetch_id')} AS fid, {head('sha256')} AS sha FROM {parquet(fetched)} WHERE ok) f "
        f"JOIN (SELECT {head('sha256')} AS sha, {shapes} FROM {parquet(measured)}) m ON m.sha = f.sha{joins}"
        f") GROUP BY fid"
    )


def _fetched_files(frames: Frames) -> list[str]:
    """Files of FETCH_SCHEMA of the present builds."""
    found: list[Part] = []
    for build in frames.builds:
        if "fetch" in build.fingerprints:
            stage = build.stage("fetch")
            refs = [record.files["parquet"] for record in stage.records() if "parquet" in record.files]
            found += [Part(stage.folder, ref.name, ref.bytes, build.build_id, FETCH_SCHEMA) for ref in refs]
    return [part.url for part in at_hand(found)]


_GROUPS = (
    f"CREATE TEMP TABLE groups AS SELECT {head('duplicate_of')} AS leader, count(*) AS count FROM decisions "
    "WHERE duplicate_of <> '' AND duplicate_of <> id GROUP BY 1"
)


def _baseline(build: Build | None) -> str:
    urls = [part.url for part in Frames.of(build).parts("decisions")] if build is not None else []
    if not urls:
        return "CREATE TEMP TABLE baseline (cid UBIGINT)"
    return f"CREATE TEMP TABLE baseline AS SELECT DISTINCT {head('id')} AS cid FROM {parquet(urls)}"
