"""Builds with a report: the synthetic one, and two published ones of one dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.publish import release
from pipeline.report.section import Material
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.sql import Tables
from tests.kept import Kept
from tests.weeks import Weeks

Run = Callable[[Build, str], None]


@pytest.fixture
def material() -> Iterator[Callable[[Build], Material]]:
    """material(build): what sections are made from; its tables are closed in the end."""
    opened = list[Tables]()

    def of(build: Build) -> Material:
        opened.append(Tables.of(build))
        return Material(build, opened[-1])

    yield of
    for tables in opened:
        tables.close()


@pytest.fixture
def weeks(weeks: Weeks) -> Weeks:
    """Builds of a dataset that grows, up to their reports."""
    return replace(weeks, until="report")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, synthetic: Any, run_stage: Run) -> tuple[str, dict[str, Any]]:
    """(index.html, report.json) of the synthetic build."""
    build, _ = synthetic.make(tmp_path_factory.mktemp("written"))
    run_stage(build, "shard")
    run_stage(build, "report")
    folder = Path(build.out) / "report"
    return (folder / "index.html").read_text("utf-8"), json.loads((folder / "report.json").read_bytes())


@pytest.fixture(scope="session")
def _two_once(tmp_path_factory: pytest.TempPathFactory, synthetic: Any, run_stage: Run) -> tuple[Kept, list[Build]]:
    folder, builds = tmp_path_factory.mktemp("two"), list[Build]()
    for at, options in enumerate(({}, {"shards": {"samples_per_shard": 20, "dev_share": 0.1, "val_share": 0.1}})):
        build, _ = synthetic.make(folder / f"{at}", **options)
        build = replace(build, snapshot=f"2024-0{at + 1}-01", build_id=f"synthetic-{at}")
        build = replace(build, store=builds[0].store if builds else build.store)
        if builds:
            names = [path.name for path in (Path(build.store.url) / "identity").glob("*.json")]
            build = replace(build, identities=tuple(names))
        for stage in ("shard", "report"):
            run_stage(build, stage)
        release.publish(build)
        spec = {"version": build_json.VERSION, "spec": build.spec.model_dump(mode="json"), "stages": {}, "passes": {}}
        (Path(build.out) / "build.json").write_text(json.dumps(spec), encoding="utf-8")
        builds.append(build)
    return Kept(folder), builds


@pytest.fixture
def two(_two_once: tuple[Kept, list[Build]]) -> list[Build]:
    """Two published builds of one dataset; the second has other shards and loses what the first was asked to forget.

    They lie in one place for all tests.
    """
    kept, builds = _two_once
    kept.restore()
    return list(builds)
