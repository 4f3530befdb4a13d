"""progress: figures of a stage from its records and the pulses of its running partitions."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.processes import pulse
from pipeline.processes.pulse import Beat
from pipeline.stages import STAGES
from pipeline.store.commits import Record
from pipeline.store.progress import Figures, Ran, Watch, duration, figures, size_of
from tests.processes import wait_until


def beat(done: int, total: int | None, rate: float = 0.0, **counts: int) -> Beat:
    return Beat("p", 10.0, done, total, counts, {"done": rate, "bytes": 0.0}, {})


def test_a_crawl_shows_pages_images_queue_and_the_time_that_its_last_site_takes() -> None:
    first = Beat("a", 60.0, 40, 100, {"kept": 40, "failed": 3, "images": 200, "bytes": 4_000_000, "queue": 900},
                 {"done": 2.0, "bytes": 50_000.0}, {})  # fmt: skip
    second = Beat("b", 60.0, 10, 1_000, {"kept": 10, "queue": 990}, {"done": 1.0, "bytes": 1_000.0}, {})
    now = figures(STAGES["crawl"].main, 2, 0, {}, [first, second], Ran(0, 60.0))
    assert (now.done, now.total, now.failed, now.more["queue"]) == (50, 1_100, 3, 1_890)
    assert now.left_seconds == 990.0
    line = "50 of 1,100 pages, 200 images, 3 failed, 51.0 kB/s, 1,890 queued, 0 of 2 partitions, 16 min left"
    assert now.line() == line


def test_hosts_that_are_paused_are_named_with_reason_and_end_and_those_of_before_are_not() -> None:
    now = time.time()
    first = replace(beat(1, 9), pauses={"a.cn": ("status 429", now + 40), "over.cn": ("timeout", now - 1)})
    second = replace(beat(1, 9), pauses={"a.cn": ("connection", now + 90), "b.cn": ("connection", now + 30)})
    shown = figures(STAGES["crawl"].main, 2, 0, {}, [first, second], Ran(0, 60.0))
    assert [(pause.host, pause.reason) for pause in shown.pauses] == [("a.cn", "connection"), ("b.cn", "connection")]
    end = datetime.fromtimestamp(now + 90, UTC).strftime("%Y-%m-%dT%H:%M")
    assert f", a.cn paused until {end}" in shown.line()
    assert shown.line().endswith("left): connection, 1 more paused")


def test_the_slowest_host_is_named_with_the_wait_of_all_partitions() -> None:
    hosts = {"slow.cn": {"asked": 900, "kept": 98, "failed": 2}, "fast.cn": {"asked": 900, "kept": 800}}
    running = replace(beat(900, 1_800), seconds=100.0, hosts=hosts)
    shown = figures(STAGES["fetch"].main, 5, 0, {}, [running], Ran(0, 100.0))
    assert shown.hosts["slow.cn"]["left_seconds"] == 800 + 4 * 900, "one answer a second, and four partitions wait"
    assert shown.hosts["fast.cn"]["left_seconds"] == (100 + 4 * 900) / 8
    assert "slowest host slow.cn: 73 min" in shown.line()
    assert "slowest" not in figures(STAGES["fetch"].main, 1, 0, {}, [running], Ran(0, 100.0)).line()


def test_where_partitions_wait_the_time_left_is_theirs_too() -> None:
    now = figures(STAGES["measure"].main, 10, 2, {"seen": 200}, [beat(50, 100), beat(50, 100)], Ran(2, 30.0))
    assert (now.share, now.done, now.total) == (0.3, 300, None)
    assert now.left_seconds == 70.0, "three tenths took 30 s"


def test_what_an_earlier_run_did_says_nothing_of_the_pace() -> None:
    assert figures(STAGES["measure"].main, 10, 5, {}, [], Ran(0, 30.0)).left_seconds is None


def test_a_partition_of_unknown_size_has_no_share_and_no_end() -> None:
    now = figures(STAGES["extract"].main, 1, 0, {}, [beat(70, None, rate=3.0)], Ran(0, 30.0))
    assert (now.share, now.total, now.left_seconds, now.line()) == (None, None, None, "70 rows")


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.integers(0, 500), st.one_of(st.none(), st.integers(0, 400)), st.floats(0, 9)), max_size=5),
    st.integers(0, 20),
    st.integers(0, 20),
    st.floats(0, 1e6),
)
def test_figures_are_sound_whatever_partitions_say(
    said: list[tuple[int, int | None, float]], committed: int, waiting: int, seconds: float
) -> None:
    beats = [beat(*one) for one in said]
    partitions = committed + waiting + len(beats)
    now = figures(STAGES["filter"].main, partitions, committed, {"seen": 3 * committed}, beats, Ran(committed, seconds))
    assert now.share is None or 0 <= now.share <= 1
    assert now.left_seconds is None or now.left_seconds >= 0
    assert now.total is None or now.total >= now.done
    assert now.line()


class Observer:
    def __init__(self) -> None:
        self.figures: list[Figures] = []

    def update(self, figures: Figures) -> None:
        self.figures.append(figures)

    def starting(self, what: str) -> contextlib.AbstractContextManager[object]:
        raise AssertionError


def test_a_watch_tells_of_running_partitions_and_leaves_nothing_behind(make_build, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.processes.pulse.PULSE_S", 0.05)
    monkeypatch.setattr("pipeline.store.progress.NEAR_S", 0.05)
    build = make_build(sources=[{"kind": "site", "name": "s", "source_kind": "news", "start": ["http://127.0.0.1/"]}])
    folder, observer = build.stage("fetch").folder, Observer()
    (folder / pulse.PULSE).write_json("of-a-killed-run.json", {})
    record = Record(stage="fetch", partition="0", fingerprint="f", attempt="a", files={}, seconds=1, cpu_seconds=1,
                    counts={"images": 4, "failed": 1})  # fmt: skip
    with Watch(build, "fetch", 3, [record], observer) as watch, pulse.pulse(folder, "1"):
        pulse.expect(10)
        pulse.advance(5)
        wait_until(lambda: observer.figures[-1].done == 10, "five done of a committed partition, five of a running one")
        assert observer.figures[-1].share == 0.5
        watch.commit([record.model_copy(update={"partition": "1"})])
    assert observer.figures[0].committed == 1
    assert observer.figures[-1].committed == 2
    assert (folder / pulse.PULSE).names() == []


def test_sizes_and_durations_read_like_those_of_people() -> None:
    assert [size_of(n) for n in (0, 999, 1_000, 123_456, 2_345_678, 3e12)] == [
        "0 B", "999 B", "1.0 kB", "123 kB", "2.3 MB", "3.0 TB"
    ]  # fmt: skip
    assert [duration(s) for s in (0.4, 89, 90, 3_600, 50_000, 400_000)] == [
        "0 s", "89 s", "2 min", "60 min", "13.9 hours", "4.6 days"
    ]  # fmt: skip
