from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.files.parquet import read_parquet, write_parquet

WORK = """
import sys
import pyarrow as pa
import pyarrow.parquet as pq
from pipeline.processes.without_pandas import arrow_without_pandas
from pipeline.files.parquet import write_parquet
arrow_without_pandas()
table = pa.table({"name": ["一", "二", "二"], "n": [1, 2, 3]})
write_parquet("rows.parquet", table)
assert pq.read_table("rows.parquet", filters=[("n", ">=", 2)]).num_rows == 2
assert table.group_by("name").aggregate([("n", "sum")]).num_rows == 2
print("pandas" in sys.modules)
"""


def in_a_process(code: str, folder: object) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], cwd=str(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_a_process_that_makes_no_data_frame_imports_no_pandas(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    assert in_a_process(WORK, tmp_path) == ["False"]


@pytest.mark.drill(2)
def test_whoever_asks_for_a_data_frame_or_has_one_gets_what_pandas_means(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    frames = """
frame = table.to_pandas()
import pandas
print(list(frame["n"]) == [1, 2, 3], pa.array(pandas.Series([1.5, float("nan")])).null_count)
"""
    assert in_a_process(WORK + frames, tmp_path) == ["False", "True", "1"]
    rows = """
import pandas
print(pa.Table.from_pandas(pandas.DataFrame({"x": [1.5, float("nan")]}))["x"].null_count)
"""
    assert in_a_process(WORK + rows, tmp_path) == ["False", "1"]


@pytest.mark.parametrize("columns", [None, ["texts", "n"], ["n"]])
def test_columns_come_in_the_order_in_which_they_are_asked_for_as_pyarrow_reads_them(
    tmp_path: Path, columns: list[str] | None
) -> None:
    path = tmp_path / "rows.parquet"
    texts = [[{"kind": "alt", "text": "一"}], [], [{"kind": "tag", "text": "二"}]]
    write_parquet(path, pa.table({"n": [1, 2, 3], "texts": texts, "name": ["一", "二", "二"]}), row_group_size=2)
    expected = pq.read_table(path, columns=columns)
    assert read_parquet(path, columns).equals(expected, check_metadata=True)
    assert read_parquet(pa.BufferReader(path.read_bytes()), columns).equals(expected, check_metadata=True)
    with pytest.raises(KeyError):
        read_parquet(path, ["missing"])
