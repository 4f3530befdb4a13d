"""Each check of `make gpu-check` ends with a verdict of its own, whatever happens in it, and the page shows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import gpu_check
from tests.benchmarks.bench_step import GPU_BATCHES
from tests.benchmarks.gpu_check import CHECKS, Check, checked, closing, outcome, write


def failing() -> dict[str, Any]:
    raise SystemExit("no peers: run `make bench-venv` first")


def test_a_check_passes_fails_with_its_reason_or_is_not_run(tmp_path: Path) -> None:
    many = torch.cuda.device_count() + 1
    found = [outcome(Check("", dict)), outcome(Check("", failing)), outcome(Check("", dict, cards=many))]
    assert [one["state"] for one in found] == ["passed", "failed", "not run"]
    assert found[1]["reason"] == "SystemExit: no peers: run `make bench-venv` first"
    assert found[2]["reason"].startswith(f"{many} GPU(s) needed")
    checks = [{"check": "<b>", "asked": "", "seconds": 1.0, **one} for one in found]
    write(tmp_path, {"devices": ["cpu"], "checks": checks, "closing": ["next: a GPU"]})
    assert json.loads((tmp_path / "gpu-check.json").read_text())["checks"] == checks
    page = (tmp_path / "gpu-check.html").read_text()
    assert all(text in page for text in ("passed", "no peers", "next: a GPU", "未运行", "&lt;b&gt;"))


def test_the_last_lines_count_the_checks_and_say_what_to_do_next(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = {"loader": "passed", "two gloo ranks": "failed", "nvJPEG": "not run", "two NCCL ranks": "not run"}
    program = "python -m tests.benchmarks.gpu_check"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert closing([{"check": name, "state": state} for name, state in ended.items()]) == [
        "1 passed, 1 failed, 2 not run",
        f"next: mend what failed, then {program} 'two gloo ranks'",
        f"next: on a machine with 1 GPU(s) or more, and torch's build for CUDA in place of {torch.__version__}: "
        f"{program} nvJPEG 'two NCCL ranks'",
    ]
    assert closing([{"check": "loader", "state": "passed"}]) == ["1 passed, 0 failed, 0 not run"]


ON_CPU: dict[str, tuple[Callable[[], dict[str, Any]], set[str]]] = {
    "ONNX session": (lambda: gpu_check.onnx_session(gpu=False), {"providers"}),
    "two NCCL ranks": (lambda: gpu_check.two_ranks("cpu"), {"backends", "steps", "weights"}),
    "data wait": (lambda: gpu_check.data_wait("cpu", "tiny", 256, 1), {"waiting for data", "samples", "workers"}),
    "scoring": (lambda: gpu_check.scoring(0, 4, small=True), {"pairs"}),
}
"""Checks of a GPU with the CPU in its place, and the names of their figures."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "ONNX session" else pytest.mark.drill(15)) for n in ON_CPU]
)
def test_a_check_of_a_gpu_runs_on_the_cpu_as_well(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the functions of production: what a GPU is the first to run is its own kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run, figures = ON_CPU[name]
    assert name in CHECKS
    found = outcome(Check("", run))
    assert found["state"] == "passed", found
    assert found["seen"].keys() == figures


def test_the_bar_of_a_large_recipe_is_of_its_best_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {f"{name}_nothing_8_mfu": "0.3 of peak" for name in GPU_BATCHES}
    figures[f"{gpu_check.MAIN}_blocks_8_mfu"] = "0.6"
    monkeypatch.setattr(gpu_check, "bench", lambda *_: figures)
    with pytest.raises(AssertionError, match=f"{gpu_check.LARGE}: 0.30 of the peak"):
        gpu_check.samples_and_mfu()
    figures[f"{gpu_check.LARGE}_blocks_16_mfu"] = "0.42 of peak"
    assert gpu_check.samples_and_mfu() is figures


@pytest.mark.slow
def test_a_check_that_takes_too_long_is_stopped_with_what_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHECKS, "two gloo ranks", Check("", dict, minutes=1 / 60))
    found = checked("two gloo ranks", 100)
    assert (found["state"], found["reason"]) == ("failed", "stopped after 1 s")
