"""What goes wrong: files, samples and servers that are not there, slow or busy, tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import browser
from tests.training.serve.conftest import running
from tests.training.serve.page.conftest import Made
from tests.training.serve.page.pictured import VERSES
from tests.training.serve.page.visitor import Visitor
from tests.training.serve.test_health import Disturbed, disturbed

pytestmark = pytest.mark.slow


@pytest.mark.drill(8)
def test_a_server_that_is_slow_gone_and_back(made: Made) -> None:
    towers: list[Disturbed] = []

    async def work(page: Any) -> None:
        with running(made.checkpoint, indexes=made.indexes, towers=lambda own: disturbed(towers, own)) as server:
            visitor = Visitor(page, server.url)
            await visitor.open()
            towers[0].hang.clear()
            await page.run("document.getElementById('text').focus()")
            await page.write("红色")
            await page.press("Enter")
            await page.wait("document.querySelector('.skeleton')")
            await visitor.says("#notice", "is taking longer than usual")
            towers[0].hang.set()
            await visitor.settled()
            await visitor.shows("#notice", "")  # the notice goes when the answer comes
            assert len(await visitor.ids()) == 40
        await page.run("document.getElementById('text').select()")
        await page.write("蓝色")
        await page.press("Enter")
        await visitor.says("#notice", "The server does not answer.")
        assert await page.serious() == []
        with running(made.checkpoint, indexes=made.indexes, port=int(server.url.rpartition(":")[2])):
            await page.wait("document.querySelectorAll('.card:not(.skeleton)').length === 40")
            await visitor.shows("#notice", "")
            await visitor.said("q", "蓝色")

    browser.visit(work)


@pytest.mark.drill(8)
def test_a_server_with_a_token_and_one_without_a_collection(made: Made, tmp_path: Path) -> None:
    token = "0123456789abcdef-token"

    async def work(page: Any) -> None:
        with running(made.checkpoint, token=token) as server:
            visitor = Visitor(page, server.url)
            await visitor.open("/")
            await visitor.says("#notice", "This server requires a token.")
            assert await page.serious() == []
            await page.run("document.querySelector('#notice input').focus()")
            await page.write(token)
            await page.press("Enter")
            await visitor.says(".empty", "This server has no collection yet.")
            assert await page.run("location.search") == "", "the token stays in no address"
            await page.say("Network.clearBrowserCookies")
            await page.click(".empty button")
            (tmp_path / "verses.txt").write_text("\n".join(VERSES), encoding="utf-8")
            await page.choose("#own-text", tmp_path / "verses.txt")
            await visitor.says(".news", "requires a token")
            await visitor.open(f"/?token={token}")
            await page.click(".empty button")
            await page.choose("#own-text", tmp_path / "verses.txt")
            await page.wait("document.querySelector('.news .good')")

    browser.visit(work)
