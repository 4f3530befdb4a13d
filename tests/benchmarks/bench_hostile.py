"""A server that means ill: what fetch makes of each trick, beside img2dataset.

A leak is a request that reached the host inside, or bytes that were kept and must not be. A hang is a case that takes
more than twice the time a request may. Each trick has the one reason it must end with. The name that turns to 127.0.0.1
is `localhost`, which no list names: it is looked up and refused at connect time, as a name of anybody's DNS would be.
img2dataset runs over the same list with its default limits and a time of its own, in a folder of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from data_specs.build import BuildSpec
from data_specs.shard import Text
from pipeline.rows.records import Candidate, candidate_rows
from pipeline.stages import STAGES, fetch
from pipeline.store.build import Build, passes_of
from pipeline.store.store import Store
from tests.benchmarks.harness import at_most, peer, quick, report, told
from tests.benchmarks.hostile import JPEG, answers, hostile, photo

TIMEOUT_S = 4.0
WHOLE = "00000-of-00001"
"""The one partition of the fetch."""
TABLE = {"kind": "url_table", "name": "t", "source_kind": "library", "path": "none.csv"}
TABLE |= {"columns": {"texts": {"caption": "c"}}}  # never read: admit is written by the benchmark
FETCHED = {
    "/to-inside": "egress_refused", "/file": "egress_refused", "/png-bomb": "too_many_pixels",
    "/gzip-bomb": "too_large", "/endless": "too_large", "/slow": "timeout", "/noai": "opt_out",
    "/noai-among": "opt_out", "/noai-for-us": "opt_out", "/reserved": "opt_out", "/wrong-type": "not_an_image",
    "/private/x": "robots_disallowed", "/fine": "",
}  # fmt: skip
ADDRESSES = (
    "data:image/gif;base64,R0lGODlhAQABAAAAACw=", "file:///etc/passwd", "http://[64:ff9b::7f00:1]/x", "http://[2002:7f00:1::]/x",
    "http://169.254.169.254/latest/meta-data/", "http://100.100.100.200/x", "http://168.63.129.16/x",
    "http://[::ffff:127.0.0.1]/x", "http://10.0.0.1/x", "http://[fec0::1]/x",
)  # fmt: skip


def main() -> int:
    quick(__doc__)
    shown = (200, JPEG, photo())
    with (
        hostile({"/x": shown, "/robots.txt": (404, {}, b"")}) as inside,
        hostile({"/x": shown, "/robots.txt": (500, {}, b"")}) as broken,
        hostile({**answers(), "/to-inside": (302, {"Location": f"{inside.url}/x"}, b"")}) as server,
    ):
        wanted = {f"{server.url}{path}": (reason,) for path, reason in FETCHED.items()}
        wanted[f"http://localhost:{inside.port}/x"] = ("egress_refused",)
        wanted[f"{broken.url}/x"] = ("robots_unreachable",)
        wanted |= dict.fromkeys(ADDRESSES, ("egress_refused", "bad_url"))
        seconds, reasons = ours(list(wanted), [server.host, broken.host])
        leaks = len(inside.asked) + sum("/private/" in path for path in server.asked)
        for url, reason in reasons.items():
            told(f"{url[:60]:60} {reason or 'kept'}{'' if reason in wanted[url] else ', WRONG'}")
        told(f"all of fetch in {seconds:.1f} s")
        beside(list(wanted), inside)
    return report(
        {
            "leaks": at_most(leaks, 0, "requests"),
            "wrong_reasons": at_most(sum(reasons[url] not in own for url, own in wanted.items()), 0, "cases"),
            "hangs": at_most(int(seconds > 30 * TIMEOUT_S), 0, "runs"),
        }
    )


def ours(urls: list[str], allow: list[str]) -> tuple[float, dict[str, str]]:
    """Seconds of the fetch stage, and the reason of each URL ("" for one that was kept)."""
    egress = {"allow": allow, "delay_s": 0, "timeout_s": TIMEOUT_S, "connections_per_host": 16}
    fields = {"name": "bench", "contact": "https://example.org/bench", "sources": [TABLE], "egress": egress}
    spec = BuildSpec.model_validate({**fields, "fetch": {"max_wait_s": 0}})
    with tempfile.TemporaryDirectory(prefix="wenlan-bench-") as out:
        marks = dict.fromkeys(passes_of(STAGES, spec), "f" * 64)
        build = Build(spec, out, Store(f"{out}/store"), "bench", "2026-01-01", marks, stages=STAGES)
        rows = [Candidate("t", "library", url, "", url, (Text("caption", "一张图片"),)) for url in urls]
        with build.stage("admit").attempt(WHOLE) as attempt:
            attempt.write_table("parquet", candidate_rows(rows, 0))
            attempt.commit({"seen": len(rows), "kept": len(rows), "dropped": 0})
        start = time.perf_counter()
        fetch.run_partition(build, WHOLE)
        seconds = time.perf_counter() - start
        table = build.stage("fetch").table(build.stage("fetch").record(WHOLE)).to_pylist()
        return seconds, {row["image_url"]: row["reason"] for row in table}


def beside(urls: list[str], inside: Any) -> None:
    """img2dataset over the same list; what it let through goes to stderr."""
    program, before = peer("img2dataset"), len(inside.asked)
    if program is None:
        return
    with tempfile.TemporaryDirectory(prefix="wenlan-bench-") as name:
        Path(name, "urls.txt").write_text("\n".join(url for url in urls if "," not in url))  # it reads lists as CSV
        options = {
            "processes_count": 1, "thread_count": 16, "output_format": "files", "enable_wandb": False, "retries": 0,
            "disable_all_reencoding": True, "resize_mode": "no", "output_folder": f"{name}/out",
        }  # fmt: skip
        command = [str(program), f"{name}/urls.txt", *(f"--{option}={value}" for option, value in options.items())]
        start = time.perf_counter()
        try:
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=100, check=False)
            ended = f"ended after {time.perf_counter() - start:.0f} s"
        except subprocess.TimeoutExpired:
            ended = "had not ended after 100 s"
        told(f"img2dataset {ended}; asked the host inside {len(inside.asked) - before} times; kept:")
        kept = (json.loads(f.read_text())["url"] for f in Path(name).rglob("*.json") if "stats" not in f.name)
        for url in kept:
            if not url.endswith("/fine"):
                told(f"    {url[:80]}")


if __name__ == "__main__":
    sys.exit(main())
