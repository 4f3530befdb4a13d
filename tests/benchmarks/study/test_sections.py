"""Sections on datasets of pairs: budgets and verdicts from records."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.benchmarks.study.regions import Run, Sight
from tests.benchmarks.study.sections import sections
from tests.benchmarks.study.trial import packed


def _run(source: str, arm: str, sight: Sight, seed: int, *reached: float) -> Run:
    samples = (32_000, 45_000)[: len(reached)]
    hits = ((),) * len(reached)
    figures = (reached, reached, reached, reached, hits)
    return Run(source, arm, sight, 0.07, 5e-4, seed, samples, *figures, 0.001, (80, 10, 10), 1.0)


def test_equal_samples_and_equal_compute_are_told_apart() -> None:
    facts = {"splits": {"train": 8_000, "dev": 1_000, "val": 1_000}, "sources": {"apps": 10_000}, "names": []}
    arms = (("moco", 0.0, [0.05]), ("moco-k0", 0.02, [0.05]), ("clip", 0.0, [0.03, 0.09]))
    runs = [
        _run("packages", arm, "whole", seed, *(value + 0.001 * seed + slope * (seed - 1) for value in reached))
        for seed in (0, 1, 2)
        for arm, slope, reached in arms
    ]
    (section,) = sections(runs, {"packages": facts})
    (part,) = section["parts"]
    says = [english for english, _ in part.says if english.startswith("R@1:")]
    assert says[0].startswith("R@1: Towers with the queue beat in-batch CLIP, equal samples (+2.0 ")
    assert says[1].startswith("R@1: Towers with the queue are worse than in-batch CLIP, equal compute (-4.0 ")
    assert says[2].startswith("R@1: Key towers without a queue are not shown to beat in-batch CLIP, equal samples ")
    assert [row.r1[:3] for row in part.rows] == ["3.1", "9.1", "5.1", "5.1"]
    assert "10,000 pairs of 1 sources" in part.note[0]


def test_a_gain_of_all_seeds_on_one_name_alone_is_not_shown_on_real_pairs() -> None:
    facts = {"splits": {"val": 4}, "sources": {"apps": 4}, "names": [0, 0, 1, 2]}
    found = {"moco": [1, 1, 1, 0], "clip": [0, 0, 1, 0], "moco-k0": [0, 0, 1, 0]}
    packs = {arm: packed(np.array([hits, hits], bool)) for arm, hits in found.items()}
    runs = [
        replace(run, hits=((packs[arm], packs[arm]),))
        for seed in (0, 1, 2)
        for arm, hits in found.items()
        for run in [_run("packages", arm, "whole", seed, sum(hits) / 4 + seed / 1000)]
    ]
    for names, verdict in (([], "beat"), ([0, 0, 1, 2], "are not shown to beat")):
        (section,) = sections(runs, {"packages": {**facts, "names": names}})
        (part,) = section["parts"]
        assert part.says[0][0].startswith(f"R@1: Towers with the queue {verdict} in-batch CLIP, equal samples (+50.0 [")
        assert [row.state for row in part.rows][-1] == ("not shown" if names else "holds")
    assert "temperature and rate chosen on dev: in-batch CLIP" in part.note[0]


@pytest.mark.parametrize(
    ("grid", "proposals", "says"),
    [
        (0.2, 0.3, ("The grid’s regions beat the whole", "detector’s boxes beat the grid’s")),
        (-0.2, -0.1, ("The grid’s regions are worse than the whole", "boxes beat the grid’s")),
        (0.0, -0.1, ("The grid’s regions are not shown to beat", "boxes are worse than the grid’s")),
    ],
)
def test_the_page_says_what_the_intervals_imply(grid: float, proposals: float, says: tuple[str, str]) -> None:
    gains: dict[Sight, float] = {"whole": 0.0, "grid": grid, "proposals": proposals}
    wobble = {"grid": 0.01} if grid == 0 else {}
    runs = [
        _run("scenes", "moco", sight, seed, 0.4 + gain + 0.001 * seed + wobble.get(sight, 0.0) * (seed - 1))
        for seed in (0, 1, 2)
        for sight, gain in gains.items()
    ]
    (section,) = sections(runs, {"scenes": {"ceiling": 0.36}})
    (part,) = section["parts"]
    said = " ".join(english for english, _ in part.says)
    assert all(sentence in said for sentence in says), said
    assert section["answer"][0].startswith("Scenes of stamps, 3 seeds: R@1: The detector’s boxes ")
    assert [row.n for row in part.rows] == [3, 3, 3]
    assert "a perfect guess 36%" in part.note[0]


def test_a_study_that_was_cut_short_before_the_whole_picture_has_figures_and_no_answer() -> None:
    (section,) = sections([_run("scenes", "moco", "grid", 0, 0.4)], {"scenes": {}})
    (part,) = section["parts"]
    assert [(row.r1, row.gain) for row in part.rows] == [("40.0", "")]
    assert section["answer"] == ("", "")
