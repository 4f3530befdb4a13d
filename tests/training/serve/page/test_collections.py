"""Collections of one's own: text files, pictures, progress, stopping, deleting."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.serve.page.pictured import VERSES, drawn
from tests.training.serve.page.visitor import Visit, Visitor

pytestmark = pytest.mark.slow


@pytest.mark.drill(4)
def test_a_text_file_becomes_a_collection_and_a_picture_finds_its_verse(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "verses.txt").write_text("\n\n".join(VERSES), encoding="gb18030")

    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open(f"/?in=pictures&like={6:032x}")
        await page.press("c")
        await page.choose("#own-text", tmp_path / "verses.txt")
        await page.wait("document.querySelector('.news .good')?.innerText.includes('“verses” now contains 3.')")
        await page.click(".news .good button")
        await visitor.said("in", "verses")
        await visitor.settled()
        await visitor.shows("#summary h1", "For this picture")  # the sample came along as a picture
        assert sorted(await visitor.texts(".words")) == sorted(verse.split("\t")[0] for verse in VERSES)
        assert "苏轼《水调歌头》" in await visitor.texts(".from")
        await page.wait("document.querySelector('[name=target][value=image]').disabled")
        await page.click(".elsewhere button")
        await visitor.said("in", "pictures")
        await visitor.settled()
        await page.run("window.confirm = () => true")
        await page.press("c")
        await page.click(".shelf .tool")
        await page.wait("!document.querySelector('.shelf .tool')")

    visit(work)


@pytest.mark.drill(10)
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
        watch = "new MutationObserver(() => window.seen.push(document.querySelector('.news progress')?.value ?? -1))"
        where = "document.querySelector('.news'), {subtree: true, childList: true, characterData: true}"
        await page.run(f"window.seen = []; {watch}.observe({where})")
        await page.choose("#own-pictures", *files, tmp_path / "broken.jpg")
        await page.wait("document.querySelector('.news .good')")
        await visitor.says(".news", "“我的 100- 图片” now contains 20.")
        await visitor.says(".news", "broken.jpg is not a picture that this browser can read")
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


@pytest.mark.drill(10)
def test_a_folder_that_is_dropped_or_chosen_becomes_a_collection_of_its_name(visit: Visit, tmp_path: Path) -> None:
    folder = tmp_path / "相册"
    (folder / "2026" / ".hidden").mkdir(parents=True)
    for number, place in enumerate((folder, folder / "2026", folder / "2026" / ".hidden")):
        (place / f"{number}.jpg").write_bytes(drawn(2000 + number))
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.pdf").write_bytes(b"%PDF")

    async def work(visitor: Visitor) -> None:
        page = visitor.page
        await visitor.open()
        await page.drop(folder)
        await page.wait("document.querySelector('.news .good')")
        await visitor.says(".news", "“相册” now contains 2.")
        await visitor.says(".news", "broken.jpg is not a picture that this browser can read")
        (folder / "3.jpg").write_bytes(drawn(2003))
        (folder / "2026" / ".hidden" / "2.jpg").unlink()
        await page.choose("#own-folder", folder)
        await page.wait("document.querySelector('.news .good')?.textContent.includes('“相册” now contains 3.')")
        await page.run("window.confirm = () => true")
        await page.click(".shelf .tool")
        await page.wait("!document.querySelector('.shelf .tool')")
        listed = await page.run("fetch('./collections').then(r => r.json())")
        assert "相册" not in {one["name"] for one in listed}

    visit(work)
