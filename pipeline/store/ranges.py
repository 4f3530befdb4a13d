"""Names of partitions that are ranges of order keys.

00003-of-00010          the fourth of ten equal ranges, as `admit` cuts them
00003-00005-of-00010    three neighbouring ones, as `signatures` puts them into a run
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.rows.records import order_range

_NAME = re.compile(r"(\d{5,})(?:-(\d{5,}))?-of-(\d{5,})")


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Ranges `first` to `last`, both inclusive, of `of` equal ranges of order keys; `str` is the partition's name."""

    first: int
    last: int
    of: int
    run: bool = False
    """Named as a run, even if it holds one range only."""

    @staticmethod
    def parse(partition: str) -> KeyRange | None:
        """The range that a partition is named by; None for a partition that is not a range."""
        match = _NAME.fullmatch(partition)
        if match is None:
            return None
        first, last, of = match.groups()
        return KeyRange(int(first), int(last or first), int(of), run=last is not None)

    @staticmethod
    def of_partition(partition: str) -> KeyRange:
        """Parses the name of a partition, where partitions are ranges. Raises ValueError for other names."""
        key_range = KeyRange.parse(partition)
        if key_range is None:
            raise ValueError(f"{partition!r} does not name a range of order keys")
        return key_range

    @staticmethod
    def cut(of: int) -> list[KeyRange]:
        """All order keys, cut into `of` ranges."""
        return [KeyRange(number, number, of) for number in range(of)]

    def __str__(self) -> str:
        last = f"-{self.last:05d}" if self.run else ""
        return f"{self.first:05d}{last}-of-{self.of:05d}"

    @property
    def bounds(self) -> tuple[str, str]:
        """Half-open range [low, high) of order keys."""
        return order_range(self.first, self.of)[0], order_range(self.last, self.of)[1]

    def parts(self) -> list[KeyRange]:
        """The single ranges that it is made of."""
        return [KeyRange(number, number, self.of) for number in range(self.first, self.last + 1)]

    def meets(self, first: str, last: str) -> bool:
        """True if an order key of `first` .. `last`, both inclusive, may lie in it."""
        low, high = self.bounds
        return low <= last and first < high
