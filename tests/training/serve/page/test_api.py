"""What goes wrong: files, samples and servers that are not there, slow or busy, tokens."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import browser
from tests.training.serve.conftest import Server, command
from tests.training.serve.page.conftest import Made
from tests.training.serve.page.pictured import VERSES
from tests.training.serve.page.visitor import Visit, Visitor

pytestmark = pytest.mark.slow


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


def test_a_server_that_is_slow_gone_and_back(made: Made, tmp_path: Path) -> None:
    words = ["--index", f"pictures={made.index}"]

    async def work(page: Any) -> None:
        with command(made.checkpoint, *words) as server:
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
        with command(made.checkpoint, *words, "--port", server.url.rpartition(":")[2]):
            await page.wait("document.querySelectorAll('.card:not(.skeleton)').length === 40")
            assert await visitor.texts("#notice") == [""]
            await visitor.said("q", "蓝色")

    browser.visit(tmp_path / "profile", work)


def test_a_busy_server_is_asked_again_when_it_says(made: Made, tmp_path: Path) -> None:
    async def work(page: Any) -> None:
        with command(made.checkpoint, "--index", f"pictures={made.index}", "--per-minute", "60") as server:
            visitor = Visitor(page, server.url)
            await visitor.open()
            await page.run("Promise.all(Array.from({length: 90}, () => fetch('./collections')))")
            await page.run("document.getElementById('text').focus()")
            await page.write("红色")
            await page.press("Enter")
            await page.wait("document.getElementById('notice').innerText.includes('The server is busy.')")
            assert "Try again: " in (await visitor.texts("#notice"))[0]

    browser.visit(tmp_path / "profile", work)


def test_a_server_with_a_token_and_one_without_a_collection(made: Made, tmp_path: Path) -> None:
    token = "0123456789abcdef-token"

    async def work(page: Any) -> None:
        with command(made.checkpoint, environment={"WENLAN_TOKEN": token}) as server:
            visitor = Visitor(page, server.url)
            await visitor.open("/")
            assert "This server asks for a token." in (await visitor.texts("#notice"))[0]
            assert await page.serious() == []
            await page.run("document.querySelector('#notice input').focus()")
            await page.write(token)
            await page.press("Enter")
            await page.wait("document.querySelector('.empty')")
            assert await page.run("location.search") == "", "the token stays in no address"
            assert (await visitor.texts(".empty"))[0].startswith("This server has no collection yet.")
            await page.say("Network.clearBrowserCookies")
            await page.click(".empty button")
            (tmp_path / "verses.txt").write_text("\n".join(VERSES), encoding="utf-8")
            await page.choose("#own-text", tmp_path / "verses.txt")
            await page.wait("document.querySelector('.news')?.innerText.includes('asks for a token')")
            await visitor.open(f"/?token={token}")
            await page.click(".empty button")
            await page.choose("#own-text", tmp_path / "verses.txt")
            await page.wait("document.querySelector('.news .good')")

    browser.visit(tmp_path / "profile", work)
