"""Trackers: a run of W&B is known again after a kill; what keeps one from receiving anything is one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training.errors import ConfigError
from training.outputs.trackers import check_tracker, open_tracker


def test_a_run_that_was_killed_while_its_name_was_written_is_begun_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was made first and filled then: an empty one was the name of the run for W&B ever after."""
    begun: list[str] = []
    wandb = SimpleNamespace(init=lambda **given: begun.append(given["id"]))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    name = tmp_path / "wandb-id"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", _killed_within(Path.write_text))
        with pytest.raises(KeyboardInterrupt):
            open_tracker("wandb", tmp_path, 0, {})
    for _ in range(2):
        open_tracker("wandb", tmp_path, 0, {})
    assert len(set(begun)) == 1
    assert begun[0] == name.read_text()
    assert len(begun[0]) == 8


@pytest.mark.parametrize("find", [lambda out: check_tracker("wandb"), lambda out: open_tracker("wandb", out, 0, {})])
def test_a_tracker_without_a_login_is_one_line(
    find: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> None:
        raise RuntimeError("No API key configured. Use `wandb login` to log in.\nmore")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refused, login=refused))
    line = r"^run.tracker: wandb: No API key configured. Use `wandb login` to log in.; .* --set run.tracker=none$"
    with pytest.raises(ConfigError, match=line):
        find(tmp_path)


def _killed_within(write: Callable[..., int]) -> Callable[..., int]:
    """write_text that is killed when the file is there and holds nothing yet."""

    def writes(path: Path, text: str, **options: Any) -> int:
        write(path, "", **options)
        raise KeyboardInterrupt

    return writes
