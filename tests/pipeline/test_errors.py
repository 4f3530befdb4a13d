"""errors: the tree in the docstring is the tree of the classes, and an error survives the way out of a worker."""

from __future__ import annotations

import pickle
import re

import pytest

import data_specs.build
import data_specs.shard
import pipeline.pictures.decode
from pipeline import errors
from pipeline.errors import WenlanError

CLASSES = {
    **vars(errors),
    "Exception": Exception,
    "ValueError": ValueError,
    "ContractError": data_specs.shard.ContractError,
    "SpecError": data_specs.build.SpecError,
    "PictureError": pipeline.pictures.decode.PictureError,
}
NODE = re.compile(r"^    ([│├└─ ]*)(\w+)", re.M)


def drawn() -> dict[str, str]:
    """Class -> its parent, as the docstring draws them."""
    tree = (errors.__doc__ or "").split("A fault of")[0].split("\n\n")[1]
    parents, path = {}, list[str]()
    for indent, name in NODE.findall(tree):
        depth = len(indent) // 4
        path[depth:] = [name]
        parents[name] = path[depth - 1] if depth else ""
    return parents


def test_the_tree_that_is_drawn_is_the_tree_that_there_is():
    tree = drawn()
    assert tree.pop("Exception") == ""
    assert {name: CLASSES[name].__base__.__name__ for name in tree} == tree
    assert {kind.__name__ for kind in WenlanError.__subclasses__()} <= set(tree)


@pytest.mark.parametrize("kind", [WenlanError, *WenlanError.__subclasses__()], ids=lambda kind: kind.__name__)
def test_an_error_names_its_subject_on_the_other_side_of_a_pickle_too(kind):
    error = pickle.loads(pickle.dumps(kind("STORE/x.json", "is not JSON")))  # noqa: S301 (our own bytes)
    assert type(error) is kind
    assert (error.subject, str(error)) == ("STORE/x.json", "STORE/x.json: is not JSON")
