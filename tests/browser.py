"""A headless Chromium, driven by its own DevTools protocol: for tests and benchmarks of what people open in one.

Tests of one process share a Chromium, since its start takes a second or more; each visit has a browser context of its
own: cookies, storage and cache of nobody else, as in a profile of its own.

What a page shows comes later than what a test does to it: `wait` and `becomes` wait for it, an assertion on `run` does
not. WENLAN_SLOWER=6 slows every page down by that factor: what a test does not wait for fails then.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
)
SLOWER = float(os.environ.get("WENLAN_SLOWER", "1"))
WAIT_S = 120
"""The longest that anything is waited for: long, since it is spent only by a test that fails."""

PLACE = """(async () => {
  const frame = () => new Promise((done) => { requestAnimationFrame(done); setTimeout(done, 100); });
  const coming = (image) => {
    const box = image.getBoundingClientRect();
    return !image.complete && box.bottom >= 0 && box.top <= innerHeight;
  };
  let before = "";
  for (const began = performance.now(); performance.now() - began < 60_000;) {
    const node = document.querySelector(SELECTOR);
    if (node) {
      if (SCROLL) node.scrollIntoView({block: "center", behavior: "instant"});
      const box = node.getBoundingClientRect(), now = [box.x, box.y, box.width, box.height];
      if (String(now) === before && box.width && box.height && ![...document.images].some(coming)) return now;
      before = String(now);
    }
    await frame();
  }
  return null;
})()"""
"""Where an element comes to rest: at the same place in two frames, and no picture in sight is still on its way."""

MILD = """(() => {
  const isMild = (check) => ["minor", "moderate"].includes(axe._audit.data.checks[check.id ?? check]?.impact);
  const isRule = (rule) => [...rule.any, ...rule.all, ...rule.none].every(isMild);
  return Object.fromEntries(axe._audit.rules.filter(isRule).map((rule) => [rule.id, {enabled: false}]));
})()"""
"""Rules of axe of which no check is serious: a quarter of its time is theirs."""

Found = TypeVar("Found")


class Navigated(AssertionError):
    """The document to which a script was sent has made way for another."""


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
                if "error" in message and method == "Runtime.evaluate":
                    raise Navigated(message["error"])
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
        while not (value := await self._now(script)):
            assert time.monotonic() < deadline, f"never became true: {condition}"
            await asyncio.sleep(0.03)
        return value

    async def becomes(self, script: str, wanted: object) -> None:
        """Wait until a JavaScript expression has this value. Fails with the value that it has instead."""
        deadline = time.monotonic() + WAIT_S
        while (value := await self._now(script)) != wanted:
            assert time.monotonic() < deadline, f"{script} is {value!r}, not {wanted!r}"
            await asyncio.sleep(0.03)

    async def _now(self, script: str) -> Any:
        """The value of an expression; None while another document is on its way."""
        with contextlib.suppress(Navigated):
            return await self.run(script)

    async def reload(self) -> None:
        """Load the page anew, and wait until it is there."""
        self.events.clear()
        await self.say("Page.reload")
        await self.until("Page.loadEventFired")

    async def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """A mouse event at a point of the window: mouseMoved, mousePressed, mouseReleased."""
        held = {} if kind == "mouseMoved" and not more else {"button": "left", "clickCount": 1}
        await self.say("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held, **more)

    async def place(self, selector: str, scroll: bool = False) -> tuple[float, float, float, float]:
        """Left, top, width and height of the first element of a selector in the window, once it rests there."""
        found = PLACE.replace("SELECTOR", json.dumps(selector)).replace("SCROLL", str(scroll).lower())
        place = await self.run(found)
        assert place is not None, f"never rested anywhere: {selector}"
        x, y, width, height = place
        return x, y, width, height

    async def middle(self, selector: str) -> tuple[float, float]:
        """The middle of the first element of a selector, scrolled into the window and at rest."""
        x, y, width, height = await self.place(selector, scroll=True)
        return x + width / 2, y + height / 2

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
        await self.wait(f"document.querySelector({json.dumps(selector)})")
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
        if await self.run("typeof axe === 'undefined'"):
            await self.run((Path(found.origin).parent / "axe.min.js").read_text("utf-8"))
        moving = "document.getAnimations().filter(a => a.effect.getComputedTiming().endTime < Infinity)"
        await self.run(f"Promise.all({moving}.map(a => a.finished.catch(() => 0))).then(() => 0)")
        # results that are no violations are not collected, which takes its time
        asked = f"{{resultTypes: ['violations'], elementRef: false, rules: {MILD}}}"
        violations = json.loads(await self.run(f"axe.run({asked}).then(r => JSON.stringify(r.violations))"))
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
def chromium() -> Iterator[str]:
    """A Chromium with an empty profile; gives the URL of its DevTools."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(prefix="wenlan-chromium-", ignore_cleanup_errors=True) as folder:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "--remote-debugging-port=0", "about:blank"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            try:
                yield _address(Path(folder) / "DevToolsActivePort", process)
            finally:
                process.terminate()  # killed, it would leave its files in /tmp
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()


def _address(file: Path, process: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ValueError):  # it is written in two steps
            port, path = file.read_text("ascii").split()
            return f"ws://127.0.0.1:{port}{path}"
        time.sleep(0.02)
    raise RuntimeError("Chromium has not started")


_open = contextlib.ExitStack()


@functools.cache
def _shared() -> str:
    return _open.enter_context(chromium())


def close() -> None:
    """End the Chromium that visits share, if there is one."""
    _open.close()
    _shared.cache_clear()


def visit(work: Callable[[Page], Awaitable[Found]], *, alone: bool = False) -> Found:
    """Do `work` on a page of a context of its own; `alone` in a Chromium that is started for it and ended."""
    if alone:
        with chromium() as address:
            return asyncio.run(_visit(address, work))
    return asyncio.run(_visit(_shared(), work))


async def _visit(address: str, work: Callable[[Page], Awaitable[Found]]) -> Found:
    async with (
        aiohttp.ClientSession(trust_env=False) as session,
        session.ws_connect(address, max_msg_size=0) as socket,
    ):
        whole = Page(socket)
        context = (await whole.say("Target.createBrowserContext"))["browserContextId"]
        try:
            target = await whole.say("Target.createTarget", url="about:blank", browserContextId=context)
            of_page = f"{address.partition('/devtools/')[0]}/devtools/page/{target['targetId']}"
            async with session.ws_connect(of_page, max_msg_size=0) as own:
                page = Page(own)
                await page.say("Emulation.setFocusEmulationEnabled", enabled=True)
                if SLOWER > 1:
                    await page.say("Emulation.setCPUThrottlingRate", rate=SLOWER)
                return await work(page)
        finally:
            await whole.say("Target.disposeBrowserContext", browserContextId=context)
