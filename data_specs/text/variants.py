"""Groups of Han characters that are one to `data_specs.text.folding`: the forms of 里 are 里裏裡裡 and so on.

They are OpenCC's (Apache-2.0), taken character by character from its conversions, and lie beside this module in
variants.txt, the one that stands for its group first: ids of texts must not change with the OpenCC that is installed,
and to ask it takes half a second of every process. `python -m tests.benchmarks.variant_groups` rewrites the file, by
the OpenCC of this machine; then texts get other ids, and builds are compared again.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("variants.txt")


class Variants(NamedTuple):
    """Contents of FILE."""

    opencc: str
    """The version of OpenCC that the groups are of."""
    groups: tuple[str, ...]
    """The characters of each group: first the one that stands for all, a simplified one if there is any."""


@cache
def variants() -> Variants:
    head, *groups = FILE.read_text(encoding="utf-8").splitlines()
    return Variants(head.split()[-1], tuple(groups))
