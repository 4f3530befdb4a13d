"""Samples of other builds: which build holds what a candidate is a copy of, and how it looks there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.publish import release
from pipeline.report import earlier_samples
from pipeline.report.explain import explain
from pipeline.store.build import Build

pytestmark = pytest.mark.slow


@pytest.fixture
def copied(weeks: Any) -> tuple[Build, Build]:
    """A published week, and one in which the same pictures came under other addresses."""
    first = weeks.build("2026-01-01", range(6))
    release.publish(first)
    build = weeks.open("2026-01-08", range(4))
    place = Path(build.spec.sources[0].options["path"])
    for number in range(4):
        shutil.move(place / f"{number:03d}.jpg", place / f"copy{number}.jpg")
        shutil.move(place / f"{number:03d}.txt", place / f"copy{number}.txt")
    return first, weeks.build_again("2026-01-08", build.spec)


@pytest.mark.drill(2)
def test_explain_says_which_build_holds_a_known_image(copied: tuple[Build, Build]) -> None:
    first, build = copied
    rows = [row for row in explain(build, "folder:///album/copy1.jpg") if row["reason"] == "known"]
    [row] = rows
    holder = row["held_by"]
    assert (holder["build_id"], holder["dataset"], holder["release"], holder["out"]) == (
        first.build_id,
        "weekly",
        1,
        first.out,
    )
    assert row["duplicate_of"].startswith(holder["key"])
    [kept] = [r for r in explain(first, holder["key"]) if r["kept"]]
    assert kept["held_by"] is None
    assert kept["id"] == row["duplicate_of"]


@pytest.mark.drill(2)
def test_a_build_that_is_not_at_hand_is_named(copied: tuple[Build, Build], run_stage: Any) -> None:
    first, build = copied
    shutil.rmtree(first.out)
    holder_of = earlier_samples.holders(
        build, {row["duplicate_of"] for row in explain(build, "folder:///album/copy1.jpg")}
    )
    assert [holder.build_id for holder in holder_of.values()] == [first.build_id]
    assert list(earlier_samples.samples(holder_of)) == []
    shutil.rmtree(Path(build.out) / "report")
    run_stage(build, "report")
    html = (Path(build.out) / "report/index.html").read_text("utf-8")
    assert "which is not available here" in html
    assert html.partition('id="duplicates"')[2].count("<img") == 4


@pytest.mark.drill(2)
def test_samples_are_read_as_they_are_stored(copied: tuple[Build, Build]) -> None:
    first, build = copied
    ids = {row["duplicate_of"] for number in range(4) for row in explain(build, f"folder:///album/copy{number}.jpg")}
    images = {row["id"]: data for row, data in earlier_samples.samples(earlier_samples.holders(build, ids))}
    assert set(images) == ids
    assert all(data.startswith(b"\xff\xd8") for data in images.values())
    assert earlier_samples.holders(first, ids) == {}, "it was compared with no build"
