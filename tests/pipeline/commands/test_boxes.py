"""`wenlan-data boxes` as another program runs it: frames in, lines out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.detectors.grid import Grid
from pipeline.detectors.proposals import Proposals
from tests.drawn import picture
from tests.places import ROOT


def asked(*requests: Sequence[bytes], options: Sequence[str] = ()) -> tuple[list[Any], int, str]:
    """Lines of stdout, exit code and stderr."""
    sent = b"".join(
        json.dumps({"bytes": [len(one) for one in contents]}).encode() + b"\n" + b"".join(contents)
        for contents in requests
    )
    words = [sys.executable, "-m", "pipeline", "boxes", "--json", *options]
    ended = subprocess.run(words, input=sent, capture_output=True, cwd=ROOT, check=False, timeout=120)
    return [json.loads(line) for line in ended.stdout.splitlines()], ended.returncode, ended.stderr.decode()


def test_each_request_is_answered_in_a_line_and_a_second_process_detects_nothing(tmp_path: Path) -> None:
    known = Proposals().detector_id
    options = ["--detector", "proposals", "--id", known, "--regions", str(tmp_path)]
    lines, code, _ = asked([picture(1), b"junk"], [], [picture(2)], options=options)
    assert (code, lines[0]) == (0, {"detector": known})
    first, none, second = (line["boxes"] for line in lines[1:4])
    assert (len(first), "error" in first[1], none, len(second)) == (2, True, [], 1)
    assert all(len(box) == 4 for box in first[0])
    assert lines[4] == {"ok": True, "detector": known, "pictures": 3, "detected": 2}

    again, _, _ = asked([picture(2), picture(1)], options=options)
    assert again[1]["boxes"] == [second[0], first[0]]
    assert again[2]["detected"] == 0


def test_another_id_than_the_detectors_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["boxes", "--detector", "grid", "--id", "grid-000000000000"]) == 2
    assert "not grid-000000000000; name the spec (.yaml) that has it" in capsys.readouterr().err
    assert cli.main(["boxes", "--detector", "given"]) == 2
    assert "it looks at no picture" in capsys.readouterr().err


def test_a_spec_names_a_detector_with_its_options(tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text(
        "name: s\ncontact: me@example.org\nsources: [{name: f, source_kind: library, kind: folder, path: .}]\n"
        "regions: {detectors: [{name: proposals}, {name: grid, n: 2}]}\n"
    )
    lines, code, said = asked([picture(1, (40, 20))], options=["--detector", str(spec), "--id", Grid(n=2).detector_id])
    assert code == 0, said
    assert lines[1]["boxes"] == [[[0, 0, 20, 10], [20, 0, 40, 10], [0, 10, 20, 20], [20, 10, 40, 20]]]


def test_what_is_no_request_is_one_line_and_a_cut_one_ends_it() -> None:
    words = [sys.executable, "-m", "pipeline", "boxes", "--detector", "grid"]
    for sent, code in (
        (b"hello\n", 2),
        (b'{"bytes": [-1]}\n', 2),
        (b'{"bytes": [1e999]}\n', 2),
        (b'{"bytes": [10]}\nabc', 0),
    ):
        ended = subprocess.run(words, input=sent, capture_output=True, cwd=ROOT, check=False, timeout=120)
        assert ended.returncode == code
        assert len(ended.stderr.splitlines()) == (1 if code else 0), ended.stderr
