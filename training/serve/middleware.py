"""Request middleware: body limits, disconnects, latency.

A body is read whole before a route sees it, from a budget that all bodies share, so that neither slow nor many uploads
fill the memory. When the client leaves, its request is cancelled, and the model thread passes over what waits of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

from data_specs.web.http_app import App, Message, Receive, Scope, Send, error_body
from training.serve.metrics import Metrics

_REASONS = {401: "token", 403: "foreign_origin", 408: "slow_body", 413: "body_too_large", 421: "wrong_host"}
"""Codes of data_specs/web/http_app.py, which answers before any route."""

REFUSED = "wenlan.refused"
"""Key of a request's scope: the code of the error that it was answered with."""


class RequestCounter:
    """Outermost middleware: counts every answer and times it."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status = time.monotonic(), 0

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.count_request(route, status, time.monotonic() - began)
            if status >= 400:
                fallback = "rate_limit" if status == 429 else f"http_{status}"
                self._metrics.count_refusal(scope.get(REFUSED) or _REASONS.get(status, fallback))


class BodyReader:
    """Reads a request's body, and cancels the request when its client leaves."""

    def __init__(self, app: App, most_bytes: int) -> None:
        self._app, self._most, self._room = app, most_bytes, most_bytes

    @property
    def bytes_in_memory(self) -> int:
        """Bytes of request bodies in memory now, complete or still arriving."""
        return self._most - self._room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = bytearray()
        try:
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return None  # the client has left
                part: bytes = message.get("body", b"")
                if len(part) > self._room:
                    scope[REFUSED] = "no_room"
                    return await _answer_no_room(send)
                self._room -= len(part)
                body += part
                if not message.get("more_body", False):
                    break
            await self._run_until_disconnect(scope, bytes(body), receive, send)
        finally:
            self._room += len(body)

    async def _run_until_disconnect(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        unread: bytes | None = body
        ended = asyncio.Event()
        complete = False

        async def replay() -> Message:
            nonlocal unread
            if unread is not None:
                part, unread = unread, None
                return {"type": "http.request", "body": part, "more_body": False}
            await ended.wait()
            return {"type": "http.disconnect"}

        async def send_watched(message: Message) -> None:
            nonlocal complete
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        work = asyncio.ensure_future(self._app(scope, replay, send_watched))
        leaving = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            ended.set()
            if not work.done() and not complete:
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await work
                return
            await work
        finally:
            for task in (work, leaving):
                task.cancel()


async def _answer_no_room(send: Send) -> None:
    body = json.dumps(error_body(503, "too many uploads at once; try again later", code="no_room")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"retry-after", b"2"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
