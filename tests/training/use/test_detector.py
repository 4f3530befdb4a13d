"""Boxes by a detector's process: which one it is, that it ends, what it says when it fails."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.drawn import picture
from tests.processes import that_run, wait_until
from training.errors import ConfigError, RunError
from training.use.detector import Detecting, InEachProcess, choose


def test_a_checkpoint_of_the_grid_needs_no_process(tmp_path: Path) -> None:
    for trained, given in (("", ""), ("grid", ""), ("proposals-0123456789ab", "grid")):
        assert choose(trained, given, tmp_path) == (None, "grid")


def test_a_detector_is_the_checkpoints_own_or_the_grid_with_the_reason(tmp_path: Path) -> None:
    detector, said = choose("whatever-1", "proposals", tmp_path)
    assert detector is not None
    assert (detector.name, detector.id, said) == ("proposals", said, detector.id)
    assert choose(detector.id, "", tmp_path) == (detector, detector.id)
    none, said = choose("proposals-000000000000", "", tmp_path)
    assert none is None
    assert said.startswith("grid (proposals-000000000000, which the checkpoint was trained with, cannot be run: ")
    assert "name the spec (.yaml) that has it" in said
    with pytest.raises(ConfigError, match=r"^--detector: [^\n]*nonesuch[^\n]*$"):
        choose("", "nonesuch", tmp_path)


def test_forked_processes_have_detectors_of_their_own_which_end_with_them(tmp_path: Path) -> None:
    """And the caches are full when `close` returns: no box is made twice by a second command."""
    detector, _ = choose("", "proposals", tmp_path / "regions")
    assert detector is not None
    running = InEachProcess(detector)
    contents = [picture(seed) for seed in range(3)]
    child = os.fork()
    if not child:
        try:
            running.of(contents[:2])
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    here = running.of(contents[2:])
    assert len(that_run("boxes", os.getpid())) == 1
    assert len(here[0]) > 0
    running.close()
    assert len(list((tmp_path / "regions" / detector.id).glob("*.parquet"))) == 2
    wait_until(lambda: not that_run("boxes", os.getpid()), "their end")


def test_what_cannot_be_read_has_no_boxes(tmp_path: Path) -> None:
    running = Detecting("grid", "", str(tmp_path))
    assert [len(boxes) for boxes in running.of([picture(1), b"junk"])] == [36, 0]
    assert running.of([]) == []
    running.close()


def test_a_detector_that_ends_in_between_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text(
        f'#!{sys.executable}\nimport sys\nprint(\'{{"detector": "x-1"}}\', flush=True)\n'
        "sys.stdin.readline()\nsys.exit('first\\nwenlan-data: out of luck')\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    running = Detecting("x", "x-1", "")
    with pytest.raises(RunError, match=r"^detector x: out of luck$"):
        running.of([b"x" * 1_000_000])
