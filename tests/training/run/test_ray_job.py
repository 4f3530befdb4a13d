"""What decides about workers of Ray before and after there are any; the workers themselves are in test_cli."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.errors import ConfigError
from training.resolve import resolve
from training.run.launch import Leave

pytest.importorskip("ray.train")

from training.run.ray_job import Preemption, fit_on_ray, parse_workers


@pytest.mark.parametrize(("text", "found"), [("4", (4, 4)), ("2:8", (2, 8)), ("1:1", (1, 1))])
def test_workers_are_a_number_or_a_range(text: str, found: tuple[int, int]) -> None:
    assert parse_workers(text) == found


@pytest.mark.parametrize("text", ["", "two", "0", "3:2", "2:", "-1:4", "1:2:3"])
def test_what_is_neither_is_bad_usage(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--workers: "):
        parse_workers(text)


def test_a_batch_that_some_number_of_workers_cannot_share_is_refused_before_any_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run.batch_size: 8 cannot be shared by 3 of 1:4 workers"):
        fit_on_ray(resolve("tiny"), ["x"], tmp_path, (1, 4))


def test_an_announcement_that_a_node_will_go_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.train

    announced: list[str | None] = [None, "node 1", "node 1", "node 2"]
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: announced.pop(0), raising=False)
    leave_signal = Preemption(every=2)
    answers = [leave_signal() for _ in range(8)]
    assert answers == [Leave.NO, Leave.NO, Leave.NO, Leave.SAVE, Leave.NO, Leave.NO, Leave.NO, Leave.SAVE]
