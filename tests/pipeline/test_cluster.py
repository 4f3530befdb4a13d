"""The executor: what it asks of a cluster, what it says where none can be joined, and how one task runs."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data_specs.build import load
from pipeline import cluster, run
from pipeline.errors import StageError
from pipeline.store.build import Build


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(
        """
name: t
contact: mailto:x@example.org
sources: [{kind: url_table, name: t, source_kind: news, path: t.csv, columns: {texts: {alt: zh}}}]
""",
        encoding="utf-8",
    )
    (tmp_path / "t.csv").write_text("image_url,zh\nhttp://127.0.0.1:1/a.jpg,一张图片\n", encoding="utf-8")
    return path


def test_a_cluster_where_nobody_listens_is_one_line_at_once(tmp_path, spec):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    build = run.open_build(load(spec), str(tmp_path / "out"))
    with pytest.raises(StageError, match=f"^{address}: no Ray cluster can be joined .*refused") as e:
        list(run.run(build, until="extract", address=address))
    assert "\n" not in str(e.value)


def test_nothing_is_asked_of_a_cluster_that_it_has_not() -> None:
    small = {"CPU": 2.0, "memory": 1e9}
    assert cluster.granted({"num_cpus": 4, "num_gpus": 0.5}, small) == {"num_cpus": 2}
    assert cluster.granted({"num_cpus": 1, "num_gpus": 0.5}, {"CPU": 8.0, "GPU": 1.0}) == {
        "num_cpus": 1,
        "num_gpus": 0.5,
    }
    assert cluster.granted({"num_cpus": 0.5}, small) == {"num_cpus": 0.5}


def test_a_partition_costs_what_all_its_work_took_not_only_its_writing(tmp_path, spec):
    def busy(build: Build, partition: str) -> None:
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
        with build.stage("measure").attempt(partition) as attempt:
            attempt.commit({"seen": 0, "kept": 0, "dropped": 0})

    build = run.open_build(load(spec), str(tmp_path / "out"))
    build = replace(build, fingerprints={"measure": "f" * 64})
    cluster.run_task(build, "measure", busy, "00000", "text")
    [record] = build.stage("measure").records()
    assert record.cpu_seconds >= 0.3
    assert record.seconds >= 0.3
    with build.stage("measure").attempt("00001") as attempt:
        assert attempt.commit({}).cpu_seconds < 0.3  # a clock of its own, outside


def test_a_full_disk_is_told_by_its_folder_and_any_other_fault_of_the_system_by_itself(tmp_path, spec):
    path = "/dev/full"

    def writing(*_: object) -> None:
        Path(path).write_bytes(b"x")

    build = run.open_build(load(spec), str(tmp_path / "out"), str(tmp_path / "store"))
    Path(build.folder.url).mkdir()
    with pytest.raises(StageError, match=r"no space is left on its disk \(fetch/00000\); make room") as e:
        cluster.run_task(build, "fetch", writing, "00000", "text")
    assert Path(e.value.subject).is_dir()
    path = str(tmp_path)
    with pytest.raises(IsADirectoryError):
        cluster.run_task(build, "fetch", writing, "00000", "text")
