"""What an image is compared with, at 100,000, 300,000, a million and three million images, and what that says of more.

The keys are those of `meetings.plan`, which grow with what is compared; `meetings.Finder` looks, but only on behalf of
a few images, drawn like all others (`drawn_images.py`, without the hot cluster). Four numbers an image, each a part of
the one before:

    keys        entries that its keys hold of it
    scanned     entries that share a key with it, whose hashes are compared
    near        those whose hashes are near
    candidates  those whose tones agree as well: of them signatures are read and compared

Candidates are told apart by what they were drawn from. Two drawn from one real picture are variants of each other, as
drawings in two colours are; strangers were drawn from two. Noise is fitted to the share of near pairs among the real
pictures, most of which are variants, so the rate of strangers is what chance brings together, and what grows with the
number of images. That of variants grows only as long as images are drawn from no more pictures than there are here;
among real ones it is a matter of how often each is varied.

Rates at 30 million, 650 million and a billion are those of the largest size under the keys of so many images: every
entry stands for as many as there are more, and a range is dense, or too long, as if it held them all. Near pairs and
candidates are then in proportion, which the exponents between sizes bear out. The bar: what strangers cost an image is
at most what the rest of a build costs it, 3.4 ms of CPU (`bench_chain.py`). A signature takes a microsecond, an entry
ten nanoseconds; the sum of both, in milliseconds, is the figure.

`taken` is the share of images that are taken for possible copies because too many share their keys and tones.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

AT_ONCE, ASKED = 1 << 14, 1_024
LARGER = (30_000_000, 650_000_000, 1_000_000_000)
SIGNATURE_MS, ENTRY_MS = 1e-3, 1e-5
REST_MS = 3.4
"""CPU milliseconds that a pair costs in the other stages of a build."""

COUNTED = ("keys", "scanned", "near", "candidates", "strangers")


def main() -> int:
    from drawn_images import fit, missing, words_of
    from harness import at_most, report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5,000 and 20,000 images")
    parser.add_argument("--sizes", default="100000,300000,1000000,3000000")
    options = parser.parse_args()
    if missing():
        print("bench_candidates needs ../shared/corpus and the demo corpus (`make demo` unpacks it)", file=sys.stderr)
        return 1
    sizes = [5_000, 20_000] if options.quick else sorted(int(size) for size in options.sizes.split(","))
    with tempfile.TemporaryDirectory(prefix="wenlan-candidates-") as name, ProcessPoolExecutor(2) as pool:
        folder = Path(name)
        fit(folder, options.quick, pool)
        tasks = [(folder, start, AT_ONCE, 0.0) for start in range(0, max(sizes) + ASKED, AT_ONCE)]
        phash, tones, drawn_from = (np.concatenate(parts) for parts in zip(*pool.map(words_of, tasks), strict=True))
    # those who ask come last, and are the same at every size
    asked = slice(max(sizes), max(sizes) + ASKED)
    rows = []
    for size in sizes:
        began = time.process_time()
        all_of = [np.concatenate([of[:size], of[asked]]) for of in (phash, tones, drawn_from)]
        rows.append(measured(size, *all_of))
        _say(f"{_shown(size, rows[-1])}  ({time.process_time() - began:.0f} s)")
    for one, other in itertools.pairwise(rows):
        steps = math.log(other["images"] / one["images"])
        grown = {name: math.log(max(other[name], 1e-9) / max(one[name], 1e-9)) / steps for name in COUNTED[1:]}
        _say(
            f"exponents from {one['images']:,.0f} to {other['images']:,.0f}: "
            + ", ".join(f"{name} {grown[name]:.2f}" for name in grown)
        )
    if options.quick:  # too few images meet any other
        return report({"taken": at_most(rows[-1]["taken"], 0.0, "")})
    for size in LARGER:
        told = measured(max(sizes), *all_of, as_if=size)
        costs = {of: told["scanned"] * ENTRY_MS + told[of] * SIGNATURE_MS for of in ("candidates", "strangers")}
        shown = ", ".join(f"{of} {costs[of]:.2f}" for of in costs)
        _say(f"as if {_shown(size, told)}  (ms an image: {shown})")
    return report(
        {
            "ms_at_a_billion": at_most(costs["strangers"], REST_MS, "ms"),
            "ms_at_a_billion_with_variants": at_most(costs["candidates"], REST_MS, "ms"),
            "taken": at_most(rows[-1]["taken"], 0.01, ""),
            "taken_at_a_billion": at_most(told["taken"], 0.01, ""),
        }
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _shown(size: int, row: dict[str, float]) -> str:
    return f"{size:,}: " + "  ".join(f"{name} {row[name]:,.2f}" for name in (*COUNTED, "taken"))


def measured(size: int, phash: Any, tones: Any, drawn_from: Any, as_if: int = 0) -> dict[str, float]:
    """What the images from number `size` on are compared with, on average, by all keys of so many images.

    as_if: of how many the others are a sample.
    """
    from data_specs.build import Dedup
    from pipeline.matching import meetings
    from pipeline.matching.meetings import Finder, plan

    class OfAFew(Finder):
        """Looks on behalf of the last images; counts signatures instead of reading them."""

        strangers = 0

        def _join(self, entries: Any, asking: Any) -> None:
            super()._join(entries, asking.take(np.flatnonzero(asking.image >= size)))

        def _verify(self, one: Any, other: Any, place: Any) -> None:
            self.compared += len(one)
            self.strangers += int(np.count_nonzero(drawn_from[one] != drawn_from[other]))

    times = (as_if or size) / size
    limits = {name: int(getattr(meetings, name) / times) for name in ("DENSE", "MANY", "LONG")}
    limits["LOOKS"] = 0 if as_if else meetings.LOOKS
    counts, taken = dict.fromkeys(COUNTED, 0.0), np.zeros(len(phash), np.bool_)
    for key in plan(as_if or size, Dedup().image_distance):
        wanted = np.unique(key.values(phash[size:, key.family.asks]))
        finder = OfAFew(key, 0.0, len(phash), None)  # signatures are counted, not read
        parts = [slice(at, at + AT_ONCE) for at in range(0, len(phash), AT_ONCE)]
        with mock.patch.multiple(meetings, **limits):
            finder.look([(part.start, _of_values(key, phash[part], tones[part], wanted)) for part in parts])
        for name in ("scanned", "near", "compared", "strangers"):
            counts["candidates" if name == "compared" else name] += times * getattr(finder, name) / ASKED
        counts["keys"] += len(key.family.parts)
        taken |= finder.found
    return {**counts, "images": float(size), "taken": float(taken[size:].mean())}


def _of_values(key: Any, phash: Any, tones: Any, wanted: Any) -> Any:
    """The entries of a key whose pieces somebody asks for."""
    from pipeline.matching.looks import Hashed
    from pipeline.matching.meetings import Table

    entries, _ = Table.of(key, Hashed(np.arange(len(phash)), phash, tones))
    at = np.minimum(np.searchsorted(wanted, values := key.values(entries.codes)), len(wanted) - 1)
    asked = np.flatnonzero(wanted[at] == values)
    return Table(entries.codes[asked], entries.tones[asked], entries.owner[asked])


if __name__ == "__main__":
    raise SystemExit(main())
