"""What a build costs follows from what an earlier one took, scaled in step with the candidates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.build import BuildSpec, load
from pipeline import cli, opening, pass_runner, run
from pipeline.cluster import Cluster, Resources, Runs
from pipeline.report.estimate import Pace, Reference, forecast
from pipeline.sources import sources_of
from pipeline.stages import crawl
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.build_json import Cost

SITE = {"kind": "site", "name": "s", "source_kind": "library", "start": ["http://a.test/"]}


@pytest.fixture
def published(make_build: Callable[..., Build]) -> Callable[..., Build]:
    """A build that STORE knows: 200 pages with 1,000 candidates, of which 400 were kept."""

    def publish(name: str, snapshot: str, cpu: float) -> Build:
        build = make_build(sources=[SITE], out=f"{name}-{snapshot}")
        spec = build.spec.model_copy(update={"name": name})
        build = replace(build, spec=spec, build_id=f"{name}-{snapshot}", snapshot=snapshot)
        funnels = {"extract": {"pages": 200, "kept": 1_000}, "admit": {"seen": 1_000}, "shard": {"kept": 400}}
        build = replace(build, fingerprints=dict.fromkeys((*funnels, "admit.sort", "shard.plan"), "f" * 64))
        Path(build.out).mkdir()
        for stage, funnel in funnels.items():
            cost = Cost(2 * cpu, cpu, 0.5, 4_000, 700_000_000 if stage == "admit" else 1_000)
            build_json.note(build, build_json.Result(stage, False, 2, 2, 1.0, funnel, cost))
        for name in ("admit.sort", "shard.plan"):
            build_json.note(build, build_json.Result(name, False, 0, 0, 0.0, {}, Cost()))
        build.store.register(build.out, build.noted, 0)
        return build

    return publish


def test_all_but_memory_grows_with_the_candidates(published: Callable[..., Build]) -> None:
    build = published("a", "2026-01-01", cpu=3.0)
    reference = Reference.newest(build.store, "a")
    assert reference is not None
    told = reference.estimate(50_000)
    assert told["stages"]["admit"] == asdict(Cost(300.0, 150.0, 25.0, 200_000, 700_000_000))
    assert told["total"] == asdict(Cost(900.0, 450.0, 75.0, 600_000, 700_000_000))
    assert (told["candidates"], told["pairs"]) == (50_000, 20_000)
    assert told["by"] == {"build_id": "a-2026-01-01", "snapshot": "2026-01-01", "candidates": 1_000}


def test_a_build_asks_for_the_memory_that_the_last_one_needed(
    published: Callable[..., Build], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a margin; for passes that the last one did not have, for a default."""
    asked = dict[str, float]()

    class Noting(Cluster):
        def each(
            self, build: Build, passes: Sequence[Runs], resources: Resources, partitions: list[str]
        ) -> Iterator[str]:
            asked[passes[0][0]] = resources["memory"]
            return super().each(build, passes, resources, partitions)

    earlier = published("a", "2026-01-01", cpu=3.0)
    path = Path(published("a", "2026-01-02", cpu=3.0).out) / build_json.NAME
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "version": 1}), encoding="utf-8")
    (tmp_path / "t.csv").write_text("image_url,zh\nhttp://127.0.0.1:1/a.jpg,一张图片\n", encoding="utf-8")
    table = {"kind": "url_table", "name": "t", "source_kind": "news", "path": str(tmp_path / "t.csv")}
    raw = {"name": "a", "contact": "mailto:x@example.org", "sources": [{**table, "columns": {"texts": {"alt": "zh"}}}]}
    build = opening.open_build(BuildSpec.model_validate(raw), str(tmp_path / "out"), earlier.store.url)
    monkeypatch.setattr(run, "Cluster", lambda *_: Noting(here=True))
    list(run.run(build, until="admit"))
    assert (asked["extract"], asked["admit"]) == (1_000 * pass_runner.MARGIN, 700_000_000 * pass_runner.MARGIN)
    assert asked["admit.sort"] == pass_runner.UNKNOWN


def test_the_newest_build_of_the_same_name_is_the_measure_and_else_the_newest(published: Callable[..., Build]) -> None:
    build = published("a", "2026-01-01", cpu=1.0)
    published("a", "2026-02-01", cpu=2.0)
    published("b", "2026-03-01", cpu=5.0)
    found = {name: Reference.newest(build.store, name) for name in ("a", "b", "c")}
    by = {name: reference.build_id for name, reference in found.items() if reference}
    assert by == {"a": "a-2026-02-01", "b": "b-2026-03-01", "c": "b-2026-03-01"}


def test_politeness_follows_from_the_spec_and_candidates_of_pages_from_the_reference(
    published: Callable[..., Build],
) -> None:
    site = Pace(None, pages=600, share=0.5, delay_s=2.0, host="s.test", crawls=True)
    table = Pace(90, 0, 0.5, 1.0, "t.test")
    assert forecast([site, table], None) == {
        "candidates": None, "pages": 600, "crawl_seconds": 600.0, "fetch_seconds": 45.0, "slowest_host": "s.test",
    }  # fmt: skip
    reference = Reference.newest(published("a", "2026-01-01", cpu=1.0).store, "a")
    assert forecast([site, table], reference) == {
        "candidates": 3_090, "pages": 600, "crawl_seconds": 600.0, "fetch_seconds": 3_000.0, "slowest_host": "s.test",
    }  # fmt: skip


@pytest.mark.slow
def test_plan_says_the_estimate_or_that_a_first_build_will_tell(
    published: Callable[..., Build], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text(f"name: a\ncontact: a@b.example\nsources: [{json.dumps(SITE | {'max_pages': 400})}]\n")
    command = ["plan", str(spec), "--store", str(tmp_path / "store"), "--offline", "--json"]
    assert cli.main([*command, "--estimate", "1000"]) == 0
    said = capsys.readouterr()
    assert "at most 1,000 candidates\n" in said.err
    assert "run a small one to estimate" in said.err
    assert json.loads(said.out)["estimate"] is None
    published("a", "2026-01-01", cpu=3600.0)
    assert cli.main([*command, "--estimate", "5000"]) == 0
    said = capsys.readouterr()
    row = [line.split() for line in said.err.splitlines() if line.lstrip().startswith("admit ")][-1]
    assert row[1:] == ["10.00", "5.00", "0.00", "0.00", "0.70"]
    assert "at most 2,000 pairs of 5,000 candidates\n" in said.err
    assert "scaled from the 1,000 candidates of build a-2026-01-01" in said.err
    assert json.loads(said.out)["estimate"]["total"]["cpu_seconds"] == pytest.approx(5 * 3 * 3600)
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["estimate"]["candidates"] == 2_000
    first, answer, *_ = said.err.splitlines()
    assert first.startswith("a-")
    assert answer == "  at most 800 pairs of 2,000 candidates of 400 pages"
    assert "slowest host a.test" in said.err
    assert "free; 6.0 hours" in said.err
    assert "fingerprint" not in said.err
    assert json.loads(said.out)["free_bytes"] > 0
    assert cli.main([*command, "--stages"]) == 0
    assert "fingerprint" in capsys.readouterr().err
    known = Path(crawl._last_crawl(sources_of(load(spec))[0]))
    pq.write_table(pa.table({"url": ["a"] * 38}), tmp_path / "pages.parquet")
    (tmp_path / "store" / known.parent).mkdir(exist_ok=True)
    place = json.dumps({"table": str(tmp_path / "pages.parquet")})
    (tmp_path / "store" / known).write_text(place, encoding="utf-8")
    assert cli.main(command) == 0
    answer = capsys.readouterr().err.splitlines()[1]
    assert answer == "  about 76 pairs of 190 candidates of 38 pages", "as many as the last crawl found"


@pytest.mark.slow
def test_plan_warns_of_a_split_that_is_too_small_to_measure_by(
    published: Callable[..., Build], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published("a", "2026-01-01", cpu=1.0)
    spec = tmp_path / "s.yaml"
    for share, warned in ((0.01, "too few samples to measure: dev about 8, val about 8;"), (0.04, ""), (0, "")):
        shards = json.dumps({"dev_share": share, "val_share": share})
        sources = json.dumps([SITE | {"max_pages": 400}])
        spec.write_text(f"name: a\ncontact: a@b.example\nsources: {sources}\nshards: {shards}\n")
        assert cli.main(["plan", str(spec), "--store", str(tmp_path / "store"), "--offline"]) == 0
        said = capsys.readouterr().err
        assert ("; a share of 0.04 gives 30" in said) == bool(warned)
        assert warned in said


@pytest.mark.parametrize("number", ["0", "9" * 400])
def test_a_number_of_candidates_that_makes_no_sense_is_one_line(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", str(tmp_path / "s.yaml"), "--estimate", number]) == 2
    line = f"wenlan-data: --estimate {number}: must be 1 to 1,000,000,000,000,000 candidates"
    assert capsys.readouterr().err.splitlines()[-1] == line
