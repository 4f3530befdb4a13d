"""The page of `wenlan-train serve`, in a headless Chromium, on real servers: every feature, and what goes wrong."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from data_specs.search.index import IndexWriter
from tests import browser
from tests.training.conftest import moved_checkpoint
from tests.training.serve.conftest import Server, command
from tests.training.serve.visitor import Visitor
from training.outputs.background import BACKGROUND_FILE, Background
from training.outputs.checkpoint import open_checkpoint
from training.outputs.whole import add_tensors
from training.serve.galleries import about_of
from training.use.encode import Encoder, open_encoder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium on this machine"),
    pytest.mark.skipif(importlib.util.find_spec("axe_core_python") is None, reason="axe-core-python is not installed"),
]

ROWS = 90
W, H = 240, 180
BOXES = ((0, 0, 120, 90), (120, 90, 240, 180), (60, 45, 180, 135))
HOSTILE = '<img src=x onerror="window.broken = 1">恶意文字'
BOX_OF = "(() => {{ const b = document.querySelector('{}').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; }})()"
VERSES = (
    "明月几时有，把酒问青天。\t苏轼《水调歌头》",
    "大江东去，浪淘尽，千古风流人物。\t苏轼《念奴娇》",
    "春花秋月何时了。\t李煜《虞美人》",
)


def drawn(number: int) -> bytes:
    """A JPEG with a square of one colour on another."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", (W, H), tuple(int(v) for v in rng.integers(0, 256, 3)))
    ImageDraw.Draw(image).rectangle((120, 90, 239, 179), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def text_of(number: int) -> str:
    return HOSTILE if number == 1 else f"第{number}幅{'红' if number % 2 else '蓝'}色的画"


def row(number: int, folder: Path) -> dict[str, Any]:
    """A row of the index; rows 2 and 3 are near-copies of row 0, and row 1 was written by somebody hostile."""
    shown = 0 if number in (2, 3) else number
    content = drawn(shown)
    file = folder / f"{number}.jpg"
    file.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    texts = [{"kind": "alt", "text": text_of(number)}, {"kind": "surrounding", "text": f"周围的文字{number}"}]
    return {
        "id": f"{number:032x}",
        "caption": text_of(number),
        "texts": [*texts, {"kind": "tag", "text": "画"}],
        "url": f"https://img.example/{number}.jpg",
        "page_url": "javascript:window.broken=2" if number == 1 else f"https://news.example/{number}.html",
        "sha256": digest,
        "width": W,
        "height": H,
        "source": "news" if number % 3 else "wiki",
        "license": "CC0-1.0" if number % 2 else "",
        "split": ("train", "dev", "val")[number % 3],
        "image_leader": digest,
        "text_leader": hashlib.sha256(text_of(number).encode()).hexdigest(),
        "boxes": [float(side) for box in BOXES for side in box],
        "where": {"path": str(file), "offset": 0, "size": len(content), "sha256": digest},
    }


def calibrated(folder: Path, encoder: Callable[[Path], Encoder]) -> Path:
    """A tiny checkpoint with a background: the cosines of unrelated pictures and texts."""
    checkpoint = moved_checkpoint(folder)
    made = encoder(checkpoint)
    cosines = made.encode_image([drawn(n) for n in range(40)]) @ made.encode_text([text_of(n) for n in range(40)]).T
    background = Background.of(cosines[~np.eye(40, dtype=np.bool_)], 40, 40)
    add_tensors(open_checkpoint(checkpoint).folder, BACKGROUND_FILE, background.tensors())
    return checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(checkpoint, index of pictures with texts, index of verses)."""
    folder = tmp_path_factory.mktemp("page")
    checkpoint = calibrated(folder / "checkpoint", lambda path: open_encoder(path, "cpu"))
    encoder, about = open_encoder(checkpoint, "cpu"), open_checkpoint(checkpoint)
    (folder / "pictures").mkdir()
    rows = [row(number, folder / "pictures") for number in range(ROWS)]
    images = encoder.encode_image([Path(r["where"]["path"]).read_bytes() for r in rows])
    writer = IndexWriter.begin(folder / "index", about_of(about, "pictures"))
    writer.add(0, pa.Table.from_pylist(rows), images, encoder.encode_text([r["caption"] for r in rows]))
    writer.finish()
    return checkpoint, folder / "index", folder


@pytest.fixture(scope="module")
def served(made: tuple[Path, Path, Path]) -> Iterator[Server]:
    """The server that most tests share."""
    with command(made[0], "--index", f"pictures={made[1]}") as server:
        yield server


Visit = Callable[[Callable[[Visitor], Awaitable[None]]], None]


@pytest.fixture
def visit(served: Server, tmp_path: Path) -> Visit:
    """visit(work): work(Visitor) on the shared server; the page then has no fault, and asked for nothing elsewhere."""

    def visit(work: Callable[[Visitor], Awaitable[None]]) -> None:
        async def whole(page: Any) -> None:
            visitor = Visitor(page, served.url)
            await visitor.desk()
            await work(visitor)
            assert page.faults(served.url) == []
            assert await page.run("window.broken") is None

        browser.visit(tmp_path / "profile", whole)

    return visit


# --- asking


def test_a_text_finds_pictures_with_closeness_in_words_and_the_cosine_on_demand(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open()
        assert await visitor.texts("#summary h1") == ["Pictures of this collection"]
        assert await visitor.texts(".closeness") == [], "nothing was asked, so nothing is close"
        await visitor.search("红色的画")
        assert await page.run("document.title") == "红色的画 · 文澜 WenLan"
        assert len(await visitor.ids()) == 40
        grades = {"hardly related", "loosely related", "related", "close", "very close", "strikingly close"}
        assert set(await visitor.texts(".closeness summary")) <= grades
        assert await page.run("document.querySelectorAll('.closeness[open]').length") == 0
        await page.click(".closeness summary")
        [figures] = await visitor.texts(".closeness[open] p")
        assert "unrelated picture–text pairs" in figures
        assert "cosine 0." in figures or "cosine -0." in figures
        assert await page.run("document.querySelector('.shot img').naturalWidth") > 0

    visit(work)


def test_the_enter_of_an_input_method_does_not_search(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open()
        await page.press("/")
        assert await page.run("document.activeElement.id") == "text"
        before = len(visitor.asked())
        await page.compose("ming yue", "明月")
        held = "new KeyboardEvent('keydown', {key: 'Enter', keyCode: 229, isComposing: true, bubbles: true, cancelable: true})"
        assert await page.run(f"document.getElementById('text').dispatchEvent({held})") is False, (
            "Safari's Enter is held back"
        )
        assert await page.run("document.getElementById('text').value") == "明月"
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
            return new File([await new Promise(done => canvas.toBlob(done, 'image/png'))], {name!r}, {{type: 'image/png'}});
        }};
        const data = new DataTransfer();
        data.items.add({made});
        document.body.dispatchEvent({event});
    }})()"""


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_a_picture_is_searched_by_and_so_is_a_part_of_it(visit: Visit, tmp_path: Path, way: str) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(drawn(7))

    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open()
        if way == "choose":
            await page.choose("#file", file)
        else:
            await page.run(file_event(way, "red.png"))
        await page.wait("document.querySelector('#stage .strip button')")
        await visitor.settled()
        assert await visitor.texts("#summary h1") == ["For this picture"]
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
        assert await visitor.texts("#summary h1") == ["For a part of the picture"]
        assert await page.run("document.querySelectorAll('#stage [aria-pressed=true]').length") == 1
        assert await page.run("new URLSearchParams(location.search).get('picture')") == key
        await page.click("#stage .stage-tools button")
        await visitor.said("region", None)

    visit(work)


def test_a_frame_drawn_by_hand_is_searched_by(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(drawn(5))

    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open()
        await page.choose("#file", tmp_path / "photo.jpg")
        await page.wait("document.querySelector('#stage .strip')")
        await visitor.settled()
        whole = await visitor.ids()
        x, y, width, height = await page.run(BOX_OF.format("#stage .parts"))
        await page.mouse("mouseMoved", x + width * 0.5, y + height * 0.5)
        await page.mouse("mousePressed", x + width * 0.5, y + height * 0.5)
        for share in (0.7, 0.99):
            await page.mouse("mouseMoved", x + width * share, y + height * share, buttons=1)
        await page.mouse("mouseReleased", x + width * 0.99, y + height * 0.99)
        region = await page.wait("new URLSearchParams(location.search).get('region')")
        assert np.allclose([float(side) for side in region.split(",")], [W / 2, H / 2, W * 0.99, H * 0.99], atol=2)
        await visitor.settled()
        assert await visitor.ids() != whole, "a part is like other pictures than the whole"

    visit(work)


def test_a_picture_is_sent_upright_and_on_white(visit: Visit, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40), (0, 0, 255)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (60, 30), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    plain = drawn(3)
    (tmp_path / "plain.jpg").write_bytes(plain)
    sent = """import('./page/pictures.js').then(m => m.recall(new URLSearchParams(location.search).get('picture')))
        .then(async p => { const b = await createImageBitmap(p.blob); const c = new OffscreenCanvas(9, 9).getContext('2d');
        c.drawImage(b, 0, 0); return [p.blob.type, p.blob.size, b.width, b.height, ...c.getImageData(5, 5, 1, 1).data]; })"""

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
        x, y, width, height = await page.run(BOX_OF.format(".card .parts"))
        await page.mouse("mouseMoved", x + width * 0.9, y + height * 0.9)
        assert await page.run("document.querySelectorAll('.card .box.on').length") == 2, (
            "the smallest below, and no other"
        )
        await page.click(".card .parts")  # in the middle, where three boxes meet: the smallest
        region = await page.wait("new URLSearchParams(location.search).get('region')")
        assert tuple(map(int, region.split(","))) in BOXES
        await visitor.said("like", f"{first[0]:032x}")
        await visitor.settled()
        assert await page.run("document.querySelectorAll('#stage .box.on').length") >= 1
        await page.run("history.back()")
        await visitor.said("region", None)
        await visitor.settled()
        assert await visitor.ids() == first, "the way back needs no new search"
        await page.run("document.querySelector('.shot').focus()")
        for key in ("p", "ArrowRight", "ArrowRight", "Enter"):
            await page.press(key)
        await page.wait("new URLSearchParams(location.search).get('region')")
        assert await page.run("new URLSearchParams(location.search).get('region')") == ",".join(map(str, BOXES[1]))

    visit(work)


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
        assert await visitor.texts("#summary h1") == ["Like this sample"]
        assert visitor.asked()[-1] | {"id": f"{first:032x}", "target": "image"} == visitor.asked()[-1]
        await page.click("input[name=target][value=text]")
        await visitor.said("find", "text")
        await visitor.settled()
        assert await page.run("document.querySelectorAll('.of-text').length") == 40
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


def test_words_find_the_words_and_mark_them_and_nothing_says_what_to_do(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open()
        assert await page.run("document.querySelector('[name=mode][value=words]').disabled"), "words need words"
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
        assert "Nothing found." in (await visitor.texts(".empty"))[0]
        await page.click(".empty button")
        await visitor.said("by", None)
        await visitor.settled()
        assert len(await visitor.ids()) == 40

    visit(work)


# --- what is found


def test_filters_with_counts_and_chips(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open("/?in=pictures&q=画")
        await page.press("f")
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
        assert set(number % 3 for number in await visitor.ids()) == {0}
        assert await page.run("document.activeElement.dataset.value") == "wiki", "the cursor stays where it was"
        assert visitor.asked()[-1]["filters"] == {"source": ["wiki"]}
        await page.run(
            "(() => { const s = document.querySelector('#filters select'); s.value = '200'; s.dispatchEvent(new Event('change')); })()"
        )
        await visitor.said("side", "200")
        await visitor.settled()
        assert "The filters leave nothing over." in (await visitor.texts(".empty"))[0]
        assert await visitor.texts("#chosen li") == ["wiki", "Shorter side ≥ 200 px", "Clear all"]
        await page.click("#chosen li:nth-child(2) button")
        await visitor.said("side", None)
        await visitor.settled()
        assert set(number % 3 for number in await visitor.ids()) == {0}
        await page.run(
            "(() => { const s = document.querySelectorAll('#filters select')[1]; s.value = '0.9'; s.dispatchEvent(new Event('change')); })()"
        )
        await visitor.said("score", "0.9")
        await visitor.settled()
        assert visitor.asked()[-1]["filters"]["min_score"] == 0.9
        assert not {"hardly related", "loosely related"} & set(await visitor.texts(".closeness summary"))

    visit(work)


def test_near_copies_stand_once_and_are_shown_when_asked_for(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open(f"/?in=pictures&like={0:032x}")
        ids = await visitor.ids()
        assert len({0, 2, 3} & set(ids)) == 1
        assert await visitor.texts(".copies") == ["+2 near-copies"]
        await page.click(".copies")
        await page.wait("document.querySelectorAll('.card.copy').length === 2")
        assert {0, 2, 3} <= set(await visitor.ids())
        await page.click(".copies")
        await page.wait("document.querySelectorAll('.card.copy').length === 0")
        await visitor.open(f"/?in=pictures&like={0:032x}&copies=1")
        assert {0, 2, 3} == set((await visitor.ids())[:3])

    visit(work)


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
        await page.wait("document.querySelector('.end')?.innerText === 'That was all.'")

    visit(work)


def test_one_sample_with_its_texts_its_page_and_its_neighbours(visit: Visit) -> None:
    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open("/?in=pictures&q=画&source=news")
        ids = await visitor.ids()
        await page.click(".shot")
        await page.wait("document.getElementById('detail').open")
        await visitor.said("open", f"{ids[0]:032x}")
        body = (await visitor.texts("#detail"))[0]
        assert f"周围的文字{ids[0]}" in body
        assert "around it" in body
        assert "240 × 180" in body
        assert "news.example (leaves this server)" in body or ids[0] == 1
        assert await page.run("document.querySelector('#detail .closeness').open"), "figures are open here"
        await page.press("ArrowRight")
        await visitor.said("open", f"{ids[1]:032x}")
        await page.wait(f"document.querySelector('#detail h2').innerText === {json.dumps(text_of(ids[1]))}")
        await page.press("Escape")
        await page.wait("!document.getElementById('detail').open")
        await visitor.said("open", None)
        assert await page.run("history.length") == 3, "closing goes back, and adds nothing"
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
        assert await visitor.texts("#detail h2") == [HOSTILE]
        assert await page.run("document.querySelectorAll('#detail .facts a').length") == 0, "no javascript: link"
        await page.press("Escape")
        await visitor.search(HOSTILE)
        assert await page.run("[...document.images].every(i => i.getAttribute('src') !== 'x')")
        policy = await page.run("fetch('./').then(r => r.headers.get('content-security-policy'))")
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy

    visit(work)


# --- addresses, languages, colours, sizes


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
        latin = "[...document.querySelectorAll('main button, main label, main legend, main h1, main p')].map(n => n.innerText).filter(t => /[A-Za-z]{3}/.test(t) && !/news|wiki|pictures|CC0|img/.test(t))"
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


# --- collections


def test_a_text_file_becomes_a_collection_and_a_picture_finds_its_verse(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "verses.txt").write_text("\n\n".join(VERSES), encoding="gb18030")

    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open(f"/?in=pictures&like={6:032x}")
        await page.press("c")
        await page.choose("#own-text", tmp_path / "verses.txt")
        await page.wait("document.querySelector('.news .good')?.innerText.includes('3 in “verses”.')")
        await page.click(".news .good button")
        await visitor.said("in", "verses")
        await visitor.settled()
        assert await visitor.texts("#summary h1") == ["For this picture"], "the sample came along as a picture"
        assert sorted(await visitor.texts(".words")) == sorted(verse.split("\t")[0] for verse in VERSES)
        assert "苏轼《水调歌头》" in await visitor.texts(".from")
        assert await page.run("document.querySelector('[name=target][value=image]').disabled")
        await page.click(".elsewhere button")
        await visitor.said("in", "pictures")
        await visitor.settled()
        await page.run("window.confirm = () => true")
        await page.press("c")
        await page.click(".shelf .tool")
        await page.wait("!document.querySelector('.shelf .tool')")

    visit(work)


def test_pictures_become_a_collection_with_progress_and_what_cannot_be_read_is_named(
    visit: Visit, tmp_path: Path
) -> None:
    files = []
    for number in range(20):
        files.append(tmp_path / f"{number:02}.jpg")
        files[-1].write_bytes(drawn(1000 + number))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")

    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open()
        await page.press("c")
        await page.run("document.getElementById('own-name').focus()")
        await page.write("我的 100% 图片")
        await page.run("""(() => { window.seen = []; new MutationObserver(() => { const p = document.querySelector('.news progress');
            if (p) window.seen.push(p.value); }).observe(document.querySelector('.news'), {subtree: true, childList: true, characterData: true}); })()""")
        await page.choose("#own-pictures", *files, tmp_path / "broken.jpg")
        await page.wait("document.querySelector('.news .good')")
        assert "20 in “我的 100- 图片”." in (await visitor.texts(".news"))[0]
        assert "broken.jpg is no picture that this browser can read" in (await visitor.texts(".news"))[0]
        assert len(set(await page.run("window.seen"))) >= 3, "progress is seen, batch by batch"
        await page.click(".news .good button")
        await visitor.said("in", "我的 100- 图片")
        await visitor.settled()
        assert await page.run("document.querySelectorAll('.card').length") == 20
        await page.wait("[...document.querySelectorAll('.shot img')].filter(i => i.naturalWidth > 0).length > 4")
        await page.run("window.confirm = () => true")
        await page.press("c")
        await page.click(".shelf .tool")
        await visitor.said("in", "pictures")

    visit(work)


def test_loading_is_stopped(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("\n".join(f"第{n}行" for n in range(6000)), encoding="utf-8")

    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open()
        await page.press("c")
        await page.choose("#own-text", tmp_path / "many.txt")
        await page.wait("document.querySelector('.news progress')?.value > 0")
        await page.click(".news button")
        await page.wait("document.querySelector('.news .good')?.innerText.startsWith('Stopped;')")
        loaded = [one for one in await page.run("fetch('./collections').then(r => r.json())") if one["name"] == "many"]
        assert 0 < loaded[0]["rows"] < 6000
        await page.run("fetch('./collections/many', {method: 'DELETE'})")

    visit(work)


# --- what goes wrong


def test_files_that_are_no_pictures(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(65 << 20)

    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open()
        for name, said in (("broken.png", "broken.png is no picture"), ("huge.jpg", "huge.jpg is larger than 64 MB")):
            await page.choose("#file", tmp_path / name)
            await page.wait(f"document.getElementById('notice').innerText.includes({json.dumps(said)})")
        assert len(await visitor.ids()) == 40, "what was there stays"

    visit(work)


def test_a_sample_or_a_collection_that_is_not_there(served: Server, tmp_path: Path) -> None:
    async def work(page: Any) -> None:
        visitor = Visitor(page, served.url)
        await visitor.open(f"/?in=pictures&q=画&open={12345:032x}")
        await page.wait("document.querySelector('#detail[open] .empty')?.innerText.startsWith('This sample is not in')")
        await page.press("Escape")
        await page.wait("!document.getElementById('detail').open")
        await visitor.open("/?in=gone&q=画")
        assert await page.run("document.getElementById('collection').innerText.includes('pictures')")
        assert len(await visitor.ids()) == 40

    browser.visit(tmp_path / "profile", work)


def test_a_server_that_is_slow_gone_and_back(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    words = ["--index", f"pictures={made[1]}"]

    async def work(page: Any) -> None:
        with command(made[0], *words) as server:
            assert server.process is not None
            visitor = Visitor(page, server.url)
            await visitor.open()
            os.kill(server.process.pid, signal.SIGSTOP)
            await page.run("document.getElementById('text').focus()")
            await page.write("红色")
            await page.press("Enter")
            await page.wait("document.querySelector('.skeleton')")
            await page.wait("document.getElementById('notice').innerText.includes('takes longer than usual')")
            os.kill(server.process.pid, signal.SIGCONT)
            await visitor.settled()
            assert await visitor.texts("#notice") == [""], "the notice goes when the answer comes"
            assert len(await visitor.ids()) == 40
        await visitor.page.run("document.getElementById('text').select()")
        await page.write("蓝色")
        await page.press("Enter")
        await page.wait("document.getElementById('notice').innerText.includes('The server does not answer.')")
        assert await page.serious() == []
        with command(made[0], *words, "--port", server.url.rpartition(":")[2]):
            await page.wait("document.querySelectorAll('.card:not(.skeleton)').length === 40")
            assert await visitor.texts("#notice") == [""]
            await visitor.said("q", "蓝色")

    browser.visit(tmp_path / "profile", work)


def test_a_busy_server_is_asked_again_when_it_says(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    async def work(page: Any) -> None:
        with command(made[0], "--index", f"pictures={made[1]}", "--per-minute", "60") as server:
            visitor = Visitor(page, server.url)
            await visitor.open()
            await page.run("Promise.all(Array.from({length: 90}, () => fetch('./collections')))")
            await page.run("document.getElementById('text').focus()")
            await page.write("红色")
            await page.press("Enter")
            await page.wait("document.getElementById('notice').innerText.includes('The server is busy.')")
            assert "Try again: " in (await visitor.texts("#notice"))[0]

    browser.visit(tmp_path / "profile", work)


def test_a_server_with_a_token_and_one_without_a_collection(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    token = "0123456789abcdef-token"

    async def work(page: Any) -> None:
        with command(made[0], environment={"WENLAN_TOKEN": token}) as server:
            visitor = Visitor(page, server.url)
            await visitor.open(f"/?token={token}")
            assert await page.run("location.search") == "", "the token stays in no address"
            assert (await visitor.texts(".empty"))[0].startswith("This server has no collection yet.")
            await page.say("Network.clearBrowserCookies")
            await page.click(".empty button")
            (tmp_path / "verses.txt").write_text("\n".join(VERSES), encoding="utf-8")
            await page.choose("#own-text", tmp_path / "verses.txt")
            await page.wait("document.querySelector('.news')?.innerText.includes('asks for a token')")
            await visitor.page.run("location.assign('./?token=" + token + "')")
            await page.wait("document.querySelector('.empty')")
            await page.click(".empty button")
            await page.choose("#own-text", tmp_path / "verses.txt")
            await page.wait("document.querySelector('.news .good')")

    browser.visit(tmp_path / "profile", work)
