"""A headless Chromium, driven by its own DevTools protocol: for tests and benchmarks of what people open in one."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
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
WAIT_S = 12

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
        self.events = [event for event in self.events if event["method"] != "Page.loadEventFired"]
        start = time.perf_counter()
        await self.say("Page.navigate", url=place if isinstance(place, str) else place.as_uri())
        await self.until("Page.loadEventFired")
        await self.run("document.readyState")
        return time.perf_counter() - start

    async def wait(self, condition: str, seconds: float = WAIT_S) -> Any:
        """Wait until a JavaScript expression is true; gives its value, True for a node. Fails with the expression."""
        deadline = time.monotonic() + seconds
        script = f"(value => value instanceof Node ? true : value)({condition})"
        while not (value := await self.run(script)):
            assert time.monotonic() < deadline, f"never became true: {condition}"
            await asyncio.sleep(0.03)
        return value

    async def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """A mouse event at a point of the window: mouseMoved, mousePressed, mouseReleased."""
        held = {} if kind == "mouseMoved" and not more else {"button": "left", "clickCount": 1}
        await self.say("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held, **more)

    async def middle(self, selector: str) -> tuple[float, float]:
        """The middle of the first element of a selector, scrolled into the window."""
        found = json.dumps(selector)
        await self.wait(f"document.querySelector({found})")
        place = await self.run(
            f"(() => {{ const n = document.querySelector({found}); n.scrollIntoView({{block: 'center', behavior: "
            "'instant'}); const b = n.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        return float(place[0]), float(place[1])

    async def click(self, selector: str) -> None:
        """Move the mouse to the first element of a selector and click: whatever lies above it gets the click."""
        x, y = await self.middle(selector)
        await self.mouse("mouseMoved", x, y)
        await self.mouse("mousePressed", x, y)
        await self.mouse("mouseReleased", x, y)

    async def press(self, key: str) -> None:
        """Press and release a key, by the name that `KeyboardEvent.key` has."""
        codes = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        event: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        await self.say("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **event)
        await self.say("Input.dispatchKeyEvent", type="keyUp", **event)

    async def write(self, text: str) -> None:
        """Put a text where the cursor is."""
        await self.say("Input.insertText", text=text)

    async def compose(self, typed: str, final: str) -> None:
        """Write as an input method does: letters under composition, the Enter that ends it, the characters."""
        await self.say("Input.imeSetComposition", text=typed, selectionStart=len(typed), selectionEnd=len(typed))
        process = {"key": "Process", "windowsVirtualKeyCode": 229}
        await self.say("Input.dispatchKeyEvent", type="rawKeyDown", **process)
        await self.say("Input.insertText", text=final)

    async def choose(self, selector: str, *files: Path) -> None:
        """Choose files in an input of type file."""
        node = await self.say("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        names = [str(file) for file in files]
        await self.say("DOM.setFileInputFiles", files=names, objectId=node["result"]["objectId"])

    async def drop(self, *files: Path) -> None:
        """Drop files or folders in the middle of the page, as from a window of the system's files."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await self.say("Input.dispatchDragEvent", type=kind, x=200, y=300, data=data)

    async def serious(self) -> list[str]:
        """What axe (axe-core-python) finds serious or critical."""
        found = importlib.util.find_spec("axe_core_python")
        assert found is not None
        assert found.origin is not None
        await self.run((Path(found.origin).parent / "axe.min.js").read_text("utf-8"))
        violations = json.loads(await self.run("axe.run().then(r => JSON.stringify(r.violations))"))
        return [
            f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in violations if v["impact"] in ("serious", "critical")
        ]

    def faults(self, place: Path | str) -> list[str]:
        """Console errors, exceptions, and requests to anything but the page itself, or below its URL."""
        faults = []
        for event in self.events:
            said = event["params"]
            if event["method"] == "Log.entryAdded" and said["entry"]["level"] == "error":
                faults.append(" ".join((said["entry"]["text"], said["entry"].get("url", ""))))
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
