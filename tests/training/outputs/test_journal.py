"""What a run leaves in its folder."""

from __future__ import annotations

import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, Page, visit
from training.config import to_dict
from training.errors import ConfigError
from training.outputs.journal import Journal, _log_file, read_metrics, write_curves
from training.outputs.trackers import open_tracker
from training.resolve import resolve

METRICS = {"loss": 2.0, "samples_per_second": 100.0, "waiting_for_data": 0.1, "memory_gib": 1.0, "nan": float("nan")}


def journal(out: Path, step: int, *settings: str) -> Journal:
    out.mkdir(exist_ok=True)
    config = resolve("tiny", ["run.tracker=none", *settings])
    return Journal(out, step, 10, config, about={"device": "cpu", "processes": 1})


def test_a_run_folder_says_what_ran_where_and_what_was_said(tmp_path: Path) -> None:
    logging.getLogger("training").setLevel(logging.INFO)
    with journal(tmp_path, 0) as book:
        book.say("tiny begins")
        for step in range(1, 4):
            book.write(step, METRICS)
            book.advance(step)
    with journal(tmp_path, 2) as book:  # resumes from step 2
        book.write(3, METRICS | {"loss": 1.0})
    assert json.loads((tmp_path / "config.json").read_text()) == to_dict(resolve("tiny", ["run.tracker=none"]))
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["processes"] == 1
    assert re.fullmatch(r"2\.\d+.*", environment["packages"]["torch"])
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["loss"] for line in lines] == [2.0, 2.0, 1.0]
    assert lines[0]["nan"] is None
    assert "tiny begins" in (tmp_path / "log.txt").read_text()


def test_figures_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of a second and a line every five: until the next figures there is nothing to say."""
    monkeypatch.setattr("training.outputs.journal._LINE_EVERY", 0.0)
    caplog.set_level(logging.INFO, "training")
    with journal(tmp_path, 0) as book:
        for step in range(1, 10):
            if step in (2, 6):
                book.write(step, METRICS | {"loss": 1.0 / step})
            book.advance(step)
    said = [record.getMessage() for record in caplog.records if " of 10, " in record.getMessage()]
    assert [line.split(", ")[:2] for line in said] == [["step 2 of 10", "loss 0.5000"], ["step 6 of 10", "loss 0.1667"]]


def test_an_error_is_in_the_log_of_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "training")  # as the commands set it
    with pytest.raises(RuntimeError, match="gone"), journal(tmp_path, 0):
        raise RuntimeError("gone\nfor good")
    assert "ended by RuntimeError: gone for good" in (tmp_path / "log.txt").read_text()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_curves_are_one_static_page_that_fetches_nothing(tmp_path: Path) -> None:
    lines = [{"step": s, "loss": 5 / s, "loss.news": 4 / s, "lr": 0.1, "image_spread": None} for s in range(1, 2001)]
    page = _Page()
    text = write_curves(tmp_path, lines).read_text()
    page.feed(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe"}
    assert "http" not in text
    curves = [attributes["points"] or "" for tag, attributes in page.tags if tag == "polyline"]
    assert len(curves) == 3
    assert all(2 <= len(points.split()) <= 400 for points in curves)
    falling = [float(point.split(",")[1]) for point in curves[0].split()]
    assert falling == sorted(falling)  # y grows downwards


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"^run.tracker: wandb is not installed: pip install wandb$"):
        open_tracker("wandb", tmp_path, 0, {})
    assert open_tracker("none", tmp_path, 0, {}) is None


def test_the_name_of_a_member_can_neither_forge_a_line_of_the_log_nor_command_a_terminal(tmp_path: Path) -> None:
    handler = _log_file(tmp_path / "log.txt")
    try:
        logging.getLogger("training").warning("skipped %s", "a\x1b[2J\n2026-01-01 INFO step 9: loss 0.0\u202e")
    finally:
        logging.getLogger("training").removeHandler(handler)
        handler.close()
    first, second = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert first.endswith(r"WARNING skipped a\x1b[2J")
    assert second == r"  2026-01-01 INFO step 9: loss 0.0\u202e"


@pytest.mark.drill(6)
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_curves_can_be_read_in_the_colours_of_the_system(tmp_path: Path, scheme: str) -> None:
    """By axe: the contrast of every line of text."""
    path = write_curves(tmp_path, [{"step": step, "loss": 9.0 - step} for step in range(3)])

    async def look(page: Page) -> list[str]:
        await page.say("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await page.open(path)
        return await page.serious()

    assert visit(look) == []
