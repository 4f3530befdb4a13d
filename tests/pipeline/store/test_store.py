"""store: a STORE of another version is refused."""

from __future__ import annotations

import pytest

from pipeline.errors import StoreError
from pipeline.store.store import Store


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    (tmp_path / "store.json").write_text('{"version": 99}')
    with pytest.raises(StoreError, match="is of version 99, this wenlan knows 2; upgrade"):
        Store(str(tmp_path)).check()
