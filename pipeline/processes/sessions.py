"""Sessions of models, and who holds them: one process per share of a GPU, or this process where no GPU is asked for.

A task decodes pictures and hands them over in batches through a `Queue`, which is bounded; the holder runs the model.
On a cluster `pipeline.cluster` starts a holder for each share of a GPU that a pass asks for, an actor that owns it, and
lends them to the tasks of the pass (`lent`). So tasks on any core of any node decode while the GPUs compute, no task
asks for a GPU itself, and a GPU's sessions stay in one process. Without, the holder is an object of this process, and
a batch is run when it is handed over: same class, same order, same values.

A model that runs out of memory gets half as many items at a time from then on. A holder whose process dies is started
again, and the batches that it had been given are repeated (`pipeline.processes.actors`): a batch is tried three times
in all.

Limits: a holder that waits for a GPU gets no batches until it has one. In flight are, for each task and model, one
batch per holder and one more.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.errors import OURS, StageError, evidence
from pipeline.processes import observe
from pipeline.processes.actors import Actors

log = logging.getLogger("wenlan")

_LACKS_MEMORY = re.compile(r"out of memory|failed to allocate memory|bad_alloc|bad allocation|ALLOC_FAILED", re.I)
"""Words of torch, onnxruntime and CUDA's libraries for a batch that does not fit."""


class AnyModel(Protocol):
    """The face of a model that a holder uses (`pipeline.model_runner`). Equal models share what `load` returned."""

    @property
    def id(self) -> str: ...

    @property
    def gpus(self) -> float: ...

    @property
    def reduce_to(self) -> int: ...

    def __hash__(self) -> int: ...

    def load(self) -> Any: ...

    def run(self, state: Any, items: Sequence[Any], /) -> Sequence[Any]: ...


@dataclass
class Answer:
    """Values of the items of a batch, or why the model failed on them, by key. seconds: that the model took."""

    values: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class Sessions:
    """A holder of sessions: loads models once and runs them, one batch after the other. Knows nothing of Ray."""

    def __init__(self, log_form: str = "") -> None:
        if log_form:
            observe.log_as(log_form)
        self._most: dict[str, int] = {}  # by model: items that fit into memory at once, once more did not

    def open(self, model: AnyModel) -> int:
        """Loads a model; returns its `reduce_to`. Raises ModelError or DetectorError."""
        _load_once(model)
        return model.reduce_to

    def run(self, model: AnyModel, items: dict[str, Any], subject: str) -> Answer:
        """Runs a model over items by key. A batch on which it fails is run one by one.

        subject: what the keys name, for messages. Raises ModelError or DetectorError.
        """
        state, answer, began = _load_once(model), Answer(), time.monotonic()
        batches, too_many = [list(items)], 0
        while batches:
            keys = batches.pop()
            most = self._most.get(model.id, len(keys))
            if len(keys) > most:
                batches += [keys[most:], keys[:most]]
                continue
            try:
                answer.values.update(zip(keys, model.run(state, [items[key] for key in keys]), strict=True))
            except OURS:
                raise
            except Exception as e:
                if len(keys) == 1:
                    answer.faults[keys[0]] = f"{model.id}: {evidence(e, f'{subject} {keys[0]}')}"
                elif isinstance(e, MemoryError) or _LACKS_MEMORY.search(str(e)):
                    too_many, self._most[model.id] = too_many or len(keys), len(keys) // 2
                    batches.append(keys)
                else:
                    batches += [[key] for key in reversed(keys)]
        if too_many:
            fits = self._most[model.id]
            log.warning("%s: %d %ss at once do not fit into memory, %d at a time do", model.id, too_many, subject, fits)
        answer.seconds = time.monotonic() - began
        return answer


@functools.lru_cache(16)  # more than a stage asks for: it goes through them in turn, in each partition
def _load_once(model: AnyModel) -> Any:
    """Returns a model's state, loaded once in a process for many partitions. The id tells other weights."""
    return model.load()


_here: Actors[Sessions] = Actors(Sessions, [()])

_lent: ContextVar[Actors[Sessions] | None] = ContextVar("lent", default=None)


@contextlib.contextmanager
def lent(holders: Actors[Sessions] | None) -> Iterator[None]:
    """Within the block, models that ask for a GPU are run by these holders, if there are any."""
    token = _lent.set(holders)
    try:
        yield
    finally:
        _lent.reset(token)


class Queue:
    """The batches of a task for one model, and its answers. reduce_to: of the model (`open`).

    Opens the model in each holder, and waits for one. Raises ModelError, DetectorError or, if holders die, StageError.
    """

    def __init__(self, model: AnyModel, subject: str) -> None:
        self._model, self._subject = model, subject
        self._holders = (_lent.get() if model.gpus else None) or _here
        self._opening = [self._holders.begin(number, "open", model) for number in range(len(self._holders))]
        self._in_flight: dict[Future[Answer], int] = {}  # by call: number of its holder
        opened, _ = wait(self._opening, return_when=FIRST_COMPLETED)
        self.reduce_to: int = self._result(next(iter(opened)))

    def put(self, items: dict[str, Any]) -> list[Answer]:
        """Hands over a batch by key; returns the answers that are there. Waits for one while the queue is full."""
        ready = [number for number, opening in enumerate(self._opening) if opening.done()]
        load = Counter(self._in_flight.values())
        number = min(ready, key=lambda number: (load[number], random.random()))
        self._in_flight[self._holders.begin(number, "run", self._model, items, self._subject)] = number
        if len(self._in_flight) > len(ready) + 1:
            wait(self._in_flight, return_when=FIRST_COMPLETED)
        return self._take_done()

    def rest(self) -> list[Answer]:
        wait(self._in_flight, return_when=FIRST_EXCEPTION)
        return self._take_done()

    def _take_done(self) -> list[Answer]:
        done = [call for call in self._in_flight if call.done()]
        for call in done:
            del self._in_flight[call]
        return [self._result(call) for call in done]

    def _result(self, call: Future[Any]) -> Any:
        try:
            return call.result()
        except StageError as e:
            raise StageError(self._model.id, f"{e.message}, at the last try of some {self._subject}s") from None
