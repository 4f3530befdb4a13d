"""Agreement of the ranks: they start from one checkpoint, are compared, and stop together if they differ.

    locked_run      the first rank locks the run's folder, chooses its newest checkpoint, and tells all which one it is
    on_all_ranks    what one rank cannot do stops all of them, with one line
    stop            ends all ranks with an error on which they agree, said once
    Agreement       compares step and position in every step; weights, queues and optimiser before the first step and
                    before each checkpoint; weights and queues also every `run.compare_every` steps

Every rank holds a whole replica, and only gradients and keys are exchanged. So ranks that begin apart, or come apart,
go on without an error, and what they save looks sound. A part of the state is compared by its digest: the sum of its
bits, read as integers. Integers add up to the same in any order, and are added where they lie. It takes 4 ms of one CPU
core for recipe tiny and 0.1 s for the 2 GB of brivl_b5_base, once in `run.compare_every` steps.

Limits: two elements that have changed places within one tensor are not noticed. Ranks on CPUs must compute with the
same number of threads on machines of one kind: sums of floats round otherwise elsewhere, and the ranks do come apart. A
rank that dies is noticed by the exchange that it is missing from, not here.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from data_specs.errors import WenlanError
from data_specs.shard import ContractError
from data_specs.storage.whole_files import sha256_of
from training.config import to_dict
from training.errors import FirstRankError, RunError, TrainingError
from training.method import distributed
from training.outputs import checkpoint
from training.outputs.atomic_files import INDEX
from training.outputs.checkpoint import RunState
from training.outputs.saver import fetch, fetch_best, locked_mirror
from training.run.launch import Leave, locked_folder
from training.run.resume import flatten
from training.run.setup import Setup

LOG = logging.getLogger(__name__)

_GRACE_S = 2.0
"""Seconds for which the other ranks wait before they end: a launcher ends all ranks as soon as one has ended, and the
first is to say why before that."""

_PARTS = ("towers", "key_towers", "queues", "optimizer")
"""Parts of the state, as a checkpoint names them."""

_MOVING = _PARTS[:3]
"""Parts that are compared every so many steps: an optimiser that differs shows in the towers one step later."""

_NUMBERS = ("step", "position", *_PARTS)

Result = TypeVar("Result")
Error = WenlanError | OSError


@dataclass(frozen=True, slots=True)
class Start:
    """The checkpoint that a run resumes from: its path on the first rank, its step, the sha256 of its index."""

    path: str
    step: int
    sha256: str

    @staticmethod
    def of(folder: Path) -> Start:
        """Start of a whole checkpoint; its index names the sha256 of every other file."""
        return Start(str(folder), checkpoint.step_of(folder), sha256_of(folder / INDEX))

    def __str__(self) -> str:
        return f"{self.path} (step {self.step}, sha256 {self.sha256[:12]})"


@contextmanager
def locked_run(out: Path, mirror: str) -> Iterator[Path | None]:
    """Lock the run's folder on the first rank. Yields this rank's path of the checkpoint that all resume from, or None.

    The first rank chooses once it holds the lock, so that no run writes a newer one meanwhile. A rank that sees another
    disk fetches the same checkpoint from the mirror, where there is one.

    Raises RunError: the folder is another run's, or a rank lacks the checkpoint or has another of its name.
    """
    with ExitStack() as stack:

        def choose_start() -> Start | None:
            stack.enter_context(locked_folder(out))
            if mirror:
                stack.enter_context(locked_mirror(mirror))
                fetch(out, mirror)
                fetch_best(out, mirror)
            newest = checkpoint.latest(out)
            for folder in checkpoint.folders_without_index(out):
                if newest is None or checkpoint.step_of(folder) > checkpoint.step_of(newest):
                    LOG.warning("%s: skipped, because %s is missing: it is not a whole checkpoint", folder, INDEX)
            return None if newest is None else Start.of(newest)

        start = _on_first_rank(choose_start)
        if mirror and start is not None:
            name = Path(start.path).name
            on_all_ranks(lambda: _fetch_missing(out, mirror, name))
        folder = on_all_ranks(lambda: _local_path(start, out))
        if start is not None and distributed.world_size() > 1 and distributed.rank() == 0:
            LOG.info("all ranks resume from %s", start)
        yield folder


def on_all_ranks(call: Callable[[], Result]) -> Result:
    """Run `call` on all ranks; returns its result on this one. An error on one rank stops all of them.

    The first rank raises the error, with the rank that it comes from unless all failed; the others raise
    FirstRankError. That holds for our own errors and the operating system's; others are raised as they are.
    """
    result, error = _result_or_error(call)
    errors = distributed.gather_objects(error)
    failed = {rank: of_rank for rank, of_rank in enumerate(errors) if of_rank is not None}
    if failed:
        hosts = distributed.gather_objects(platform.node())
        rank, first = next(iter(failed.items()))
        stop(first if len(failed) == len(errors) else _with_rank(first, f"rank {rank} on {hosts[rank]}"))
    assert result is not None
    return result[0]


class Agreement:
    """Comparison of one run's ranks. Every rank calls alike; a process alone has nothing to compare."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._alone = distributed.world_size() == 1

    def before_first_step(self, start: Path | None) -> None:
        """Compare the inputs of a step: config, data, checkpoint, state. Raises RunError on every rank."""
        if self._alone:
            return
        setup, state = self._setup, self._setup.state
        config = flatten("", to_dict(setup.config))
        seen: dict[str, Any] = {name: value for name, value in config.items() if name != "run.device"}
        seen |= {"data": state.content_digests, "regions": state.region_digests, "samples": len(setup.dataset)}
        seen |= {"checkpoint": None if start is None else Start.of(start).sha256[:12]}
        seen |= dict(zip(_NUMBERS, self._numbers(state, _PARTS).tolist(), strict=True))
        _compare(distributed.gather_objects(seen), state.step)

    def before_step(self, state: RunState, valid: int, leave: Leave) -> tuple[int, Leave]:
        """The sum of `valid` over the ranks, and the most urgent of their requests.

        The same exchange compares step and position, and weights and queues where that is due. Raises RunError on
        every rank.
        """
        if self._alone:
            return valid, leave
        every = self._setup.config.run.compare_every
        due = every > 0 and state.step % every == 0 and state.step > self._setup.state.step
        numbers_M = self._numbers(state, _MOVING if due else ())
        of_ranks = distributed.gather(torch.cat([torch.tensor([valid, leave]), numbers_M])[None]).tolist()
        self._compare_rows([row[2:] for row in of_ranks], state)
        return sum(row[0] for row in of_ranks), Leave(max(row[1] for row in of_ranks))

    def before_checkpoint(self, state: RunState) -> None:
        """Compare the state before it is saved. Raises RunError on every rank if it differs."""
        if not self._alone:
            self._compare_rows(distributed.gather(self._numbers(state, _PARTS)[None]).tolist(), state)

    def _numbers(self, state: RunState, parts: Sequence[str]) -> Tensor:
        """Values of _NUMBERS as int64 on the CPU; 0 for a part that is not asked for, and a GPU is not waited for."""
        setup, digests_P = self._setup, torch.zeros(len(_PARTS), dtype=torch.int64)
        if parts:
            tensors = checkpoint.parts_of(setup.model, setup.optimizer)
            digests = [digest(tensors[part] if part in parts else {}, setup.device) for part in _PARTS]
            digests_P = torch.stack(digests).cpu()
        return torch.cat([torch.tensor([state.step, state.position]), digests_P])

    def _compare_rows(self, rows: Sequence[Sequence[int]], state: RunState) -> None:
        """Raise RunError on every rank unless all rows are the same."""
        if any(row != rows[0] for row in rows):
            _compare([dict(zip(_NUMBERS, row, strict=True)) for row in rows], state.step)


def digest(tensors: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """A number (int64, on `device`) of the tensors' bits: every bit counts, and which tensor it is in; names do not."""
    sums = []
    for tensor in tensors.values():
        bytes_N = tensor.detach().reshape(-1).view(torch.uint8)
        even = len(bytes_N) // 8 * 8
        total = bytes_N[:even].view(torch.int64).sum()
        sums.append((total if even == len(bytes_N) else total + bytes_N[even:].sum()).to(device))
    factors_T = 2 * torch.arange(len(sums), device=device) + 1  # odd: a product with one loses no bit when it wraps
    return (torch.stack(sums) * factors_T).sum() if sums else factors_T.sum()


def _fetch_missing(out: Path, mirror: str, name: str) -> None:
    """Fetch the checkpoint of a name where it is not there: one rank of each machine, the others share its disk."""
    if os.environ.get("LOCAL_RANK", "0") == "0" and not (out / "checkpoints" / name / INDEX).is_file():
        fetch(out, mirror, name)


def _local_path(start: Start | None, out: Path) -> Path | None:
    """This rank's path of the first rank's checkpoint. Raises RunError if it is missing or another one."""
    newest = checkpoint.latest(out)
    if start is None:
        if newest is not None:
            raise RunError(
                str(newest), "exists here, but rank 0 finds no checkpoint; put --out on a disk that all ranks share"
            )
        return None
    folder = out / "checkpoints" / Path(start.path).name
    if not (folder / INDEX).is_file():
        advice = "put --out on a disk that all ranks share, or set run.mirror"
        raise RunError(str(folder), f"missing, but rank 0 resumes from {start}; {advice}")
    if Start.of(folder).sha256 != start.sha256:
        raise RunError(str(folder), f"its sha256 is {Start.of(folder).sha256[:12]}, but rank 0 resumes from {start}")
    if newest is not None and checkpoint.step_of(newest) > start.step:
        raise RunError(str(newest), f"is newer than {start}, from which rank 0 resumes; start the run on this machine")
    return folder


def _result_or_error(call: Callable[[], Result]) -> tuple[tuple[Result] | None, Error | None]:
    """The result of a call, or the error that it raised; a process alone just raises it."""
    try:
        return (call(),), None
    except (WenlanError, OSError) as e:
        if distributed.world_size() == 1:
            raise
        return None, e


def _on_first_rank(call: Callable[[], Result]) -> Result:
    """The result of a call on the first rank, on all of them; what it raises there ends all of them."""
    tried = distributed.broadcast_from_first(_result_or_error(call) if distributed.rank() == 0 else (None, None))
    result, error = tried
    if error is not None:
        stop(error)
    assert result is not None
    return result[0]


def _with_rank(error: Error, where: str) -> Error:
    if isinstance(error, TrainingError):
        return type(error)(f"{where}: {error.subject}", error.problem)
    if isinstance(error, OSError):
        return RunError(f"{where}: {error.filename or 'input/output'}", error.strerror or str(error))
    return ContractError(f"{where}: {error}")


def _compare(seen: Sequence[Mapping[str, Any]], step: int) -> None:
    """Raise RunError, on every rank, that names the ranks that differ from most, and in what. `seen`: of each rank."""
    usual = {name: Counter(repr(of_rank[name]) for of_rank in seen).most_common(1)[0][0] for name in seen[0]}
    odd = {rank: [name for name in usual if repr(of_rank[name]) != usual[name]] for rank, of_rank in enumerate(seen)}
    odd = {rank: names for rank, names in odd.items() if names}
    if not odd:
        return
    hosts = distributed.gather_objects(platform.node())
    rank, names = next(iter(odd.items()))
    usual_rank = next((other for other in range(len(seen)) if other not in odd), 0)
    differences = [n if n in _PARTS else f"{n} ({seen[rank][n]!r}, not {usual[n]})" for n in names[:4]]
    differences += [f"{len(names) - 4} more"] if len(names) > 4 else []
    more = f", and so do {len(odd) - 1} other ranks" if len(odd) > 1 else ""
    problem = (
        f"rank {rank} on {hosts[rank]} differs from rank {usual_rank} in {', '.join(differences)}{more}; this step "
        "was not saved. Run the same command to resume from the last checkpoint; if it happens again, check that all "
        "ranks run the same code on the same kind of machine"
    )
    stop(RunError(f"step {step}", problem))


def stop(error: Error) -> NoReturn:
    """Stop all ranks with an error that all of them know: only the first one prints it."""
    if distributed.rank() == 0:
        raise error
    time.sleep(_GRACE_S)
    raise FirstRankError("rank 0", f"stopped the run: {error}")
