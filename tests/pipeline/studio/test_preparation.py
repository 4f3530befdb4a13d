"""The index against what the stages wrote, joined by pandas; kept, found again, made anew when the files change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages import STAGES
from pipeline.store.build import STUDIO, Build
from pipeline.store.frames import Frames
from pipeline.studio import preparation
from pipeline.studio.catalog import Catalog
from pipeline.studio.facets import Filters

StudioOf = Callable[..., Any]


@pytest.mark.slow
def test_sizes_and_kinds_are_those_that_the_stages_wrote(built: Build, studio_of: StudioOf, synthetic: Any) -> None:
    catalog = studio_of(built.out).opened.catalog
    rows = catalog.query(
        "SELECT cid, k.value, width, height, s.value, cluster FROM c "
        "JOIN index.codes k ON k.facet = 'kind' AND k.code = is_kind "
        "JOIN index.codes s ON s.facet = 'split' AND s.code = is_split"
    )
    by_id = {int(cid): rest for cid, *rest in rows}
    samples = Frames.of(built).frame("samples")
    for sample in samples.itertuples():
        kind, width, height, split, _ = by_id[int(sample.candidate_id[:16], 16)]
        assert (width, height, split) == (sample.width, sample.height, sample.split)
        assert kind == sample.texts[0]["kind"]
    sizes = Counter(item.leader for item in synthetic.items() if item.leader)
    for item in synthetic.items():
        kind, width, _, _, cluster = by_id[int(item.candidate.candidate_id[:16], 16)]
        leader = item.leader or item.candidate.candidate_id
        assert cluster == sizes[leader] + 1
        assert (width is not None) == (item.stage in ("filter", "dedup", "shard")), "what was measured has a size"
        assert (kind == "") == (item.stage == "extract"), "what extract dropped is in no table of candidates"


def test_facets_that_need_the_index_count_what_they_choose(built: Build, studio_of: StudioOf) -> None:
    catalog = studio_of(built.out).opened.catalog
    counts = catalog.counts(Filters())
    for name in ("kind", "split", "short_side", "cluster"):
        assert sum(count for _, count in counts.facets[name]) == counts.total, name
        for value, count in counts.facets[name]:
            chosen = Filters({name: (value,)})
            assert catalog.counts(chosen, ["stage"]).matching == count
            assert len(catalog.positions(chosen, 0, 100)) == count
    smallest = catalog.positions(Filters(sort="small"), 0, 1)
    assert catalog.query(f"SELECT width * height FROM c WHERE pos = {smallest[0]}") == [
        (min(int(w) * int(h) for w, h in catalog.query("SELECT width, height FROM c WHERE width IS NOT NULL")),)
    ]


@pytest.mark.slow
def test_it_is_kept_and_found_again_and_an_older_one_goes(own: Callable[..., Build], studio_of: StudioOf) -> None:
    build = own()
    folder = Path(build.out) / STUDIO
    first = studio_of(build.out)
    assert first.opened.preparation.seconds > 0
    [name] = [path.name for path in folder.glob("*.duckdb")]
    again = studio_of(build.out)
    assert again.opened.preparation.seconds == 0, "it was there"
    assert again.opened.catalog.ready
    stage = build.stage("filter")
    stage.delete_record(stage.partitions()[0])
    changed = studio_of(build.out)
    [other] = [path.name for path in folder.glob("*.duckdb")]
    assert other != name
    assert changed.opened.catalog.counts(Filters()).total < first.opened.catalog.counts(Filters()).total
    assert not [path for path in folder.iterdir() if path.name.startswith(".")], "nothing half made is left"


@pytest.mark.slow
@pytest.mark.parametrize("left", [11, 0.5])
def test_a_damaged_index_is_made_again(left: float, own: Callable[..., Build], studio_of: StudioOf) -> None:
    """Also one that DuckDB opens and that lacks its tables: a disk was full, or a machine lost its power."""
    build = own()
    studio_of(build.out).close()
    [path] = (Path(build.out) / STUDIO).glob("*.duckdb")
    data = path.read_bytes()
    path.write_bytes(b"no database" if left > 1 else data[: int(left * len(data))])
    catalog = studio_of(build.out).opened.catalog
    assert catalog.ready
    counts = catalog.counts(Filters())
    assert sum(count for _, count in counts.facets["split"]) == counts.total > 0


def test_what_is_stopped_half_way_leaves_no_index(
    built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = Catalog(Frames.open(built.out, STAGES), tmp_path)
    joining = preparation.Preparation(catalog, None, tmp_path / "index")
    monkeypatch.setattr(preparation, "_stored", lambda _: joining.stop() or "SELECT 1")
    monkeypatch.setattr(joining, "stop", lambda: setattr(joining, "_stopped", True))
    joining.start()
    joining.wait()
    assert list((tmp_path / "index").iterdir()) == []
    assert not catalog.ready
    catalog.close()


@pytest.mark.slow
def test_the_index_holds_neither_text_nor_address(own: Callable[..., Build], studio_of: StudioOf) -> None:
    """So that a takedown has nothing to remove from it."""
    build = own()
    catalog = studio_of(build.out).opened.catalog
    kinds = catalog.query("SELECT column_name, column_type FROM (DESCRIBE c)")
    assert [name for name, kind in kinds if kind == "VARCHAR"] == []
    values = {value for (value,) in catalog.query("SELECT value FROM index.codes")}
    assert {"pages", "table", "near_image", "caption", "train", "kept"} < values
    assert all(len(value) < 40 for value in values), "names of sources and reasons"
    data = b"".join(path.read_bytes() for path in (Path(build.out) / STUDIO).glob("*.duckdb"))
    assert "小猫".encode() not in data
    assert b"example/" not in data


@pytest.mark.slow
@pytest.mark.drill(2)
def test_what_is_new_is_new_against_the_baseline(weeks: Any, studio_of: StudioOf) -> None:
    from pipeline.publish import release

    release.publish(weeks.build("2026-01-01", range(12)))
    second = weeks.build("2026-01-08", range(15))
    release.publish(second)
    studio = studio_of(second.out)
    assert studio.opened.place.baseline is not None
    assert studio.opened.place.baseline.snapshot == "2026-01-01"
    catalog = studio.opened.catalog
    # the folder's pictures have another address each week, so that the same picture is another candidate
    counted = dict(catalog.counts(Filters()).facets["new"])
    first = set(Frames.of(studio.opened.place.baseline).frame("decisions").id)
    ids = Frames.of(second).frame("decisions").id
    assert counted.get("new", 0) == sum(name not in first for name in ids)
    assert counted.get("seen", 0) == sum(name in first for name in ids)
    assert dict(catalog.counts(Filters()).facets["fate"]) == {"kept": 3, "known": 12}


@pytest.mark.slow
def test_a_missing_table_leaves_its_columns_empty(own: Callable[..., Build], studio_of: StudioOf) -> None:
    build = own()
    for stage in ("extract", "measure"):
        for record in build.stage(stage).records():
            build.stage(stage).folder.delete(record.files["parquet"].name)
            build.stage(stage).delete_record(record.partition)
    catalog = studio_of(build.out).opened.catalog
    counted = catalog.counts(Filters()).facets
    assert dict(counted["fate"])["kept"] == 30
    assert {value for value, _ in counted["kind"] if value} == {"caption"}
    assert dict(counted["split"])["train"] > 0, "samples have theirs from the shards"
