"""STORE/regions: what each detector's cache holds, and how detectors are removed, here and by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import cli
from pipeline.detectors import detector_of
from pipeline.files.folder import Folder
from pipeline.store import region_cache
from pipeline.store.store import Store
from tests.drawn import picture


@pytest.mark.slow
def test_detectors_are_counted_and_removed(
    fetched_build: Any, got: Any, run_stage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    detectors = [{"name": "grid", "n": 3}, {"name": "grid", "n": 2}]
    images = [got(f"{i}", picture(i, (100, 90)), f"第{i}张") for i in range(3)]
    build = fetched_build(images, filters=[], regions={"detectors": detectors})
    for stage in ("measure", "filter", "dedup", "detect"):
        run_stage(build, stage)
    nine, four = (detector_of(build.spec, ref).detector_id for ref in build.spec.regions.detectors)
    entries = {entry["detector"]: entry for entry in region_cache.stats(build.store)}
    assert {name: (e["images"], e["regions"], e["commits"]) for name, e in entries.items()} == {
        nine: (3, 27, 1),
        four: (3, 12, 1),
    }
    build.store.check()
    store = ["--store", build.store.url, "--json"]
    assert cli.main(["regions", "prune", "--detector", four, "--dry-run", *store]) == 0
    assert json.loads(capsys.readouterr().out)["detectors"] == [entries[four]]
    assert len(region_cache.stats(build.store)) == 2
    assert region_cache.prune(build.store, before="2020-01-01") == []
    assert cli.main(["regions", "prune", "--detector", four, *store]) == 0
    assert [entry["detector"] for entry in region_cache.stats(build.store)] == [nine]
    assert cli.main(["regions", "prune", "--detector", four, *store]) == 1
    assert f"no detector {four}; detectors: {nine}" in capsys.readouterr().err
    assert cli.main(["regions", "prune", *store]) == 2
    assert cli.main(["regions", "prune", "--before", "yesterday", *store]) == 2
    assert [e["detector"] for e in region_cache.prune(build.store, before="2999-01-01")] == [nine]
    assert region_cache.stats(build.store) == []


def test_what_lies_behind_a_url_is_counted_without_a_copy_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(f"memory://{tmp_path.name}/store")
    rows = {"sha256": ["0" * 64, "1" * 64], "boxes": [[0.0, 0.0, 1.0, 1.0], []], "scores": [[0.5], []]}
    store.regions("grid-x").put(pa.table(rows))

    def copied(*_: object) -> None:
        raise AssertionError("a copy of all that is cached")

    monkeypatch.setattr(Folder, "local", copied)
    [entry] = region_cache.stats(store)
    assert (entry["images"], entry["regions"], entry["commits"]) == (2, 1, 1)
    assert entry["bytes"] > 100
