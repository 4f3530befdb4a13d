"""The report in a real Chromium: no error, no request; filters, regions, search, languages; axe's accessibility rules.

Skipped where there is no Chromium (`apt-get install chromium`). tests/browser.py drives it.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.publish import release
from pipeline.report import drift
from pipeline.report import index as report_index
from pipeline.stages import report
from pipeline.store.build import Build
from tests.stages import run_stage

CHROMIUM = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
AXE = importlib.util.find_spec("axe_core_python")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine"),
    pytest.mark.skipif(AXE is None, reason="axe-core-python is not installed"),
]


Browse = Callable[[Path, Path, Callable[[Any], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def browse(browser: ModuleType) -> Browse:
    """browse(page, folder of the profile, visit): open the page, visit it, and find no fault in it."""

    def browse(path: Path, folder: Path, visit: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        async def work(page: Any) -> None:
            await page.open(path)
            await visit(page)
            assert page.faults(path) == []

        browser.visit(work)

    return browse


@pytest.fixture(scope="module")
def built(synthetic: Any, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The synthetic build with a report that is compared with another one."""
    build: Build = synthetic.make(tmp_path_factory.mktemp("built"))[0]
    run_stage(build, "shard")
    report.write(build)
    before = drift.read(build.out)
    assert before is not None
    before["histograms"][0]["bins"][0]["count"] += 20
    report.write(build, before)
    return build


@pytest.mark.slow
def test_the_report_works_and_asks_for_nothing(built: Build, browse: Browse, tmp_path: Path) -> None:
    async def visit(page: Any) -> None:
        shown = "[...document.querySelectorAll('#sheet li')].filter(n => n.offsetParent !== null).length"
        everything = await page.run(shown)
        assert everything > 40

        async def choose(name: str, value: str) -> int:
            change = f"n.value = '{value}'; n.dispatchEvent(new Event('input', {{bubbles: true}}));"
            await page.run(f"(() => {{ const n = document.getElementById('{name}'); {change} }})()")
            return int(await page.run(shown))

        assert await choose("by-reason", "kept") == 30
        assert await choose("by-source", "table") == 10
        assert await choose("by-source", "") == 30
        assert await choose("by-text", "第12幅") == 1
        await choose("by-text", "")
        assert await choose("by-reason", "") == everything
        boxes = "[...document.querySelectorAll('svg.boxes')].filter(n => n.getClientRects().length).length"
        assert await page.run(boxes) == 0
        await page.run("document.getElementById('show-boxes').click()")
        assert await page.run(boxes) >= 30
        await page.run("document.getElementById('language').click()")
        assert await page.run("document.documentElement.lang") == "zh"
        assert "每个候选的去向" in await page.run("document.body.innerText")
        assert "文本过短" in await page.run("document.querySelector('.funnel').innerText")
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        await page.say("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
        assert await page.run(wide) <= 0, "nothing sticks out on a phone"

    browse(Path(built.out) / "report/index.html", tmp_path, visit)


@pytest.mark.drill(6)
def test_a_reason_shows_its_samples(built: Build, browse: Browse, tmp_path: Path) -> None:
    report = drift.read(built.out)
    assert report is not None

    async def visit(page: Any) -> None:
        shown = "[...document.querySelectorAll('#sheet li')].filter(n => n.offsetParent !== null).length"
        folded = "document.querySelector('#shapes').checkVisibility()"
        assert await page.run(folded) is False
        await page.run("document.querySelector('nav a[href=\"#shapes\"]').click()")
        await page.becomes(folded, True)
        await page.run("document.querySelector('.why a[data-reason=image_too_small]').click()")
        assert await page.run(shown) == sum(row["reason"] == "image_too_small" for row in report["sheet"]) > 0
        await page.becomes("location.hash", "#samples")
        more = "document.querySelector('#sheet li:not([hidden]) details')"
        assert await page.run(f"{more}.querySelector('dl').checkVisibility()") is False
        await page.run(f"{more}.querySelector('summary').click()")
        assert await page.run(f"{more}.querySelector('dl').checkVisibility()") is True
        assert await page.serious() == []

    browse(Path(built.out) / "report/index.html", tmp_path, visit)


@pytest.mark.drill(6)
def test_the_page_speaks_the_language_of_the_browser(built: Build, browse: Browse, tmp_path: Path) -> None:
    async def visit(page: Any) -> None:
        agent = await page.run("navigator.userAgent")
        for spoken, language in (("zh-TW,en", "zh"), ("fr,zh-CN", "zh"), ("en-GB,zh", "en"), ("fr", "en")):
            await page.run("localStorage.clear()")
            await page.say("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=spoken)
            await page.reload()
            assert await page.run("document.documentElement.lang") == language, spoken
            fates = await page.run("[...document.querySelectorAll('.fate')].map(n => n.textContent).join()")
            assert ("文本过短" in fates, "text too short" in fates) == (language == "zh", language == "en")
            await page.run("document.getElementById('language').click()")
            await page.reload()
            assert await page.run("document.documentElement.lang") == ("en" if language == "zh" else "zh"), "as chosen"

    browse(Path(built.out) / "report/index.html", tmp_path, visit)


def test_axe_finds_nothing_serious(built: Build, browse: Browse, tmp_path: Path) -> None:
    async def visit(page: Any) -> None:
        await page.run("document.getElementById('show-boxes').click()")
        for theme in ("light", "dark"):
            await page.run(f"document.documentElement.dataset.theme = '{theme}'")
            assert await page.serious() == [], theme

    browse(Path(built.out) / "report/index.html", tmp_path, visit)


@pytest.mark.drill(10)
def test_the_report_of_a_dataset_that_grows_is_sound_in_both_themes_and_on_a_phone(
    weeks: Any, browse: Browse, tmp_path: Path
) -> None:
    release.publish(weeks.build("2026-01-01", range(12)))
    second = weeks.build("2026-01-08", range(15))
    release.publish(second)

    async def visit(page: Any) -> None:
        for theme in ("light", "dark"):
            await page.run(f"document.documentElement.dataset.theme = '{theme}'")
            assert await page.serious() == [], theme
        first = "document.querySelector('main > section').innerText"
        assert (await page.run(first)).startswith("✓ Published as release 2 of dataset weekly")
        await page.run("document.getElementById('language').click()")
        assert "已发布：版本 2" in await page.run(first)
        change = "n.value = 'known'; n.dispatchEvent(new Event('input', {bubbles: true}));"
        await page.run(f"(() => {{ const n = document.getElementById('by-reason'); {change} }})()")
        headings = "[...document.querySelectorAll('#sheet h3')].filter(n => !n.hidden).length"
        assert await page.run(headings) == 1, "no heading over nothing"
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        await page.say("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
        assert await page.run(wide) <= 0, "nothing sticks out on a phone"

    browse(Path(second.out) / "report/index.html", tmp_path / "profile", visit)


@pytest.mark.drill(6)
def test_the_index_over_builds_works_too(built: Build, browse: Browse, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    shutil.copytree(Path(built.out) / "report", folder / "a/report")
    path, _ = report_index.write(str(folder))

    async def visit(page: Any) -> None:
        assert await page.serious() == []
        await page.run("document.getElementById('language').click()")
        assert "构建" in await page.run("document.querySelector('h1').innerText")

    browse(Path(path), tmp_path / "profile", visit)
