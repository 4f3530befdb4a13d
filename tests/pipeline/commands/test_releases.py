"""`wenlan-data release`: a STORE that is none is one line."""

from __future__ import annotations

import pytest

from pipeline import cli


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("record", ["[]", '{"version": "a"}', "{}"])
def test_a_store_json_that_is_none_is_one_line(record, capsys, tmp_path):
    (tmp_path / "store.json").write_text(record)
    assert cli.main(["release", "list", "--store", str(tmp_path)]) == 1
    assert lines(capsys) == [f"wenlan-data: {tmp_path}/store.json: is not the record of a STORE"]
