"""Errors: the trees in the docstrings are those of the classes, and an error survives the way out of a worker."""

from __future__ import annotations

import pickle
import re
from types import ModuleType

import pytest

import pipeline.errors
import training.errors
from data_specs import errors
from data_specs.errors import SpecError, WenlanError
from data_specs.shard import ContractError
from data_specs.storage.object_store import StorageError
from pipeline.errors import PipelineError
from training.errors import TrainingError

NODE = re.compile(r"^    ([│├└─ ]*)(\w+)", re.M)
SHARED = {kind.__name__: kind for kind in (WenlanError, ContractError, SpecError, StorageError)}


def drawn(module: ModuleType) -> dict[str, str]:
    """Class -> its parent, "" of the first, as a docstring draws them."""
    parents, path = {}, list[str]()
    for indent, name in NODE.findall((module.__doc__ or "").split("\n\n")[1]):
        depth = len(indent) // 4
        path[depth:] = [name]
        parents[name] = path[depth - 1] if depth else ""
    return parents


@pytest.mark.parametrize("module", [errors, pipeline.errors, training.errors], ids=lambda module: module.__name__)
def test_the_tree_that_is_drawn_is_the_tree_that_there_is(module: ModuleType) -> None:
    classes = {**SHARED, "PipelineError": PipelineError, "TrainingError": TrainingError, **vars(module)}
    tree = drawn(module)
    [root] = [name for name, parent in tree.items() if not parent]
    assert {name: classes[name].__bases__[0].__name__ for name in tree if name != root} == {
        name: parent for name, parent in tree.items() if parent
    }
    assert {name for name, kind in vars(module).items() if isinstance(kind, type)} <= {*tree, "WenlanError"}


OF_HALVES = [
    kind
    for module in (pipeline.errors, training.errors)
    for kind in vars(module).values()
    if isinstance(kind, type) and kind is not WenlanError
]


@pytest.mark.parametrize("kind", [StorageError, *OF_HALVES], ids=lambda kind: kind.__name__)
def test_an_error_is_one_line_that_names_its_subject_on_the_other_side_of_a_pickle_too(kind: type[WenlanError]) -> None:
    error = pickle.loads(pickle.dumps(kind("STORE/x.json", "is not JSON")))  # noqa: S301 (our own bytes)
    assert type(error) is kind
    assert isinstance(error, WenlanError)
    assert str(error) == "STORE/x.json: is not JSON"
