"""Terminal output where there is no terminal: one plain line each, whatever paths and pages hold."""

from __future__ import annotations

import pytest

from pipeline.commands.terminal import Bars, say, show, table_of
from pipeline.pulse import Beat
from pipeline.stages import STAGES
from pipeline.store.build_json import Cost, StageResult
from pipeline.store.progress import Ran, figures


def test_a_line_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    line = "/data/[red]/out" + "x" * 200
    say(line)
    assert capsys.readouterr().err == line + "\n"


def test_a_table_has_a_line_for_each_row_and_no_rules(capsys: pytest.CaptureFixture[str]) -> None:
    table = table_of("funnel", "stage", "kept")
    table.add_row("fetch", "1,200")
    show(table)
    assert [line.split() for line in capsys.readouterr().err.splitlines()] == [
        ["funnel"],
        ["stage", "kept"],
        ["fetch", "1,200"],
    ]


def test_a_long_stage_says_now_and_then_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = Beat("00002", 10.0, 30, 40, {"kept": 28, "failed": 2, "bytes": 9_000}, {"done": 3.0, "bytes": 900.0}, {})
    stage = STAGES["fetch"]
    with Bars() as bars:
        bars.update(figures(stage, 3, 1, {"images": 38, "failed": 2, "dropped": 2}, [], Ran(1, 20.0)))
        assert capsys.readouterr().err == "", "EVERY_S has not passed"
        monkeypatch.setattr(Bars, "EVERY_S", 0.0)
        bars.update(figures(stage, 3, 1, {"images": 38, "failed": 2, "dropped": 2}, [beat], Ran(1, 20.0)))
        line = "fetch    58%, 70 images, 4 failed, 900 B/s, 1 of 3 partitions, 14 s left\n"
        assert capsys.readouterr().err == line
        bars.done(StageResult("fetch", False, 3, 2, 1.25, {}, Cost()))
        bars.done(StageResult("measure", True, 3, 0, 0.0, {}, Cost()))
    assert capsys.readouterr().err == "fetch    2 of 3 partitions, 1.2 s\nmeasure  already done, 0.0 s\n"
