"""Crowds: many items that are candidates of each other, of which not every two are compared.

Copies of one photograph, or of one caption, come by the ten thousand, and to compare every two of them is quadratic.
In a crowd items are compared in order with those that are the same as none before them (representatives); one that is
the same as a representative follows it, and nothing is compared with it any more. Each pair of a crowd is then either
compared, or has a follower that comes first: it is open.

An open pair matters only if one of the two is kept, and a follower seldom is. So `Crowds` keeps who was in which crowd,
and the pass over all edges (`pipeline.dedup.greedy`) compares an item that it keeps with its open partners
(`partners`). The result is that of comparing all with all, whichever items were taken for representatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.matching.sketches import spread

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

AT_ONCE = 32
"""Items of a crowd that are compared among themselves before their representatives are compared with the rest."""

FEW = 1 / 16
"""Share of them that must follow another one. Of a crowd of K pictures, equally often, it is AT_ONCE / 2K."""

Same = Callable[[Ints, Ints], tuple[Ints, Ints]]
"""(one, other) of the pairs of items `ones` x `others` that are the same; of all of them, where both are equal."""


def represent(known: Flags, same: Same, least: float = 0.0) -> tuple[Ints, Flags, Ints]:
    """(items 0 to N - 1 as they were compared, which of these follow another one, those that were left).

    known [N]: followers of something before them, in this crowd or in another one, which are compared with
    representatives before them alone. An item that follows comes before all that it was not compared with. Items that
    were left come last, and are to be compared with each other. least: stop where less than this share of AT_ONCE
    items follows another one of them, so that other items cost no comparisons of all with some.
    """
    order, follows = [np.zeros(0, np.int64)], known.copy()
    rest, waiting = np.flatnonzero(~known), np.flatnonzero(known)
    while len(rest):
        some, rest = rest[:AT_ONCE], rest[AT_ONCE:]
        before = int(np.searchsorted(waiting, some[0]))
        order, waiting = [*order, waiting[:before], some], waiting[before:]
        one, other = (np.searchsorted(some, of) for of in same(some, some))
        alike = np.zeros((len(some), len(some)), np.bool_)
        alike[np.maximum(one, other), np.minimum(one, other)] = True
        for row, earlier in enumerate(alike):
            follows[some[row]] = (earlier & ~follows[some]).any()
        if np.count_nonzero(follows[some]) < least * len(some):
            order[-1], rest = some[follows[some]], np.concatenate([some[~follows[some]], rest])
            break
        _, caught = same(some[~follows[some]], np.concatenate([rest, waiting]))
        follows[caught] = True
        order.append(rest[follows[rest]])
        rest = rest[~follows[rest]]
    joined = np.concatenate([*order, waiting, rest])
    return joined, follows[joined], rest


_NO_PAIRS = np.zeros((0, 2), np.int64)


@dataclass(frozen=True)
class Crowds:
    """Members [M] of all crowds, one after the other, each in the order in which it was compared (`represent`).

    starts [C + 1]: where the members of each crowd begin, and the end. follows [M]: which of them are followers.
    pairs [K, 2]: further pairs that were not compared, as one of the two follows something before the other.
    """

    members: Ints
    starts: Ints
    follows: Flags
    pairs: Ints

    @staticmethod
    def of(crowds: Iterable[tuple[Ints, Flags]], pairs: Ints = _NO_PAIRS) -> Crowds:
        """The crowds of (members, which of them follow)."""
        made = [(np.zeros(0, np.int64), np.zeros(0, np.bool_)), *crowds]
        members, follows = (np.concatenate([one[at] for one in made]) for at in (0, 1))
        return Crowds(members, np.cumsum([len(one) for one, _ in made]), follows, pairs)

    @staticmethod
    def concat(parts: Iterable[Crowds]) -> Crowds:
        several = list(parts)
        crowds = (
            (part.members[low:high], part.follows[low:high])
            for part in several
            for low, high in zip(part.starts[:-1].tolist(), part.starts[1:].tolist(), strict=True)
        )
        return Crowds.of(crowds, np.concatenate([_NO_PAIRS, *(part.pairs for part in several)]))

    def numbers(self) -> Ints:
        """Numbers of all that was not compared with something."""
        return np.concatenate([self.members, self.pairs.ravel()])


class Partners:
    """Looks up with which others a member of crowds was not compared."""

    def __init__(self, crowds: Crowds) -> None:
        self._crowds = crowds
        sizes = np.diff(crowds.starts)
        self.crowd: Ints = np.repeat(np.arange(len(sizes)), sizes)
        """[M] the number of the crowd of each member."""
        self._order = np.argsort(crowds.members, kind="stable")
        self._sorted = crowds.members[self._order]
        self._followers = np.flatnonzero(crowds.follows)
        both = np.concatenate([crowds.pairs, crowds.pairs[:, ::-1]])
        order = np.argsort(both[:, 0], kind="stable")
        self._ones, self._others = both[order, 0], both[order, 1]

    def crowds_of(self, member: int) -> Ints:
        """Numbers of the crowds that it is in."""
        crowds: Ints = self.crowd[self._positions_of(member)]
        return crowds

    def of(self, member: int, crowded: bool = True) -> Ints:
        """Returns what it was not compared with: in a crowd all after a follower, and each follower before it.

        One that is in several crowds with it is there as often. crowded: whether those in its crowds are asked for.
        """
        at = self._positions_of(member) if crowded else self._order[:0]
        crowd, follows = self.crowd[at], self._crowds.follows[at]
        first, last = self._crowds.starts[crowd], self._crowds.starts[crowd + 1]
        before = self._followers[spread(*(np.searchsorted(self._followers, of) for of in (first, at)))]
        after = spread((at + 1)[follows], last[follows])
        begin, end = np.searchsorted(self._ones, member, "left"), np.searchsorted(self._ones, member, "right")
        of_crowds = self._crowds.members[np.concatenate([before, after])]
        return np.concatenate([of_crowds, self._others[begin:end]])

    def _positions_of(self, member: int) -> Ints:
        low, high = np.searchsorted(self._sorted, member, "left"), np.searchsorted(self._sorted, member, "right")
        places: Ints = self._order[low:high]
        return places
