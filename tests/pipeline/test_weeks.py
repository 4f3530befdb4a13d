"""A dataset over five weeks of a real web site (tests/benchmarks/weekly.py): on two workers, then the same on one."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data_specs.command.loopback import start_ray
from data_specs.shard import Manifest
from pipeline import cli
from pipeline.publish.verify import verify
from tests.benchmarks import weekly
from tests.benchmarks.weekly import Ledger, Site, Weeks, counts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@contextlib.contextmanager
def served(site: Site) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), site.handler())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def ray_of(workers: int) -> Iterator[None]:
    """A Ray in this process, which the commands find."""
    import ray

    start_ray(ray, num_cpus=workers, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


def data(*words: str) -> dict[str, Any]:
    """A command of wenlan-data in this process: the object that it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        code = cli.main([*words, "--json"])
    assert code == 0, stderr.getvalue()[-4000:]
    return dict(json.loads(stdout.getvalue().splitlines()[-1]))


def run(site: Site, host: str, folder: Path, workers: int) -> Iterator[tuple[str, dict[str, Any], Manifest]]:
    folder.mkdir()
    with ray_of(workers):
        weeks = Weeks(site, host, folder, data)
        for step, answer in weeks.steps():
            yield step, answer, weeks.newest()


@pytest.mark.drill(180)
def test_five_weeks_of_a_dataset_on_one_worker_and_on_two(tmp_path: Path) -> None:
    site = Site(pages=10)
    with served(site) as host:
        releases, ledger, urls = {}, Ledger(), dict[str, set[str]]()
        for step, answer, release in run(site, host, tmp_path / "two", workers=2):
            asked = site.asked
            rows = ledger.see(release)
            releases[step], urls[step] = release, {row["image_url"].rpartition("/")[2] for row in rows}
            assert verify(tmp_path / "two/store/datasets/weekly/latest.json", quick=True) == []
            _check(step, answer, release, urls, site)
        assert ledger.faults == []
        assert site.asked == asked, "a rollback asks nobody"
        taken = (tmp_path / "two/store", f"http://{host}/i{weekly.TAKEN_DOWN}.jpg")
        [proof] = data("forget", "--store", str(taken[0]), "--prove", taken[1])["proved"].values()
        assert (proof["findings"], proof["faults"]) == (0, [])
        assert [release.release for release in releases.values()] == _numbers(releases)
        digests = {step: (release.release, release.content_digest) for step, release in releases.items()}
        again = {
            step: (release.release, release.content_digest)
            for step, _, release in run(site, host, tmp_path / "one", workers=1)
        }
        assert again == digests, "the same bytes, whatever the number of workers"


def _numbers(releases: dict[str, Manifest]) -> list[int]:
    """The number of the newest release after each step: the third week makes none, the fifth two.

    In the fifth, one is the new build's, and the next is without what opted out.
    """
    made = [{"3": 0, "5": 2}.get(step, 1) for step in releases]
    return [sum(made[: at + 1]) for at in range(len(made))]


def _check(step: str, answer: dict[str, Any], release: Manifest, urls: dict[str, set[str]], site: Site) -> None:
    """What is said of each step, and which pictures its release has."""
    now, first = urls[step], 2 * site.pages
    removed, old_small = {f"i{weekly.TAKEN_DOWN}.jpg"}, {f"i{first - 2}.jpg", f"i{first - 1}.jpg"}
    out = {f"i{2 * weekly.OPTED_OUT}.jpg", f"i{2 * weekly.OPTED_OUT + 1}.jpg"}
    total = sum(release.samples.values())
    made = counts({stage["name"]: stage["funnel"] for stage in answer["stages"]}) if "stages" in answer else {}
    assert total == len(now)
    if step == "1":
        assert (made["new"], made["known"]) == (first, 0)
    elif step == "2":
        assert (made["new"], made["known"]) == (2 * site.more, first + 2)
        assert (answer["dataset"], answer["release"]) == ("weekly", 2)
        assert answer["dataset_samples"] == release.samples
        assert "copy.jpg" not in now
    elif step == "3":
        assert (answer["published"], answer["nothing_new"]) == (False, True)
        assert now == urls["2"]
    elif step == "4":
        assert len(now - urls["3"]) == 2, "a changed filter applies to what is new"
        assert not urls["3"] - now
    elif step == "4 anew":
        assert (release.generation, len(release.builds)) == (2, 1)
        assert now == urls["4"] - old_small, "and to all of it in a new generation"
    elif step == "5 takedown":
        assert urls[list(urls)[-2]] - now == removed
    elif step == "5":
        assert len(now - urls["5 takedown"]) == 2
        assert urls["5 takedown"] - now == out, "an owner who opts out later is heard"
    elif step == "back":
        assert not now & removed, "what was taken down does not come back"
        assert now == urls["2"] - removed - out
