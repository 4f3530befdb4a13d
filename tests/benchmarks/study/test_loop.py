"""The loop's command: bars are judged by intervals, and what is done is not done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.study import curation, loop
from tests.benchmarks.study.curation import ARMS, Outcome, Round

pytestmark = pytest.mark.slow


def made(seed: int, mean: dict[str, float], auc: float = 0.93) -> Outcome:
    recall = {
        a: {**dict.fromkeys(("style.i2t", "style.t2i", "names.i2t", "names.t2i"), mean[a]), "mean": mean[a]}
        for a in ARMS
    }
    rounds = (Round(0.9, 0.85, {"0.7": 0.12}), Round(auc, 0.86, {"0.7": 0.1}))
    return Outcome(seed, 80, 0.3, rounds, 0.95, 56, 0.1, recall)


GOOD = {"all": 0.10, "loop": 0.14, "oracle": 0.16, "random": 0.09}


def test_bars_are_judged_by_intervals_and_by_the_way_to_the_oracle() -> None:
    found = loop.judged([made(s, {k: v + 0.001 * s for k, v in GOOD.items()}) for s in range(5)])
    assert [found["way"][end] for end in ("low", "mean", "high")] == pytest.approx([2 / 3] * 3)
    assert found["bars"] == {"auc": True, "above_all": True, "half_way": True}
    assert found["loop_minus"]["all"]["mean"] == pytest.approx(0.04)
    wide = loop.judged([made(s, {**GOOD, "loop": 0.12 if s % 2 else 0.16}) for s in range(5)])["way"]
    assert wide["low"] < wide["mean"] < wide["high"]
    noisy = [made(s, {**GOOD, "loop": 0.10 + (-0.07 if s % 2 else 0.09)}, auc=0.89) for s in range(5)]
    assert loop.judged(noisy)["bars"] == {"auc": False, "above_all": False, "half_way": False}
    assert loop.judged([made(s, {**GOOD, "loop": 0.12}) for s in range(3)])["bars"]["half_way"] is False


def test_the_command_does_what_is_not_done_and_says_what_the_figures_say(
    make_study: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, computed = make_study("moco"), list[int]()
    monkeypatch.setattr(loop, "Study", lambda *arguments: study)
    monkeypatch.setattr(loop, "prepare", lambda *arguments: None)
    monkeypatch.setattr(loop, "key_of", lambda study: "k")

    def outcome(inputs: Any, seed: int) -> Outcome:
        computed.append(seed)
        return made(seed, GOOD)

    monkeypatch.setattr(curation, "outcome", outcome)
    command = ["--out", str(study.out), "--jobs", "1", "--seeds"]
    assert loop.main([*command, "2"]) == 0
    assert loop.main([*command, "3"]) == 0
    assert computed == [0, 1, 2], "what is there is not done again"
    said = capsys.readouterr().err
    assert "R@1 of loop: 14.0% (14.0 to 14.0)\n" in said
    assert "way from all to oracle: 66.7% (66.7 to 66.7)\n" in said
    assert json.loads((study.out / "loop" / "loop.json").read_text("utf-8"))["bars"]["auc"] is True
    assert Path(study.out / "loop" / "seed2.json").is_file()
