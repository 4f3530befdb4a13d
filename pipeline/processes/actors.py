"""Actors: objects that live in processes of their own on a Ray cluster, or plainly in this process without one.

Four parts of the pipeline need this: the visitors of a crawl, the holders of semantic dedup and those of models on GPUs
(a group of one kind, `Actors`), and the rate limit of hosts (one object for all workers of the cluster, `shared`). Each
is written as a plain class that knows nothing of Ray; its users call it through this module and read the same with a
cluster as without.

This is a module below `pipeline.web` and `pipeline.matching`, which use it, and not part of the executor
(`pipeline.cluster`), which is above them.

Limits: actors ask Ray for no CPU, since they idle between questions and a machine of two cores must not wait for a
third. What an actor has learned is lost when its process dies, whether it is started again or not.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from pipeline.errors import StageError

LARGE = 64 * 1024
"""Bytes of a pickled argument from which on it is passed by reference. Ray itself does so from 100 KB on."""

_NAMESPACE = "wenlan"

T = TypeVar("T")


def on_cluster() -> bool:
    """True if this process belongs to a Ray cluster."""
    return _ray() is not None


class Actors(Generic[T]):
    """Creates one object of `kind` per entry of `arguments`, the arguments of its constructor.

    On a cluster each is an actor, spread over the nodes; a single one that owns no GPU, or any number without a
    cluster, are objects of this process. Use as a context manager, or call `close`: actors end with the group. Tasks
    may be given the group.

    restarts: how often a call is repeated that was lost with its actor's process, which is constructed again.
    concurrency: calls that one actor runs at a time, for a class with async methods.
    num_gpus: GPUs that each actor owns, or a fraction of one.
    """

    def __init__(
        self,
        kind: type[T],
        arguments: Sequence[tuple[Any, ...]],
        *,
        restarts: int = 0,
        concurrency: int = 1,
        num_gpus: float = 0.0,
    ) -> None:
        self._ray: Any = _ray() if len(arguments) > 1 or num_gpus else None
        # Ray constructs an actor again from the arguments that it was first given. Small ones lie in the actor's own
        # description. Large ones lie in the object store, where nothing keeps them alive for that: without references
        # the restart fails with a ReferenceCountingAssertionError (https://github.com/ray-project/ray/issues/53727).
        # So we put them there ourselves, once for all actors, and keep the references as long as the group lives.
        self._passed: dict[int, tuple[Any, Any]] = {}  # by id: the argument, which keeps its id, and what is passed
        if self._ray is None:
            self._members: list[Any] = [kind(*own) for own in arguments]
            return
        actor = self._ray.remote(kind).options(
            num_cpus=0,
            num_gpus=num_gpus,
            scheduling_strategy="SPREAD",
            max_restarts=-1 if restarts else 0,
            max_task_retries=restarts,
            max_concurrency=concurrency,
        )
        self._members = [actor.remote(*map(self._pass, own)) for own in arguments]

    def _pass(self, argument: Any) -> Any:
        """Returns the value to pass to an actor: a reference for a large argument, the same for all actors."""
        if id(argument) not in self._passed:
            large = len(self._ray.cloudpickle.dumps(argument)) > LARGE
            self._passed[id(argument)] = (argument, self._ray.put(argument) if large else argument)
        return self._passed[id(argument)][1]

    def __enter__(self) -> Actors[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._members)

    @property
    def remote(self) -> bool:
        """True if the members live in other processes."""
        return self._ray is not None

    def ask(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The results of one method of every member, called at the same time, each with its own arguments."""
        pairs = zip(self._members, arguments, strict=True)
        if self._ray is None:
            return [getattr(member, method)(*own) for member, own in pairs]
        results: list[Any] = self._ray.get([getattr(member, method).remote(*own) for member, own in pairs])
        return results

    def begin(self, number: int, method: str, *arguments: Any) -> Future[Any]:
        """Calls a method of one member. The future raises what it raised, or StageError if its process ended."""
        made: Future[Any] = Future()
        call = getattr(self._members[number], method)
        if self._ray is None:
            try:
                made.set_result(call(*arguments))
            except Exception as e:
                made.set_exception(e)
            return made
        # Ray lends the CPU of a task that waits in `ray.get` or `ray.wait` to another task, and starts a worker process
        # for that; a task that waits for a future keeps its CPU.
        call.remote(*arguments).future().add_done_callback(functools.partial(_set_result, self._ray, method, made))
        return made

    def awaited(self, number: int) -> T:
        """One member, for a class with async methods: they are awaited here wherever the member lives."""
        member = self._members[number]
        return cast(T, member if self._ray is None else _AwaitableActor(self._ray, member))

    def close(self) -> None:
        """End the actors. Members that are objects of this process are left to their user."""
        if self._ray is not None:
            for member in self._members:
                self._ray.kill(member)
        self._passed.clear()


def _set_result(ray: Any, method: str, made: Future[Any], asked: Future[Any]) -> None:
    """Gives a future the result or error of Ray's own."""
    if (e := asked.exception()) is None:
        made.set_result(asked.result())
    else:
        made.set_exception(_method_error(ray, method, e))


def _method_error(ray: Any, method: str, e: BaseException) -> BaseException:
    """Returns what a method raised, as without a cluster; a StageError if its actor's process ended instead."""
    if isinstance(e, ray.exceptions.RayTaskError):
        return cast(BaseException, e.cause)
    why = str(e).strip().partition("\n")[0]
    return StageError(method, f"the process of an actor has ended ({type(e).__name__}: {why})")


class _AwaitableActor:
    """An actor whose methods are called like those of the object itself; Ray's references can be awaited."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor

    def __getattr__(self, method: str) -> Any:
        return functools.partial(self._await, method)

    async def _await(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except self._ray.exceptions.RayError as e:
            raise _method_error(self._ray, method, e) from None


def shared(kind: type[T], name: str) -> T:
    """The one object of `kind` that all workers of the cluster share; without a cluster the one of this process.

    On a cluster it is an actor of that name, made at the first request and kept until the cluster ends; if its process
    dies it is constructed again. `kind` takes no arguments. Calls wait for their result.
    """
    ray = _ray()
    if ray is not None:
        return cast(T, _NamedActor(ray, kind, name))
    if kind not in _of_this_process:
        _of_this_process[kind] = kind()
    return cast(T, _of_this_process[kind])


_of_this_process: dict[type[Any], Any] = {}


class _NamedActor:
    """A named actor whose methods are called like those of the object itself."""

    def __init__(self, ray: Any, kind: type[Any], name: str) -> None:
        self._ray, self._kind, self._name = ray, kind, name
        self._actor = self._get_or_make()

    def _get_or_make(self) -> Any:
        named = {"name": self._name, "namespace": _NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
        return self._ray.remote(self._kind).options(num_cpus=0, max_restarts=-1, max_task_retries=-1, **named).remote()

    def __getattr__(self, method: str) -> Any:
        return functools.partial(self._ask, method)

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return self._ray.get(getattr(self._actor, method).remote(*arguments))
        except self._ray.exceptions.RayActorError:  # killed for good (`ray.kill`): Ray does not restart it
            self._actor = self._get_or_make()
            return self._ray.get(getattr(self._actor, method).remote(*arguments))


def _ray() -> Any:
    """Ray, if this process belongs to a cluster; else None. Nothing is imported for a process without Ray."""
    if "ray" not in sys.modules:
        return None
    import ray

    return ray if ray.is_initialized() else None
