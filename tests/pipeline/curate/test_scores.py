"""score: the cosine of the towers' features is a column of every pair, computed once for each image and text."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.build import BuildSpec, SpecError
from data_specs.search.picture_tower import PictureTower
from data_specs.search.queries import TextQuery
from data_specs.shard import SHARD_SCHEMA
from pipeline import opening
from pipeline.curate import _towers
from pipeline.curate import pair_score as score
from pipeline.pictures.decode import decode
from pipeline.store.build import Build, in_funnel
from pipeline.store.frames import Frames
from tests import curated, towered
from tests.towered import coloured

STAGES = ("measure", "filter", "dedup", "curate", "detect")
FITS = {"红色的图": (0.8, 0.1, 0.1), "绿色的图": (0.1, 0.7, 0.2), "蓝色的图": (0.2, 0.1, 0.6)}


@pytest.fixture
def build(fetched_build: Callable[..., Build], got: Any, run_stage: Any, tmp_path: Path) -> Callable[..., Build]:
    """A build of nine pictures, of which six have texts that name their colour and three another one."""

    def make(count: int = 9, stages: tuple[str, ...] = (*STAGES, "shard"), **more: Any) -> Build:
        images = []
        for i in range(count):
            (text, colour), other = list(FITS.items())[i % 3], list(FITS)[(i + 1) % 3]
            images.append(got(f"i{i}", coloured(i, *colour), f"{text if i < 6 else other}{'一二三四五六七八九'[i]}"))
        more.setdefault("pair_score", towered.written(tmp_path / "towers"))
        made = fetched_build(images, **{"parts": 2, "regions": {"detectors": [{"name": "grid", "n": 2}]}, **more})
        run_stage(made, *stages)
        return made

    return make


@pytest.mark.slow
def test_a_score_is_the_cosine_of_the_towers_features_and_reaches_the_shards(build: Any, tmp_path: Path) -> None:
    made = build()
    section, data_of = made.spec.pair_score, dict[str, bytes]()
    fetched = made.stage("fetch")
    for record in fetched.records():
        with fetched.file(record, "tar") as path:
            tar = path.read_bytes()
        for row in fetched.table(record).to_pylist():
            data_of[row["sha256"]] = tar[row["offset"] : row["offset"] + row["size"]]
    image = PictureTower.foreign(Path(section.image), 16, (0, 0, 0), (1, 1, 1), "bicubic")
    text = TextQuery.foreign(Path(section.text), Path(section.vocabulary), 8)
    packed = curated.table_of(made, "shard")
    assert len(packed) == 9
    frame = Frames.of(made).frame("samples", ["key", "pair_score"])
    assert dict(zip(frame["key"], frame["pair_score"], strict=True)) == {r["key"]: r["pair_score"] for r in packed}
    for row in packed:
        left = image.encode([decode(data_of[row["sha256"]], reduce_to=32).pixels])[0]
        right = text.encode([row["texts"][0]["text"]])[0]
        assert row["pair_score"] == pytest.approx(float(left @ right), abs=4e-4)
        assert row["pair_score"] == np.float32(round(row["pair_score"], 4))
    by_text = {row["texts"][0]["text"]: row["pair_score"] for row in packed}
    fitting = {own for text, own in by_text.items() if text[-1] in "一二三四五六"}
    assert max(set(by_text.values()) - fitting) < 0.5 < 0.9 < min(fitting)


@pytest.mark.slow
def test_a_second_build_computes_only_what_is_new_and_another_band_nothing(build: Any) -> None:
    first = build(count=6)
    counts = [record.counts for record in first.stage("curate.score").records()]
    assert sum(c["computed"] for c in counts) == 12
    assert sum(c["cached"] for c in counts) == 0
    second = build(count=9, name="other", filters=[{"name": "pair_score", "min_score": 0.5}])
    counts = [record.counts for record in second.stage("curate.score").records()]
    assert (sum(c["computed"] for c in counts), sum(c["cached"] for c in counts)) == (6, 12)
    of_first, of_second = (
        {row["sha256"]: row["pair_score"] for row in curated.reached(own, "pair_score")} for own in (first, second)
    )
    assert of_first.items() <= of_second.items()
    assert next(first.stage("curate.score").records()).info["models"] == [
        own for own in (first.store.folder / "features").names() if own.startswith("pair-")
    ]


@pytest.mark.drill(2)
def test_two_builds_at_once_compute_each_feature_once(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = [build(name=name, stages=STAGES[:3]) for name in ("one", "two")]
    shown, lock, started = list[str](), threading.Lock(), threading.Barrier(2, timeout=120)

    def counted(method: Any) -> Any:
        def encode(self: Any, items: Any) -> Any:
            with lock:
                shown.extend("x" for _ in items)
            return method(self, items)

        return encode

    for tower in (PictureTower, TextQuery):
        monkeypatch.setattr(tower, "encode", counted(tower.encode))

    def work(own: Build) -> None:
        started.wait()
        for partition in own.stage("dedup").partitions():
            own.passes["curate.score"].run(own, partition)

    threads = [threading.Thread(target=work, args=(own,)) for own in builds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(shown) == 18
    first, second = (
        sorted((r["candidate_id"], r["pair_score"]) for r in curated.reached(own, "pair_score")) for own in builds
    )
    assert first == second


@pytest.mark.slow
def test_a_pair_that_a_tower_cannot_read_has_no_score_and_stays(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = TextQuery.encode

    def failing(self: TextQuery, texts: list[str]) -> Any:
        if any("一" in text for text in texts):
            raise ValueError("the tower returns features that are zero, or not finite")
        return encode(self, texts)

    monkeypatch.setattr(TextQuery, "encode", failing)
    made = build()
    packed = curated.table_of(made, "shard")
    assert [row["texts"][0]["text"] for row in packed if row["pair_score"] is None] == ["红色的图一"]
    judged = build(name="judged", filters=[{"name": "pair_score", "min_score": -1}])
    [dropped] = curated.dropped(judged)
    assert (dropped["reason"], dropped["text"]) == ("unreadable", "红色的图一")


def test_scored_is_one_row_per_pair_in_four_decimals() -> None:
    rng = np.random.default_rng(0)
    left, right = (own / np.linalg.norm(own, axis=1, keepdims=True) for own in rng.normal(size=(2, 5, 7)))
    pictures = {f"i{n}": row.astype(np.float16) for n, row in enumerate(left)}
    words = {f"t{n}": row.astype(np.float16) for n, row in enumerate(right)}
    pairs = [("i0", "t0"), ("i4", "t2"), ("gone", "t1"), ("i1", "gone")]
    scores = score.cosines(*map(list, zip(*pairs, strict=True)), pictures, words).to_pylist()
    assert scores[2:] == [None, None]
    expected = [float(left[0] @ right[0]), float(left[4] @ right[2])]
    assert scores[:2] == [pytest.approx(value, abs=1e-3) for value in expected]
    assert [round(own * 1e4) / 1e4 for own in scores[:2]] == pytest.approx(scores[:2], abs=1e-7)


MINIMAL = {
    "name": "n",
    "contact": "a@b.example",
    "sources": [{"kind": "site", "name": "s", "source_kind": "news", "start": ["https://a.example/"]}],
}


def opened(folder: Path, **more: Any) -> Build:
    return opening.open_build(BuildSpec.model_validate({**MINIMAL, **more}), str(folder / "o"), str(folder / "s"), "1")


@pytest.mark.drill(1)
def test_shards_of_a_spec_without_scores_have_no_column_more(build: Any) -> None:
    made = build(pair_score=None)
    for path in Path(made.shards.url).glob("*.parquet"):
        assert pq.read_schema(path).names == SHARD_SCHEMA.names
    assert "curate" not in in_funnel(made)
    assert "curate" in in_funnel(build(name="asks", filters=[{"name": "pair_score", "min_score": 0.1}]))
    assert Frames.of(made).schema("samples").names == SHARD_SCHEMA.names


def test_options_follow_and_a_spec_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    ours = {"image": "i.onnx", "text": "t.onnx"}
    spec = BuildSpec.model_validate({**MINIMAL, "pair_score": ours})
    assert BuildSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec
    with pytest.raises(ValueError, match="side: stored in wenlan's own towers; for other towers set vocabulary too"):
        BuildSpec.model_validate({**MINIMAL, "pair_score": {**ours, "side": 64}})
    with pytest.raises(SpecError, match=r"filters\[0\]: pair_score needs the section pair_score of the spec"):
        opened(tmp_path, filters=[{"name": "pair_score"}])
    resources = [score.resources(BuildSpec.model_validate({**MINIMAL, "pair_score": {**ours, **more}})) for more in (
        {"threads": 2}, {"num_gpus": 0.5})]  # fmt: skip
    assert resources == [{"num_cpus": 2.0, "num_gpus": 0.0}, {"num_cpus": 1.0, "num_gpus": 0.5}]


def test_rows_of_the_cache_come_back_as_they_were() -> None:
    values = {f"{n:064x}": np.arange(n, n + 5).astype(np.float16) for n in range(7)}
    table = pa.concat_tables([_towers._rows(values).slice(0, 3), _towers._rows(values).slice(3)])
    for name, row in _towers._values_of(table).items():
        assert np.array_equal(row, values[name])
    assert _towers._values_of(table).keys() == values.keys()
