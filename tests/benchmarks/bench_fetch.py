"""The fetch stage beside img2dataset's own command line: the same list, the same nginx, original bytes in both.

Ours is the stage as a build runs it: two Ray tasks, guard, robots.txt, opt-outs, turns per host, sha256, sniffed
types, tars in a fixed order, STORE/fetched. The limits of the host are set above the rate, since loopback is one host.
The peer is `img2dataset` with two processes. Both are timed as whole processes, starts and imports included, in turns.
Ray's workers get the priority of the peer's: by default they yield (nice 15), and what else a shared machine does would
hit our side alone.

`fetch.engine: img2dataset`, which passes every picture through a gateway, is timed beside the default engine.

Troubled hosts: the same list with 20 pictures each of a host that never finishes, one that refuses connections and one
that has no address, beside the list without them, and without `fetch.max_wait_s`: each worker waits for as long as that
once, 60 s by default, on top.

Growth is ours alone: seconds a URL, beyond Ray's start, of runs that follow each other in one Ray. Memory is the
largest of any worker, with photos and with bombs (PNG headers of 32,000 x 32,000, gzip, endless bodies).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import (
    Figure,
    answer_of,
    at_least,
    at_most,
    environment,
    interleaved,
    peer,
    program,
    quick,
    report,
    told,
)
from tests.benchmarks.hostile import answers, hostile
from tests.benchmarks.loopback import nginx, photo_urls
from tests.processes import free_ports

PER_PARTITION, THREADS = 2_500, 32


def main() -> int:
    small = quick(__doc__)
    count, rounds, sizes = (2_000, 1, [500, 2_000]) if small else (20_000, 3, [1_000, 10_000, 50_000])
    figures: dict[str, Figure] = {}
    with nginx() as port, tempfile.TemporaryDirectory(prefix="wenlan-bench-") as name:
        folder = Path(name)
        urls = folder / "urls.txt"
        urls.write_text("\n".join(photo_urls(port, count)))
        job = {"urls": str(urls), "allow": [f"127.0.0.1:{port}"], "limits": {"delay_s": 0.0002}}
        found: dict[str, Any] = {}

        def mine() -> None:
            found.update(ours(folder, **job))
            assert found["runs"][0]["reasons"] == {"": count}, found

        if img2dataset := peer("img2dataset"):
            theirs = partial(by_img2dataset, img2dataset, folder, urls, count)
            seconds, their_seconds = interleaved(mine, theirs, rounds=rounds, warm=False)
            told(f"ours {count / seconds:,.0f}, img2dataset {count / their_seconds:,.0f} images/s, whole processes")
            figures["fetch_to_img2dataset"] = at_least(their_seconds / seconds, 1.3)
        engine = {**job, "fetch": {"engine": "img2dataset"}}
        by_peer, seconds = interleaved(lambda: ours(folder, **engine), mine, rounds=1, warm=False)
        figures["engine_img2dataset_to_wenlan"] = at_least(seconds / by_peer, 0.2)
        figures["worker_memory_photos"] = at_most(found["worker_mb"], 800, "MB")
        figures["troubled_hosts_to_none"] = at_most(
            troubled(folder, photo_urls(port, count), job["allow"], rounds), 1.2
        )
        urls.write_text("\n".join(photo_urls(port, sum(sizes), start=count)))
        grown = ours(folder, **{**job, "sizes": [sizes[0], *sizes]})["runs"][1:]  # the first one imports
        each = [run["seconds"] / run["size"] for run in grown]
        told(f"ms a URL: { {run['size']: round(1000 * s, 3) for run, s in zip(grown, each, strict=True)} }")
        figures["growth_largest_to_smallest"] = at_most(each[-1] / each[0], 1.2)
    figures["worker_memory_bombs"] = at_most(bombs(20 if small else 200), 800, "MB")
    return report(figures)


def ours(folder: Path, **job: Any) -> dict[str, Any]:
    """One run of fetch_side.py in a process of its own."""
    out = folder / "ours"
    given = {"out": str(out), "per_partition": PER_PARTITION, "threads": THREADS, **job}
    given["limits"] = {"connections_per_host": THREADS, **given["limits"]}
    found = answer_of(program("fetch_side", json.dumps(given)), environment(RAY_worker_niceness="0"))
    shutil.rmtree(out)
    return found


def by_img2dataset(program: Path, folder: Path, urls: Path, count: int) -> None:
    """img2dataset's own command line."""
    out = folder / "peer"
    options = {
        "output_folder": out, "processes_count": 2, "thread_count": THREADS, "disable_all_reencoding": True,
        "resize_mode": "no", "number_sample_per_shard": PER_PARTITION, "output_format": "webdataset",
        "enable_wandb": False,
    }  # fmt: skip
    command = [str(program), str(urls), *(f"--{name}={value}" for name, value in options.items())]
    own = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    subprocess.run(command, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    stats = [json.loads(file.read_text()) for file in out.glob("*_stats.json")]
    assert sum(stat["successes"] for stat in stats) == count, stats
    shutil.rmtree(out)


def troubled(folder: Path, photos: list[str], allow: list[str], rounds: int) -> float:
    """Seconds of a list with three hosts in trouble, relative to the list without them."""
    plain, with_them, refusing = folder / "plain.txt", folder / "troubled.txt", f"127.0.0.1:{free_ports(1)[0]}"
    with hostile(answers()) as server:
        hosts = (f"{server.url}/slow?", f"http://{refusing}/", "http://no-such-host.invalid/")
        plain.write_text("\n".join(photos))
        with_them.write_text("\n".join([*photos, *(f"{host}{n}" for n in range(20) for host in hosts)]))
        job = {"allow": [*allow, server.host, refusing], "limits": {"delay_s": 0.0002, "timeout_s": 4}}
        runs: dict[Path, list[float]] = {plain: [], with_them: []}
        for _ in range(rounds):
            for urls, seconds in runs.items():
                found = ours(folder, urls=str(urls), **job)["runs"][0]
                assert found["reasons"][""] == len(photos), found
                seconds.append(found["seconds"])
    told(f"troubled hosts: {runs[with_them]} s, without them {runs[plain]} s")
    return min(runs[with_them]) / min(runs[plain])


def bombs(count: int) -> float:
    """The largest memory of a worker over a list of what is meant to fill it, MB."""
    with hostile(answers()) as server, tempfile.TemporaryDirectory(prefix="wenlan-bench-") as name:
        urls = Path(name) / "urls.txt"
        kinds = ("png-bomb", "gzip-bomb", "endless")
        urls.write_text("\n".join(f"{server.url}/{kind}?{n}" for n in range(count) for kind in kinds))
        found = ours(Path(name), urls=str(urls), allow=[server.host], limits={"delay_s": 0, "timeout_s": 10})
    reasons = found["runs"][0]["reasons"]
    assert reasons == {"too_many_pixels": count, "too_large": 2 * count}, reasons
    return float(found["worker_mb"])


if __name__ == "__main__":
    sys.exit(main())
