"""Addresses, languages, colours, sizes, keys, and what axe says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.serve.page.pictured import drawn
from tests.training.serve.page.visitor import Visit, Visitor

pytestmark = pytest.mark.slow


def test_an_address_says_everything_and_the_way_back_works(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(drawn(9))

    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open("/?in=pictures&q=红色&find=text&source=news&split=dev")
        assert await page.run("document.getElementById('text').value") == "红色"
        assert await page.run("document.querySelector('[name=target][value=text]').checked")
        assert await visitor.texts("#chosen li") == ["news", "dev", "Clear all"]
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
        assert await page.run("document.getElementById('text').value") == "蓝色"
        await page.run("history.forward()")
        await visitor.said("q", None)
        await visitor.settled()
        assert await visitor.ids() == third
        await visitor.open(await page.run("location.pathname + location.search"))
        assert await visitor.ids() == third, "this browser has kept the picture"
        await visitor.open("/?in=pictures&picture=0123456789abcdef")
        assert "only in the browser in which it was chosen" in (await visitor.texts("#notice"))[0]

    visit(work)


def test_languages_and_colours_are_switched_and_remembered(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        assert await page.run("true")
        await visitor.open()
        assert await page.run("import('./page/words.js').then(m => m.missing())") == [], "both languages say everything"
        await page.click("#language")
        assert await page.run("document.documentElement.lang") == "zh"
        assert await visitor.texts("#summary h1") == ["图库中的图片"]
        await visitor.search("红色的画")
        assert await visitor.texts("#mode label") == ["语义", "字词", "两者"]
        light = await page.run("getComputedStyle(document.body).backgroundColor")
        await visitor.scheme("dark")
        dark = await page.run("getComputedStyle(document.body).backgroundColor")
        assert dark != light, "the system's choice"
        await page.click("#theme")
        assert await page.run("getComputedStyle(document.body).backgroundColor") == light, (
            "light, though the system is dark"
        )
        await visitor.open("/?in=pictures")
        assert await page.run("[document.documentElement.lang, document.documentElement.dataset.theme]") == [
            "zh",
            "light",
        ]
        shown = "[...document.querySelectorAll('main button, main label, main legend, main h1, main p')]"
        ours = "/news|wiki|pictures|CC0|img/"
        latin = f"{shown}.map(n => n.innerText).filter(t => /[A-Za-z]{{3}}/.test(t) && !{ours}.test(t))"
        assert await page.run(latin) == [], "nothing is left in English"

    visit(work)


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("size", ["desk", "phone"])
def test_axe_finds_nothing_serious_and_nothing_sticks_out(visit: Visit, colours: str, size: str) -> None:
    states = {
        "/": "",
        "/?in=pictures&q=画": "document.querySelector('.card .tools button').click()",
        "/?in=pictures&q=画&find=text": "document.getElementById('filter').click()",
        f"/?in=pictures&like={4:032x}": "document.querySelector('.closeness summary').click()",
        f"/?in=pictures&q=画&open={4:032x}": "",
        "/?in=pictures&q=画&source=news": "document.getElementById('collection').click()",
        "/?in=pictures&q=画&source=wiki": "document.getElementById('show-keys').click()",
        "/?in=pictures&q=画&side=800": "",
    }

    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await (visitor.phone() if size == "phone" else visitor.desk())
        await visitor.scheme(colours)
        for address, step in states.items():
            await visitor.open(address)
            if step:
                await page.run(step)
            await page.run("Promise.all(document.getAnimations().map(a => a.finished.catch(() => 0)))")
            assert await page.serious() == [], address
            await visitor.fits()

    visit(work)


def test_keys_walk_through_the_page_and_motion_can_be_reduced(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        at = "document.activeElement.closest('.card')?.dataset.id ?? document.activeElement.id"
        await visitor.open("/?in=pictures&q=画")
        ids = await visitor.ids()
        await page.press("/")
        await page.press("ArrowDown")
        assert int(await page.run(at), 16) == ids[0]
        await page.press("ArrowRight")
        assert int(await page.run(at), 16) == ids[1]
        await page.press("ArrowDown")
        below = ids.index(int(await page.run(at), 16))
        assert below > 2
        await page.press("ArrowUp")
        assert int(await page.run(at), 16) == ids[1]
        await page.press("ArrowUp")
        assert await page.run(at) == "text"
        await page.press("ArrowDown")
        await page.press("Enter")
        await page.wait("document.getElementById('detail').open")
        await page.press("Escape")
        await page.wait("!document.getElementById('detail').open")
        await page.press("?")
        assert "Keyboard shortcuts" in (await visitor.texts("#keyboard[open]"))[0]
        await page.press("Escape")
        await page.press("c")
        await page.wait("document.getElementById('collections').open")
        await page.press("Escape")
        await page.say("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        assert await page.run("getComputedStyle(document.querySelector('.bar')).transitionDuration") in ("0s", "")

    visit(work)
