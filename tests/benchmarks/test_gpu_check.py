"""Each check of `make gpu-check` ends with a verdict of its own, whatever happens in it, and the page shows it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import gpu_check
from tests.benchmarks.gpu_check import CHECKS, Check, checked, outcome, write


def failing() -> dict[str, Any]:
    raise SystemExit("no peers: run `make bench-venv` first")


def test_a_check_passes_fails_with_its_reason_or_lacks_a_device(tmp_path: Path) -> None:
    many = torch.cuda.device_count() + 1
    found = [outcome(Check("", dict)), outcome(Check("", failing)), outcome(Check("", dict, cards=many))]
    assert [one["state"] for one in found] == ["passed", "failed", "no such device"]
    assert found[1]["reason"] == "SystemExit: no peers: run `make bench-venv` first"
    assert found[2]["reason"].startswith(f"{many} GPU(s) needed")
    checks = [{"check": "<b>", "asked": "", "seconds": 1.0, **one} for one in found]
    write(tmp_path, {"devices": ["cpu"], "checks": checks})
    assert json.loads((tmp_path / "gpu-check.json").read_text())["checks"] == checks
    page = (tmp_path / "gpu-check.html").read_text()
    assert all(text in page for text in ("passed", "no peers", "没有该设备", "&lt;b&gt;"))


def test_the_bar_of_a_large_recipe_is_of_its_best_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(gpu_check.HERE))
    recipes = importlib.import_module("bench_step").GPU_BATCHES
    figures = {f"{name}_nothing_8_mfu": "0.3 of peak" for name in recipes} | {f"{gpu_check.MAIN}_blocks_8_mfu": "0.6"}
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
