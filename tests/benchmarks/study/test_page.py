"""The page shows a figure for every run, states the verdict that the figures imply, and asks for nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.study.page import write_page
from tests.benchmarks.study.records import COMMITTED, load
from tests.benchmarks.study.results import SHORT
from tests.benchmarks.study.runs import PLANS, Study
from tests.benchmarks.study.trial import Point, Trial
from tests.browser import CHROMIUM, visit
from training.errors import InputError

pytestmark = pytest.mark.slow

GALLERIES = ("style", "names", "train", "dev", "dev_names", "style_small")


def record(study: Any, task: Any, style: float) -> None:
    """Write a run as the study would have done it, with this R@1 on the unseen styles."""
    ratio = 1.0 if task.arm.has_keys else 1.34
    ends = [task.samples // 2, task.samples, *([round(task.samples * ratio)] if ratio > 1 else [])]
    shown = dict.fromkeys(GALLERIES, style)
    points = tuple(Point(end, 1.0, 0.5, shown, shown, {}) for end in ends)
    trial = Trial(
        task.arm.name, task.seed, task.setting, task.samples, ratio, 9.0, points, {"pairs": 64.0, "seconds": 0.01}
    )
    path = study.folder / "trials" / task.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"key": study.key(task), "trial": trial.to_json()}))


@pytest.fixture
def page_of(make_study: Any) -> Any:
    """A function: R@1 of the queue's and of CLIP's seeds to the path of the page."""

    def make(queue: list[float], clip: list[float]) -> Path:
        seeds = tuple(range(max(len(queue), len(clip))))
        study = make_study("moco", "clip", seeds=seeds, samples=SHORT)
        for arm, values in zip(study.plan.arms, (queue, clip), strict=True):
            for task, value in zip(study.reported(arm), values, strict=False):
                record(study, task, value)
        return write_page(study)

    return make


def text_of(path: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("queue", "clip", "words", "badge"),
    [
        ([0.31, 0.33, 0.32], [0.11, 0.13, 0.12], "claim holds here", "holds"),
        ([0.11, 0.13, 0.12], [0.31, 0.33, 0.32], "claim does not hold here", "refuted"),
        ([0.21, 0.13, 0.22], [0.17, 0.19, 0.18], "study does not show", "not shown"),
    ],
)
def test_the_page_states_what_the_figures_imply(
    page_of: Any, queue: list[float], clip: list[float], words: str, badge: str
) -> None:
    text = text_of(page_of(queue, clip))
    assert words in text
    row = text.partition("on unseen styles, equal samples")[2]
    assert row.strip().startswith(badge)


def test_the_page_shows_a_figure_for_every_run(page_of: Any) -> None:
    text = text_of(page_of([0.3111, 0.3222, 0.3333], [0.1444, 0.1553]))
    every = text.partition("Every run")[2]
    assert "(5)" in every
    for arm, seed, figure in (
        ("queue", 0, "31.1"),
        ("queue", 1, "32.2"),
        ("queue", 2, "33.3"),
        ("CLIP", 0, "14.4"),
        ("CLIP", 1, "15.5"),
    ):
        assert re.search(rf"{arm}[^)]*\)? {seed} {figure} ", every), (arm, seed)
    assert "5 of 6 runs" in text
    assert "goes on with the others" in text


def test_a_study_without_runs_shows_the_records_of_the_repository(tmp_path: Path) -> None:
    text = text_of(write_page(Study(PLANS["hour"], tmp_path)))
    records = load(COMMITTED)
    runs = len(records.trials)
    assert f"{runs} of " in text
    assert "key towers without a queue (K = 0), equal samples" in text
    assert "No runs yet of" not in text
    answer = text.partition("in-batch CLIP?")[2].partition("are in this page")[0]
    assert "Real pairs out of packages, 3 seeds: R@1: Towers with the queue are worse than in-batch CLIP" in answer
    with pytest.raises(InputError, match="has no runs, and the repository has those of 'hour' alone"):
        write_page(Study(PLANS["quick"], tmp_path))


def test_a_short_study_has_no_verdict(make_study: Any) -> None:
    study = make_study("moco", "clip", "siglip", seeds=(0, 1), samples=320)
    for arm, value in zip(study.plan.arms[:2], (0.3, 0.1), strict=True):
        for task in study.reported(arm):
            record(study, task, value + task.seed / 100)
    text = text_of(write_page(study))
    assert "Too short to judge: N is 320 samples" in text
    assert "What holds and what does not" not in text
    assert "Real pairs out of packages, 3 seeds" not in text
    assert "claim holds here" not in text
    assert re.search("No runs yet of: +SigLIP", text)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_finds_no_fault_no_request_and_nothing_wider_than_a_phone(
    page_of: Any, tmp_path: Path, width: int
) -> None:
    path = page_of([0.31, 0.33, 0.32], [0.11, 0.13, 0.12])

    async def look(page: Any) -> tuple[int, list[str], str]:
        await page.say(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 500
        )
        await page.open(path)
        wide = await page.run("document.documentElement.scrollWidth")
        await page.run("(document.documentElement.lang === 'en' && document.getElementById('language').click(), 0)")
        said = await page.run("document.querySelector('.answer').textContent")
        return max(wide, await page.run("document.documentElement.scrollWidth")), page.faults(path), said

    wide, faults, said = visit(look)
    assert faults == []
    assert wide <= width
    assert "论文的说法在这里成立：批大小为 16 时，在没见过的画风上，队列优于批内 CLIP" in said
