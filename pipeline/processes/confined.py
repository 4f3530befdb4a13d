"""Runs a function over untrusted input in a separate process, with limits on CPU time and memory.

    this process                                          child
    (function, example), pickled                  ->      imports, runs the example without limits
    arguments, pickled                            ->      runs the function
                                                  <-      ("returned", value) or ("raised", exception, traceback)

A parser in C cannot be interrupted from Python, neither by a signal handler nor from another thread, so the kernel does
it: ITIMER_PROF ends the child when a call has had its time of the processor, and RLIMIT_AS lets no more memory be
taken. Either is an OverLimit, and so is a crash; the next call restarts the child. Time of the processor and not of
the clock, so that a busy machine judges as an idle one does.

A child is started as a program and not forked: the processes that read pages have threads (Ray, Arrow).

Limits: Linux and other systems with RLIMIT_AS; starting a child takes a second, most of it imports.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, TypeVar

from pipeline.errors import StageError

SECONDS = 1.5
"""Time of the processor of one call."""

MEMORY = 400_000_000
"""Bytes that one call may take beside what the child has after the example."""

WALL_S = 120.0
"""Time of the clock after which a child that does not answer is given up, whatever the reason."""

_LENGTH = struct.Struct("<Q")
_PROGRAM = (
    "import sys; sys.path = [entry for entry in sys.path if entry]; "
    "from pipeline.processes.confined import main; main()"
)
"""Without the working folder, which `-c` puts first: a file there may be called struct.py."""

T = TypeVar("T")


class OverLimit(Exception):
    """A call exceeded its limit of time or memory, or its process died."""


class Confined(Generic[T]):
    """`function`, run in a child that is started when it is first called. One call at a time; use as a context.

    function: one of a module, by whose name the child imports it; its arguments and its value are pickled.
    example: arguments of a call that makes the child import and build what every call needs, before there are limits.
    """

    def __init__(
        self, function: Callable[..., T], example: tuple[Any, ...], seconds: float = SECONDS, memory: int = MEMORY
    ) -> None:
        self._start = pickle.dumps((function, example, seconds, memory))
        self._limits = (seconds, memory)
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Confined[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __call__(self, *arguments: Any) -> T:
        """The function's value. Raises what it raises, OverLimit, and StageError where the child cannot be started."""
        if self._child is None:
            self._child = _start_child()
            try:
                self._ask(self._start)
            except OverLimit as e:
                raise StageError(sys.executable, f"the process that reads pages did not start: {e}") from None
        answer = self._ask(pickle.dumps(arguments))
        if answer[0] == "raised":
            _, error, trace = answer
            if isinstance(error, MemoryError):
                self.close()  # what the child could not free remains
                raise OverLimit(f"more than {self._limits[1] / 1e6:.0f} MB of memory")
            raise error from _ChildTraceback(trace)
        value: T = answer[1]
        return value

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _ask(self, message: bytes) -> tuple[Any, ...]:
        """One exchange of messages. Raises OverLimit where the child ends instead of an answer."""
        child = self._child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            _write_message(child.stdin, message)
            answers = select.poll()  # not select(), which takes no descriptor above 1023: a crawl has many sockets
            answers.register(child.stdout, select.POLLIN)
            if not answers.poll(1000 * WALL_S):
                raise OverLimit(f"no answer within {WALL_S:g} s")
            answer: tuple[Any, ...] = _load_message(_read_message(child.stdout))
        except (BrokenPipeError, EOFError):
            raise OverLimit(self._why_ended(child.wait())) from None
        except BaseException:
            self.close()
            raise
        return answer

    def _why_ended(self, code: int) -> str:
        """Returns why the child ended, by its exit code."""
        self.close()
        if code == -signal.SIGPROF:
            return f"more than {self._limits[0]:g} s of CPU time"
        return f"its process was killed by signal {-code}" if code < 0 else f"its process exited with code {code}"


class _ChildTraceback(Exception):
    """The traceback of an exception where it was raised, as text."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


def _start_child() -> subprocess.Popen[bytes]:
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
    )


def _write_message(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(_LENGTH.pack(len(message)))
    pipe.write(message)
    pipe.flush()


def _read_message(pipe: IO[bytes]) -> bytes:
    """One message. Raises EOFError where the pipe ends before it does."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    size = _LENGTH.unpack(head)[0]
    message = pipe.read(size)
    if len(message) < size:
        raise EOFError
    return message


def _load_message(message: bytes) -> Any:
    return pickle.loads(message)  # noqa: S301  # both ends are ours; what strangers wrote lies in it as bytes


def main() -> None:
    """The child: answers until its standard input ends."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library's prints are not answers
    function, example, seconds, memory = _load_message(_read_message(source))
    function(*example)
    room = _address_space() + memory
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent ends this process
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _write_message(sink, pickle.dumps(("ready",)))
    while True:
        try:
            arguments = _load_message(_read_message(source))
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            answer = pickle.dumps(("returned", function(*arguments)))
        except Exception as e:
            answer = _error_message(e)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        _write_message(sink, answer)


def _error_message(error: Exception) -> bytes:
    """The answer for an exception; one that cannot be pickled becomes a RuntimeError with its words."""
    trace = "".join(traceback.format_exception(error, limit=-8))
    error.__traceback__ = error.__cause__ = error.__context__ = None
    try:
        answer = pickle.dumps(("raised", error, trace))
        _load_message(answer)
    except Exception:
        answer = pickle.dumps(("raised", RuntimeError(f"{type(error).__name__}: {error}"), trace))
    return answer


def _address_space() -> int:
    """Bytes of address space that this process has."""
    if not Path("/proc/self/statm").exists():  # another system than Linux: what it has taken so far, and some room
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 4_000_000_000
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
