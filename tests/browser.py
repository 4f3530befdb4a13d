"""A headless Chromium, driven by its own DevTools protocol: for tests and benchmarks of what people open in one."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
WAIT_S = 60

Found = TypeVar("Found")


class Page:
    """One page: `say` sends a command of the DevTools protocol, `run` evaluates JavaScript; events are kept."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0
        self.events: list[dict[str, Any]] = []

    async def say(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=WAIT_S)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])
            self.events.append(message)

    async def until(self, event: str) -> None:
        while not any(known["method"] == event for known in self.events):
            self.events.append(await self._socket.receive_json(timeout=WAIT_S))

    async def run(self, script: str) -> Any:
        answer = await self.say("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def open(self, place: Path | str) -> float:
        """Open a file or a URL; gives the seconds until it is loaded and answers."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.say(f"{domain}.enable")
        start = time.perf_counter()
        await self.say("Page.navigate", url=place if isinstance(place, str) else place.as_uri())
        await self.until("Page.loadEventFired")
        await self.run("document.readyState")
        return time.perf_counter() - start

    def faults(self, place: Path | str) -> list[str]:
        """Console errors, exceptions, and requests to anything but the page itself, or below its URL."""
        faults = []
        for event in self.events:
            said = event["params"]
            if event["method"] == "Log.entryAdded" and said["entry"]["level"] == "error":
                faults.append(said["entry"]["text"])
            elif event["method"] == "Runtime.exceptionThrown":
                faults.append(str(said["exceptionDetails"]))
            elif event["method"] == "Network.requestWillBeSent":
                url = said["request"]["url"]
                own = url.startswith(place) if isinstance(place, str) else url == place.as_uri()
                if not own and not url.startswith(("data:", "blob:")):
                    faults.append(f"asked for {url}")
        return faults


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[str]:
    """A Chromium of its own; gives the address of its DevTools."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "--remote-debugging-port=0", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if address := re.search(r"ws://(127\.0\.0\.1:\d+)/", line):
                    yield address[1]
                    break
            else:
                raise RuntimeError("Chromium has not started")
        finally:
            process.kill()


def visit(folder: Path, work: Callable[[Page], Awaitable[Found]]) -> Found:
    """Start a Chromium with its profile in `folder`, and do `work` on its page."""

    async def run(address: str) -> Found:
        async with aiohttp.ClientSession(trust_env=False) as session:
            async with session.get(f"http://{address}/json/list") as answer:
                targets = await answer.json(content_type=None)
            target = next(t for t in targets if t["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                return await work(Page(socket))

    with chromium(folder) as address:
        return asyncio.run(run(address))
