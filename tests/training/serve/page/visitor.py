"""What a person does on the page of `wenlan-train serve`, for tests in a browser."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from tests.browser import Page


class Visitor:
    """A page of a server in a browser, and what a person does there."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url

    async def open(self, address: str = "/") -> None:
        """Open an address of the page, and wait until its answer is drawn."""
        await self.page.open(self.url + address)
        await self.settled()

    async def settled(self) -> None:
        """Wait until nothing is on its way: results, or a reason why there are none."""
        done = "!document.querySelector('.skeleton') && !document.body.classList.contains('waiting')"
        some = "document.querySelector('#grid .card, .empty, .notice')"
        await self.page.wait(f"{done} && Boolean({some}) && document.readyState === 'complete'")

    async def search(self, text: str) -> None:
        """Put a text into the field, and press Enter."""
        await self.page.run("(() => { const f = document.getElementById('text'); f.focus(); f.select(); })()")
        await self.page.write(text)
        await self.page.press("Enter")
        await self.said("q", text)
        await self.settled()

    async def said(self, name: str, value: str | None) -> None:
        """Wait until the address says something."""
        await self.page.wait(f"new URLSearchParams(location.search).get({name!r}) === {json.dumps(value)}")

    async def texts(self, selector: str) -> list[str]:
        """Texts of all elements of a selector; of one that is out of sight, and so not laid out, what is in it."""
        every = f"[...document.querySelectorAll({json.dumps(selector)})]"
        found = await self.page.run(f"{every}.map(n => n.innerText || n.textContent)")
        return [str(text) for text in found]

    async def shows(self, selector: str, *texts: str) -> None:
        """Wait until the elements of a selector have these texts, in their order."""
        every = f"[...document.querySelectorAll({json.dumps(selector)})]"
        await self.page.becomes(f"{every}.map(n => n.innerText || n.textContent)", list(texts))

    async def says(self, selector: str, words: str) -> None:
        """Wait until the first element of a selector is there and says these words, among others."""
        await self.page.wait(f"document.querySelector({json.dumps(selector)})?.innerText.includes({json.dumps(words)})")

    async def ids(self) -> list[int]:
        """Numbers of the samples on the page, in their order."""
        return [
            int(one, 16)
            for one in await self.page.run("[...document.querySelectorAll('.card')].map(c => c.dataset.id)")
        ]

    def asked(self) -> list[dict[str, Any]]:
        """Bodies of all searches so far."""
        sent = [
            event["params"]["request"] for event in self.page.events if event["method"] == "Network.requestWillBeSent"
        ]
        return [json.loads(one["postData"]) for one in sent if one["url"].endswith("/search") and "postData" in one]

    async def phone(self) -> None:
        size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        await self.page.say("Emulation.setDeviceMetricsOverride", **size)

    async def desk(self) -> None:
        size = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await self.page.say("Emulation.setDeviceMetricsOverride", **size)

    async def scheme(self, name: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": name}
        await self.page.say("Emulation.setEmulatedMedia", features=[feature])

    async def fits(self) -> None:
        """Nothing sticks out to the right."""
        assert await self.page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0

    async def pick(self, number: int, value: str) -> None:
        """Choose a value in one of the selects among the filters."""
        chosen = f"document.querySelectorAll('#filters select')[{number}]"
        await self.page.run(f"(n => {{ n.value = {value!r}; n.dispatchEvent(new Event('change')); }})({chosen})")


Visit = Callable[[Callable[[Visitor], Awaitable[None]]], None]
"""The fixture `visit`."""
