"""Dynamic batching: inputs of all requests gather in a bounded queue, and a thread computes them in batches.

A batch begins as soon as the thread is free and inputs wait. It waits for more of them only where others are known to
be on their way (their pictures are being decoded, or the last batch's clients are about to ask again), and at most a
tenth of the time that the last batch took: one client alone never waits, and sixteen of them share batches of sixteen.
Pictures and texts wait in a line each; the older head of the two goes next.

A batch that fails is computed again one by one, so that one bad input refuses no other. What has been given up by
its client is not computed.

One thread where the towers are in this process, since they use every core; one per replica where they are elsewhere.

Limits: a computation that hangs cannot be stopped from inside its process. `state` says so, and the watcher of /health
starts the process again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from training.serve.metrics import Metrics
from training.serve.options import Options
from training.serve.refusals import Refused, overloaded
from training.serve.towers import Features, PreparedPicture, Tokens, Towers

LOG = logging.getLogger(__name__)

Kind = Literal["image", "text"]
KINDS: tuple[Kind, ...] = ("image", "text")

_SHARE = 0.1
"""Share of the last batch's seconds that a batch may wait for more inputs."""


@dataclass(eq=False, slots=True)
class _Item:
    """One input on its way through the model."""

    input: PreparedPicture | Tokens
    future: asyncio.Future[Features]
    loop: asyncio.AbstractEventLoop
    since: float


@dataclass(slots=True)
class _Queue:
    """Inputs of one kind, queued. admitted: those that wait and those on their way here. batch_s: of the last batch."""

    most: int
    waiting: deque[_Item] = field(default_factory=deque)
    admitted: int = 0
    expected: int = 0
    batch_s: float = 0.0
    freed: float = 0.0

    def drop_abandoned(self) -> None:
        """Drop inputs whose clients have left: they are admitted no more, and would take memory uncounted."""
        self.waiting = deque(item for item in self.waiting if not item.future.done())


@dataclass(frozen=True, slots=True)
class ModelState:
    """State of the model thread. alive: whether it runs; busy_s: seconds on the current batch, of `size` inputs."""

    alive: bool
    why: str
    busy_s: float
    size: int
    kind: str
    waiting: int


class BatchingModel:
    """The threads that compute, and their queues. `submit` is called on an event loop."""

    def __init__(self, towers: Towers, options: Options, metrics: Metrics, threads: int = 1) -> None:
        self._towers, self._options, self._metrics = towers, options, metrics
        self._lock = threading.Condition()
        self._lines: dict[Kind, _Queue] = {
            "image": _Queue(options.waiting_pictures),
            "text": _Queue(options.waiting_texts),
        }
        self._busy: dict[int, tuple[float, Kind, int]] = {}
        self._ended: str | None = None
        self._stop = False
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"wenlan-model-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop after the current batch; waiting inputs are refused."""
        with self._lock:
            self._stop = True
            self._lock.notify_all()

    @contextmanager
    def admit(self, kind: Kind, count: int) -> Iterator[None]:
        """Room in a line for `count` inputs, held from before they are decoded until they are answered.

        Raises Refused (503, Retry-After) if the line is full or would take too long.
        """
        line = self._lines[kind]
        with self._lock:
            if self._ended is not None:
                raise overloaded("model_down", f"the model thread has stopped ({self._ended})", 30)
            behind = line.admitted + count
            seconds = -(-behind // self._options.batch) * line.batch_s
            if line.admitted and behind > line.most:
                text = f"{line.admitted} inputs are waiting already; try again later"
                raise overloaded("queue_full", text, min(max(seconds, 1), 60))
            if seconds > self._options.request_s and line.admitted:
                text = f"an answer would take about {seconds:.0f} s, with {line.admitted} inputs before it"
                raise overloaded("too_busy", text, min(seconds, 60))
            line.admitted = behind
        failed = True
        try:
            yield
            failed = False
        finally:
            with self._lock:
                line.admitted -= count
                if failed:
                    line.drop_abandoned()

    def submit(
        self, kind: Kind, inputs: Sequence[PreparedPicture | Tokens], *, first: bool = False
    ) -> list[asyncio.Future[Features]]:
        """Put admitted inputs into their line; a future of each one's row [D]. first: before all others (a probe)."""
        loop, now = asyncio.get_running_loop(), 0.0 if first else time.monotonic()
        items = [_Item(one, loop.create_future(), loop, now) for one in inputs]
        line = self._lines[kind]
        with self._lock:
            if self._ended is not None:
                raise overloaded("model_down", f"the model thread has stopped ({self._ended})", 30)
            if first:
                line.drop_abandoned()  # earlier probes of a thread that hangs
                line.waiting.extendleft(reversed(items))
            else:
                line.waiting.extend(items)
            self._lock.notify_all()
        return [item.future for item in items]

    def state(self) -> ModelState:
        with self._lock:
            now, waiting = time.monotonic(), sum(len(line.waiting) for line in self._lines.values())
            since, kind, size = min(self._busy.values(), default=(now, "", 0))
        alive = self._ended is None and all(thread.is_alive() for thread in self._threads)
        return ModelState(alive, self._ended or "", now - since, size, kind, waiting)

    def depth(self, kind: Kind) -> int:
        """Inputs that are admitted and not yet answered."""
        return self._lines[kind].admitted

    def _run(self, number: int) -> None:
        why = "stopped"
        batch: tuple[Kind, list[_Item]] | None = None
        try:
            while (batch := self._next_batch(number)) is not None:
                self._compute(number, *batch)
        except BaseException as e:  # whatever ends the thread, its callers and /health must learn of it
            why = f"{type(e).__name__}: {e}"
            LOG.exception("the model thread has stopped")
        finally:
            self._refuse_all(why, batch[1] if batch else [])

    def _next_batch(self, number: int) -> tuple[Kind, list[_Item]] | None:
        """Wait for the next batch; None at the end."""
        with self._lock:
            while True:
                kind = self._oldest_kind()
                if self._stop:
                    return None
                if kind is None:
                    self._lock.wait()
                    continue
                patience = self._seconds_to_wait(self._lines[kind])
                if patience <= 0:
                    break
                self._lock.wait(patience)
            line = self._lines[kind]
            count = min(len(line.waiting), self._options.batch)
            items = [line.waiting.popleft() for _ in range(count)]
            items = [item for item in items if not item.future.done()]
            self._busy[number] = (time.monotonic(), kind, len(items))
            return kind, items

    def _oldest_kind(self) -> Kind | None:
        heads = [(line.waiting[0].since, kind) for kind, line in self._lines.items() if line.waiting]
        return min(heads)[1] if heads else None

    def _seconds_to_wait(self, line: _Queue) -> float:
        """Seconds that a batch may still wait for more inputs."""
        waiting = len(line.waiting)
        if waiting >= min(self._options.batch, max(line.expected, line.admitted)):
            return 0.0
        longest = min(self._options.gather_ms / 1000, _SHARE * line.batch_s)
        return max(line.waiting[0].since, line.freed) + longest - time.monotonic()

    def _compute(self, number: int, kind: Kind, items: list[_Item]) -> None:
        began = time.monotonic()
        answers = self._results(kind, items) if items else []
        seconds = time.monotonic() - began
        line = self._lines[kind]
        with self._lock:
            self._busy.pop(number, None)
            if items:
                # Those of this batch are likely to ask again, beside those that wait already.
                line.expected = max(line.admitted, len(items))
                line.batch_s, line.freed = seconds, time.monotonic()
        if items:
            # Counted before it is delivered: a client with an answer reads it in /metrics, and is refused by its time.
            self._metrics.count_batch(kind, len(items), seconds)
            _deliver(items, answers)

    def _results(self, kind: Kind, items: list[_Item]) -> Sequence[Features | Exception]:
        """A row, or the reason why it is missing, for every item."""
        try:
            return list(self._encode(kind, items))
        except Exception as e:
            LOG.warning("a batch of %d failed (%s: %s)", len(items), type(e).__name__, e)
            if len(items) == 1:
                return [Refused(503, "inference_failed", f"the towers failed on this input ({type(e).__name__})")]
        return [answer for item in items for answer in self._results(kind, [item])]

    def _encode(self, kind: Kind, items: Sequence[_Item]) -> Features:
        inputs: list[Any] = [item.input for item in items]
        encode: Callable[[list[Any]], Features]
        encode = self._towers.encode_images if kind == "image" else self._towers.encode_texts
        rows_ND = encode(inputs)
        if rows_ND.shape[0] != len(items) or not np.isfinite(rows_ND).all():
            raise ArithmeticError("features that are not finite numbers")
        return rows_ND

    def _refuse_all(self, why: str, in_hand: Sequence[_Item]) -> None:
        with self._lock:
            self._ended, self._stop = why, True
            self._lock.notify_all()
            items = [*in_hand, *(item for line in self._lines.values() for item in line.waiting)]
            for line in self._lines.values():
                line.waiting.clear()
        _deliver(items, [overloaded("model_down", f"the model thread has stopped ({why})", 30)] * len(items))


def _deliver(items: Sequence[_Item], answers: Sequence[Features | Exception]) -> None:
    """Set the futures, on their loops, in one call for each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Features], Features | Exception]]] = {}
    for item, answer in zip(items, answers, strict=True):
        by_loop.setdefault(item.loop, []).append((item.future, answer))
    for loop, pairs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_set_futures, pairs)
        except RuntimeError:  # the loop is closed: no client waits
            LOG.debug("answers for a loop that has ended")


def _set_futures(pairs: Sequence[tuple[asyncio.Future[Features], Features | Exception]]) -> None:
    for future, answer in pairs:
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
