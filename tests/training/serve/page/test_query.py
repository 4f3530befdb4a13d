"""Asking: texts, input methods, pictures, parts of pictures, words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.serve.page.pictured import BOXES, drawn
from tests.training.serve.page.visitor import Visit, Visitor

pytestmark = pytest.mark.slow


@pytest.mark.drill(3)
def test_a_text_finds_pictures_with_closeness_in_words_and_the_cosine_on_demand(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open()
        await visitor.shows("#summary h1", "Pictures of this collection")
        assert await visitor.texts(".closeness") == [], "nothing was asked, so nothing is close"
        await visitor.search("红色的画")
        await page.becomes("document.title", "红色的画 · 文澜 WenLan")
        assert len(await visitor.ids()) == 40
        grades = {"not close", "loosely related", "related", "close", "very close", "strikingly close"}
        assert set(await visitor.texts(".closeness summary")) <= grades
        assert await page.run("document.querySelectorAll('.closeness[open]').length") == 0
        await page.click(".closeness summary")
        await page.wait("document.querySelectorAll('.closeness[open] p').length === 1")
        [figures] = await visitor.texts(".closeness[open] p")
        assert "unrelated picture–text pairs" in figures
        assert "cosine 0." in figures or "cosine -0." in figures
        await page.wait("document.querySelector('.shot img').naturalWidth > 0")

    visit(work)


@pytest.mark.drill(6)
def test_the_enter_of_an_input_method_does_not_search(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open()
        await page.press("/")
        await page.becomes("document.activeElement.id", "text")
        before = len(visitor.asked())
        await page.compose("ming yue", "明月")
        options = "key: 'Enter', keyCode: 229, isComposing: true, bubbles: true, cancelable: true"
        held = f"new KeyboardEvent('keydown', {{{options}}})"
        assert await page.run(f"document.getElementById('text').dispatchEvent({held})") is False, (
            "Safari's Enter is held back"
        )
        await page.becomes("document.getElementById('text').value", "明月")
        assert await page.run("location.search") == ""
        assert len(visitor.asked()) == before
        await page.press("Enter")
        await visitor.said("q", "明月")
        await visitor.settled()
        assert visitor.asked()[-1]["text"] == "明月"

    visit(work)


def file_event(kind: str, name: str, content: str = "") -> str:
    """JavaScript that drops or pastes a file: a red picture of 64 x 48, or a text."""
    made = f"new File([{json.dumps(content)}], {name!r}, {{type: 'text/plain'}})" if content else "await picture()"
    event = (
        "new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})"
        if kind == "drop"
        else "new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})"
    )
    return f"""(async () => {{
        const picture = async () => {{
            const canvas = Object.assign(document.createElement('canvas'), {{width: 64, height: 48}});
            const pen = canvas.getContext('2d');
            pen.fillStyle = '#c22'; pen.fillRect(0, 0, 64, 48);
            const blob = await new Promise(done => canvas.toBlob(done, 'image/png'));
            return new File([blob], {name!r}, {{type: 'image/png'}});
        }};
        const data = new DataTransfer();
        data.items.add({made});
        document.body.dispatchEvent({event});
    }})()"""


def test_a_picture_is_searched_by_and_so_is_a_part_of_it(visit: Visit, tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(drawn(7))

    async def searched(visitor: Visitor, way: str) -> None:
        page = visitor.page
        await visitor.open()
        if way == "choose":
            await page.choose("#file", file)
        else:
            await page.run(file_event(way, "red.png"))
        await page.wait("document.querySelector('#stage .strip button')")
        await visitor.settled()
        await visitor.shows("#summary h1", "For this picture")
        key = await page.run("new URLSearchParams(location.search).get('picture')")
        assert len(key) == 16
        if way == "choose":
            assert (await visitor.ids())[0] == 7, "the very picture comes first"
        assert "calibrated between pictures and texts" in " ".join(
            await page.run("[...document.querySelectorAll('.closeness p')].map(n => n.textContent)")
        )
        await page.click("#stage .strip button:nth-child(2)")
        await page.wait("new URLSearchParams(location.search).has('region')")
        await visitor.settled()
        await visitor.shows("#summary h1", "For a part of the picture")
        await page.becomes("document.querySelectorAll('#stage [aria-pressed=true]').length", 1)
        assert await page.run("new URLSearchParams(location.search).get('picture')") == key
        await page.click("#stage .stage-tools button")
        await visitor.said("region", None)

    async def work(visitor: Visitor) -> None:
        for way in ("choose", "drop", "paste"):
            await searched(visitor, way)

    visit(work)


@pytest.mark.drill(6)
def test_a_picture_is_sent_upright_and_on_white(visit: Visit, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40), (0, 0, 255)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (60, 30), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    plain = drawn(3)
    (tmp_path / "plain.jpg").write_bytes(plain)
    sent = """import('./page/pictures.js')
        .then(pictures => pictures.recall(new URLSearchParams(location.search).get('picture')))
        .then(async ({blob}) => {
            const bitmap = await createImageBitmap(blob);
            const pen = new OffscreenCanvas(9, 9).getContext('2d');
            pen.drawImage(bitmap, 0, 0);
            return [blob.type, blob.size, bitmap.width, bitmap.height, ...pen.getImageData(5, 5, 1, 1).data];
        })"""

    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open()
        last = None
        for name, size, colour in (("turned.jpg", [40, 80], [0, 0, 255]), ("clear.png", [60, 30], [255, 255, 255])):
            await page.choose("#file", tmp_path / name)
            await page.wait(f"new URLSearchParams(location.search).get('picture') !== {json.dumps(last)}")
            await visitor.settled()
            last = await page.run("new URLSearchParams(location.search).get('picture')")
            kind, _, width, height, *pixel = await page.run(sent)
            assert (kind, [width, height]) == ("image/jpeg", size)
            assert np.allclose(pixel[:3], colour, atol=4)
        await page.choose("#file", tmp_path / "plain.jpg")
        await page.wait(f"new URLSearchParams(location.search).get('picture') !== {json.dumps(last)}")
        assert (await page.run(sent))[1] == len(plain), "an upright JPEG goes out as it is"

    visit(work)


@pytest.mark.drill(6)
def test_a_part_of_a_result_is_searched_by_with_the_mouse_and_with_keys(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open("/?in=pictures&q=画")
        first = await visitor.ids()
        x, y = await page.middle(".card .shot")
        await page.mouse("mouseMoved", x, y)
        assert await page.wait("document.querySelectorAll('.card .parts .box').length") >= len(BOXES)
        assert await page.wait("Number(getComputedStyle(document.querySelector('.card .parts')).opacity) === 1"), (
            "seen on hover"
        )
        await page.click(".card .tools button")
        x, y, width, height = await page.place(".card .parts")
        await page.mouse("mouseMoved", x + width * 0.9, y + height * 0.9)
        # the frame for drawing, which is out of sight, and of the boxes the smallest below, and no other
        await page.becomes("document.querySelectorAll('.card .box.on').length", 2)
        await page.click(".card .parts")  # in the middle, where three boxes meet: the smallest
        region = await page.wait("new URLSearchParams(location.search).get('region')")
        assert tuple(map(int, region.split(","))) in BOXES
        await visitor.said("like", f"{first[0]:032x}")
        await visitor.settled()
        await page.wait("document.querySelector('#stage .box.on')")
        await page.run("history.back()")
        await visitor.said("region", None)
        await visitor.settled()
        assert await visitor.ids() == first, "the way back needs no new search"
        await page.run("document.querySelector('.shot').focus()")
        for key in ("p", "ArrowRight", "ArrowRight", "Enter"):
            await page.press(key)
        await visitor.said("region", ",".join(map(str, BOXES[1])))

    visit(work)


@pytest.mark.drill(6)
def test_four_ways_to_search(visit: Visit) -> None:
    """Text -> picture is above; picture -> picture, picture -> text, text -> text."""

    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open("/?in=pictures&q=画")
        first = (await visitor.ids())[0]
        await page.run("document.querySelector('.shot').focus()")
        await page.press("m")
        await visitor.said("like", f"{first:032x}")
        await visitor.settled()
        await visitor.shows("#summary h1", "Like this sample")
        assert visitor.asked()[-1] | {"id": f"{first:032x}", "target": "image"} == visitor.asked()[-1]
        await page.click("input[name=target][value=text]")
        await visitor.said("find", "text")
        await visitor.settled()
        await page.becomes("document.querySelectorAll('.of-text').length", 40)
        assert any("related" in text or "close" in text for text in await visitor.texts(".closeness summary"))
        await page.click(".of-text .tool")
        await page.wait("new URLSearchParams(location.search).get('q')")
        await visitor.settled()
        asked = visitor.asked()[-1]
        assert (asked["target"], "id" in asked, asked["text"]) == (
            "text",
            False,
            await page.run("document.getElementById('text').value"),
        )
        assert "cosine" in (await visitor.texts(".closeness summary"))[0], "a text and a text have no calibrated score"

    visit(work)


@pytest.mark.drill(6)
def test_words_find_the_words_and_mark_them_and_nothing_says_what_to_do(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open()
        await page.wait("document.querySelector('[name=mode][value=words]').disabled")  # words need words
        await visitor.search("第7幅")
        await page.click("input[name=mode][value=words]")
        await visitor.said("by", "words")
        await visitor.settled()
        assert (await visitor.ids())[0] == 7
        assert "第7" in "".join(await visitor.texts(".card mark"))
        await page.click("input[name=mode][value=both]")
        await visitor.said("by", "both")
        await visitor.settled()
        assert 7 in await visitor.ids()
        await visitor.open("/?in=pictures&q=量子力学&by=words")
        await visitor.says(".empty", "Nothing found.")
        await page.click(".empty button")
        await visitor.said("by", None)
        await visitor.settled()
        assert len(await visitor.ids()) == 40

    visit(work)
