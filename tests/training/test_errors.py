"""The tree of errors."""

from __future__ import annotations

import pickle
import re

import pytest

from training import errors
from training.errors import TrainingError

EVERY = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("error", EVERY)
def test_errors_cross_processes_with_their_subject(error: type[TrainingError]) -> None:
    back = pickle.loads(pickle.dumps(error("a/file", "is gone")))  # noqa: S301  our own bytes
    assert (type(back), back.subject, back.problem, str(back)) == (error, "a/file", "is gone", "a/file: is gone")


def test_the_tree_is_the_one_that_the_docstring_draws() -> None:
    drawn: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        word = re.match(r"    ([│├└─ ]*)(\w+Error) ", line)
        if word:
            drawn.append((len(word[1]) // 4, word[2]))
    depth = {kind.__name__: len(kind.__mro__) - len(TrainingError.__mro__) for kind in EVERY}
    assert len(drawn) == len(depth)
    assert {name: level for level, name in drawn} == depth
