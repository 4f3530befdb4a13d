"""Where things lie beside the tests: the repository, and the corpus that a checkout may have next to it.

Imported as `tests.places`: the repository's root is on the path of every test (`pythonpath` in pyproject.toml).
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORPUS = ROOT.parent / "shared" / "corpus"
SPECS = sorted((ROOT / "data_specs").glob("*.yaml"))
"""The specs that are shipped."""


def needs_corpus(*parts: str) -> pytest.MarkDecorator:
    """A mark that skips a test, and says so, where the corpus does not have this file or folder."""
    return pytest.mark.skipif(not CORPUS.joinpath(*parts).exists(), reason="needs shared/corpus beside the repository")
