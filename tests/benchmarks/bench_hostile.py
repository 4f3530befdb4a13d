"""A server that means ill: what fetch and crawl make of each trick, beside img2dataset alone.

A leak is a request that reached the host inside, or bytes that were kept and must not be. A hang is a case that takes
more than twice the time a request may. Each trick has the one reason it must end with. The name that turns to 127.0.0.1
is `localhost`, which no list names: it is looked up and refused at connect time, as a name of anybody's DNS would be.
img2dataset runs over the same list with its default limits and a time of its own, in a folder of its own.

Then 2,000 pages are crawled and extracted by the command line, once as they are and once with 5% of them replaced by
pages that ended a crawl before (tests/odd_site.py). All others must be kept, and an odd page may cost two seconds. The
same crawl runs in this process too, where every callback of its event loop is timed: none may hold it for 0.1 s, on the
processor, so that a busy machine judges as an idle one does.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Figure, at_most, quick, report
from hostile import ANSWERS, JPEG, PHOTO, hostile
from loopback import PEER, ROOT, missing

sys.path.insert(0, str(ROOT))  # for tests.odd_site

TIMEOUT_S = 4.0
WHOLE = "00000-of-00001"
"""The one partition of the fetch."""
TABLE = {"kind": "url_table", "name": "t", "source_kind": "library", "path": "none.csv"}
TABLE |= {"columns": {"texts": {"caption": "c"}}}  # never read: admit is written by the benchmark
FETCHED = {
    "/to-inside": "egress_refused", "/file": "egress_refused", "/name": "egress_refused",
    "/png-bomb": "too_many_pixels", "/gzip-bomb": "too_large", "/endless": "too_large", "/slow": "timeout",
    "/noai": "opt_out", "/noai-among": "opt_out", "/noai-for-us": "opt_out", "/reserved": "opt_out",
    "/wrong-type": "not_an_image", "/private/x": "robots_disallowed", "/fine": "",
}  # fmt: skip
ADDRESSES = (
    "data:image/gif;base64,R0lGODlhAQABAAAAACw=", "file:///etc/passwd", "http://[64:ff9b::7f00:1]/x", "http://[2002:7f00:1::]/x",
    "http://169.254.169.254/latest/meta-data/", "http://100.100.100.200/x", "http://168.63.129.16/x",
    "http://[::ffff:127.0.0.1]/x", "http://10.0.0.1/x", "http://[fec0::1]/x",
)  # fmt: skip


def main() -> int:
    is_quick = quick(__doc__ or "")
    odd = odd_pages(200, 0.005) if is_quick else odd_pages(2_000, 1.0)
    if missing(PEER / "img2dataset"):
        report(odd)
        return 1
    inside_answers = {"/x": (200, JPEG, PHOTO), "/robots.txt": (404, {}, b"")}
    with (
        hostile(inside_answers) as inside,
        hostile({"/robots.txt": (500, {}, b""), "/x": (200, JPEG, PHOTO)}) as broken,
    ):
        answers = {**ANSWERS, "/to-inside": (302, {"Location": f"{inside.url}/x"}, b"")}
        with hostile(answers) as server:
            wanted = {f"{server.url}{path}": reason for path, reason in FETCHED.items() if path != "/name"}
            wanted[f"http://localhost:{inside.port}/x"] = "egress_refused"
            wanted[f"{broken.url}/x"] = "robots_unreachable"
            wanted |= dict.fromkeys(ADDRESSES, "")  # any refusal
            seconds, reasons = ours(list(wanted), [server.host, broken.host])
            leaks = len(inside.asked) + sum("/private/" in path for path in server.asked)
            calendar = crawled()
            wrong = {}
            for url, reason in wanted.items():
                refused = reasons[url] in ("egress_refused", "bad_url") if url in ADDRESSES else reasons[url] == reason
                if not refused:
                    wrong[url] = reasons[url]
                print(f"{url[:60]:60} {reasons[url] or 'kept'}", file=sys.stderr)
            print(f"calendar of 1,000 pages: {calendar}", file=sys.stderr)
            print(f"all of fetch in {seconds:.1f} s; wrong: {wrong}", file=sys.stderr)
            peer(list(wanted), inside)
    figures: dict[str, Figure] = {
        **odd,
        "leaks": at_most(leaks, 0, "requests"),
        "wrong_reasons": at_most(len(wrong), 0, "cases"),
        "hangs": at_most(int(seconds > 30 * TIMEOUT_S), 0, "runs"),
        "calendar_pages_kept": at_most(calendar["kept"], 50, "pages"),
    }
    return report(figures)


def odd_pages(pages: int, scale: float) -> dict[str, Figure]:
    """Figures of a crawl of so many pages with 5% of odd ones, beside the same crawl without them."""
    with tempfile.TemporaryDirectory(prefix="wenlan-bench-") as name:
        plain, plain_s, _ = crawled_site(Path(name, "plain"), pages - pages // 20, 0, scale)
        odd, odd_s, lost = crawled_site(Path(name, "odd"), pages, pages // 20, scale)
    each = (sum(odd_s.values()) - sum(plain_s.values())) / (pages // 20)
    print(f"{pages} pages, 5% odd at scale {scale:g}: {odd_s}; without them: {plain_s}", file=sys.stderr)
    return {
        "odd_site_exit_status": at_most(max(plain, odd), 0, "status"),
        "odd_site_others_lost": at_most(lost, 0, "pages"),
        "odd_site_seconds_per_odd_page": at_most(each, 2.0, "s"),
        "odd_site_loop_blocked_at_most": at_most(longest_callback(pages, scale), 0.1, "s"),
    }


def longest_callback(pages: int, scale: float) -> float:
    """Seconds of the processor that the longest callback of the crawl's event loop takes, 5% of the pages odd."""
    from pipeline.stages import crawl
    from tests.odd_site import odd_site, spec_of

    longest: list[tuple[float, float, str]] = []
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        cpu, wall = time.thread_time(), time.perf_counter()
        run(handle)
        longest.append((time.thread_time() - cpu, time.perf_counter() - wall, str(handle._callback)[:150]))
        if len(longest) > 1_000:
            longest[:] = sorted(longest, reverse=True)[:10]

    with hostile({}) as server, hostile({}) as beside, tempfile.TemporaryDirectory(prefix="wenlan-bench-") as out:
        site = odd_site(pages, pages // 20, scale, server.host, beside.host)
        server.answers.update(site.pages)
        beside.answers.update(site.beside)
        spec = spec_of(server.host, beside.host, pages)
        build = build_of(out, spec["sources"], [server.host, beside.host])
        asyncio.Handle._run = timed  # type: ignore[method-assign]
        try:
            for partition in crawl.partitions(build):
                crawl.run_partition(build, partition)
        finally:
            asyncio.Handle._run = run  # type: ignore[method-assign]
    for cpu, wall, callback in sorted(longest, reverse=True)[:3]:
        print(
            f"held the loop for {cpu * 1000:.0f} ms of the processor, {wall * 1000:.0f} ms: {callback}", file=sys.stderr
        )
    return max(longest)[0]


def crawled_site(folder: Path, pages: int, odd: int, scale: float) -> tuple[int, dict[str, float], int]:
    """(exit status, seconds of crawl and extract, sound pages and images that are missing) of a build to `extract`.

    Seconds are those of the partitions: the start of Ray is none of them.
    """
    from tests.odd_site import odd_site, spec_of

    with hostile({}) as server, hostile({}) as beside:
        site = odd_site(pages, odd, scale, server.host, beside.host)
        server.answers.update(site.pages)
        beside.answers.update(site.beside)
        folder.mkdir()
        (folder / "spec.json").write_text(json.dumps(spec_of(server.host, beside.host, pages)), encoding="utf-8")
        command = [sys.executable, "-m", "pipeline", "build", str(folder / "spec.json"), "--out", str(folder / "out")]
        done = subprocess.run([*command, "--until", "extract", "--json"], capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
            return done.returncode, {}, pages
        stages = json.loads(done.stdout.strip().splitlines()[-1])["stages"]
        rows = {
            name: [row for path in sorted((folder / "out" / name).glob("*.parquet")) for row in table_of(path, column)]
            for name, column in (("captures", "url"), ("candidates", "image_url"))
        }
        lost = {f"{server.url}{path}" for path in site.sound} - set(rows["captures"])
        images = {f"{server.url}/i/{n}.jpg" for n in range(len(site.sound))} - set(rows["candidates"])
        return 0, {stage["name"]: stage["cost"]["seconds"] for stage in stages}, len(lost) + len(images)


def table_of(path: Path, column: str) -> list[str]:
    """One column of a Parquet file; nothing of one that lacks it."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    named: list[str] = table[column].to_pylist() if column in table.column_names else []
    return named


def build_of(out: str, sources: list[dict[str, Any]], allow: list[str]) -> Any:
    from data_specs.build import BuildSpec
    from pipeline.stages import STAGES
    from pipeline.store.build import Build, passes_of
    from pipeline.store.store import Store

    egress = {"allow": allow, "delay_s": 0, "timeout_s": TIMEOUT_S, "connections_per_host": 16}
    fields = {"name": "bench", "contact": "https://example.org/bench", "sources": sources, "egress": egress}
    spec = BuildSpec.model_validate({**fields, "fetch": {"max_wait_s": 0}})
    marks = dict.fromkeys(passes_of(STAGES, spec), "f" * 64)
    return Build(spec, out, Store(f"{out}/store"), "bench", "2026-01-01", marks, stages=STAGES)


def ours(urls: list[str], allow: list[str]) -> tuple[float, dict[str, str]]:
    """Seconds of the fetch stage, and the reason of each URL ("" for one that was kept)."""
    from data_specs.shard import Text
    from pipeline.records import Candidate, candidate_rows
    from pipeline.stages import fetch

    with tempfile.TemporaryDirectory(prefix="wenlan-bench-") as out:
        build = build_of(out, [TABLE], allow)
        rows = [Candidate("t", "library", url, "", url, (Text("caption", "一张图片"),)) for url in urls]
        with build.stage("admit").attempt(WHOLE) as attempt:
            attempt.write_table("parquet", candidate_rows(rows, 0))
            attempt.commit({"seen": len(rows), "kept": len(rows), "dropped": 0})
        start = time.perf_counter()
        fetch.run_partition(build, WHOLE)
        seconds = time.perf_counter() - start
        table = build.stage("fetch").table(build.stage("fetch").record(WHOLE)).to_pylist()
        return seconds, {row["image_url"]: row["reason"] for row in table}


def crawled() -> dict[str, int]:
    """What the crawl makes of a calendar that never ends."""
    from pipeline.stages import crawl

    def page(path: str) -> Any:
        day = int("".join(filter(str.isdigit, path)) or "0")
        links = "".join(f'<a href="/day/{(day + k) % 1000}">{(day + k) % 1000}日</a>' for k in (1, 7, 30, 365))
        return 200, {"Content-Type": "text/html"}, f"<title>日历</title><h1>第{day}日</h1>{links}".encode()

    with hostile({"*": page, "/robots.txt": (404, {}, b"")}) as server, tempfile.TemporaryDirectory() as out:
        source = {"kind": "site", "name": "site", "source_kind": "news", "start": [f"{server.url}/day/0"]}
        build = build_of(out, [source], [server.host])
        crawl.run_partition(build, "site")
        counts = build.stage("crawl").record("site").counts
        return {name: counts[name] for name in ("seen", "kept", "dropped")}


def peer(urls: list[str], inside: Any) -> None:
    """img2dataset over the same list; what it let through goes to stderr."""
    before = len(inside.asked)
    with tempfile.TemporaryDirectory(prefix="wenlan-bench-") as name:
        Path(name, "urls.txt").write_text("\n".join(url for url in urls if "," not in url))  # it reads lists as CSV
        options = ["--processes_count=1", "--thread_count=16", "--output_format=files", "--enable_wandb=False"]
        options += [
            "--disable_all_reencoding=True",
            "--resize_mode=no",
            "--retries=0",
            "--output_folder",
            f"{name}/out",
        ]
        command = [str(PEER / "img2dataset"), f"{name}/urls.txt", *options]
        start = time.perf_counter()
        try:
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=100, check=False)
            ended = f"ended after {time.perf_counter() - start:.0f} s"
        except subprocess.TimeoutExpired:
            ended = "had not ended after 100 s"
        kept = [
            json.loads(f.read_text())["url"] for f in Path(name).rglob("*.json") if not f.name.endswith("stats.json")
        ]
        bad = [url for url in kept if not url.endswith("/fine")]
        print(f"img2dataset {ended}; asked the host inside {len(inside.asked) - before} times; kept:", file=sys.stderr)
        for url in bad:
            print(f"    {url[:80]}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
