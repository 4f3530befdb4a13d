"""Stages as objects: what every stage says of itself, and that one more is one object and one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from data_specs.build import BuildSpec, DropShares
from pipeline import opening, run
from pipeline.publish import release
from pipeline.report.explain import explain
from pipeline.report.funnel import faults, read_funnels
from pipeline.report.gates import names
from pipeline.stages import STAGES
from pipeline.store import build_json
from pipeline.store.build import EVERY, Build, Pass, PassFile, Stage, in_funnel, passes_of
from pipeline.store.commits import DECISIONS
from pipeline.store.partitions import reading
from pipeline.takedown import garbage
from pipeline.takedown.forget import Request, forget
from tests.drawn import mosaic

LENGTH_SCHEMA = pa.schema([("candidate_id", pa.string()), ("order_key", pa.string()), ("characters", pa.int32())])


def _count_characters(build: Build, partition: str) -> None:
    """The whole of the toy stage: how many characters the primary text of each pair has."""
    pairs = build.stage("filter").table(build.stage("filter").record(partition))
    lengths = [len(texts[0]["text"]) for texts in pairs["texts"].to_pylist()]
    columns = {name: pairs[name] for name in ("candidate_id", "order_key")}
    with build.stage("characters").attempt(partition) as attempt:
        table = pa.table({**columns, "characters": pa.array(lengths, pa.int32())}).cast(LENGTH_SCHEMA)
        attempt.write_table("parquet", table)
        attempt.commit({"seen": pairs.num_rows, "kept": pairs.num_rows, "dropped": 0})


TOY = Stage(
    name="characters",
    zh="字数",
    folder="lengths",
    passes=(
        Pass(
            name="characters",
            over=lambda build: build.stage("filter").partitions(),
            reads=("filter",),
            run=_count_characters,
            token=lambda build: len(build.spec.name),
            files=(PassFile("parquet", LENGTH_SCHEMA, "candidate_id"),),
        ),
    ),
    max_drop=0.5,
)


def with_toy() -> dict[str, Stage]:
    """STAGES with one line more, after `filter`."""
    stages: dict[str, Stage] = {}
    for name, stage in STAGES.items():
        stages[name] = stage
        if name == "filter":
            stages[TOY.name] = TOY
    return stages


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A real build of eight pictures with the toy stage, published."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "photos").mkdir()
    for i, text in enumerate(
        [
            "红烧肉的做法图",
            "清蒸鲈鱼一盘",
            "番茄炒蛋一碗",
            "西湖醋鱼上桌",
            "宫保鸡丁特写",
            "麻婆豆腐红亮",
            "北京烤鸭切片",
            "小笼包冒热气",
        ]
    ):
        (folder / f"photos/{i}.jpg").write_bytes(mosaic(i))
        (folder / f"photos/{i}.txt").write_text(text, encoding="utf-8")
    source = {"kind": "folder", "name": "photos", "source_kind": "library", "path": str(folder / "photos")}
    spec = BuildSpec.model_validate({"name": "toy", "contact": "mailto:a@b.c", "sources": [source]})
    build = opening.open_build(spec, str(folder / "out"), str(folder / "store"), stages=with_toy())
    list(run.run(build, here=True))
    release.publish(build)
    return build


@pytest.mark.slow
def test_one_more_stage_is_one_object_and_one_line(built: Build) -> None:
    stage = built.stage("characters")
    assert stage.finished(), "run"
    rows = [row for record in stage.records() for row in stage.table(record).to_pylist()]
    assert sorted(row["characters"] for row in rows) == [6] * 7 + [7]

    candidates, _ = read_funnels(built)
    [row] = [row for row in candidates.stages(in_funnel(built)) if row.stage == "characters"]
    assert (row.seen, row.kept, row.dropped) == (8, 8, 0), "funnel"
    assert faults(built, candidates) == []
    assert "max_drop.characters" in names(built.stages), "gates"

    report = json.loads((Path(built.out) / "report/report.json").read_text(encoding="utf-8"))
    assert "characters" in [row["stage"] for row in report["funnel"]], "report.json"
    assert "characters" in [row["stage"] for row in report["cost"]]
    assert "字数" in (Path(built.out) / "report/index.html").read_text(encoding="utf-8"), "the report's page"

    [decision] = explain(built, rows[0]["candidate_id"])
    assert decision["saw"]["characters"]["characters"] == rows[0]["characters"], "explain"
    assert list(build_json.status(built)["stages"]) == [name for name in built.stages if name != "curate"], "status"

    other = stage.at("0" * 64)
    with other.attempt("00000-of-00001") as attempt:
        attempt.write_table("parquet", LENGTH_SCHEMA.empty_table())
        attempt.commit({"seen": 0, "kept": 0, "dropped": 0})
    (Path(built.out) / "lengths/00000-of-00001-dead.parquet").write_bytes(b"half")
    garbage.collect(built.store, built.stages)
    remaining = sorted(path.name for path in (Path(built.out) / "lengths").glob("*.parquet"))
    assert remaining == sorted(ref.name for record in stage.records() for ref in record.files.values()), "gc"

    [victim] = [row["image_url"] for row in _admitted(built) if row["candidate_id"] == rows[0]["candidate_id"]]
    forget(built.store, [built], Request(urls=[victim]))
    ids = [row["candidate_id"] for record in stage.records() for row in stage.table(record).to_pylist()]
    assert ids == [row["candidate_id"] for row in rows[1:]], "forget"


def _admitted(build: Build) -> list[dict[str, str]]:
    stage = build.stage("admit")
    return [row for record in stage.records() for row in stage.table(record).to_pylist()]


@pytest.mark.slow
def test_what_a_pass_commits_is_what_it_declares(built: Build) -> None:
    for own in built.passes.values():
        directory = built.stage(own.name)
        for record in directory.records():
            for suffix in set(record.files) - {DECISIONS}:
                file = own.file(suffix)
                assert file is not None, f"{own.name} commits {suffix} and does not say so"
                if file.schema is not None and not suffix.endswith(".arrow"):
                    table = directory.table(record, suffix)
                    assert table.schema.names == file.schema.names, f"{own.name}: {suffix}"
                    assert not file.row_key or file.row_key in table.column_names


@pytest.mark.parametrize("stage", STAGES.values(), ids=list(STAGES))
def test_a_stage_is_whole(stage: Stage) -> None:
    before = [own.name for other in STAGES.values() for own in other.passes]
    for own in stage.passes:
        known = before[: before.index(own.name)]
        assert set(own.reads) <= {*known, *EVERY}, f"{own.name} reads only what runs before it"
        assert own.version > 0
        assert own.resources(BuildSpec.model_validate(MINIMAL)).get("num_cpus", 0) > 0
        assert own.file(DECISIONS) is None, "decisions are every pass's, and no file of its own"
    assert re.search(r"[\u4e00-\u9fff]", stage.zh)
    assert stage.subject in ("candidate", "capture", "")


def test_a_build_has_the_passes_that_its_spec_asks_for() -> None:
    plain = passes_of(STAGES, BuildSpec.model_validate(MINIMAL))
    assert {own.stage for own in plain.values()} == set(STAGES) - {"curate"}
    judged = passes_of(STAGES, BuildSpec.model_validate({**MINIMAL, "balance": {}, "watermark": {}}))
    assert [name for name in judged if name.startswith("curate")] == [
        "curate.marks",
        "curate.watermark",
        "curate.concepts",
        "curate.balance",
        "curate",
    ]


@pytest.mark.slow
def test_a_pass_that_opens_records_which_it_does_not_declare_fails(built: Build) -> None:
    [partition] = built.stage("measure").partitions()
    with (
        reading("measure", ("fetch",)),
        pytest.raises(AssertionError, match="measure does not declare that it reads admit"),
    ):
        built.passes["measure"].run(built, partition)


MINIMAL = {
    "name": "t",
    "contact": "mailto:a@b.c",
    "sources": [{"kind": "folder", "name": "f", "source_kind": "library", "path": "."}],
}


def test_stages_write_into_folders_of_their_own_and_gates_name_stages_that_drop() -> None:
    assert len({stage.folder for stage in STAGES.values()}) == len(STAGES)
    assert set(DropShares.model_fields) <= {stage.name for stage in STAGES.values() if stage.subject}


@pytest.mark.slow
def test_a_helper_of_one_stage_is_imported_without_the_others():
    """The process that reads odd pages is started for a file of pages: all stages cost it twice as much."""
    program = (
        "import sys; import pipeline.stages._page_candidates;"
        "print(*sorted(m for m in sys.modules if m.startswith('pipeline.stages.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, text=True)
    assert done.stdout.split() == ["pipeline.stages._furniture", "pipeline.stages._page_candidates"]


def test_stages_are_in_the_order_of_their_names():
    import pipeline.stages as package

    assert list(STAGES) == list(package.ORDER)
    assert package.STAGES is STAGES
    with pytest.raises(AttributeError, match="no attribute 'OTHERS'"):
        package.OTHERS  # noqa: B018
