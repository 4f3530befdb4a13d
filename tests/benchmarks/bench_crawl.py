"""The crawl as a site grows: time a page of 1,000 and of 10,000 pages, in a process of its own, beyond its start.

The site is a tree of Chinese pages with pictures, eight links each, served by nginx from files. Politeness is there
(robots.txt, turns, guard), the pause is zero, since loopback is one host.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from harness import at_most, quick, report
from loopback import missing, nginx

WORDS = "山水云雨风雪花鸟鱼虫春夏秋冬东南西北天地人和金木石火土日月星江河湖海"


def main() -> int:
    sizes, rounds = ((200, 1_000), 1) if quick(__doc__ or "") else ((1_000, 10_000), 3)
    if missing():
        return 1
    times: dict[int, list[float]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory(prefix="wenlan-bench-") as name:
        Path(name).chmod(0o755)
        for size in sizes:
            tree(Path(name) / str(size), size)
        with nginx(Path(name)) as port:
            crawl_once(port, sizes[0])  # imports
            for _ in range(rounds):
                for size in sizes:
                    times[size].append(crawl_once(port, size) / size)
    each = {size: statistics.median(seconds) for size, seconds in times.items()}
    print("ms a page:", {size: round(1000 * seconds, 3) for size, seconds in each.items()}, file=sys.stderr)
    return report({"growth_largest_to_smallest": at_most(each[sizes[-1]] / each[sizes[0]], 1.2)})


def tree(folder: Path, size: int) -> None:
    """Pages 0 to size - 1; page n links 8n + 1 to 8n + 8."""
    folder.mkdir(mode=0o755)
    for n in range(size):
        links = "".join(f'<li><a href="{k}.html">{name(k)}</a>' for k in range(8 * n + 1, min(8 * n + 9, size)))
        text = "".join(f"<p>{name(n * 31 + k) * 12}。</p>" for k in range(8))
        body = f'<h1>{name(n)}</h1><img src="/images/{n}.jpg" alt="{name(n)}的照片">{text}<ul>{links}</ul>'
        page = f'<!doctype html><meta charset="utf-8"><title>{name(n)}</title>{body}'
        (folder / f"{n}.html").write_text(page, encoding="utf-8")


def name(n: int) -> str:
    """A word of four characters, another one for each number."""
    return "".join(WORDS[(n // len(WORDS) ** k) % len(WORDS)] for k in range(4))


def crawl_once(port: int, size: int) -> float:
    """Seconds of the crawl stage's partition."""
    from data_specs.build import BuildSpec
    from pipeline.stages import STAGES, crawl
    from pipeline.store.build import Build
    from pipeline.store.store import Store

    with tempfile.TemporaryDirectory(prefix="wenlan-bench-") as out:
        start = f"http://127.0.0.1:{port}/{size}/0.html"
        source = {"kind": "site", "name": "site", "source_kind": "news", "start": [start], "max_pages": size + 1}
        egress = {"allow": [f"127.0.0.1:{port}"], "delay_s": 0}
        fields = {"name": "bench", "contact": "https://example.org/bench", "sources": [source], "egress": egress}
        spec = BuildSpec.model_validate(fields)
        build = Build(spec, out, Store(f"{out}/store"), "bench", "2026-01-01", {"crawl": "c" * 64}, stages=STAGES)
        began = time.perf_counter()
        crawl.run_partition(build, "site")
        seconds = time.perf_counter() - began
        assert build.stage("crawl").record("site").counts["kept"] == size
        return seconds


if __name__ == "__main__":
    sys.exit(main())
