"""The page of evaluations: what is in it, what replaces what, its bounds; in a real Chromium where there is one."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from training.errors import InputError
from training.evaluation.classification import classify, figures
from training.evaluation.page import ABOUT, GROUPS, TITLES, add_result, chinese, render
from training.evaluation.tasks import TASKS

CHROMIUM = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
AXE = importlib.util.find_spec("axe_core_python")
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def head(task: str, **more: Any) -> dict[str, Any]:
    protocol = {"data": "classes:/sets/菜", "split": "val", "images": 60, "classes": 3, "templates": 12}
    protocol |= {"templates_sha256": "a" * 64, "hit": "a hit is the image's class", "towers": "query"}
    protocol |= {"checkpoint": "b" * 64, "line": "one line"}
    known = {"headline": "all", "in_train": None, "seen": None, "unseen": None}
    about = {"task": task, "split": "val", "detector": "grid", "checkpoint": "runs/1/step-1", "corrupt": 0}
    return {**about, "protocol": protocol, **known, **more}


def classified(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, 60)
    scores = rng.normal(size=(60, 3)).astype(np.float32)
    scores[np.arange(60), label] += 1
    return figures(classify(scores, label), ["红烧肉", "<b>豆腐</b>", "白菜"], units_N=np.arange(60) // 2)


def direction(r1: float) -> dict[str, Any]:
    values: dict[str, Any] = {"median_rank": 3.0, "queries": 40}
    for k, value in ((1, r1), (5, r1 * 2), (10, r1 * 3)):
        values |= {f"r{k}": value, f"r{k}_interval": [value * 0.8, value * 1.2], f"chance_r{k}": k / 40}
    return values


def example(group: str, right: bool, **query: Any) -> dict[str, Any]:
    answers = [{"text": "白菜", "score": 0.31, "right": right}, {"text": "豆腐", "score": 0.2, "right": not right}]
    return {"group": group, "right": right, "rank": 1 if right else 2, "query": query, "answers": answers}


def results() -> list[dict[str, Any]]:
    """One result of every task, retrieval with seen and unseen."""
    both = {"samples": 40, "i2t": direction(0.2), "t2i": direction(0.25)}
    shown = {"picture": PIXEL, "id": "x", "name": "白菜"}
    return [
        head(
            "retrieval",
            **both,
            headline="unseen",
            in_train={"either": 9},
            unseen=both,
            seen={**both, "i2t": direction(0.3)},
            examples=[example("i2t", True, picture=PIXEL, id="x"), example("t2i", False, text="白菜")],
        ),
        head("zero-shot", **classified(), examples=[example("zero-shot", r, **shown) for r in (True, False)]),
        head(
            "regions",
            **classified(),
            crop=classified(1),
            alone_minus_crop=-0.05,
            alone_minus_crop_interval=[-0.1, 0.02],
            examples=[
                example("regions", False, **shown, box=[0.1, 0.2, 0.5, 0.6], crop={"text": "白菜", "right": True})
            ],
        ),
    ]


def test_every_task_has_its_words_in_both_languages() -> None:
    assert set(TITLES) == set(ABOUT) == set(TASKS)
    for en, zh in (*TITLES.values(), *ABOUT.values(), *GROUPS.values()):
        assert en != zh
        assert re.search("[一-鿿]", zh)


def test_what_the_tasks_say_in_words_is_translated() -> None:
    """The sentences of a protocol, read from the tasks' own files."""
    from training.evaluation import labelled_boxes
    from training.evaluation import tasks as package
    from training.evaluation.benchmarks import CAPTIONS_OF_IMAGES

    files = [*Path(package.__file__).parent.glob("*.py"), Path(labelled_boxes.__file__)]
    hits = {s for file in files for s in re.findall(r'"(a hit (?:is|has) [^"]+)"', file.read_text("utf-8"))}
    assert len(hits) >= 3
    for text in (*hits, CAPTIONS_OF_IMAGES, "boxes of detector x with a score of 0.5 or more"):
        assert re.search("[一-鿿]", chinese(text)), text


@pytest.mark.slow
def test_the_page_shows_figures_and_pictures_and_loads_nothing() -> None:
    html = render(results())
    assert "<b>豆腐</b>" not in html, "names are escaped"
    assert "&lt;b&gt;豆腐&lt;/b&gt;" in html
    assert "20.0%" in html, "R@1 of the unseen"
    assert "[16.0, 24.0]" in html
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert "default-src 'none'" in html
    assert html.count('class="example ') == 5


@pytest.mark.slow
def test_a_result_takes_the_place_of_the_same_one(tmp_path: Path) -> None:
    page = add_result(tmp_path / "evals", head("zero-shot", **classified()))
    assert page == tmp_path / "evals" / "index.html"
    add_result(tmp_path / "evals", head("regions", **classified()))
    again = head("zero-shot", **classified(3))
    add_result(tmp_path / "evals", again)
    document = json.loads((tmp_path / "evals" / "eval.json").read_bytes())
    assert [r["task"] for r in document["results"]] == ["regions", "zero-shot"]
    assert document["results"][1]["top1"] == again["top1"]
    other = head("zero-shot", **classified(3))
    other["protocol"] = {**other["protocol"], "templates_sha256": "c" * 64}
    add_result(tmp_path / "evals", other)
    assert page.read_text("utf-8") == render(json.loads((tmp_path / "evals" / "eval.json").read_bytes())["results"])
    assert page.read_text("utf-8").count("<section ") == 3
    for name, value in (("classes_sha256", "d" * 64), ("truth", "boxes of detector x with a score of 0.9 or more")):
        other = head("zero-shot", **classified(3))
        other["protocol"] = {**other["protocol"], name: value}
        add_result(tmp_path / "evals", other)
    assert len(json.loads((tmp_path / "evals" / "eval.json").read_bytes())["results"]) == 5
    assert add_result(tmp_path / "one.html", again) == tmp_path / "one.html"
    assert (tmp_path / "one.json").exists()


@pytest.mark.slow
def test_data_whose_path_is_not_utf_8_are_on_the_page(tmp_path: Path) -> None:
    result = head("zero-shot", **classified())
    result["protocol"] = {**result["protocol"], "data": "classes:" + os.fsdecode("菜".encode("gbk"))}
    for _ in range(2):  # and known again
        page = add_result(tmp_path, result)
    assert r"\udcb2" in page.read_text("utf-8")
    assert json.loads((tmp_path / "eval.json").read_bytes())["results"] == [result]


@pytest.mark.slow
def test_results_that_come_at_once_are_all_there(tmp_path: Path) -> None:
    context, count = multiprocessing.get_context("fork"), 3
    together = context.Barrier(count)

    def add(number: int) -> None:
        result = head("zero-shot", **classified())
        result["protocol"] = {**result["protocol"], "data": f"classes:{number}"}
        together.wait(240)
        add_result(tmp_path / "evals", result)

    processes = [context.Process(target=add, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * count
    document = json.loads((tmp_path / "evals" / "eval.json").read_bytes())
    assert sorted(r["protocol"]["data"] for r in document["results"]) == [f"classes:{n}" for n in range(count)]
    assert (tmp_path / "evals" / "index.html").read_text("utf-8") == render(document["results"])


@pytest.mark.parametrize(
    "document",
    [
        {"mine": 1},
        {"page_version": 1, "results": [5]},
        {"page_version": 1, "results": [{}]},
        {"page_version": 1, "results": [head("retrieval")]},
        {"page_version": 1, "results": [head("none such", **direction(0.1))]},
        {"page_version": 1, "results": [head("zero-shot", **classified(), examples=[{"group": "i2t"}])]},
    ],
)
def test_another_file_is_not_written_over(document: Any, tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"eval\.json: not an eval\.json of wenlan"):
        add_result(tmp_path, head("zero-shot", **classified()))
    assert json.loads((tmp_path / "eval.json").read_text()) == document


@pytest.mark.drill(6)
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine")
@pytest.mark.skipif(AXE is None, reason="axe-core-python is not installed")
def test_in_chromium_both_themes_and_languages_are_sound_and_nothing_sticks_out(
    browser: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text(render(results()), encoding="utf-8")

    async def visit(page: Any) -> None:
        await page.open(path)
        assert AXE is not None
        assert AXE.origin is not None
        await page.run((Path(AXE.origin).parent / "axe.min.js").read_text("utf-8"))
        await page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        for theme in ("light", "dark"):
            await page.run(f"document.documentElement.dataset.theme = '{theme}'")
            found = json.loads(await page.run("axe.run().then(r => JSON.stringify(r.violations))"))
            assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")] == []
        text = "document.body.innerText"
        first = await page.run("document.documentElement.lang")
        await page.run("document.getElementById('language').click()")
        assert await page.run("document.documentElement.lang") != first
        languages = [await page.run(text)]
        await page.run("document.getElementById('language').click()")
        languages.append(await page.run(text))
        assert sum("零样本分类" in words for words in languages) == 1
        assert sum("Zero-shot classification" in words for words in languages) == 1
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        for width in (390, 1280):
            await page.say(
                "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=True
            )
            assert await page.run(wide) <= 0, width
        assert page.faults(path) == []

    browser.visit(visit)
