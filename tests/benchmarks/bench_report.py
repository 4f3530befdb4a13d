"""The report of 100,000 and of a million candidates: seconds, memory, size of the page.

Each is made in a process of its own, whose peak memory is asked for at its end. Candidates share a few pictures, since
a report looks at a hundred of them however many there are.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from builds import begun, made, noise, packed
from harness import Figure, at_most, quick, report

ROOT = Path(__file__).parents[2]


def main() -> int:
    if "--serve" in sys.argv:
        return serve(Path(sys.argv[sys.argv.index("--serve") + 1]), int(sys.argv[-1]))
    figures = measured(100_000, "100k", 30.0)
    if not quick(__doc__ or ""):
        figures |= measured(1_000_000, "1m", 180.0)
    return report(figures)


def measured(count: int, name: str, most: float) -> dict[str, Figure]:
    with tempfile.TemporaryDirectory(prefix="wenlan-report-") as folder:
        command = [sys.executable, __file__, "--serve", folder, str(count)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=None, cwd=ROOT)
        found = json.loads(done.stdout.splitlines()[-1])
    return {
        f"report_{name}_seconds": at_most(found["seconds"], most, "s"),
        f"report_{name}_page": at_most(found["bytes"] / 1e6, 5.0, "MB"),
        f"report_{name}_memory": at_most(found["memory"] / 1e9, 4.0, "GB"),
    }


def serve(folder: Path, count: int) -> int:
    """Make the build in a child, so that its memory does not count; then the report here."""
    import os
    import resource

    import pipeline.report as page

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
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
