"""pulse: what a running partition says of itself, and that it says nothing once it has ended."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.processes import observe, pulse
from tests.processes import wait_until


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(pulse, "PULSE_S", 0.05)
    monkeypatch.setattr(pulse, "LOST_S", 600.0)
    return Folder(str(tmp_path))


def next_beat(folder: Folder) -> pulse.Beat:
    """What the one running partition says after now: one that it said before holds what was counted until then."""
    place, now = folder / pulse.PULSE, time.time()

    def has_beaten() -> bool:  # a name with a dot is of a file that is being written
        return any(place.read_json(name)["at"] > now for name in place.names() if not name.startswith("."))

    wait_until(has_beaten, "the next beat")
    [beat] = pulse.beats(folder)
    return beat


def test_a_running_partition_shows_its_figures_and_an_ended_one_nothing(folder: Folder) -> None:
    with pulse.pulse(folder, "00001"):
        pulse.expect(200, done=20)
        pulse.advance(30, kept=28, bytes=1_000)
        pulse.tell(queue=7)
        observe.count("wenlan_requests", host="a.cn", fate="kept")
        observe.count("wenlan_requests", host="a.cn", fate="timeout")
        until = time.time() + 60
        observe.paused("c.cn", "connection", until - 61)
        observe.paused("b.cn", "status 429", until)
        beat = next_beat(folder)
        assert (beat.partition, beat.done, beat.total, beat.share) == ("00001", 50, 200, 0.25)
        assert beat.counts == {"kept": 28, "bytes": 1_000, "queue": 7}
        assert beat.hosts == {"a.cn": {"kept": 1, "failed": 1}}
        assert beat.pauses == {"b.cn": ["status 429", until]}, "pauses that are over are forgotten"
        assert beat.rates["done"] > 0
        assert beat.left_seconds == pytest.approx(150 / beat.rates["done"])
    assert pulse.beats(folder) == []
    assert (folder / pulse.PULSE).names() == []


def test_what_an_earlier_run_has_done_is_no_rate_of_this_one(folder: Folder) -> None:
    with pulse.pulse(folder, "00001"):
        pulse.tell(bytes=9_000_000)
        pulse.expect(2_000, done=1_000)
        pulse.expect(2_000, done=1_000)
        beat = next_beat(folder)
    assert (beat.done, beat.rates) == (1_000, {"done": 0.0, "bytes": 0.0})


def test_a_partition_that_does_nothing_countable_beats_all_the_same(folder: Folder) -> None:
    with pulse.pulse(folder, "00001"):
        beat = next_beat(folder)
    assert (beat.done, beat.total, beat.share, beat.left_seconds) == (0, None, 0.0, None)


def test_a_short_partition_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "PULSE_S", 60.0)
    with pulse.pulse(Folder(str(tmp_path)), "00001"):
        pulse.advance()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_worker_left_is_disregarded_after_a_while_and_can_be_cleared(folder: Folder) -> None:
    said = {"seconds": 1.0, "done": 5, "total": 9, "counts": {}, "rates": {}, "hosts": {}, "pauses": {}}
    place = folder / pulse.PULSE
    place.write_json("old.json", {"at": time.time() - 2 * pulse.LOST_S, **said})
    place.write_json("new.json", {"at": time.time(), **said})
    place.write("broken.json", b"{")
    place.write_json("older-wenlan.json", {"at": time.time(), "seconds": 1.0, "hosts": {}})
    assert [beat.partition for beat in pulse.beats(folder)] == ["new"]
    pulse.clear(folder)
    assert pulse.beats(folder) == []


def test_a_store_that_does_not_answer_hides_what_runs_and_ends_nothing(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that shows a build's progress asks now and then: it ended with a traceback."""

    def busy(self: Folder) -> list[str]:
        raise StoreError(self.url, "cannot be reached: the store kept failing")

    with pulse.pulse(folder, "00001"):
        next_beat(folder)
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "names", busy)
            assert pulse.beats(folder) == []
        assert len(pulse.beats(folder)) == 1


def test_counting_outside_of_a_partition_or_in_another_thread_does_nothing(folder: Folder) -> None:
    pulse.advance()
    pulse.expect(3)
    pulse.tell(kept=1)
    with pulse.pulse(folder, "00001"):
        thread = threading.Thread(target=pulse.advance, args=(5,))
        thread.start()
        thread.join()
        assert next_beat(folder).done == 0


def test_a_host_of_many_is_named_if_it_is_busy(folder: Folder) -> None:
    with pulse.pulse(folder, "00001"):
        for number in range(3 * pulse.MOST_HOSTS):
            pulse.of_host(f"{number}.cn", "kept", number)
        beat = next_beat(folder)
    assert set(beat.hosts) == {f"{number}.cn" for number in range(2 * pulse.MOST_HOSTS, 3 * pulse.MOST_HOSTS)}
