"""Functions of a text that are computed for a whole chunk of texts at a time.

A filter looks at one text. NumPy, OpenCC and a search for words cost as much per call as per hundred characters, so
that most of the time on short texts would be calls. Therefore `admit` announces the texts that its filters will see,
and a function of a text may have a form for many texts (`chunkwise`): when it is asked about an announced text, it is
computed for all of them, and the next question is a look-up.

    @chunkwise(_many)
    def even(text: str) -> str: ...

The form for one text is the definition. What is announced changes no answer, only what an answer costs: a text that was
not announced is computed by itself, and so is each text of a chunk for which the form for many fails.

Limits: answers for the last few chunks are remembered, per function and process.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, filterfalse
from typing import TypeVar

T = TypeVar("T")

CHUNK = 512
"""Texts that filters look at together: each filter is asked about all of them before the next filter is."""

REMEMBERED = 2 * CHUNK
"""Answers that a function remembers, besides those for a rewritten text or another that was not announced."""

MOST_CHARACTERS = 1 << 16
"""Characters that are computed at once, or a single longer text: arrays of them fit a processor's cache."""

_announced: dict[str, None] = {}


def announce(texts: Iterable[str]) -> None:
    """Say which texts functions are going to be asked about."""
    _announced.clear()
    _announced.update(dict.fromkeys(texts))


def chunkwise(batch: Callable[[Sequence[str]], Sequence[T]]) -> Callable[[Callable[[str], T]], Callable[[str], T]]:
    """Decorates a pure function of a text. batch: its values for several texts, in their order; the same values."""

    def decorate(one: Callable[[str], T]) -> Callable[[str], T]:
        known: dict[str, T] = {}

        @functools.wraps(one)
        def look_up(text: str) -> T:
            try:
                return known[text]
            except KeyError:
                return _learn(text, one, batch, known)

        return look_up

    return decorate


def _learn(text: str, one: Callable[[str], T], batch: Callable[[Sequence[str]], Sequence[T]], known: dict[str, T]) -> T:
    """The value for a text; remembers it, and those of texts that were announced with it."""
    texts = _announced_with(text, known) if text in _announced else [text]
    if len(known) > (REMEMBERED if len(texts) > 1 else 4 * REMEMBERED):  # rather between two chunks than amidst one
        known.clear()
    if len(texts) > 1:
        try:
            known |= dict(zip(texts, batch(texts), strict=True))
            return known[text]
        except Exception:  # of one text, which fails by itself as well: the others are not to suffer from it
            _announced.clear()
    value = known[text] = one(text)
    return value


def _announced_with(text: str, known: dict[str, T]) -> list[str]:
    """A text and the announced ones whose value is not known, as many as are computed at once."""
    texts = list(filterfalse(known.__contains__, _announced))
    if sum(map(len, texts)) <= MOST_CHARACTERS:
        return texts
    texts.remove(text)
    texts.insert(0, text)
    end = bisect.bisect(list(accumulate(map(len, texts))), MOST_CHARACTERS)
    return texts[: max(1, end)]
