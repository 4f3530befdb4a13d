"""SECURITY.md: every threat has a test that exists and is run, and the documents lead to it."""

from __future__ import annotations

import ast
import functools
import re

from tests.places import ROOT

LINES = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "SECURITY.md")
    .read_text(encoding="utf-8")
    .partition("## Threats")[2]
    .partition("\n## ")[0]
    .split("\n")
    if line.startswith("| ")
][1:]
NAMED = [re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)` ?\|?", cells[-1]) for cells in LINES]


def test_every_line_is_a_threat_what_stops_it_and_a_test() -> None:
    assert len(LINES) > 40
    assert not [cells for cells in LINES if len(cells) != 3]
    assert not [cells for cells, named in zip(LINES, NAMED, strict=True) if named is None]
    assert len({cells[0] for cells in LINES}) == len(LINES)


@functools.cache
def _tests(path: str) -> dict[str, list[str]]:
    """Test functions of a file with their decorators, as source text."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node.name: [ast.unparse(decorator) for decorator in node.decorator_list] for node in functions}


def test_the_test_of_a_threat_is_there_and_runs_each_time() -> None:
    places = [re.match(r"`(tests/[\w/]+\.py)::(test_\w+)`", cells[-1]) for cells in LINES]
    assert [
        cells[0] for cells, named in zip(LINES, places, strict=True) if not (named and named[2] in _tests(named[1]))
    ] == []
    decorators = {named[0]: _tests(named[1])[named[2]] for named in places if named}
    assert [name for name, own in decorators.items() if re.search(r"\b(skip|xfail|drill)\b", " ".join(own))] == []


def test_the_documents_lead_to_it() -> None:
    assert "SECURITY.md" in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
