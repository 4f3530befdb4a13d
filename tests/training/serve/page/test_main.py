"""Addresses, languages, colours, sizes, keys, and what axe says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.serve.conftest import Server, running
from tests.training.serve.page.conftest import Made
from tests.training.serve.page.pictured import drawn
from tests.training.serve.page.visitor import Visit, Visitor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(made: Made) -> Iterator[Server]:
    """A server with a second collection, of a few pictures: axe looks at every card."""
    with running(made.checkpoint, indexes={**made.indexes, "few": made.few}) as server:
        yield server


@pytest.mark.drill(3)
def test_an_address_says_everything_and_the_way_back_works(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(drawn(9))

    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open("/?in=pictures&q=红色&find=text&source=news&split=dev")
        await page.becomes("document.getElementById('text').value", "红色")
        await page.wait("document.querySelector('[name=target][value=text]').checked")
        await visitor.shows("#chosen li", "news", "dev", "Clear all")
        await visitor.search("蓝色")
        second = await visitor.ids()
        await page.choose("#file", tmp_path / "photo.jpg")
        await page.wait("new URLSearchParams(location.search).get('picture')")
        await visitor.settled()
        third = await visitor.ids()
        await page.run("history.back()")
        await visitor.said("q", "蓝色")
        await visitor.settled()
        assert await visitor.ids() == second
        await page.becomes("document.getElementById('text').value", "蓝色")
        await page.run("history.forward()")
        await visitor.said("q", None)
        await visitor.settled()
        assert await visitor.ids() == third
        await visitor.open(await page.run("location.pathname + location.search"))
        assert await visitor.ids() == third, "this browser has kept the picture"
        await visitor.open("/?in=pictures&picture=0123456789abcdef")
        await visitor.says("#notice", "exists only in the browser where it was chosen")

    visit(work)


@pytest.mark.drill(6)
def test_languages_and_colours_are_switched_and_remembered(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open()
        assert await page.run("import('./page/words.js').then(m => m.missing())") == [], "both languages say everything"
        await page.click("#language")
        await page.becomes("document.documentElement.lang", "zh")
        await visitor.shows("#summary h1", "图库中的图片")
        await visitor.search("红色的画")
        await visitor.shows("#mode label", "语义", "字词", "两者")
        colour = "getComputedStyle(document.body).backgroundColor"
        light = await page.run(colour)
        await visitor.scheme("dark")
        await page.wait(f"{colour} !== {json.dumps(light)}")  # the system's choice
        await page.click("#theme")
        await page.becomes(colour, light)  # light, though the system is dark
        await visitor.open("/?in=pictures")
        kept = "[document.documentElement.lang, document.documentElement.dataset.theme]"
        await page.becomes(kept, ["zh", "light"])
        shown = "[...document.querySelectorAll('main button, main label, main legend, main h1, main p')]"
        ours = "/news|wiki|pictures|CC0|img/"
        latin = f"{shown}.map(n => n.innerText).filter(t => /[A-Za-z]{{3}}/.test(t) && !{ours}.test(t))"
        assert await page.run(latin) == [], "nothing is left in English"

    visit(work)


@pytest.mark.drill(15)
@pytest.mark.parametrize("size", ["desk", "phone"])
def test_axe_finds_nothing_serious_and_nothing_sticks_out(visit: Visit, size: str) -> None:
    states = {
        "/": "",
        "/?in=pictures&q=画": "document.querySelector('.card .tools button').click()",
        "/?in=few&q=画&find=text": "document.getElementById('filter').click()",
        f"/?in=few&like={4:032x}": "document.querySelector('.closeness summary').click()",
        f"/?in=few&q=画&open={4:032x}": "",
        "/?in=few&q=画&source=news": "document.getElementById('collection').click()",
        "/?in=few&q=画&source=wiki": "document.getElementById('show-keys').click()",
        "/?in=few&q=画&side=800": "",
    }

    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await (visitor.phone() if size == "phone" else visitor.desk())
        for address, step in states.items():
            await visitor.scheme("light")
            await visitor.open(address)
            if "open=" in address:
                await page.wait("document.getElementById('detail').open")
            if step:
                await page.run(step)
            for colours in ("light", "dark"):
                await visitor.scheme(colours)
                await page.wait(f"matchMedia('(prefers-color-scheme: {colours})').matches")
                await page.run("Promise.all(document.getAnimations().map(a => a.finished.catch(() => 0)))")
                assert await page.serious() == [], (address, colours)
                await visitor.fits()

    visit(work)


@pytest.mark.drill(8)
def test_keys_walk_through_the_page_and_motion_can_be_reduced(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        at = "document.activeElement.closest('.card')?.dataset.id ?? document.activeElement.id"
        await visitor.open("/?in=pictures&q=画")
        ids = await visitor.ids()
        first, second = (f"{number:032x}" for number in ids[:2])
        await page.press("/")
        await page.press("ArrowDown")
        await page.becomes(at, first)
        await page.press("ArrowRight")
        await page.becomes(at, second)
        await page.press("ArrowDown")
        below = await page.wait(f"({at}) !== {json.dumps(second)} && ({at})")
        assert ids.index(int(below, 16)) > 2
        await page.press("ArrowUp")
        await page.becomes(at, second)
        await page.press("ArrowUp")
        await page.becomes(at, "text")
        await page.press("ArrowDown")
        await page.becomes(at, first)
        await page.press("Enter")
        await page.wait("document.getElementById('detail').open")
        await page.press("Escape")
        await page.wait("!document.getElementById('detail').open")
        await page.press("?")
        await visitor.says("#keyboard[open]", "Keyboard shortcuts")
        await page.press("Escape")
        await page.wait("!document.getElementById('keyboard').open")
        await page.press("c")
        await page.wait("document.getElementById('collections').open")
        await page.press("Escape")
        await page.say("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        await page.wait("['0s', ''].includes(getComputedStyle(document.querySelector('.bar')).transitionDuration)")

    visit(work)
