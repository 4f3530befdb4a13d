"""Verify beside what limits it: sha256 over the same files for --quick, a plain JPEG decode for all of it.

sha256 alone reads the same tars, Parquet files and regions with hashlib. The decode is cv2.imdecode of every image, out
of memory. Both sides have one thread and a warm page cache, so the figures are those of the work, not of a disk.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from data_specs.storage.whole_files import sha256_of
from pipeline.publish import release
from pipeline.publish.verify import verify
from tests.benchmarks.builds import made, noise, packed, samples
from tests.benchmarks.harness import at_least, interleaved, quick, report, told


def main() -> int:
    small = quick(__doc__)
    count, rounds = (1_500, 3) if small else (6_000, 5)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="wenlan-verify-") as name:
        build = made(Path(name), count, 1.0, 5_000, noise(20, 512, 75), shared=False)
        packed(build)
        release.publish(build)
        place = Path(build.out) / "shards"
        files = [*place.glob("*.tar"), *place.glob("*.parquet"), *place.glob("regions/*/*.parquet")]
        size = sum(path.stat().st_size for path in files)
        images = [np.frombuffer(image, np.uint8) for _, image, _, _ in samples(build)]

        def check(fast: bool) -> None:
            faults = verify(place, quick=fast)
            if faults:
                raise SystemExit(f"the dataset is not sound: {faults[0]}")

        def decode() -> None:
            for data in images:
                cv2.imdecode(data, cv2.IMREAD_COLOR)

        mine, theirs = interleaved(lambda: check(True), lambda: [sha256_of(path) for path in files], rounds=rounds)
        whole, plain = interleaved(lambda: check(False), decode, rounds=rounds)
    told(f"{size / 1e6:,.0f} MB: quick {size / mine / 1e6:,.0f}, sha256 {size / theirs / 1e6:,.0f} MB/s")
    told(f"full {count / whole:,.0f}, decode {count / plain:,.0f} images/s")
    return report({"quick_to_sha256": at_least(theirs / mine, 0.7), "full_to_decode": at_least(plain / whole, 0.8)})


if __name__ == "__main__":
    sys.exit(main())
