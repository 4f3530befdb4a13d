"""The loop's command and page: what the figures say is what the page says, and nothing is asked of elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.study import curation, loop
from tests.benchmarks.study.curation import ARMS, Outcome, Round


def made(seed: int, mean: dict[str, float], auc: float = 0.93) -> Outcome:
    recall = {
        a: {**dict.fromkeys(("style.i2t", "style.t2i", "names.i2t", "names.t2i"), mean[a]), "mean": mean[a]}
        for a in ARMS
    }
    rounds = (Round(0.9, 0.85, {"0.7": 0.12}), Round(auc, 0.86, {"0.7": 0.1}))
    example = {"style": "Noto", "code": "1f400", "told": "<山水>", "place": 0.01}
    return Outcome(
        seed, 80, 0.3, rounds, 0.95, 56, 0.1, recall, {"right": [1.0] * 20, "wrong": [2.0] * 20},
        {"dropped_wrong": [example], "kept_right": [], "kept_wrong": [], "dropped_right": []},
    )  # fmt: skip


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


def test_the_page_says_what_the_figures_say_and_asks_for_nothing(make_study: Any) -> None:
    study = make_study("moco")
    (study.out / "loop").mkdir()
    page = loop.write_page(study, [made(0, GOOD), made(1, GOOD)])
    html = page.read_text("utf-8")
    assert html.count('class="holds">reached') == 3
    assert "67% (67 to 67%) of the way" in re.sub(r"\s+", " ", html)
    assert "&lt;山水&gt;" in html
    assert "data:image/png;base64," in html
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert json.loads((study.out / "loop" / "loop.json").read_text("utf-8"))["bars"]["auc"] is True
    worse = loop.write_page(study, [made(0, {**GOOD, "loop": 0.1}, auc=0.8), made(1, {**GOOD, "loop": 0.1}, auc=0.8)])
    assert worse.read_text("utf-8").count('class="fails">not reached') == 3


def test_the_command_does_what_is_not_done_and_makes_the_page(
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
    assert str(study.out / "loop" / "index.html") in capsys.readouterr().err
    assert Path(study.out / "loop" / "seed2.json").is_file()
