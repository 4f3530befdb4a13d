"""Ranks begin from one checkpoint, stay equal, and stop with one line where they do not; two and four of them.

And a run of one process that is killed, in the same program: to start one costs more than what it does.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.places import ROOT
from tests.processes import is_running, wait_until
from training import cli
from training.outputs.journal import read_metrics
from training.resolve import resolve
from training.run import train
from training.run.agreement import digest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

MakeShards = Callable[..., Path]
Outcomes = dict[str, list[str]]

CPU = torch.device("cpu")
FOUR = pytest.param(4, marks=pytest.mark.drill(20))
"""Ranks; two are the ones of each `make test`."""
QUIET = "FirstRankError: rank 0: stopped the run: "


class Runs(dict[int, list[Outcomes]]):
    """What ranks.py noted, by the number of ranks, of each rank; each number is run once."""

    def __init__(self, manifest: Path, folder: Path) -> None:
        super().__init__()
        self.manifest, self.folder = manifest, folder

    def __missing__(self, world: int) -> list[Outcomes]:
        folder = self.folder / f"{world}"
        folder.mkdir()
        words = [sys.executable, str(Path(__file__).with_name("ranks.py")), str(folder), str(self.manifest), str(world)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, env=environment, stderr=subprocess.PIPE, timeout=400)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        self[world] = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]
        return self[world]


@pytest.fixture(scope="module")
def outcomes(shards_of_module: MakeShards, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(shards_of_module(train=(20, 12)), tmp_path_factory.mktemp("ranks"))


def said(outcomes: Runs, world: int, scene: str) -> list[str]:
    """What the first rank raised or returned; the other ranks raised the same under the name that is not printed."""
    first, *others = (of_rank[scene] for of_rank in outcomes[world])
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            kind, _, words = mine.partition(": ")
            assert theirs == (f"{QUIET}{words}" if kind.endswith("Error") else mine)
    return first


@pytest.mark.timeout(420)
def test_kill_9_and_the_same_command_again_give_the_same_final_loss(
    outcomes: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcomes[2]
    folder, steps = outcomes.folder / "2", 12
    assert len(read_metrics(folder / "killed")) >= 8
    assert cli.main(json.loads((folder / "killed.json").read_text())) == 0
    killed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 5 <= killed["resumed_from"] < steps
    config = resolve("tiny", ["run.epochs=3", "run.checkpoint_every=5"])
    whole = train.fit(config, [str(outcomes.manifest)], tmp_path / "whole")
    assert killed["loss"] == pytest.approx(whole.loss, abs=1e-5)
    assert [line["step"] for line in read_metrics(folder / "killed")] == list(range(1, steps + 1))


@pytest.mark.timeout(420)
@pytest.mark.parametrize("world", [2, FOUR])
def test_one_two_and_four_processes_have_one_loss_and_end_equal(outcomes: Runs, world: int) -> None:
    """Of every objective, whole and in micro-batches: the trace of the loss, weights, key towers and queues."""
    assert outcomes[world]
    folder = outcomes.folder / f"{world}"
    one, *others = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("alone", *range(world)))
    for result, ranks in ((one, 1), *((other, world) for other in others)):
        assert result.pop("gathered").tolist() == [n + rank for rank in range(ranks) for n in (0, 10)]
        assert result.pop("gathered_bool").tolist() == [rank == 1 for rank in range(ranks)]
    for name, value in one.items():
        for other in others:
            same = torch.allclose(value, other[name], atol=1e-9) if value.is_floating_point() else None
            assert same or torch.equal(value, other[name]), name
        if name.startswith("micros of "):
            whole = one[name.removeprefix("micros of ")]
            assert torch.allclose(value.double(), whole.double(), atol=1e-9), name
    assert all(other.keys() == one.keys() for other in others)
    assert one["moco/text_queue.filled_K"].sum() > 10
    assert all(value[1:].min() > 0.1 for name, value in one.items() if name.endswith("/losses"))


@pytest.mark.timeout(420)
@pytest.mark.parametrize("world", [2, FOUR])
def test_ranks_go_on_from_one_checkpoint_to_the_files_of_a_run_without_a_stop(outcomes: Runs, world: int) -> None:
    stopped, again, checkpoints, compared = said(outcomes, world, "stopped")
    assert stopped.startswith("RunError: step 4: stopped by a signal")
    assert (again, checkpoints) == ("4 -> 6", "step-00000004 step-00000006")
    assert compared == "equal files"


@pytest.mark.timeout(420)
def test_a_checkpoint_that_is_due_by_the_clock_of_one_rank_is_due_for_all(outcomes: Runs) -> None:
    outcome, checkpoints = said(outcomes, 2, "old")
    assert (outcome, checkpoints) == ("0 -> 6", " ".join(f"step-0000000{step}" for step in range(1, 7)))


@pytest.mark.timeout(420)
@pytest.mark.parametrize(
    ("world", "scene", "step", "part"),
    [
        (2, "weight", 4, "towers"),
        pytest.param(4, "weight", 4, "towers", marks=pytest.mark.drill(5)),
        (2, "key", 4, "queues"),
        (2, "moment", 3, "optimizer"),
        (2, "position", 0, r"position \(88, not 0\)"),
        pytest.param(4, "position", 0, r"position \(88, not 0\)", marks=pytest.mark.drill(5)),
    ],
)
def test_ranks_that_have_come_apart_stop_and_save_nothing(
    outcomes: Runs, world: int, scene: str, step: int, part: str
) -> None:
    line, *checkpoints = said(outcomes, world, scene)
    pattern = rf"RunError: step {step}: rank {world - 1} on \S+ differs from rank 0 in {part}; this step was not saved"
    assert re.match(pattern, line), line
    assert checkpoints in ([], [""])


@pytest.mark.timeout(420)
def test_what_is_chosen_is_the_newest_once_the_lock_is_held(outcomes: Runs) -> None:
    assert said(outcomes, 2, "lock") == ["6 -> 6"]
    [line] = said(outcomes, 2, "taken")
    assert line.startswith("RunError: ")
    assert line.endswith("/2/taken: another run is writing to it; choose another --out")


@pytest.mark.timeout(420)
@pytest.mark.parametrize("world", [2, FOUR])
def test_a_rank_on_another_disk_stops_all_or_fetches_the_same_from_the_mirror(outcomes: Runs, world: int) -> None:
    of_first = [outcomes[world][0]["disks"][i] for i in range(4)]
    lacks, newer, another, mirrored = of_first
    assert "rank 1 on " in lacks
    assert "disk-1/checkpoints/step-00000004: missing, but rank 0 resumes from " in lacks
    assert "disk-0/checkpoints/step-00000004 (step 4, sha256 " in lacks
    assert "run.mirror" in lacks
    assert "step-00000006: is newer than " in newer
    assert ", from which rank 0 resumes; start the run on this machine" in newer
    assert "step-00000004: its sha256 is " in another
    assert mirrored == "4 -> 6"


@pytest.mark.timeout(420)
def test_what_one_rank_cannot_read_ends_all_and_what_none_can_is_said_once(
    outcomes: Runs,
) -> None:
    of_one, of_all = said(outcomes, 2, "data")
    assert of_one.startswith("ContractError: rank 1 on ")
    assert of_one.endswith(
        ": nothing: no manifest.json there; give one, or its folder: a build has it once it is published"
    )
    assert of_all.startswith("ConfigError: text.vocab_size: 100 is below")


@pytest.mark.timeout(420)
def test_weights_that_no_loss_uses_are_named(outcomes: Runs) -> None:
    line = outcomes[2][0]["unused"][0]
    assert "no loss uses text.trunk.spare.weight, text.trunk.spare.bias; remove or freeze them" in line


@pytest.mark.timeout(420)
def test_of_two_ranks_one_says_why_the_command_is_refused(outcomes: Runs) -> None:
    (code, said_by_first), (code_of_other, said_by_other) = (of_rank["refused"] for of_rank in outcomes[2])
    assert (code, code_of_other) == ("2", "1")
    lines = [line for line in said_by_first.splitlines() if line.startswith("wenlan-train: ")]
    assert len(lines) == 1
    assert "step-00000006: the run was started with other settings" in lines[0]
    assert "wenlan-train: " not in said_by_other


@given(st.data())
def test_any_other_bit_is_another_digest(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]))
    shapes = data.draw(st.lists(st.sampled_from([(), (1,), (3,), (2, 3), (4, 2, 3, 3)]), min_size=1, max_size=4))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    tensors = {str(i): (torch.randn(shape) * 9).to(dtype) for i, shape in enumerate(shapes)}
    before = digest(tensors, CPU)
    assert digest({name: tensor.clone() for name, tensor in tensors.items()}, CPU) == before
    changed = tensors[data.draw(st.sampled_from(sorted(tensors)))]
    bits = changed.view(torch.uint8).view(-1) if changed.ndim else changed.view(1).view(torch.uint8)
    bits[data.draw(st.integers(0, len(bits) - 1))] ^= 1
    assert digest(tensors, CPU) != before


def test_a_digest_is_the_same_in_any_memory_format_and_tells_tensors_apart() -> None:
    images, others = torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5)
    tensors = {"a": images, "b": others}
    turned = {"a": images.to(memory_format=torch.channels_last), "b": others}
    assert digest(turned, CPU) == digest(tensors, CPU)
    assert digest({"a": others, "b": images}, CPU) != digest(tensors, CPU)
    assert digest({}, CPU) == 0


_PARENT = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=sys.stderr).pid, flush=True)
time.sleep(600)
"""

_CHILD = """
import logging, sys, time
from training.run.launch import ending_with_parent
logging.basicConfig(format="%(message)s")
with ending_with_parent():
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_rank_ends_with_the_process_that_started_it() -> None:
    command = [sys.executable, "-c", _PARENT, _CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        child = int(parent.stdout.readline())
        assert parent.stderr.readline() == "ready\n"
        parent.send_signal(signal.SIGKILL)
        assert "has ended; exiting without saving" in parent.stderr.read()
    wait_until(lambda: not is_running(child), "the end of the rank")


_HELD = """
import sys, time
from training import cli
from training.outputs.journal import Journal
advance = Journal.advance
def held(self, step):
    advance(self, step)
    if step == 6:
        time.sleep(600)
Journal.advance = held
cli.main(sys.argv[1:])
"""
"""The command, which comes no further than its sixth step."""


@pytest.mark.drill(40)
@pytest.mark.timeout(420)
def test_orphans_of_torchrun_end_and_the_same_command_goes_on(make_shards: MakeShards, tmp_path: Path) -> None:
    """A kill of the agent leaves its ranks; were they to train on they would hold the lock and write checkpoints.

    What the two ranks have in the end are the losses of one that nobody killed.
    """
    manifest, out = make_shards(train=(20, 12), damage={3: b"\xff\xd8"}), tmp_path / "run"
    # Without dropout and batch statistics a step is the same on one rank and on two.
    settings = ["run.epochs=2", "image.dropout=0", "text.dropout=0", "image.frozen_stages=7"]
    saving = ["run.checkpoint_every=2", "run.keep_last=99"]
    fit = ["fit", "--recipe", "tiny", "--data", str(manifest), "--out", str(out), "--json"]
    fit += [word for setting in (*settings, *saving) for word in ("--set", setting)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    (tmp_path / "held.py").write_text(_HELD)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    agent = subprocess.Popen([*launch, str(tmp_path / "held.py"), *fit], **quiet)  # type: ignore[call-overload]
    wait_until(lambda: (out / "checkpoints" / "step-00000004").is_dir(), "the checkpoint of step 4", 180)
    ranks = json.loads((out / "environment.json").read_text())["pid"], *_children(agent.pid)
    assert len(set(ranks)) == 2
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    wait_until(lambda: not any(map(is_running, ranks)), "the end of the ranks")
    newest = max(int(path.name[5:]) for path in (out / "checkpoints").glob("step-????????"))
    again = subprocess.run([*launch, "-m", "training", *fit], env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-2000:]
    result = json.loads(again.stdout.splitlines()[-1])
    assert (result["world_size"], result["resumed_from"], result["steps"]) == (2, newest, 8)
    train.fit(resolve("tiny", settings), [str(manifest)], tmp_path / "one")
    assert losses(out) == pytest.approx(losses(tmp_path / "one"), abs=2e-4)


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(out) if "loss" in line]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
