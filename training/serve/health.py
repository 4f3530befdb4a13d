"""Health: a real inference of both towers, through the threads that decode and those that compute.

The features of a picture and of a text are compared with those of the start, so that "ok" says that decoding works, the
model thread runs, and the numbers are still the same. Frequent requests get the answer of the last second: a probe
must not be a way to keep the model busy.
"""

from __future__ import annotations

import asyncio
import io
import os
import time
from dataclasses import dataclass

import numpy as np

from training.errors import first_line
from training.serve.refusals import Refused
from training.serve.service import Service
from training.serve.towers import Features

_FRESH_S = 1.0
_TEXT = "山水"
_APART = 1e-2
"""Tolerance of the probe's features to those of the start: another engine's rounding is below a hundredth of it."""


@dataclass(frozen=True, slots=True)
class Health:
    """Health of the server: whether it works, the problem if not, and the seconds of the probe."""

    ok: bool
    reason: str
    seconds: float


class HealthCheck:
    """Probes the towers, one probe at a time; concurrent requests share its answer."""

    def __init__(self, service: Service) -> None:
        self._service, self._picture = service, _picture()
        self._first: tuple[Features, Features] | None = None
        self._last: tuple[float, Health] | None = None
        self._running: asyncio.Task[Health] | None = None

    async def check(self) -> Health:
        """The health as of the last second, or by a new probe."""
        if self._last is not None and time.monotonic() - self._last[0] < _FRESH_S:
            return self._last[1]
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._probe())
        return await asyncio.shield(self._running)

    async def _probe(self) -> Health:
        began = time.monotonic()
        try:
            reason = await self._reason()
            health = Health(not reason, reason, time.monotonic() - began)
            self._last = time.monotonic(), health
            return health
        finally:
            self._running = None

    async def _reason(self) -> str:
        service, limit = self._service, self._service.options.health_s
        if not (state := service.model.state()).alive:
            return f"the model thread has stopped ({state.why or 'it never started'}); restart the server"
        try:
            rows = await asyncio.wait_for(self._rows(), limit)
        except TimeoutError:
            state = service.model.state()
            batch = f"the model thread has been computing a batch of {state.size} for {state.busy_s:.0f} s"
            return f"no answer from the towers within {limit:g} s; {batch if state.size else 'nothing is decoded'}"
        except Refused as e:
            return e.message
        except Exception as e:  # whatever it is, the server cannot do what it is for
            return f"a picture and a text cannot be embedded ({type(e).__name__}: {first_line(e)})"
        if self._first is None:
            self._first = rows
        if any(np.abs(now - then).max() > _APART for now, then in zip(rows, self._first, strict=True)):
            return "the towers return other features than at the start; restart the server"
        return ""

    async def _rows(self) -> tuple[Features, Features]:
        reader = self._service.reader
        # Bytes behind the end of a JPEG change no pixel, but make a file that no detector's cache knows.
        content = self._picture + os.urandom(8)
        picture, tokens = await self._service.run_decoder(lambda: (reader.picture(content), reader.tokens(_TEXT)))
        return await self._service.probe(picture, tokens)


def _picture() -> bytes:
    """A small JPEG of two colours."""
    from PIL import Image

    image = Image.new("RGB", (32, 24), (200, 120, 40))
    image.paste((20, 90, 180), (0, 0, 16, 24))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()
