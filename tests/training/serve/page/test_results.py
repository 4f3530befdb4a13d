"""What is found: filters, near-copies, the end of the list, one sample, hostile texts."""

from __future__ import annotations

import json

import pytest

from tests.training.serve.page.pictured import BOXES, HOSTILE, ROWS, text_of
from tests.training.serve.page.visitor import Visit, Visitor

pytestmark = pytest.mark.slow


@pytest.mark.drill(2)
def test_filters_with_counts_and_chips(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open("/?in=pictures&q=画")
        await page.press("f")
        await page.wait("!document.getElementById('filters').hidden")
        counts = await visitor.texts("#filters label:has([data-facet=source])")
        assert {tuple(text.split()) for text in counts} == {("news", "60"), ("wiki", "30")}
        assert {tuple(t.split()) for t in await visitor.texts("#filters label:has([data-facet=split])")} == {
            ("train", "30"),
            ("dev", "30"),
            ("val", "30"),
        }
        await page.click("[data-facet=source][data-value=wiki]")
        await visitor.said("source", "wiki")
        await visitor.settled()
        assert {number % 3 for number in await visitor.ids()} == {0}
        await page.becomes("document.activeElement.dataset.value", "wiki")  # the cursor stays where it was
        assert visitor.asked()[-1]["filters"] == {"source": ["wiki"]}
        await visitor.pick(0, "200")
        await visitor.said("side", "200")
        await visitor.settled()
        await visitor.says(".empty", "The filters exclude every result.")
        await visitor.shows("#chosen li", "wiki", "Shorter side ≥ 200 px", "Clear all")
        await page.click("#chosen li:nth-child(2) button")
        await visitor.said("side", None)
        await visitor.settled()
        assert {number % 3 for number in await visitor.ids()} == {0}
        await visitor.pick(1, "0.9")
        await visitor.said("score", "0.9")
        await visitor.settled()
        assert visitor.asked()[-1]["filters"]["min_score"] == 0.9
        await visitor.shows(
            "#chosen li", "wiki", "Closeness: Of unrelated picture–text pairs, only 1 in 10 is this close.", "Clear all"
        )

    visit(work)


@pytest.mark.drill(6)
def test_near_copies_stand_once_and_are_shown_when_asked_for(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open(f"/?in=pictures&like={0:032x}")
        ids = await visitor.ids()
        assert len({0, 2, 3} & set(ids)) == 1
        await visitor.shows(".copies", "+2 near-copies")
        await page.click(".copies")
        await page.wait("document.querySelectorAll('.card.copy').length === 2")
        assert {0, 2, 3} <= set(await visitor.ids())
        await page.click(".copies")
        await page.wait("document.querySelectorAll('.card.copy').length === 0")
        await visitor.open(f"/?in=pictures&like={0:032x}&copies=1")
        assert {0, 2, 3} <= set(await visitor.ids())
        assert await visitor.texts(".copies") == []

    visit(work)


@pytest.mark.drill(6)
def test_the_list_goes_on_to_its_end(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open("/?in=pictures&q=画")
        for _ in range(4):
            await page.run("scrollTo(0, document.body.scrollHeight)")
            if await page.run("Boolean(document.querySelector('.end'))"):
                break
            seen = len(await visitor.ids())
            await page.wait(f"document.querySelectorAll('.card').length > {seen} || document.querySelector('.end')")
        ids = await visitor.ids()
        assert sorted({*ids, 0, 2, 3}) == list(range(ROWS))
        assert len(ids) == len(set(ids)) == ROWS - 2
        await page.wait("document.querySelector('.end')?.innerText === 'End of results.'")

    visit(work)


@pytest.mark.drill(6)
def test_one_sample_with_its_texts_its_page_and_its_neighbours(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open("/?in=pictures&q=画&source=news")
        ids = await visitor.ids()
        await page.click(".shot")
        await page.wait("document.getElementById('detail').open")
        await visitor.said("open", f"{ids[0]:032x}")
        opened = await page.run("history.length")
        body = (await visitor.texts("#detail"))[0]
        assert f"周围的文字{ids[0]}" in body
        assert "surrounding text" in body
        assert "240 × 180" in body
        assert "news.example (leaves this server)" in body or ids[0] == 1
        await page.wait("document.querySelector('#detail .closeness').open")  # figures are open here
        await page.press("ArrowRight")
        await visitor.said("open", f"{ids[1]:032x}")
        await page.wait(f"document.querySelector('#detail h2').innerText === {json.dumps(text_of(ids[1]))}")
        await page.press("Escape")
        await page.wait("!document.getElementById('detail').open")
        await visitor.said("open", None)
        assert await page.run("history.length") == opened, "closing goes back, and adds nothing"
        await visitor.open(f"/?in=pictures&open={5:032x}")
        await page.wait("document.getElementById('detail').open")
        link = "document.querySelector('#detail .facts a')"
        assert await page.run(f"[{link}.href, {link}.rel, {link}.target]") == [
            "https://news.example/5.html",
            "noreferrer noopener external",
            "_blank",
        ]
        await page.click("#detail .strip button:nth-child(3)")
        await visitor.said("region", ",".join(map(str, BOXES[2])))
        await page.wait("!document.getElementById('detail').open")

    visit(work)


def test_what_strangers_wrote_is_text_and_leads_nowhere(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open(f"/?in=pictures&open={1:032x}")
        await page.wait("document.getElementById('detail').open")
        await visitor.shows("#detail h2", HOSTILE)
        assert await page.run("document.querySelectorAll('#detail .facts a').length") == 0, "no javascript: link"
        await page.press("Escape")
        await page.wait("!document.getElementById('detail').open")
        await visitor.search(HOSTILE)
        assert await page.run("[...document.images].every(i => i.getAttribute('src') !== 'x')")
        policy = await page.run("fetch('./').then(r => r.headers.get('content-security-policy'))")
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy

    visit(work)
