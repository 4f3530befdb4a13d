"""Boxes by a detector: which one it is, in forked processes, and what it says where it cannot run."""

from __future__ import annotations

import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.drawn import picture
from training.errors import ConfigError, RunError
from training.use.detector import Detector, ProcessLocalDetector, choose_detector


@pytest.mark.parametrize(
    ("trained", "given"), [("", ""), ("grid", ""), ("grid-0123456789ab", ""), ("proposals-0123456789ab", "grid")]
)
def test_a_checkpoint_of_the_grid_has_no_detector(trained: str, given: str) -> None:
    assert choose_detector(trained, given, None) == (None, "grid")


def test_a_detector_is_the_checkpoints_own_or_the_grid_with_the_reason(tmp_path: Path) -> None:
    detector, said = choose_detector("whatever-1", "proposals", tmp_path)
    assert detector == Detector("proposals", said, str(tmp_path))
    assert choose_detector(detector.id, "", tmp_path) == (detector, detector.id)
    none, said = choose_detector("proposals-000000000000", "", tmp_path)
    assert none is None
    assert said.startswith("grid (proposals-000000000000, which the checkpoint was trained with, cannot be run: ")
    assert "give the spec (.yaml) with that detector" in said


SPEC = (
    "name: s\ncontact: me@example.org\nsources: [{name: f, source_kind: library, kind: folder, path: .}]\n"
    "regions: {detectors: [{name: grid, n: 2}]}\n"
)


def test_a_spec_names_a_detector_with_its_options(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SPEC)
    detector, _ = choose_detector("", str(tmp_path / "s.yaml"), None)
    assert detector is not None
    boxes = [[0, 0, 20, 10], [20, 0, 40, 10], [0, 10, 20, 20], [20, 10, 40, 20]]
    assert ProcessLocalDetector(detector).detect([picture(1, (40, 20)), b"junk"]) == [boxes, []]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("nonesuch", "--detector: .*nonesuch"),
        ("given", "--detector: given: takes its boxes from the sources of a build and cannot detect any"),
        ("grid-gone.yaml", "--detector: grid-gone.yaml.*"),
    ],
)
def test_one_that_cannot_run_is_one_line(given: str, line: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{line}[^\n]*$"):
        choose_detector("", given, None)


def test_a_missing_extra_is_one_line_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pipeline.store.boxes", None)
    with pytest.raises(ConfigError, match=r"^--detector: proposals needs \S+: pip install .*\[pipeline\]'$"):
        choose_detector("", "proposals", None)
    assert choose_detector("proposals-1", "", None)[0] is None


@pytest.mark.slow
def test_forked_processes_load_their_own_and_fill_the_cache_when_they_end(tmp_path: Path) -> None:
    """So that no box is made twice by a second command."""
    detector, _ = choose_detector("", "proposals", tmp_path / "regions")
    assert detector is not None
    running = ProcessLocalDetector(detector)
    contents = [picture(seed) for seed in range(3)]
    here = running.detect(contents[2:])
    worker = get_context("fork").Process(target=running.detect, args=(contents[:2],))
    worker.start()
    worker.join(120)
    running.close()
    assert (worker.exitcode, len(here[0]) > 0) == (0, True)
    assert len(list((tmp_path / "regions" / detector.id).glob("*.parquet"))) == 2


def test_a_detector_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.errors import DetectorError
    from pipeline.store.boxes import BoxMaker

    def fails(_: object, contents: object) -> None:
        raise DetectorError("model.onnx", "out of luck")

    detector, _ = choose_detector("", "proposals", None)
    assert detector is not None
    monkeypatch.setattr(BoxMaker, "of", fails)
    with pytest.raises(RunError, match=r"^detector proposals: model.onnx: out of luck$"):
        ProcessLocalDetector(detector).detect([b"x"])
