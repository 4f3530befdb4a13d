"""The ranks of test_agreement.py: go through SCENES and note what came of each. No test by itself.

python ranks.py FOLDER MANIFEST WORLD: so many processes as ranks. FOLDER is where they meet and where results go:
`RANK.json` {scene: [outcome, ...]}; `RANK.pt` what `work` of tests/training/method/ranks.py computes, and `alone.pt`
the same by one process. Before two ranks there is a run that is killed: `killed`, by the command in killed.json.
Starting a process costs more than a scene: they are forked when all is imported.
"""

from __future__ import annotations

import fcntl
import importlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_specs.errors import WenlanError
from tests.training.method.ranks import work
from training import cli, moco
from training.method import distributed
from training.outputs.journal import Journal
from training.resolve import resolve
from training.run import agreement, train
from training.run.flops import Meter
from training.run.launch import Leave, locked_folder
from training.run.step import Stepper, StepResult

FOLDER, MANIFEST = Path(sys.argv[1]), sys.argv[2]
SAMPLES, BATCH = 32, 8
WAIT = timedelta(seconds=60)


def run(out: Path, *settings: str, data: str = MANIFEST, stop: int = 0) -> str:
    """`fit` for six steps, asked to end at step `stop`: `FROM -> TO`, or the error with its kind."""
    asked = iter(range(1, 100))

    def leave() -> Leave:
        return Leave.STOP if next(asked) == stop else Leave.NO

    config = resolve("tiny", [f"run.epochs={6 * BATCH / SAMPLES}", "run.save_in_background=false", *settings])
    try:
        result = train.fit(config, [data], out, cache=FOLDER / "cache", leave_signal=leave)
    except WenlanError as e:
        return f"{type(e).__name__}: {e}"
    return f"{result.resumed_from} -> {result.steps}"


def checkpoints(out: Path) -> str:
    return " ".join(sorted(path.name for path in (out / "checkpoints").glob("step-*")))


def copied(source: Path, target: Path, rank: int = 0) -> None:
    """Copy one checkpoint to another run's folder, once."""
    if distributed.rank() == rank:
        shutil.copytree(source, target / "checkpoints" / source.name)
    dist.barrier()


@contextmanager
def patched(of: Any, name: str, new: object) -> Iterator[None]:
    before = getattr(of, name)
    setattr(of, name, new)
    try:
        yield
    finally:
        setattr(of, name, before)


def changed_after_step_3(change: Callable[[Stepper], None]) -> Any:
    """What the last rank's state suffers from after its third step."""
    step = Stepper.step

    def stepping(self: Stepper, *arguments: Any) -> StepResult:
        done = step(self, *arguments)
        if arguments[1].step == 2 and distributed.rank() == distributed.world_size() - 1:
            with torch.no_grad():
                change(self)
        return done

    return patched(Stepper, "step", stepping)


def a_weight(stepper: Stepper) -> None:
    stepper._model.text_query.trunk.tokens.weight[7, 7] += 1e-6  # type: ignore[index, operator, union-attr]


def a_key(stepper: Stepper) -> None:
    stepper._model.image_queue.keys_KD[3, 5] += 1e-6


def a_moment(stepper: Stepper) -> None:
    stepper._optimizer.state[stepper.parameters[0]]["exp_avg"].mul_(1.001)


def stopped_and_started(here: Path) -> list[str]:
    outcome = [run(here / "run", stop=4), run(here / "run"), checkpoints(here / "run")]
    run(here / "whole")
    of_both = [(here / name / "checkpoints/step-00000006/checkpoint.json").read_text() for name in ("run", "whole")]
    return [*outcome, "equal files" if of_both[0] == of_both[1] else "other files"]


def one_old_clock(here: Path) -> list[str]:
    """Checkpoints by minutes, of which only the first rank sees the end."""
    others = patched(train._Run, "_save_if_old", lambda _: Leave.NO) if distributed.rank() else nullcontext()
    with others:
        outcome = run(here / "old", "run.checkpoint_every=0.00001min", "run.keep_last=9")
    return [outcome, checkpoints(here / "old")]


def came_apart(here: Path, change: Callable[[Stepper], None], *settings: str) -> list[str]:
    out = here / f"apart-{change.__name__}-{len(settings)}"
    with changed_after_step_3(change):
        return [run(out, "run.compare_every=2", *settings), checkpoints(out)]


def another_position(here: Path) -> list[str]:
    set_up = train.set_up

    def apart(*arguments: Any, **options: Any) -> Any:
        setup = set_up(*arguments, **options)
        last = distributed.rank() == distributed.world_size() - 1
        return replace(setup, state=replace(setup.state, position=88)) if last else setup

    with patched(train, "set_up", apart):
        return [run(here / "position")]


def waiting_for_the_lock(here: Path) -> list[str]:
    """Another run ends meanwhile, and writes a newer checkpoint before it does."""
    out, steps = here / "locked", here / "run" / "checkpoints"
    copied(steps / "step-00000004", out)

    def hold() -> None:
        with (out / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            held.set()
            time.sleep(1.5)
            shutil.copytree(steps / "step-00000006", out / "checkpoints" / "step-00000006")

    held = threading.Event()
    if distributed.rank() == 0:
        threading.Thread(target=hold).start()
        held.wait()
    return [run(out)]


def another_run_has_the_folder(here: Path) -> list[str]:
    dist.barrier()
    if distributed.rank() == 0:
        (here / "taken").mkdir()
    with (here / "held").open("w") if distributed.rank() else (here / "taken" / ".lock").open("w") as file:
        if distributed.rank() == 0:
            fcntl.flock(file, fcntl.LOCK_EX)
        with patched(agreement, "locked_folder", lambda out: locked_folder(out, wait=0.1)):
            return [run(here / "taken")]


def other_disks(here: Path) -> list[str]:
    """Each rank has a folder of its own; the first one's holds step 4."""
    steps, mirror = here / "run" / "checkpoints", here / "mirror"
    copied(steps / "step-00000004", here / "disk-0")
    out = here / f"disk-{distributed.rank()}"
    found = [run(out)]
    copied(steps / "step-00000004", here / "disk-1", rank=1)
    copied(steps / "step-00000006", here / "disk-1", rank=1)
    found.append(run(out))
    dist.barrier()
    if distributed.rank() == 1:
        shutil.rmtree(out)
        shutil.copytree(steps / "step-00000006", out / "checkpoints" / "step-00000004")
    found.append(run(out))
    dist.barrier()
    if distributed.rank() == 1:
        shutil.rmtree(out)
        shutil.copytree(steps / "step-00000004", mirror / "step-00000004")
    dist.barrier()
    found.append(run(out, f"run.mirror={mirror}"))
    return [*found, checkpoints(out)]


def data_of_one_rank(here: Path) -> list[str]:
    data = "nothing" if distributed.rank() == 1 else MANIFEST
    return [run(here / "data", data=data), run(here / "data", "text.vocab_size=100")]


def an_encoder_with_an_unused_weight(here: Path) -> list[str]:
    build = moco.build_tower

    def with_spare(kind: str, *arguments: Any, **options: Any) -> Any:
        tower = build(kind, *arguments, **options)
        if kind == "text":
            tower.trunk.spare = torch.nn.Linear(3, 3)
        return tower

    with patched(moco, "build_tower", with_spare):
        return [run(here / "unused")]


def refused(here: Path) -> list[str]:
    """The command, asked for a run other than it began: its exit code and what it prints."""
    words = [
        "fit",
        "--recipe",
        "tiny",
        "--data",
        MANIFEST,
        "--out",
        str(here / "run"),
        "--set",
        "optim.schedule=constant",
    ]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        code = cli.main([*words, "--cache", str(FOLDER / "cache"), "--json"])
    return [str(code), said.getvalue()]


SCENES: dict[str, Callable[[Path], list[str]]] = {
    "stopped": stopped_and_started,
    "old": one_old_clock,
    "weight": lambda here: came_apart(here, a_weight),
    "key": lambda here: came_apart(here, a_key),
    "checkpoint": lambda here: came_apart(here, a_weight, "run.compare_every=0", "run.checkpoint_every=3"),
    "moment": lambda here: came_apart(here, a_moment, "run.compare_every=0", "run.checkpoint_every=3"),
    "position": another_position,
    "lock": waiting_for_the_lock,
    "taken": another_run_has_the_folder,
    "disks": other_disks,
    "data": data_of_one_rank,
    "unused": an_encoder_with_an_unused_weight,
    "refused": refused,
}

LATE = ("timm", "torch._dynamo", "torch.utils.tensorboard", "torchvision.transforms.v2.functional", "pyarrow.dataset")
"""What a run imports when it needs it."""

OF_FOUR = ("stopped", "weight", "position", "disks")


def go(rank: int, world: int) -> None:
    """One rank of so many."""
    torch.set_num_threads(1)
    agreement._GRACE_S = 0.0
    dist.init_process_group("gloo", timeout=WAIT, rank=rank, world_size=world, init_method=f"file://{FOLDER}/store")
    scenes = SCENES if world == 2 else {name: SCENES[name] for name in OF_FOUR}
    outcomes = {name: scene(FOLDER) for name, scene in scenes.items()}
    (FOLDER / f"{rank}.json").write_text(json.dumps(outcomes))
    torch.save(work(), FOLDER / f"{rank}.pt")
    dist.destroy_process_group()
    if rank == 0:
        torch.save(work(), FOLDER / "alone.pt")


def killed() -> None:
    """The command, killed behind its eighth step: a kill from outside may come when a short run has ended."""
    advance, out = Journal.advance, FOLDER / "killed"
    words = ["fit", "--recipe", "tiny", "--data", MANIFEST, "--out", str(out), "--json"]
    words += ["--set", "run.epochs=3", "--set", "run.checkpoint_every=5"]
    (FOLDER / "killed.json").write_text(json.dumps(words))

    def killing(self: Journal, step: int) -> None:
        advance(self, step)
        if step == 8:
            while not (out / "checkpoints" / "step-00000005").is_dir():  # in the background
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    with patched(Journal, "advance", killing):
        cli.main(words)


def main() -> None:
    for name in LATE:
        importlib.import_module(name)
    Meter(resolve("tiny", ["run.recompute=nothing"]), torch.device("cpu")).sample_flops()  # once, and not in each
    forking = multiprocessing.get_context("fork")
    world = int(sys.argv[3])
    if world == 2:
        alone = forking.Process(target=killed)
        alone.start()
        alone.join()
        assert alone.exitcode == -signal.SIGKILL
    ranks = [forking.Process(target=go, args=(rank, world)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    sys.exit(any(rank.exitcode for rank in ranks))


if __name__ == "__main__":
    main()
