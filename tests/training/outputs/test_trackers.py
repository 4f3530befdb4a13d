"""Metrics for Prometheus: what a run writes for node_exporter, read by Prometheus' own client."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from training.errors import ConfigError
from training.outputs.journal import Journal
from training.outputs.trackers import PROMETHEUS, for_prometheus, open_tracker
from training.resolve import resolve

LOGGED = {"loss": 2.5, "samples_per_second": 100.0, "waiting_for_data": 0.1, "memory_gib": 1.0, "skipped": 3, "lr": 0.1}


def _values(text: str) -> dict[str, tuple[float, dict[str, str]]]:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert len({sample.name for sample in samples}) == len(samples)
    return {sample.name: (sample.value, sample.labels) for sample in samples}


def test_a_run_writes_its_newest_values_where_node_exporter_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, read = tmp_path / 'news "5"', tmp_path / "read"
    out.mkdir()
    read.mkdir()
    monkeypatch.setenv("WENLAN_TEXTFILE_DIR", str(read))
    config = resolve("tiny", ["run.tracker=prometheus"])
    with Journal(out, 0, 10, config, about={"device": "cpu", "processes": 1}) as journal:
        journal.write(10, LOGGED)
        journal.write(20, LOGGED | {"loss": math.nan, "skipped": 4})
        journal.write(20, {"dev.mean_recall": 0.5})
        [path] = read.iterdir()
        values = _values(path.read_text(encoding="utf-8"))
    assert path.suffix == ".prom"
    assert {name.removeprefix("wenlan_train_"): value for name, (value, _) in values.items()} == {
        "step": 20,
        "loss": 2.5,  # the last that was finite
        "loss_finite": 0,
        "skipped_steps": 4,
        "samples_per_second": 100,
        "waiting_for_data": 0.1,
    }
    assert all(labels == {"run": 'news "5"'} for _, labels in values.values())
    assert list(read.iterdir()) == [], "a run that ended is not exported"


def test_what_a_device_with_a_known_peak_logs_is_exported_whole() -> None:
    assert for_prometheus(1, LOGGED | {"tflops": 300.0, "mfu": 0.3}).keys() == PROMETHEUS.keys()
    assert for_prometheus(1, {"dev.mean_recall": 0.5}) == {}


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENLAN_TEXTFILE_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"^run\.tracker: WENLAN_TEXTFILE_DIR=.*/nowhere is no folder"):
        open_tracker("prometheus", tmp_path, 0, {})


@pytest.mark.parametrize("left", [None, b""])
def test_a_run_that_was_killed_while_its_name_was_written_is_begun_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bytes | None
) -> None:
    """The file was made first and filled then: an empty one was the name of the run for W&B and MLflow ever after."""
    begun: list[str] = []
    wandb = SimpleNamespace(init=lambda **given: begun.append(given["id"]))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    name = tmp_path / "wandb-id"
    if left is not None:
        name.write_bytes(left)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", _killed_within(Path.write_text))
        with pytest.raises(KeyboardInterrupt):
            open_tracker("wandb", tmp_path, 0, {})
    for _ in range(2):
        open_tracker("wandb", tmp_path, 0, {})
    assert len(set(begun)) == 1
    assert begun[0] == name.read_text()
    assert len(begun[0]) == 8


def _killed_within(write: Callable[..., int]) -> Callable[..., int]:
    """write_text that is killed when the file is there and holds nothing yet."""

    def writes(path: Path, text: str, **options: Any) -> int:
        write(path, "", **options)
        raise KeyboardInterrupt

    return writes
