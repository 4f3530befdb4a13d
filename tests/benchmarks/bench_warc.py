"""Extract from WARC files, where most pages are not Chinese: pages a second, beside the least that any reader must do.

Synthetic captures, gzip members, pages of 36 kB median (log-normal): 5% Chinese with pictures, the rest English
documentation with curly quotes, character references and pictures. Timed is the stage's own reading of one file, from
gzip to candidates, on one core, in turns with fastwarc and lexbor alone: every record unpacked, every page parsed,
nothing looked up.

None of the candidates of a walk without the first look (`pipeline.pages.first_look`) may be missing. The cost per byte
of Chinese pages from 3 kB to 2 MB, and the memory of a process that reads the file, are figures of their own.

The process for pages that may take long is started once a file. Common Crawl's files have tens of thousands of pages
and these have hundreds, so what its start costs is taken off; it is told.
"""

from __future__ import annotations

import functools
import io
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from tests.benchmarks.harness import Figure, answer_of, at_most, interleaved, quick, report, shown, told

MEDIAN, SPREAD = 36_000, 0.7
"""Bytes of a page: median, and standard deviation of their logarithm."""

CHINESE = 0.05
MEMORY_MB = 500
SIZES = (3_000, 30_000, 300_000, 2_000_000)


def main() -> int:
    small = quick(__doc__)
    pages, rounds = (600, 3) if small else (4_000, 5)
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory(prefix="wenlan-bench-") as folder:
        mixed = written(Path(folder) / "mixed.warc.gz", pages, CHINESE)
        chinese = written(Path(folder) / "chinese.warc.gz", pages // 10, 1.0)
        told(f"the process for pages that may take long starts in {start_of_reader():.2f} s")
        missing = set(extracted_by_walk(mixed)) - set(extracted(mixed))
        figures["candidates_lost"] = at_most(len(missing), 0, "candidates")
        ours, least = in_turns(mixed, rounds)
        figures["pages_per_second_mixed"] = shown(pages / ours, "1/s a core")
        figures["time_to_parsing_mixed"] = at_most(ours / least, 1.5)
        ours, least = in_turns(chinese, rounds)
        figures["pages_per_second_chinese"] = shown(pages // 10 / ours, "1/s a core")
        figures["time_to_parsing_chinese"] = at_most(ours / least, 5)
        figures["memory"] = at_most(memory_mb(mixed), MEMORY_MB, "MB")
        figures["cost_per_byte_largest_to_30kB"] = at_most(growth(Path(folder), small), 1.5)
    return report(figures)


def in_turns(path: Path, rounds: int) -> list[float]:
    """Median CPU seconds of extracting and of parsing a file."""
    sides = (lambda: cpu_of(lambda: extracted(path)), lambda: cpu_of(lambda: parsed(path)))
    return interleaved(*sides, rounds=rounds, warm=False)


def cpu_of(work: Callable[[], object]) -> float:
    """CPU seconds of this process and of the children that it waited for, without the start of readers."""
    from pipeline.processes import confined

    with mock.patch.object(confined, "_start_child", wraps=confined._start_child) as started:
        seconds = _spent(work)
    return seconds - started.call_count * (start_of_reader() if started.call_count else 0.0)


def _spent(work: Callable[[], object]) -> float:
    def spent() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    start = spent()
    work()
    return spent() - start


@functools.cache
def start_of_reader() -> float:
    """CPU seconds that the process for pages that may take long needs to start."""
    from pipeline.stages import _page_candidates

    def start() -> None:
        with _page_candidates.page_reader() as reader:
            reader(*reader_example)

    reader_example = (_page_candidates._EXAMPLE, "", "news", 1)
    return min(_spent(start) for _ in range(3))


def extracted(path: Path) -> list[str]:
    """Ids of the candidates of a WARC file, by the stage's own code."""
    from pipeline.rows.account import Account
    from pipeline.rows.records import Candidate
    from pipeline.sources.warc import Warc
    from pipeline.stages.extract import _read_pages
    from pipeline.web.warc import read_captures

    source = Warc(name="bench", source_kind="news", path=(str(path),))  # type: ignore[call-arg]
    entries = _read_pages(read_captures(str(path), 1 << 23, {}), source, Counter(), {}, Account())
    return [entry.candidate_id for entry in entries if isinstance(entry, Candidate)]


def extracted_by_walk(path: Path) -> list[str]:
    """`extracted` without the first look."""
    with mock.patch("pipeline.pages.first_look.may_opt_out", return_value=True):
        return extracted(path)


def parsed(path: Path) -> int:
    """Pages that fastwarc reads and lexbor parses."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType
    from selectolax.lexbor import LexborHTMLParser

    count = 0
    with path.open("rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response):
            LexborHTMLParser(record.reader.read().decode("utf-8", "replace"))
            count += 1
    return count


def memory_mb(path: Path) -> float:
    """Peak memory of a process that extracts the file.

    By /proc: what getrusage says of a process begins with the memory of the one that started it, and this one is large.
    """
    code = (
        "import sys; from pathlib import Path; from tests.benchmarks import bench_warc\n"
        "bench_warc.extracted(Path(sys.argv[1]))\n"
        "print('{\"kB\": %s}' % Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    return float(answer_of([sys.executable, "-c", code, str(path)])["kB"] / 1024)


def growth(folder: Path, small: bool) -> float:
    """How many times as much a byte of the largest Chinese pages costs as one of pages of 30 kB."""
    seconds: dict[int, float] = {}
    for size in SIZES:
        count = max(3, (6_000_000 if small else 30_000_000) // size)
        path = written(folder / f"{size}.warc.gz", min(count, 1_000), 1.0, size)
        seconds[size] = cpu_of(lambda path=path: extracted(path)) / (min(count, 1_000) * size)
        told(f"{size:>9} bytes a page: {1e9 * seconds[size]:.0f} ns a byte")
    return seconds[SIZES[-1]] / seconds[30_000]


def written(path: Path, pages: int, chinese: float, size: int = 0) -> Path:
    """A WARC file of so many pages, of which a share is Chinese; all of `size` bytes, if it is given."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    rng = random.Random(0)
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for number in range(pages):
            bytes_ = size or int(MEDIAN * rng.lognormvariate(0, SPREAD))
            html = page(rng, bytes_, rng.random() < chinese)
            http = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
            url, body = f"http://h{number % 97}.example.org/{number}.html", io.BytesIO(html.encode())
            writer.write_record(writer.create_warc_record(url, "response", payload=body, http_headers=http))
    return path


def page(rng: random.Random, size: int, chinese: bool) -> str:
    """An HTML page of about so many bytes: navigation, paragraphs, code, figures."""
    words = _WORDS
    links = "".join(
        f"<li class='nav item-{i}'><a href='/p{i}.html' title='{w}'>{w}</a></li>"
        for i, w in enumerate(rng.choices(words, k=min(80, size // 200)))
    )
    parts = [
        "<!doctype html><html><head><meta charset=utf-8><title>Reference</title>"
        "<meta name=robots content='index,follow'><style>.a{color:#123}</style><script>var t=[1,2,3];</script></head>"
        f"<body><nav><ul>{links}</ul></nav><main><h1>{'一页说明' if chinese else 'A page of the manual'}</h1>"
    ]
    length = len(parts[0])
    while length < size:
        if chinese:
            text = "".join(rng.choices(_HAN, k=rng.randint(40, 120)))
        else:
            text = " ".join(rng.choices(words, k=rng.randint(20, 60)))
        if rng.random() < 0.15:
            picture = f"/images/{rng.randrange(10**9)}.jpg"
            part = f"<figure class='fig'><img src='{picture}' alt='{text[:14]}'><span>{text[:30]}</span></figure>\n"
        else:
            quoted = f"“{text[:9]}” &#8217;s <a href='/x'>{text[:5]}</a> <code>f(x)</code>"
            part = f"<p class='p{length % 7}'>{text} {quoted}</p>\n"
        parts.append(part)
        length += len(part.encode())
    return "".join([*parts, "</main></body></html>"])


_WORDS = re.findall(r"[A-Za-z]{2,12}", " ".join(str(x) for x in (__doc__, io.__doc__, re.__doc__, subprocess.__doc__)))
_HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 3_000)]


if __name__ == "__main__":
    sys.exit(main())
