"""The report of 100,000 and of a million candidates: seconds, memory, size of the page, and when it can be used.

Each is made in a process of its own, whose peak memory is asked for at its end. Candidates share a few pictures, since
a report looks at a hundred of them however many there are. The page of the 100,000 is opened in a headless Chromium
with an empty profile: usable is when it is loaded, its filter was used and the sheet shows what was asked for. Median
of OPENED; left out, with a word, where there is no Chromium.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.builds import begun, made, noise, packed
from tests.benchmarks.harness import Figure, answer_of, at_most, program, quick, report, told

OPENED = 5


def main() -> int:
    if "--serve" in sys.argv:
        return serve(Path(sys.argv[sys.argv.index("--serve") + 1]), int(sys.argv[-1]))
    small, figures = quick(__doc__), measured(100_000, "100k", 3.0)
    if not small:
        figures |= measured(1_000_000, "1m", 5.0)
    return report(figures)


def measured(count: int, name: str, most: float) -> dict[str, Figure]:
    with tempfile.TemporaryDirectory(prefix="wenlan-report-") as folder:
        found = answer_of(program("bench_report", "--serve", folder, count))
        usable = opened(Path(folder)) if name == "100k" else {}
    return {
        **usable,
        f"report_{name}_seconds": at_most(found["seconds"], most, "s"),
        f"report_{name}_page": at_most(found["bytes"] / 1e6, 5.0, "MB"),
        f"report_{name}_memory": at_most(found["memory"] / 1e9, 1.0, "GB"),
    }


def opened(folder: Path) -> dict[str, Figure]:
    """Seconds from asking for the page until its filter has answered."""
    from tests import browser

    if browser.CHROMIUM is None:
        told("there is no Chromium here: how soon the page can be used is left out")
        return {}
    path = folder / "build/report/index.html"
    visible = "[...document.querySelectorAll('#sheet .sample')].filter(n => n.offsetParent !== null).length"
    choose = "n.value = 'kept'; n.dispatchEvent(new Event('input', {bubbles: true}));"

    async def use(page: Any) -> float:
        start = time.perf_counter()
        await page.open(path)
        everything = await page.run(visible)
        kept = await page.run(
            f"(() => {{ const n = document.getElementById('by-reason'); {choose} return {visible} }})()"
        )
        seconds = time.perf_counter() - start
        if not 0 < kept < everything or page.faults(path):
            raise SystemExit(f"the page does not work: {kept} of {everything} shown; {page.faults(path)}")
        return seconds

    times = []
    for _ in range(OPENED):
        times.append(browser.visit(use, alone=True))
        told(f"opened in {times[-1]:.2f} s")
    return {"report_100k_usable": at_most(statistics.median(times), 2.0, "s")}


def serve(folder: Path, count: int) -> int:
    """Make the build in a child, so that its memory does not count; then the report here."""
    import os
    import resource

    from pipeline.processes.without_pandas import arrow_without_pandas
    from pipeline.stages import report as page

    arrow_without_pandas()  # as in every task of a build
    child = os.fork()
    if not child:
        build = made(folder, count, 0.4, 10_000, noise(40, 300, 80), shared=True)
        packed(build)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit("the build could not be made")
    build = begun(folder)
    start = time.perf_counter()
    page.run_partition(build, "all")
    seconds = time.perf_counter() - start
    size = (Path(build.out) / "report/index.html").stat().st_size
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "bytes": size, "memory": memory}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
