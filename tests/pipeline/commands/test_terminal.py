"""Terminal output where there is no terminal: one plain line each, whatever paths and pages hold."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from pipeline.commands import terminal
from pipeline.commands.terminal import MAX_CELL, Bars, say, show, table_of
from pipeline.processes.pulse import Beat
from pipeline.stages import STAGES
from pipeline.store.build_json import Cost, Result
from pipeline.store.progress import Ran, figures
from tests.places import ROOT


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
    stage = STAGES["fetch"].main
    with Bars() as bars:
        bars.update(figures(stage, 3, 1, {"images": 38, "failed": 2, "dropped": 2}, [], Ran(1, 20.0)))
        assert capsys.readouterr().err == "", "EVERY_S has not passed"
        monkeypatch.setattr(Bars, "EVERY_S", 0.0)
        bars.update(figures(stage, 3, 1, {"images": 38, "failed": 2, "dropped": 2}, [beat], Ran(1, 20.0)))
        line = "fetch    58%, 70 images, 4 failed, 900 B/s, 1 of 3 partitions, 14 s left\n"
        assert capsys.readouterr().err == line
        bars.done(Result("fetch", False, 3, 2, 1.25, {}, Cost()))
        bars.done(Result("measure", True, 3, 0, 0.0, {}, Cost()))
    assert capsys.readouterr().err == "fetch    2 of 3 partitions, 1.2 s\nmeasure  already done, 0.0 s\n"


def test_progress_is_a_record_where_the_log_is_json(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WENLAN_LOG", "json")
    monkeypatch.setattr(Bars, "EVERY_S", -1.0)
    with caplog.at_level("INFO", "wenlan"), Bars() as bars:
        bars.update(figures(STAGES["fetch"].main, 3, 1, {"images": 38}, [], Ran(1, 20.0)))
    [record] = [record for record in caplog.records if record.msg == "progress"]
    assert (vars(record)["pass"], vars(record)["partitions"]) == ("fetch", 3)


@pytest.mark.parametrize("width", [80, 140])
def test_a_terminal_shows_every_figure_however_narrow_it_is(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=screen, force_terminal=True, width=width))
    counts = {"kept": 300, "failed": 12, "images": 4_000, "bytes": 9_000_000, "queue": 1_234}
    beat = Beat("site", 60.0, 300, 10_000, counts, {"done": 2.0, "bytes": 123_456.0}, {})
    with Bars() as bars:
        with bars.starting("Ray"):
            pass
        bars.update(figures(STAGES["crawl"].main, 2, 0, {}, [beat], Ran(0, 60.0)))
        bars.done(Result("extract", True, 3, 0, 0.0, {}, Cost()))
        bars.update(figures(STAGES["dedup"].passes[0], 0, 0, {}, [], Ran(0, 0.0)))
        bars.done(Result("curate", False, 0, 0, 0.0, {}, Cost()))
    words = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).split())
    for figure in ("Ray", "started", "300 pages", "4,000 images", "12 failed", "123 kB/s", "1,234 in the"):
        assert figure.split()[0] in words, figure
    assert "extract already done" in words
    assert "edges" not in words, "a stage without partitions has no line"


EVIL = "\x1b]0;owned\x07\x1b[2J\u202egpj.exe \x9b31m[red][/nothing]\rok\nWARNING wenlan: fine"
SEEN = r"\x1b]0;owned\x07\x1b[2J\u202egpj.exe \x9b31m[red][/nothing]\x0dok\nWARNING wenlan: fine"


def test_a_title_can_neither_command_the_terminal_nor_add_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """ECMA-48 sequences, CVE-2021-42574, and rich's own markup."""
    say(EVIL)
    assert capsys.readouterr().err == SEEN + "\n"
    table = table_of("t", "title", "n")
    table.add_row(EVIL, "1")
    show(table)
    assert [line.split("  ")[0].rstrip() for line in capsys.readouterr().err.splitlines()] == ["t", "title", SEEN]


def test_a_long_cell_loses_its_middle_and_no_figure_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    table = table_of("t", "example", "n")
    table.add_row(f"http://a.cn/{'x' * 15_000}.jpg", "17")
    show(table)
    row = capsys.readouterr().err.splitlines()[-1]
    assert len(row) < MAX_CELL + 20
    assert re.fullmatch(r"http://a\.cn/x+…x+\.jpg +17", row.rstrip())


@pytest.mark.slow
def test_the_work_goes_on_where_nobody_reads_what_it_says() -> None:
    """A studio that was closed while it published; stdout, which programs read, stays open."""
    code = """
import sys
sys.stdin.read()
from pipeline.commands.terminal import Bars, say, show, table_of
with Bars():
    say("on its way")
    show(table_of("funnel", "stage"))
print("done")
"""
    words = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin and process.stdout and process.stderr  # noqa: PT018
        process.stderr.close()
        process.stdin.close()
        assert process.stdout.read() == b"done\n"
    assert process.returncode == 0
