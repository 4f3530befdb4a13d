"""Leaders by features: what earlier builds kept leads; increments, holders and blocks give what one pass over
everything gives."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.curate import _semantic
from pipeline.curate._semantic import codes_column, codes_in
from pipeline.matching import semantic
from pipeline.matching.semantic import UNIT
from pipeline.store.build import Earlier
from pipeline.store.identities import SEMANTIC, Identities
from tests import alike
from tests.deduped import publish
from tests.stages import run_stage

RED, GREEN, BLUE = (0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.8)


def many(seed: int, count: int, widths: tuple[int, int]) -> list[alike.Shown]:
    """Pictures of random colours."""
    rng = np.random.default_rng(seed)
    shown = []
    for i in range(count):
        red, green, blue = rng.uniform(0.1, 0.8, 3).tolist()
        shown.append((f"s{seed}-{i}", (red, green, blue), int(rng.integers(*widths)), f"第{i}图"))
    return shown


@pytest.mark.drill(2)
def test_increments_give_what_one_build_would_have_given(fetched_build: Any, got: Any, tmp_path: Path) -> None:
    """Weeks of ever smaller pictures: the ranks of one build over all are the same, so must be what is kept."""
    weeks = [many(1, 14, (340, 400)), many(2, 14, (280, 330)), many(3, 14, (220, 270))]
    together = alike.made(
        fetched_build, got, tmp_path, [own for week in weeks for own in week], store=str(tmp_path / "one")
    )
    apart = set[str]()
    for week, shown in enumerate(weeks, 1):
        build = alike.made(fetched_build, got, tmp_path, shown, snapshot=f"2026-0{week}-01", parts=week)
        apart |= alike.kept(build)
        publish(build)
    assert apart == alike.kept(together)
    assert 8 < len(apart) < 36
    assert build.stage("curate.nearest").record("all").counts["earlier"] > 5
    by_earlier = [row for row in alike.dropped(build).values() if "an earlier build's picture" in row["evidence"]]
    assert by_earlier
    assert all(row["duplicate_of"] for row in by_earlier)


@pytest.mark.drill(1)
def test_blocks_holders_and_sealed_groups_change_nothing(
    fetched_build: Any, got: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = many(5, 30, (220, 400))
    one = alike.made(fetched_build, got, tmp_path, shown, name="one")
    monkeypatch.setattr(_semantic, "BLOCK", 4)
    monkeypatch.setattr(semantic, "SEALED", 3)
    other = alike.made(fetched_build, got, tmp_path, shown, name="other", parts=3, options={"pairs_per_holder": 7})
    assert other.stage("curate.nearest").record("all").counts["holders"] == 5
    told = [{name: row["evidence"] for name, row in alike.dropped(build).items()} for build in (one, other)]
    assert told[0] == told[1]
    assert 3 < len(told[0]) < 27


@pytest.mark.drill(1)
def test_holders_are_for_what_earlier_builds_kept_too(fetched_build: Any, got: Any, tmp_path: Path) -> None:
    """A dataset of millions and a week of a thousand: one process would have to hold the features of all."""
    publish(alike.made(fetched_build, got, tmp_path, many(1, 14, (340, 400)), snapshot="2026-01-01"))
    build = alike.made(
        fetched_build, got, tmp_path, many(2, 3, (280, 330)), snapshot="2026-02-01", options={"pairs_per_holder": 4}
    )
    counts = build.stage("curate.nearest").record("all").counts
    assert counts["earlier"] > 4
    assert counts["holders"] == -(-(counts["earlier"] + counts["pairs"]) // 4)


@pytest.mark.slow
def test_a_week_without_pairs_loads_nothing_of_what_was_kept(
    fetched_build: Any, got: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(alike.made(fetched_build, got, tmp_path, many(1, 14, (340, 400)), snapshot="2026-01-01"))
    monkeypatch.setattr(_semantic._Leaders, "add", lambda *_: pytest.fail("it loads what it compares with nothing"))
    build = alike.made(fetched_build, got, tmp_path, [], snapshot="2026-02-01", options={"pairs_per_holder": 2})
    counts = build.stage("curate.nearest").record("all").counts
    assert counts["earlier"] > 2
    assert (counts["pairs"], counts["leaders"], counts["dropped"], counts["holders"]) == (0, 0, 0, 1)


@pytest.mark.slow
def test_what_is_kept_is_near_nothing_that_is_kept(fetched_build: Any, got: Any, tmp_path: Path) -> None:
    build = alike.made(fetched_build, got, tmp_path, many(7, 30, (220, 400)))
    record = build.stage("curate.nearest").record("all")
    verdicts = (
        build.stage("curate.nearest")
        .table(record, f"{build.stage('curate.vectors').partitions()[0]}.verdicts")
        .to_pylist()
    )
    assert {row["millionths"] > 20_000 for row in verdicts if not row["dropped"]} <= {True}
    assert {row["millionths"] <= 20_000 for row in verdicts if row["dropped"]} == {True}
    kept = build.stage("curate.nearest").table(record, "kept.parquet")
    assert len(alike.kept(build)) == kept.num_rows == record.counts["leaders"]


@pytest.mark.drill(1)
def test_a_new_generation_keeps_what_the_last_one_kept(fetched_build: Any, got: Any, tmp_path: Path) -> None:
    """The second week's larger picture was dropped for the first week's; made anew together, it is again."""
    first = alike.made(fetched_build, got, tmp_path, [("a", RED, 300, "红色")])
    publish(first)
    both = [("a", RED, 300, "红色"), ("b", RED, 400, "红色的图")]
    plain = alike.made(fetched_build, got, tmp_path, both, name="fresh", store=str(tmp_path / "fresh"))
    assert alike.kept(plain) == {"b"}
    anew = alike.made(fetched_build, got, tmp_path, both, stages=("measure", "filter"), snapshot="2026-03-03")
    commit = Identities(anew.store).of(first.build_id)
    anew = replace(
        anew, generation=2, identities=(), made_from=(Earlier(first.build_id, first.snapshot, first.out, commit),)
    )
    run_stage(anew, *alike.STAGES)
    assert alike.kept(anew) == {"a"}


@pytest.mark.slow
def test_an_earlier_build_without_features_leads_nobody_and_that_is_logged(
    fetched_build: Any, got: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = fetched_build([], name="t", snapshot="2026-01-01", filters=[])
    run_stage(plain, *alike.STAGES)
    publish(plain)
    with caplog.at_level(logging.WARNING, "wenlan"):
        build = alike.made(fetched_build, got, tmp_path, [("a", RED, 300, "红色")], snapshot="2026-02-02", name="t")
    assert alike.kept(build) == {"a"}
    assert "lacks features of this tower" in caplog.text


def _commit(build: Any) -> dict[str, list[bytes]]:
    """Candidate ids in the files that a build has in STORE."""
    identities = Identities(build.store)
    known = identities.read(identities.of(build.build_id))
    return {
        part: [r["candidate_id"] for t in identities.batches(known, part, ["candidate_id"]) for r in t.to_pylist()]
        for part in ("images.parquet", SEMANTIC)
    }


@pytest.mark.slow
def test_a_takedown_passes_a_build_that_kept_no_features(fetched_build: Any, got: Any, tmp_path: Path) -> None:
    publish(alike.made(fetched_build, got, tmp_path, [("a", RED, 300, "红色")]))
    later = alike.made(fetched_build, got, tmp_path, [("c", RED, 280, "红")], snapshot="2026-05-05")
    publish(later)
    assert _commit(later)[SEMANTIC] == []
    gone = bytes.fromhex(alike.ids(later)["c"])
    Identities(later.store).forget(lambda table: np.array([v == gone for v in table["candidate_id"].to_pylist()]))
    assert _commit(later) == {"images.parquet": [], SEMANTIC: []}


SHOWN = [
    ("large", RED, 400, "蓝色"),
    ("told", RED, 300, "蓝色的图是第一二三四的图"),
    ("fits", (0.85, 0.1, 0.1), 280, "红色"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "stays"), [("larger_image", "large"), ("longer_text", "told"), ("higher_score", "fits")]
)
def test_which_of_those_that_are_alike_is_kept_is_the_specs_choice(
    fetched_build: Any, got: Any, tmp_path: Path, keep: str, stays: str
) -> None:
    build = alike.made(fetched_build, got, tmp_path, SHOWN, {"keep": keep}, parts=2)
    assert alike.kept(build) == {stays}


@pytest.mark.slow
def test_an_image_that_the_tower_cannot_read_is_kept_and_leads_nobody(
    fetched_build: Any, got: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _semantic.model_values

    def without_first(build: Any, partition: str, images: Any, models: Any) -> Any:
        result = seen(build, partition, images, models)
        result.values[models[0].id].pop(sorted(result.values[models[0].id])[0])
        return result

    monkeypatch.setattr(_semantic, "model_values", without_first)
    build = alike.made(fetched_build, got, tmp_path, SHOWN)
    [record] = build.stage("curate.vectors").records()
    assert (record.counts["pairs"], record.counts["compared"]) == (3, 2)
    assert len(alike.kept(build)) == 2


def test_codes_are_read_as_they_were_written() -> None:
    codes = np.array([[UNIT, -UNIT, 7], [0, 1, -1]], np.int16)
    column = codes_column(codes)
    assert (codes_in(column) == codes).all()
    assert (codes_in(column.slice(1)) == codes[1:]).all()
    assert codes_in(column.slice(2)).shape == (0, 0)


def test_codes_of_more_than_two_gigabytes_are_a_column_too() -> None:
    """A binary array of Arrow counts its bytes in 32 bits."""
    codes = np.zeros((2**21 + 3, 512), np.int16)  # zeros that nobody reads take no memory
    column = codes_column(codes)
    assert len(column) == len(codes)
    assert [len(column[row].as_py()) for row in (0, 2**20, 2**21 - 1, 2**21 + 2)] == [1024] * 4
    np.testing.assert_array_equal(codes_in(column.slice(2**21 - 2)), codes[:5])
