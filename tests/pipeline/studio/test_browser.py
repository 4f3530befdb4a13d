"""The studio in a real Chromium, by mouse and keyboard: every feature, an empty result, a server that is gone, hostile
texts, both languages and themes, a phone, and axe's accessibility rules.

Skipped where there is no Chromium (`apt-get install chromium`). tests/browser.py drives it.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from shlex import quote
from types import ModuleType
from typing import Any

import pytest

from data_specs.shard import Text
from pipeline.store import build_json
from pipeline.store.build import Build

CHROMIUM = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
AXE = importlib.util.find_spec("axe_core_python")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine"),
    pytest.mark.skipif(AXE is None, reason="axe-core-python is not installed"),
]

Visit = Callable[[Any], Coroutine[Any, Any, None]]
Make = Callable[..., Build]

TILES = "document.querySelectorAll('.tile:not(.waiting)').length"
FOUND = "document.querySelector('.found').innerText"
READY = f"{TILES} > 0 && !document.querySelector('progress')"
DETAIL = "document.querySelector('#detail').innerText"


class Browse:
    """browse(place, visit): a studio of a place in a browser; no console error, and no request to anywhere else."""

    def __init__(self, browser: ModuleType, served: Callable[..., Any]) -> None:
        self._browser, self._served = browser, served
        self.server: Any = None

    def __call__(self, visit: Visit, place: str, *, wide: int = 1440, high: int = 900, quiet: bool = True) -> None:
        self.server = self._served(place)

        async def work(page: Any) -> None:
            mobile = wide < 600
            await page.say(
                "Emulation.setDeviceMetricsOverride", width=wide, height=high, deviceScaleFactor=1, mobile=mobile
            )
            await page.open(self.server.link)
            await until(page, READY)
            await visit(page)
            if quiet:  # a picture that cannot be decoded is 404, which a browser's console notes
                assert [fault for fault in page.faults(self.server.base) if "status of 404" not in fault] == []

        self._browser.visit(work)


@pytest.fixture
def browse(browser: ModuleType, served: Callable[..., Any]) -> Browse:
    return Browse(browser, served)


async def until(page: Any, condition: str) -> None:
    """Wait until a JavaScript expression holds, be it a flag, a number or an element."""
    await page.wait(f"Boolean({condition})")


async def choose(page: Any, words: str) -> None:
    """Click the value of a facet by its words."""
    named = f"n => n.querySelector('.name').innerText === {json.dumps(words)}"
    found = f"[...document.querySelectorAll('.value')].find({named})"
    before = await page.run("location.hash")
    await until(page, f"(n => n && (n.querySelector('input').click(), true))({found})")
    await until(page, f"location.hash !== {json.dumps(before)} && !document.body.classList.contains('busy')")


async def text_of_button(page: Any, words: str, within: str = "body") -> None:
    """Click the button that has these words."""
    found = (
        f"[...document.querySelectorAll('{within} button')].find(n => n.innerText.trim().includes({json.dumps(words)}))"
    )
    await until(page, f"(n => n && (n.click(), true))({found})")


@pytest.mark.slow
def test_facets_words_and_chips_choose_what_is_shown(built: Build, browse: Browse) -> None:
    async def visit(page: Any) -> None:
        await page.becomes(FOUND, "56 decisions")
        await choose(page, "dropped")
        await until(page, f"{FOUND} === '26 of 56'")
        await choose(page, "same image")
        await until(page, f"{TILES} === 3")
        chips = "[...document.querySelectorAll('.chip.off')].map(n => n.innerText)"
        await page.becomes(chips, ["dropped", "same image"])
        await choose(page, "near-copy of an image")
        await until(page, f"{TILES} === 5")
        await page.run("history.back()")
        await until(page, f"{TILES} === 3")
        await text_of_button(page, "Clear all")
        await until(page, f"{FOUND} === '56 decisions'")
        await page.press("/")
        await until(page, "document.activeElement === document.querySelector('#search').q")
        await page.write("海边的日落")
        await page.press("Enter")
        await until(page, "document.querySelectorAll('mark').length > 2")
        assert await page.run("[...document.querySelectorAll('mark')].every(n => n.textContent === '海边的日落')")
        await page.run(
            "const s = document.querySelector('.ways select'); s.value = 'small'; s.dispatchEvent(new Event('change'))"
        )
        await until(page, "location.hash.includes('sort=small')")
        assert await page.serious() == []

    browse(visit, built.out)


@pytest.mark.drill(8)
def test_a_picture_is_chosen_by_mouse_and_keys_and_told_with_its_regions(built: Build, browse: Browse) -> None:
    async def visit(page: Any) -> None:
        await page.click(".tile:nth-child(3)")
        await until(page, "document.querySelector('#detail img')?.naturalWidth > 0")
        await until(page, f"{DETAIL}.startsWith('✓ Kept')")
        boxes = "[...document.querySelectorAll('svg.boxes rect')].filter(n => n.checkVisibility()).length"
        await until(page, f"[1, 2].includes({boxes})")
        await page.press("r")
        await page.becomes(boxes, 0)
        await page.press("r")
        await until(page, f"[1, 2].includes({boxes})")
        first = await page.run("document.querySelector('#detail dd code').innerText")
        await page.run("document.querySelector('#list').focus()")
        await page.press("ArrowRight")
        await until(page, f"document.querySelector('#detail dd code').innerText !== '{first}'")
        await page.press("ArrowDown")
        await page.press("End")
        await until(page, "document.querySelector('.tile.chosen').getAttribute('aria-posinset') === '56'")
        await until(page, f"{DETAIL}.includes('Dropped at crawl')")
        await until(page, "location.hash.startsWith('#id=')")
        await page.reload()
        await until(page, f"{DETAIL}.includes('Dropped at crawl')")
        await page.press("v")
        await until(page, "document.querySelector('#list').classList.contains('table')")
        assert await page.serious() == []

    browse(visit, built.out)


@pytest.mark.drill(8)
def test_a_folder_with_a_space_is_quoted_in_commands(built: Build, browse: Browse) -> None:
    words = ["/data/1", "/data/my builds", "it's", "第一", ""]

    async def visit(page: Any) -> None:
        await page.run("import('/static/dom.js').then((dom) => { window.shell = dom.shell })")
        await until(page, "window.shell !== undefined")
        assert await page.run(f"{json.dumps(words)}.map(window.shell).join('\\n')") == "\n".join(map(quote, words))

    browse(visit, built.out)


@pytest.mark.drill(8)
def test_a_duplicate_has_its_leader_beside_it_and_what_stages_noted(built: Build, browse: Browse) -> None:
    async def visit(page: Any) -> None:
        await choose(page, "near-copy of an image")
        await until(page, f"{TILES} === 2")
        await page.click(".tile")
        await until(page, "document.querySelectorAll('.pair img').length === 2")
        await until(page, "[...document.querySelectorAll('.pair img')].every(n => n.naturalWidth > 0)")
        await until(page, f"{DETAIL}.includes('near_image, as made')")
        await until(page, "document.querySelector('#detail[aria-busy=false]')")
        await page.click("#detail details summary")
        await until(page, "document.querySelectorAll('#detail .stage').length > 3")
        await until(page, f"{DETAIL}.includes('wenlan-data explain')")
        await text_of_button(page, "All of this group")
        await until(page, f"{TILES} === 3")
        await until(page, "document.querySelector('.chips').innerText.includes('one group of duplicates')")
        await page.click(".tile:nth-child(2)")
        await text_of_button(page, "Open it")
        await until(page, f"{DETAIL}.startsWith('✓ Kept')")
        assert await page.serious() == []

    browse(visit, built.out)


@pytest.mark.drill(8)
def test_why_is_this_not_in(built: Build, browse: Browse, synthetic: Any) -> None:
    item = next(item for item in synthetic.items() if item.reason == "text_too_short")

    async def ask(page: Any, named: str) -> str:
        await page.run(
            "document.querySelector('#why input').value = ''; document.querySelector('#why .answer').replaceChildren()"
        )
        await page.click("#why input")
        await page.write(named)
        await page.press("Enter")
        await until(page, "document.querySelector('#why .answer li, #why .answer section')")
        return str(await page.run("document.querySelector('#why .answer').innerText"))

    async def visit(page: Any) -> None:
        await page.click("#open-why")
        said = await ask(page, item.candidate.image_url)
        assert "One decision about it" in said
        assert "Dropped at admit: text too short" in said
        assert await page.serious() == []
        assert "Unknown here" in await ask(page, "https://img1.example/none.png")
        assert "decisions about it" in await ask(page, "https://www.pages.example/1.html")
        await page.click("#why .answer-row")
        await until(page, "!document.querySelector('dialog') && document.querySelector('#detail .verdict')")

    browse(visit, built.out)


@pytest.mark.drill(8)
def test_an_empty_result_says_what_to_do(built: Build, browse: Browse) -> None:
    async def visit(page: Any) -> None:
        await page.click("#search input")
        await page.write("没有这样的文本")
        await page.press("Enter")
        await until(page, "!document.querySelector('#empty').hidden")
        said = "document.querySelector('#empty').innerText"
        await until(page, f"{said}.includes('No text or URL contains these words')")
        assert await page.serious() == []
        await text_of_button(page, "Clear all", "#empty")
        await until(page, READY)

    browse(visit, built.out)


@pytest.mark.drill(8)
def test_a_server_that_is_gone_is_told_and_found_again(built: Build, browse: Browse) -> None:
    async def visit(page: Any) -> None:
        browse.server.stop()
        await page.run("[...document.querySelectorAll('.value input')][1].click()")
        await until(page, "document.querySelector('#gone')")
        await until(page, "document.querySelector('#gone').innerText.includes('does not respond')")
        assert await page.serious() == []

    browse(visit, built.out, quiet=False)


def test_who_comes_without_the_link_is_told_so(built: Build, browser: ModuleType, served: Callable[..., Any]) -> None:
    server = served(built.out)

    async def work(page: Any) -> None:
        await page.open(server.base + "/")
        await until(page, "document.querySelector('#gone')")
        await until(page, "document.querySelector('#gone').innerText.includes('Open the link')")
        assert await page.run("document.querySelectorAll('.tile').length") == 0

    browser.visit(work)


@pytest.mark.drill(25)
@pytest.mark.parametrize("wide", [1440, 1000, 390])
def test_it_is_sound_in_both_themes_and_languages_on_any_screen(built: Build, browse: Browse, wide: int) -> None:
    async def sound(page: Any) -> None:
        for theme in ("light", "dark"):
            await page.run(f"document.documentElement.dataset.theme = '{theme}'")
            assert await page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
            assert await page.serious() == [], theme

    async def visit(page: Any) -> None:
        for language in ("en", "zh"):
            if await page.run("document.documentElement.lang.slice(0, 2)") != language:
                await page.run("document.querySelector('#language').click()")
                await until(page, f"document.documentElement.lang.startsWith('{language}')")
            await sound(page)
        await page.becomes(FOUND, "共 56 条决定")
        await page.click(".tile")
        await until(page, f"{DETAIL}.includes('保留')")
        await until(
            page, "getComputedStyle(document.querySelector('#detail')).opacity === '1'"
        )  # on a phone it fades in
        if wide < 600:
            await page.becomes("document.querySelector('#detail').getBoundingClientRect().width", wide)
        await sound(page)
        if wide < 600:
            await page.click("#detail .pane-head button")
            await page.click("#bar > button.phone")
            await until(page, "getComputedStyle(document.querySelector('#facets')).opacity === '1'")
            await sound(page)

    browse(visit, built.out, wide=wide)


@pytest.mark.drill(10)
def test_a_takedown_from_the_flag_to_the_end(own: Make, browse: Browse, tmp_path: Path) -> None:
    """Beside a build that cannot be read, which stops it in no other one."""
    build = own()
    build.store.register(str(tmp_path / "deleted by hand"), build.noted | {"build_id": "other"}, 0)

    async def visit(page: Any) -> None:
        await page.click(".tile")
        await until(page, "document.querySelector('#detail .buttons')")
        key = await page.run("document.querySelector('#detail dd code').innerText")
        await page.run("document.querySelector('#list').focus()")
        await page.press("f")
        await until(page, "document.querySelector('#open-takedown .count')?.innerText === '1'")
        await page.click("#open-takedown")
        await page.run("document.querySelector('#takedown [name=exact]').click()")
        await text_of_button(page, "Preview", "#takedown")
        await until(page, "document.querySelector('#takedown .command')")
        command = await page.run("document.querySelector('#takedown .command').innerText")
        assert command == f"wenlan-data forget --store {build.store.url} {build.out} --item={key} --exact"
        await until(page, "document.querySelector('#takedown .removed').innerText.includes('1 samples')")
        assert await page.run("document.querySelector('#takedown .danger').disabled"), "not before the word is typed"
        assert "deleted by hand" in await page.run("document.querySelector('#takedown .note.bad li').innerText")
        assert await page.serious() == []
        await page.click("#takedown form.asking input")
        await page.write("forget")
        await until(page, "!document.querySelector('#takedown .danger').disabled")
        await page.click("#takedown .danger")
        await until(
            page, "document.querySelector('#takedown .asking + div .note')?.innerText.includes('except for what')"
        )
        assert await page.run("document.querySelectorAll('#takedown .note.bad li').length") == 2, "before and after"
        await page.press("Escape")
        await until(page, "!document.querySelector('#takedown')")
        await until(page, f"{READY} && !document.body.classList.contains('busy')")
        await until(page, "!document.querySelector('#open-takedown .count')")

    browse(visit, build.out)
    from pipeline.store.frames import Frames

    assert len(Frames.of(build).frame("samples")) == 29


@pytest.mark.drill(10)
def test_a_build_is_refused_and_approved(weeks: Any, browse: Browse) -> None:
    build = replace(weeks, until="report").build("2026-01-01", range(12), publish={"approve": "manual"})
    build.store.check()

    async def say(page: Any, verdict: str, why: str) -> None:
        await page.run("document.querySelector('#publish [name=name]').value = '李静'")
        await page.click("#publish textarea")
        await page.write(why)
        await text_of_button(page, verdict, "#publish")

    async def visit(page: Any) -> None:
        await until(page, "document.querySelector('#title').innerText.includes('waits for approval')")
        await page.click("#open-publish")
        await until(page, "document.querySelectorAll('.gates .holds').length > 1")
        assert await page.serious() == []
        await say(page, "Refuse", "太多图标")
        await until(page, "document.querySelector('#publish .note.bad')?.innerText.includes('太多图标')")
        assert not await page.run(
            "[...document.querySelectorAll('#publish button')].some(n => n.innerText.includes('Publish now'))"
        )
        await say(page, "Approve", "图标已去除")
        await until(page, "document.querySelector('#publish .note.good')?.innerText.includes('图标已去除')")
        await text_of_button(page, "Publish now", "#publish")
        await until(
            page, "[...document.querySelectorAll('#publish .note.good')].some(n => n.innerText.includes('Published'))"
        )

    browse(visit, build.out)
    words = build_json.read(build.folder)["approvals"]
    assert [(word["verdict"], word["name"]) for word in words] == [("refused", "李静"), ("approved", "李静")]
    assert (Path(build.out) / "shards/manifest.json").exists()


@pytest.mark.drill(10)
def test_more_like_this(indexed: Make, browse: Browse) -> None:
    build = indexed()

    async def visit(page: Any) -> None:
        await page.click(".tile")
        await text_of_button(page, "More like this")
        await until(page, "document.querySelector('.near')")
        await page.becomes("document.querySelector('.tile').getAttribute('aria-setsize')", "29")
        cosines = await page.run("[...document.querySelectorAll('.near')].slice(0, 5).map(n => Number(n.innerText))")
        assert cosines == sorted(cosines, reverse=True)
        assert cosines[0] > 0.99
        await text_of_button(page, "Back to all")
        await until(page, f"{FOUND} === '56 decisions'")

    browse(visit, build.out)


@pytest.mark.drill(8)
def test_the_report_leads_into_the_studio_and_back(built: Build, browse: Browse) -> None:
    async def visit(page: Any) -> None:
        await page.click("a[href='/report']")
        await until(page, "location.pathname === '/report' && document.querySelector('#sheet')")
        link = "[...document.querySelectorAll('#sheet a.studio')].find(n => !n.hidden)"
        await until(page, f"(n => n && (n.click(), true))({link})")
        await until(page, "location.pathname === '/' && document.querySelector('#detail .verdict')")
        assert (await page.run("document.querySelector('#detail .verdict').innerText")).strip()

    browse(visit, built.out, quiet=False)


HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>\u202etxet'


@pytest.mark.slow
def test_hostile_texts_and_addresses_are_text_and_no_link(
    synthetic: Any,
    browse: Browse,
    tmp_path: Path,
    note_build: Callable[[Build], Build],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A caption with markup, a page whose address is a script: shown as they are, and nothing of them runs."""
    from dataclasses import replace

    from tests.stages import run_stage

    items = list(synthetic.items())
    for number in range(3):
        address = (
            "javascript:alert(3)//"
            if number != 1
            else items[number].candidate.page_url or 'http://x/"onclick="alert(4)'
        )
        candidate = replace(items[number].candidate, texts=(Text("alt", HOSTILE),), page_url=address)
        items[number] = replace(items[number], candidate=candidate)
    monkeypatch.setattr(synthetic, "items", lambda: tuple(items))
    build: Build = synthetic.make(tmp_path / "hostile")[0]
    run_stage(build, "shard")
    build.store.check()
    note_build(build)

    async def visit(page: Any) -> None:
        await page.click("#search input")
        await page.write("onerror")
        await page.press("Enter")
        await until(page, f"{TILES} === 3")
        for number in range(1, 4):
            await page.click(f".tile:nth-child({number})")
            await until(page, "document.querySelector('#detail[aria-busy=false] .facts')")
            links = await page.run("[...document.querySelectorAll('#detail a')].map(n => n.protocol)")
            assert set(links) <= {"http:", "https:"}
        assert await page.run("document.querySelectorAll('img[src=x], script:not([src])').length") == 0
        await until(page, "document.querySelector('#detail .caption')")
        caption = await page.run("document.querySelector('#detail .caption').textContent")
        assert "<script>alert(2)</script>" in caption
        assert "\u202e" not in caption, "it cannot turn the order of the page's own text"
        await page.click("#detail details summary")
        await until(page, "document.querySelector('#detail .texts')")
        dialogs = [event for event in page.events if event["method"] == "Page.javascriptDialogOpening"]
        assert dialogs == []
        blocked = [
            e
            for e in page.events
            if e["method"] == "Log.entryAdded" and "Content Security" in e["params"]["entry"]["text"]
        ]
        assert blocked == []

    browse(visit, build.out)


MADE_UP = """(() => {
  const real = window.fetch, made = (body) => new Response(JSON.stringify(body));
  window.fetch = async (path, options) => {
    const url = new URL(path, location), first = Number(url.searchParams.get("offset"));
    if (url.pathname === "/api/facets") {
      const answer = await (await real(path, options)).json();
      return made({...answer, total: 3_000_000, matching: 3_000_000});
    }
    if (url.pathname !== "/api/rows") return real(path, options);
    const [row] = (await (await real("/api/rows?limit=1", options)).json()).rows;
    const own = (i) => ({...row, key: `k${first + i}`, text: `第${first + i}幅`});
    return made({rows: [...Array(60).keys()].map(own)});
  };
})()"""
"""Three million rows."""

LAST_IS_IN_SIGHT = """(() => {
  const tile = document.querySelector('.tile[aria-posinset="3000000"]').getBoundingClientRect();
  const list = document.querySelector('#list').getBoundingClientRect();
  return tile.top >= list.top && tile.bottom <= list.bottom + 1;
})()"""
MIDDLE_IS_IN_SIGHT = """(() => {
  const numbers = [...document.querySelectorAll('.tile .text')].map((n) => parseInt(n.innerText.slice(1)));
  return numbers.length > 0 && numbers.every((i) => Math.abs(i - 1_500_000) < 5_000);
})()"""
FIRST = "Math.min(...[...document.querySelectorAll('.tile')].map(n => Number(n.getAttribute('aria-posinset'))))"


@pytest.mark.drill(30)
def test_a_million_rows_are_scrolled_without_being_kept(built: Build, browse: Browse) -> None:
    """The server's answers are made up here: what is tested is the list."""

    async def visit(page: Any) -> None:
        await page.run(MADE_UP)
        await page.press("/")
        await page.write("花")
        await page.press("Enter")
        await until(page, "document.querySelector('.tile[aria-setsize=\"3000000\"] .text')?.innerText === '第0幅'")
        text = "document.querySelector('.tile[aria-posinset=\"{}\"] .text')?.innerText === '第{}幅'"
        await page.run("document.querySelector('#list').focus()")
        await page.press("End")
        await until(page, text.format(3_000_000, 2_999_999))
        assert await page.run("document.querySelectorAll('.tile').length") < 60
        box = "document.querySelector('#list')"
        await until(page, LAST_IS_IN_SIGHT)
        await page.run(f"{box}.scrollTop = {box}.scrollHeight / 2")
        await until(page, MIDDLE_IS_IN_SIGHT)
        before = await page.run(FIRST)
        await page.run(f"{box}.scrollTop += 900")
        await until(page, f"{FIRST} > {before}")
        assert await page.run(FIRST) - before < 60, "a wheel moves by what it moves, however long the list is"
        await page.run(f"{box}.scrollTop = 0")
        await until(page, text.format(1, 0))

    browse(visit, built.out)
