"""The studio's server: JSON about the candidates of a place, thumbnails, and the page that shows them.

    GET  /                    the page; /static/NAME its parts; /report the build's own report
    GET  /api/about           the place, its notices, facets, orders
    GET  /api/facets, /api/rows, /api/item, /api/saw, /api/why, /api/where, /api/similar, /api/thumb
    POST /api/takedown, /api/confirm, /api/word, /api/publish, /api/reload;  GET /api/job

A row is named by its place and by `g`, the state of the files that the place belongs to: after a takedown, or when a
running build went on, an old name gets 409 and the page asks again, so that no picture is shown for another row.

What every request passes first (host, origin, token, size) is `data_specs.web.http_app`. Nothing is fetched from
anywhere.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from data_specs.build import SpecError
from data_specs.errors import WenlanError
from data_specs.shard import ContractError
from data_specs.web import PAGE_KIT
from data_specs.web.http_app import App, Limits, error_body, with_checks
from pipeline.errors import SourceError
from pipeline.store import build_json
from pipeline.store.build import STUDIO, Stages
from pipeline.store.frames import Frames
from pipeline.store.takedowns import NO_TAKEDOWNS
from pipeline.studio import actions, place
from pipeline.studio.catalog import PAGE, Catalog, sources_of_index
from pipeline.studio.facets import SORTS, Filters
from pipeline.studio.images import NoPicture, Pictures
from pipeline.studio.items import Items
from pipeline.studio.preparation import Preparation
from pipeline.studio.similar import Similar, index_beside

if TYPE_CHECKING:
    import uvicorn

Values = dict[str, Any]

TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
         ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}  # fmt: skip

LOOK_S = 3.0
"""Seconds between two looks at whether the files are still the same."""

REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""Policy of the report, which is one file with its script inside: it cannot send a request, to the studio either."""


class StaleRow(Exception):
    """Raised for a row that was named by an earlier state of the files."""


@dataclass(frozen=True)
class Opened:
    place: place.Place
    catalog: Catalog
    preparation: Preparation
    pictures: Pictures
    items: Items


class Studio:
    """An open place. Close it when done, which deletes its temporary folder.

    where: BUILD, a release, a folder of builds, or "" for a search index alone. index: its folder, "" for BUILD/index.
    Raises what `place.open_place` raises.
    """

    def __init__(
        self, where: str, stages: Stages, *, baseline: str = "", index: str = "", folder: bool = False
    ) -> None:
        self._where, self._stages, self._baseline, self._folder = where, stages, baseline, folder
        self._lock = threading.Lock()
        beside = index_beside(where, index)
        if index and beside is None:
            remote = "://" in index
            problem = "an index must be on a local disk; copy it there" if remote else "no index.json"
            raise SourceError(index, f"not a search index ({problem})")
        self.similar = None if beside is None else Similar(beside)
        self._scratch = Path(tempfile.mkdtemp(prefix="wenlan-studio-"))
        try:
            self._opened = self._open()
        except BaseException:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        self._looked, self._seen = time.monotonic(), self._signature()
        self.jobs = actions.Jobs(self.reload)

    @property
    def opened(self) -> Opened:
        """Returns the present place, reopened if a takedown or the build has changed it since the last look."""
        if time.monotonic() - self._looked > LOOK_S and self._lock.acquire(blocking=False):
            try:
                self._looked = time.monotonic()
                changed = self._signature() != self._seen
            finally:
                self._lock.release()
            if changed:
                with contextlib.suppress(WenlanError, ContractError):  # in the middle of it: the next look will do
                    self.reload()
        return self._opened

    def _signature(self) -> tuple[object, ...]:
        """Returns a signature of local files that changes with a takedown or a stage of a build."""
        found: list[object] = []
        for build in self._opened.place.frames.builds:
            for folder, name in ((build.folder, build_json.NAME), (build.store.folder, "forgotten")):
                with contextlib.suppress(OSError):
                    if folder.is_local:
                        found.append(Path(folder.at(name)).stat().st_mtime_ns)
        if not self._where and self.similar is not None:
            with contextlib.suppress(OSError):
                found.append((self.similar.folder / "index.json").stat().st_mtime_ns)
        return tuple(found)

    @property
    def _home(self) -> Path | None:
        """BUILD/studio, of a build on a local disk that can be written; None for other places."""
        build = self.opened_place.build
        if build is None or not build.folder.is_local:
            return None
        home = Path(build.folder.at(STUDIO))
        with contextlib.suppress(OSError):
            home.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=home):
                return home
        return None

    def _open(self) -> Opened:
        alone = self.similar if not self._where else None
        if alone is not None:
            self.opened_place = place.Place(Frames(str(alone.folder), (), ()), "index")
        else:
            self.opened_place = place.open_place(self._where, self._stages, self._baseline, self._folder)
        here = self.opened_place
        sources = sources_of_index(alone) if alone is not None else None
        catalog = Catalog(here.frames, self._scratch, sources)
        preparation = Preparation(catalog, here.baseline, self._home or self._scratch / "index")
        takedowns = here.frames.takedowns if alone is None else NO_TAKEDOWNS
        pictures = Pictures(catalog, takedowns, alone)
        return Opened(here, catalog, preparation, pictures, Items(catalog, pictures, takedowns, self._stages))

    def start(self, after_s: float = 0.0) -> None:
        """Begin to prepare the columns that need a join; later, so that the first screen has the processor."""
        self._opened.preparation.start(after_s)

    def reload(self) -> None:
        """Reopens the place: after a takedown, or when a build went on."""
        with self._lock:
            self._opened.preparation.stop()
            self._opened = self._open()
            self._looked, self._seen = time.monotonic(), self._signature()
            self._opened.preparation.start()

    def close(self) -> None:
        self._opened.preparation.stop()
        self._opened.catalog.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def first_data(self) -> Values:
        """Returns the page's first data."""
        now = self.opened
        facets = [
            {"name": f.name, "en": f.en, "zh": f.zh, "prepared": f.prepared, "binned": bool(f.edges)}
            for f in now.catalog.facets.values()
            if f.name != "new" or now.place.baseline is not None
        ]
        sorts = [{"name": name, "en": en, "zh": zh} for name, (_, en, zh) in SORTS.items()]
        running, missing, said = self.jobs.running, now.catalog.missing, place.describe(now.place)
        if missing:
            said["notices"].append(place.notice(
                "gone", f"{len(missing):,} files are missing, so their rows cannot be shown: {missing[0]} ...",
                f"缺少 {len(missing):,} 个文件，其中的内容无法显示：{missing[0]} ……"))  # fmt: skip
        return {
            **said,
            "g": now.catalog.digest,
            "facets": facets,
            "sorts": sorts,
            "prepared": self.prepared(),
            "similar": None if self.similar is None else self.similar.value(),
            "store": now.place.store,
            "job": None if running is None else running.value(),
        }

    def prepared(self) -> Values:
        now = self.opened.preparation
        return {"state": now.state, "share": round(now.share, 2), "fault": now.fault}

    def facets(self, filters: Filters) -> Values:
        """Counts of every facet with the words of its values."""
        catalog = self.opened.catalog
        counts = catalog.counts(filters)
        named = {}
        for name, values in counts.facets.items():
            facet = catalog.facets[name]
            rows = []
            for value, count in values:
                if name == "reason" and not value:
                    continue  # kept rows are without a reason
                en, zh = facet.words(value, self._stages)
                rows.append({"value": value, "count": count, "en": en, "zh": zh})
            named[name] = rows
        return {"total": counts.total, "matching": counts.matching, "facets": named, "prepared": self.prepared()}

    def row_at(self, pos: int, g: str) -> tuple[Opened, Values]:
        """A row by its place, and the state of the files that it is of: what is asked of the row is asked of that.

        Raises Changed, and SpecError for a missing row.
        """
        now = self.opened
        if g != now.catalog.digest:
            raise StaleRow
        rows = now.catalog.rows([pos])
        if not rows:
            raise SpecError([f"pos {pos}: no such row"])
        return now, rows[0]

    def neighbours(self, found: Sequence[Mapping[str, Any]]) -> list[Values]:
        """Rows of what an index found, with how near they are; others are left out."""
        now = self.opened
        places = now.catalog.positions_of([hit["id"] for hit in found])
        hits = [hit for hit in found if hit["id"] in places]
        briefs = {brief["pos"]: brief for brief in now.items.briefs([places[hit["id"]] for hit in hits])}
        return [
            {**briefs[places[hit["id"]]], "near": {k: hit[k] for k in ("cosine", "score", "copies")}}
            for hit in hits
            if places[hit["id"]] in briefs
        ]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Takedown(_Body):
    ids: list[str] = Field(max_length=actions.MOST_FLAGGED)
    what: Literal["picture", "page", "domain"] = "picture"
    exact: bool = False


class _Confirm(_Body):
    confirmation: str = Field(max_length=100)


class _Word(_Body):
    build: str = Field(max_length=300)
    verdict: Literal["approved", "refused"]
    name: str = Field(max_length=1_000)
    because: str = Field(max_length=1_000)


class _Publish(_Body):
    build: str = Field(max_length=300)


def app(studio: Studio, token: str | None, once: Iterable[str] = ()) -> App:
    """The ASGI application, behind the checks of every request. The page's own files, which are public, need no
    token: who comes without the link is told so by the page. once: as `with_checks` has it."""
    limits, files = Limits(body_bytes=256 * 1024, body_seconds=10.0), (f"/static/{name}" for name in _files())
    return with_checks(_routes(studio), token=token, limits=limits, open_paths=("/", *files), once=once)


def _routes(studio: Studio) -> FastAPI:
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_faults(api)
    _add_files(api, studio)
    _add_reading(api, studio)
    _add_actions(api, studio)
    return api


def _fault(status: int, message: str, code: str | None = None) -> JSONResponse:
    return JSONResponse(error_body(status, message, code=code), status)


def _add_faults(api: FastAPI) -> None:
    @api.exception_handler(SpecError)
    def bad(_: Request, e: SpecError) -> Response:
        return _fault(400, str(e), "bad_request")

    @api.exception_handler(RequestValidationError)
    def malformed(_: Request, e: RequestValidationError) -> Response:
        first = e.errors()[0]
        return _fault(400, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"[:300], "bad_request")

    @api.exception_handler(StaleRow)
    def changed(_: Request, e: StaleRow) -> Response:
        return _fault(409, "the files have changed: reload", "changed")

    @api.exception_handler(actions.Busy)
    def busy(_: Request, e: actions.Busy) -> Response:
        return _fault(409, str(e), "busy")

    @api.exception_handler(NoPicture)
    def no_picture(_: Request, e: NoPicture) -> Response:
        return JSONResponse({**error_body(404, e.en, code="no_picture"), "why": {"en": e.en, "zh": e.zh}}, 404)

    @api.exception_handler(WenlanError)
    @api.exception_handler(ContractError)
    def failed(_: Request, e: Exception) -> Response:
        return _fault(409, str(e), "failed")


def _add_files(api: FastAPI, studio: Studio) -> None:
    """The page, its files and the build's report."""
    files = _files()

    @api.get("/")
    def index() -> Response:
        return Response(files["index.html"][0], media_type=files["index.html"][1])

    @api.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in files:
            return _fault(404, "no such file")
        return Response(files[name][0], media_type=files[name][1], headers={"cache-control": "no-cache"})

    @api.get("/report")
    def report() -> Response:
        build = studio.opened.place.build
        if build is None or not build.folder.exists("report/index.html"):
            return _fault(404, "this view does not have a single report")
        html = build.folder.read("report/index.html")
        return Response(html, media_type=TYPES[".html"], headers={"content-security-policy": REPORT_POLICY})


def _add_reading(api: FastAPI, studio: Studio) -> None:
    """Rows, one candidate, and what is known of it."""

    @api.get("/api/about")
    def about() -> Values:
        return studio.first_data()

    @api.get("/api/facets")
    def facets(request: Request) -> Values:
        return studio.facets(_filters(studio, request))

    @api.get("/api/rows")
    def rows(
        request: Request, g: str = "", offset: int = Query(0, ge=0), limit: int = Query(60, ge=1, le=PAGE)
    ) -> Values:
        now = studio.opened
        if g and g != now.catalog.digest:
            raise StaleRow
        return {"rows": now.items.briefs(now.catalog.positions(_filters(studio, request), offset, limit))}

    @api.get("/api/item")
    def item(pos: int, g: str) -> Values:
        now, row = studio.row_at(pos, g)
        return now.items.detail(row)

    @api.get("/api/saw")
    def saw(pos: int, g: str) -> Values:
        now, row = studio.row_at(pos, g)
        return now.items.history(row)

    @api.get("/api/where")
    def where(id: str = Query(max_length=64)) -> Values:
        """The place of a candidate by its id or key: of links that were kept."""
        catalog = studio.opened.catalog
        return {"pos": catalog.positions_of([id]).get(id), "g": catalog.digest}

    @api.get("/api/why")
    def why(named: str = Query(min_length=1, max_length=3_000)) -> Values:
        now = studio.opened
        return now.items.rows_or_reasons(named, now.place.frames.builds)

    @api.get("/api/similar")
    def similar(pos: int | None = None, g: str = "", text: str = Query("", max_length=1_000)) -> Values:
        if studio.similar is None:
            raise SpecError(["search index missing; run wenlan-train embed CHECKPOINT --data BUILD"])
        found = (
            studio.similar.text(text) if pos is None else studio.similar.neighbours(_id_of(studio.row_at(pos, g)[1]))
        )
        return {"rows": studio.neighbours(found)}

    @api.get("/api/thumb")
    def thumb(
        pos: int, g: str, side: int = Query(320, ge=1, le=2_000), held: str = Query("", max_length=64)
    ) -> Response:
        now, row = studio.row_at(pos, g)
        if held and held != row["duplicate_of"]:
            raise SpecError(["held: this row is not a duplicate of it"])
        made = now.pictures.earlier_thumb(row, held, side) if held else now.pictures.thumb(row, side)
        headers = {"cache-control": "private, max-age=600"}
        return Response(made.jpeg, media_type="image/jpeg", headers=headers)


def _add_actions(api: FastAPI, studio: Studio) -> None:
    """Takedowns, a person's word on a publish, and the commands that run."""

    @api.post("/api/takedown")
    def takedown(asked: _Takedown) -> Values:
        now = studio.opened
        places = now.catalog.positions_of(asked.ids)
        if missing := [name for name in asked.ids if name not in places]:
            raise SpecError([f"{missing[0][:64]}: no such candidate here"])
        rows = now.catalog.rows(sorted(places.values()))
        index = "" if studio.similar is None else str(studio.similar.folder)
        builds = now.place.frames.builds
        words = actions.takedown(now.place.store, builds, rows, asked.what, asked.exact, index)
        return studio.jobs.start("preview", words, dry=True).value()

    @api.post("/api/confirm")
    def confirm(asked: _Confirm) -> Values:
        return studio.jobs.start("takedown", studio.jobs.take_confirmed(asked.confirmation)).value()

    @api.post("/api/word")
    def word(asked: _Word) -> Values:
        return actions.record_verdict(_build(studio, asked.build), asked.verdict, asked.name, asked.because)

    @api.post("/api/publish")
    def publish(asked: _Publish) -> Values:
        return studio.jobs.start("publish", ["publish", _build(studio, asked.build).out]).value()

    @api.get("/api/job")
    def job(number: int) -> Values:
        found = studio.jobs.get(number)
        if found is None:
            raise SpecError([f"no command {number}"])
        return found.value()

    @api.post("/api/reload")
    def reload() -> Values:
        studio.reload()
        return studio.first_data()


def _id_of(row: Mapping[str, Any]) -> str:
    """The name of a row in a search index."""
    return str(row.get("row_id") or row["id"])


def _filters(studio: Studio, request: Request) -> Filters:
    return Filters.parse(list(request.query_params.multi_items()), studio.opened.catalog.facets)


def _build(studio: Studio, build_id: str) -> Any:
    """Returns a build of the place, read again. Raises SpecError."""
    for build in studio.opened.place.frames.builds:
        if build.build_id == build_id:
            return build_json.reopen(build.out, build.stages)
    raise SpecError([f"{build_id}: no such build here"])


@functools.cache
def _files() -> dict[str, tuple[bytes, str]]:
    """The page's files with their media types: what is served is listed, and no path is ever joined."""
    files = [path for folder in (PAGE_KIT, Path(__file__).with_name("page")) for path in folder.iterdir()]
    return {path.name: (path.read_bytes(), TYPES[path.suffix]) for path in files if path.suffix in TYPES}


def serve(studio: Studio, sock: socket.socket, token: str | None, once: Iterable[str] = ()) -> None:
    """Answer on a bound socket until interrupted."""
    make_server(studio, token, once).run(sockets=[sock])


def make_server(studio: Studio, token: str | None, once: Iterable[str] = ()) -> uvicorn.Server:
    """A server of a studio, which ends three seconds after its signal, open requests or not."""
    import uvicorn

    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    return uvicorn.Server(uvicorn.Config(app(studio, token, once), timeout_graceful_shutdown=3, **quiet))
