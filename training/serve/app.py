"""The application: its routes, its error format, and the checks of every request (data_specs/web/http_app.py).

    GET /health          a real inference of both towers; 503 with the reason where it fails
    GET /metrics         Prometheus
    GET /, /page/NAME    the page, from files beside this module; a fixed list made at the start
    GET /openapi.json

Limits: the page and the API are one origin, without CORS headers.
"""

from __future__ import annotations

import hashlib
import logging
import mimetypes
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from data_specs.web import PAGE_KIT
from data_specs.web.http_app import App, Limits, error_body, with_checks
from training.serve import clip_retrieval, embeddings, searching
from training.serve.galleries import Galleries
from training.serve.health import HealthCheck
from training.serve.metrics import TEXT
from training.serve.middleware import REFUSED, BodyReader, RequestCounter
from training.serve.refusals import Refused
from training.serve.service import Service

LOG = logging.getLogger(__name__)

PAGE = {path.name: path for folder in (PAGE_KIT, Path(__file__).with_name("page")) for path in sorted(folder.glob("*"))}
OPEN = ("/", *(f"/page/{name}" for name in PAGE))
"""Answered without the token: the page, which holds no secret and asks for the token itself."""

_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}


class ErrorBody(BaseModel):
    """An error: one line for people, a code for programs, the field of the request."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """Answer to a request that failed, as OpenAI's clients read it."""

    error: ErrorBody


class HealthAnswer(BaseModel):
    """Answer of /health. status: ok, or failed with the reason."""

    status: str
    reason: str = ""
    model: str
    seconds: float
    waiting: int


_FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "invalid request"},
    401: {"model": ErrorAnswer, "description": "missing or wrong token"},
    403: {"model": ErrorAnswer, "description": "sent by a page of another site"},
    404: {"model": ErrorAnswer, "description": "not found"},
    408: {"model": ErrorAnswer, "description": "the body arrived too slowly"},
    413: {"model": ErrorAnswer, "description": "too large"},
    421: {"model": ErrorAnswer, "description": "the Host header is not accepted"},
    422: {"model": ErrorAnswer, "description": "not used; invalid requests get 400"},
    429: {"model": ErrorAnswer, "description": "too many requests from one client"},
    502: {"model": ErrorAnswer, "description": "the object store denies access to a picture"},
    503: {"model": ErrorAnswer, "description": "overloaded; Retry-After says when to try again"},
}


def application(service: Service, galleries: Galleries) -> FastAPI:
    """All routes of a service, without the checks of `with_request_limits`."""
    health = HealthCheck(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        first = await health.check()
        if first.ok:
            LOG.info("the towers answer within %.2f s", first.seconds)
        else:
            LOG.error("the towers do not answer: %s", first.reason)
        yield
        service.close()
        galleries.close()

    app = FastAPI(
        title="wenlan",
        description="Embeddings and search of a BriVL checkpoint.",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        responses=_FAILURES,
    )
    _add_errors(app)
    app.include_router(embeddings.routes(service))
    app.include_router(searching.routes(service, galleries))
    app.include_router(clip_retrieval.routes(service, galleries))
    _add_state(app, service, health)
    _add_page(app)
    return app


def with_request_limits(app: App, service: Service, token: str | None, hosts: Sequence[str]) -> App:
    """Returns an application behind the checks of every request: host, origin, token, rate, body."""
    options = service.options
    limits = Limits(options.body_mb * 2**20, options.body_s, options.per_minute)
    inner = BodyReader(app, options.bodies_mb * 2**20)
    service.metrics.watch_bodies(lambda: inner.bytes_in_memory)
    return RequestCounter(
        with_checks(inner, token=token, hosts=tuple(hosts), limits=limits, open_paths=OPEN, probes=("/health",)),
        service.metrics,
    )


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def answer_refused(request: Request, error: Refused) -> JSONResponse:
        request.scope[REFUSED] = error.code
        return JSONResponse(error.body(), error.status, error.headers())

    @app.exception_handler(UnicodeEncodeError)
    async def answer_surrogate(request: Request, _: UnicodeEncodeError) -> JSONResponse:
        request.scope[REFUSED] = "unicode"
        return JSONResponse(error_body(400, "a text contains an unpaired surrogate", code="unicode"), 400)

    @app.exception_handler(RequestValidationError)
    async def answer_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        request.scope[REFUSED] = "invalid"
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return JSONResponse(error_body(400, f"{place}: {first['msg']}", param=place, code="invalid"), 400)

    @app.exception_handler(HTTPException)
    async def answer_http(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method"}.get(error.status_code, "invalid")
        request.scope[REFUSED] = code
        body = error_body(error.status_code, str(error.detail), code=code)
        return JSONResponse(body, error.status_code, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def answer_fault(request: Request, error: Exception) -> JSONResponse:
        request.scope[REFUSED] = "fault"
        return JSONResponse(error_body(500, "internal server error; see the server's log", code="fault"), 500)


def _add_state(app: FastAPI, service: Service, health: HealthCheck) -> None:
    @app.get("/health", response_model=HealthAnswer, tags=["state"], responses={503: {"model": HealthAnswer}})
    async def state(response: Response) -> HealthAnswer:
        """Health of both towers; 503 with the reason where one does not answer."""
        found = await health.check()
        response.status_code = 200 if found.ok else 503
        waiting = service.model.state().waiting
        status = "ok" if found.ok else "failed"
        return HealthAnswer(
            status=status, reason=found.reason, model=service.name, seconds=found.seconds, waiting=waiting
        )

    @app.get("/metrics", tags=["state"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=TEXT)


def _add_page(app: FastAPI) -> None:
    """Serves the page's files, read once: no path of a request reaches the disk."""
    files = {name: path.read_bytes() for name, path in PAGE.items()}

    def answer(name: str, request: Request) -> Response:
        content = files.get(name)
        if content is None:
            raise Refused(404, "not_found", "page not found")
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        kind = _TYPES.get(Path(name).suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(content, media_type=kind, headers=headers)

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return answer("index.html", request)

    @app.get("/page/{name}", include_in_schema=False)
    async def page(name: str, request: Request) -> Response:
        return answer(name, request)
