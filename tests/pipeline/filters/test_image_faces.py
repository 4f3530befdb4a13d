"""image_faces: drawn faces are counted, and what it says of a picture is said in Chinese too."""

from __future__ import annotations

from pathlib import Path

from pipeline.filters import PixelFilter
from pipeline.plugins import configure
from pipeline.report.translations import evidence_zh
from tests.drawn import with_faces
from tests.judged import scores_of


def test_faces_are_counted_also_of_a_large_picture() -> None:
    import cv2

    two = with_faces((40, 60, 120), (230, 100, 140))
    large = cv2.resize(two, (1600, 1200), interpolation=cv2.INTER_LINEAR)
    assert scores_of("image_faces", with_faces(), with_faces((100, 60, 160)), two, large) == [0, 1, 2, 2]


def test_it_drops_what_has_more_than_allowed() -> None:
    none, some = (configure("filters", "image_faces", options, PixelFilter) for options in ({}, {"max_faces": 2}))
    assert none.judge(0) is None
    assert some.judge(2) is None
    drop = some.judge(3)
    assert drop is not None
    assert (drop.reason.value, drop.evidence) == ("faces", "3 faces; at most 2")
    assert "3 张人脸" in evidence_zh(drop.evidence)
    assert "未能检测人脸" in evidence_zh("faces could not be detected: https://a.example/1.jpg")


def test_scores_are_cached_under_what_finds_and_not_under_the_threshold(tmp_path: Path) -> None:
    (tmp_path / "yunet.onnx").write_bytes(b"weights")

    def made(**options: object) -> PixelFilter:
        return configure("filters", "image_faces", {"base": str(tmp_path), **options}, PixelFilter)

    assert made(max_faces=3).score_id == made().score_id
    assert made(max_faces=3).identity() != made().identity()
    assert len({made().score_id, made(side=320).score_id, made(model="yunet.onnx").score_id}) == 3
    assert made(min_score=0.9).score_id == made().score_id  # of a model only
    assert made(model="yunet.onnx", min_score=0.9).score_id != made(model="yunet.onnx").score_id
    assert not {"base", "model"} & set(made(model="yunet.onnx").identity()["options"])
