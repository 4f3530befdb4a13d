"""Balance of image clusters: what stands out is seen, what is even is even, and features are those of the samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("faiss")
pytest.importorskip("onnxruntime")

from pipeline.report.sections import data_profile
from pipeline.report.sections.data_profile import figures
from pipeline.store.build import Build
from tests import towered
from tests.towered import coloured

STAGES = ("measure", "filter", "dedup", "curate", "detect")


def scattered(centres: int, each: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Unit rows around so many random directions."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.normal(size=(centres, 32)), each, axis=0) + 0.05 * rng.normal(size=(centres * each, 32))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_one_subject_that_crowds_the_others_out_is_the_share_of_the_largest() -> None:
    even, crowd = scattered(20, 50), scattered(1, 1_000, seed=1)
    said = data_profile.spread(np.concatenate([even, crowd]))
    assert (said["images"], said["clusters"], said["largest"], said["even"]) == (2_000, 40, 1, 0.025)
    # a crowd is cut into as many clusters as it has room for; however it is cut, its largest is above the even share
    assert said["share"] > 2 * said["even"]
    assert data_profile.spread(scattered(40, 50))["share"] < said["share"]


def test_what_is_all_one_picture_is_one_cluster() -> None:
    said = data_profile.spread(np.tile(scattered(1, 1), (500, 1)))
    assert (said["clusters"], said["share"]) == (10, 1.0)


@pytest.mark.slow
def test_features_are_those_of_the_samples_and_the_report_has_them(
    fetched_build: Callable[..., Build],
    got: Any,
    run_stage: Any,
    tmp_path: Path,
    material: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = [got(f"i{i}", coloured(i, 0.8, 0.1, 0.1), f"红色的图{'一二三四五六七八九'[i]}") for i in range(9)]
    build = fetched_build(images, parts=2, pair_score=towered.written(tmp_path / "towers"))
    run_stage(build, *STAGES, "shard")
    own = material(build)
    cache = build.store.features(build.records("curate.score")[0].info["models"][0])
    rows_ND = data_profile.features(cache, own.tables)
    assert rows_ND.shape == (9, 3)
    np.testing.assert_allclose(np.linalg.norm(rows_ND, axis=1), 1, atol=1e-3)
    assert (rows_ND.argmax(axis=1) == 0).all(), "red"
    assert data_profile.cluster_balance(build, own.tables) is None, "too few"
    monkeypatch.setattr(data_profile, "EACH", 3)
    monkeypatch.setattr(data_profile, "FEWEST", 6)
    inputs = {"totals": {"kept": 9}, "vocabulary": {}, "word_samples": 9, "image_domains": []}
    said = figures(own, inputs)["data_profile"]
    assert said["clusters"]["images"] == 9
    score = next(row for row in said["measures"] if row["name"] == "score")
    assert 0.9 < score["low"] <= score["median"] <= score["high"] <= 1


@pytest.mark.slow
def test_a_build_without_scores_has_none(synthetic_build: Build, material: Any) -> None:
    assert data_profile.cluster_balance(synthetic_build, material(synthetic_build).tables) is None
