"""detect: boxes as the contract wants them, from a cache that all builds share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import model_runner
from pipeline.detectors.grid import Grid
from pipeline.errors import DetectorError
from tests import drawn
from tests.places import CORPUS, needs_corpus
from tests.stages import run_stage

pytestmark = pytest.mark.slow

MODEL = CORPUS / "models" / "yolox_nano.onnx"


def picture(seed: int, size: tuple[int, int], orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return drawn.picture(seed, size, exif=exif)


def run(build: Any) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """(rows of the first detector by sha256, counts) after all stages up to detect."""
    run_stage(build, "measure", "filter", "dedup", "detect")
    rows, counts, stage = {}, dict[str, int](), build.stage("detect")
    for record in stage.records():
        (suffix, *_) = [name for name in record.files if name.endswith(".parquet")]
        for row in stage.table(record, suffix).to_pylist():
            assert row["sha256"] not in rows
            rows[row["sha256"]] = row
        counts = {k: counts.get(k, 0) + v for k, v in record.counts.items()}
    return rows, counts


def test_every_survivor_has_its_boxes_in_its_partition(fetched_build: Any, got: Any) -> None:
    images = [got(f"{i}", picture(i, (120 + i, 90), 6 if i % 2 else 1), f"第{i}张") for i in range(8)]
    images.append(got("again", images[3].data, "又一张"))
    build = fetched_build(
        images, parts=3, filters=[], regions={"max_boxes": 5, "detectors": [{"name": "grid", "n": 3}]}
    )
    rows, counts = run(build)
    assert (counts["seen"], counts["kept"], counts["dropped"]) == (8, 8, 0)
    assert counts["regions"] == 8 * 5
    for record in build.stage("dedup").records():
        for row in build.stage("dedup").table(record).to_pylist():
            boxes = np.array(rows.pop(row["sha256"])["boxes"]).reshape(-1, 4)
            assert (boxes[:, 2].max(), boxes[:, 3].max()) == (row["width"], np.float32(row["height"] / 3 * 2))
    assert rows == {}


def test_the_cache_serves_other_builds_and_other_caps(
    fetched_build: Any, got: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [got(f"{i}", picture(i, (100, 90)), f"第{i}张") for i in range(3)]
    _, counts = run(fetched_build(images, filters=[]))
    assert counts["cached"] == 0
    monkeypatch.setattr(Grid, "detect", lambda *_: pytest.fail("detected again"))
    rows, counts = run(fetched_build(images, name="other", filters=[], regions={"max_boxes": 2}))
    assert counts["cached"] == 3
    assert [len(row["scores"]) for row in rows.values()] == [2, 2, 2]


def test_a_detector_of_the_wrong_shape_is_named(fetched_build: Any, got: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Grid, "detect", lambda self, state, pictures: [(np.zeros((2, 3)), np.ones(2), np.ones(2))])
    with pytest.raises(DetectorError, match=r"grid-[0-9a-f]{12}: returned boxes, scores, labels of shapes \(2, 3\)"):
        run(fetched_build([got("a", picture(0, (100, 90)))], filters=[]))


@needs_corpus("models", "yolox_nano.onnx")
def test_a_yolox_build_fills_the_cache(fetched_build: Any, got: Any) -> None:
    data = (CORPUS / "howtocook-site/images/7a10d81a0c750a44.jpg").read_bytes()
    detectors = [{"name": "onnx", "weights": str(MODEL)}, {"name": "grid"}]
    build = fetched_build([got("a", data)], filters=[], regions={"detectors": detectors})
    rows, counts = run(build)
    (row,) = rows.values()
    assert 4 <= len(row["scores"]) <= 36
    assert row["scores"] == sorted(row["scores"], reverse=True)
    assert counts["cached"] == 0
    _, counts = run(fetched_build([got("a", data)], name="other", filters=[], regions={"detectors": detectors}))
    assert counts["cached"] == 2


@needs_corpus("models", "yolox_nano.onnx")
def test_the_same_boxes_from_any_batch_and_partition(
    fetched_build: Any, got: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [got(f"{i}", picture(i, (120 + 8 * i, 90 + i)), f"第{i}张") for i in range(9)]
    rows_of_build = []
    for name, parts, batch in (("one", 1, 16), ("two", 3, 1)):
        monkeypatch.setattr(model_runner, "BATCH", batch)
        options = {"detectors": [{"name": "onnx", "weights": str(MODEL), "score": 0.01}]}
        store = str(tmp_path / f"{name}-store")
        rows, counts = run(fetched_build(images, parts, name=name, store=store, filters=[], regions=options))
        assert counts["detected"] == 9
        rows_of_build.append(rows)
    assert sum(len(row["scores"]) for row in rows_of_build[0].values()) > 20
    for sha256, row in rows_of_build[0].items():
        assert row["boxes"] == pytest.approx(rows_of_build[1][sha256]["boxes"], abs=1e-3)
