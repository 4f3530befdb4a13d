"""pauses: a host is paused for its refusal to answer, and not for pages that are broken."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rows.decisions import DropReason
from pipeline.web import pauses, policy
from pipeline.web.client import Client, HostPaused, RequestFailed, page_kind
from pipeline.web.pauses import IN_A_ROW, HostRefusal, Pause, Pauses
from tests.crawled import html
from tests.pipeline.web.test_client import BROKEN_OFF, MALFORMED, spec_of

REFUSALS = {
    "connection": HostRefusal(DropReason.CONNECTION, 0, 0.0),
    "timeout": HostRefusal(DropReason.TIMEOUT, 0, 0.0),
    "500": HostRefusal(DropReason.HTTP_STATUS, 500, 0.0),
    "503": HostRefusal(DropReason.HTTP_STATUS, 503, 0.0),
    "429": HostRefusal(DropReason.HTTP_STATUS, 429, 0.0),
    "named": HostRefusal(DropReason.HTTP_STATUS, 503, 7.0),
}


def paused_after(outcomes: list[str], down: bool) -> list[Pause | None]:
    """The pause after each outcome of requests to one host, each sent when the last pause was over: "ok", or a name of
    REFUSALS."""

    async def run() -> list[Pause | None]:
        async def outage(url: str) -> str:
            return "status 503" if down else ""

        hosts, after = Pauses(outage), list[Pause | None]()
        for hours, outcome in enumerate(outcomes):
            clock.now = 3600.0 * hours
            if outcome == "ok":
                hosts.on_answer("a")
                after.append(None)
            else:
                after.append(await hosts.on_refusal("a", "http://a/", REFUSALS[outcome]))
        return after

    clock = SimpleNamespace(now=0.0)
    with mock.patch.object(pauses, "time", SimpleNamespace(time=lambda: clock.now)):
        return asyncio.run(run())


def test_requests_under_way_when_a_host_asks_for_a_pause_begin_no_further_one() -> None:
    async def run() -> list[Pause | None]:
        hosts = Pauses(lambda url: asyncio.sleep(0, ""))
        return [await hosts.on_refusal("a", "http://a/", REFUSALS[name]) for name in ("named", "429", "429", "timeout")]

    first, *others = asyncio.run(run())
    assert first is not None
    assert (first.seconds, first.down, others) == (7.0, False, [None] * 3)


@given(st.lists(st.sampled_from(["ok", "ok", *REFUSALS]), max_size=40), st.booleans())
def test_a_host_is_paused_when_it_asks_for_it_or_is_down_and_for_no_other_reason(
    outcomes: list[str], down: bool
) -> None:
    row = 0
    for outcome, pause in zip(outcomes, paused_after(outcomes, down), strict=True):
        row = 0 if outcome == "ok" else row + 1
        asked = outcome in ("429", "named")
        assert (pause is not None) == (asked or (row >= IN_A_ROW and down))
        if pause is not None:
            assert pause.seconds == 7.0 if outcome == "named" else 0.5 <= pause.seconds <= policy.MAX_BACKOFF_S
            assert pause.refusal is REFUSALS[outcome]
        elif row >= IN_A_ROW:
            row = 0  # it answered when it was asked


def test_the_pause_of_a_host_that_stays_down_doubles() -> None:
    begun = [pause for pause in paused_after(["connection"] * 12, down=True) if pause]
    assert [pause.seconds for pause in begun] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert {str(pause.refusal) for pause in begun} == {"connection"}


def crawled(web: Any, *paths: str, waits: bool = True) -> tuple[list[Any], list[Pause]]:
    """(outcomes of requests for pages in order, pauses that began)."""
    shown: list[Pause] = []

    async def run() -> list[Any]:
        spec = spec_of(web.host, timeout_s=30)
        client, outcomes = Client(spec, waits=waits, show=shown.append), []
        for path in paths:
            try:
                outcomes.append(await client.get(web.url(path), page_kind(spec.egress)))
            except RequestFailed as e:
                outcomes.append(e)
        await client.close()
        return outcomes

    return asyncio.run(run()), shown


def saying(raw: bytes) -> Any:
    """A page of `serve` that sends these very bytes and hangs up."""

    def page(handler: Any) -> None:
        handler.wfile.write(raw)
        handler.close_connection = True

    return page


def falling_silent(handler: Any) -> None:
    """A robots.txt that can be had once."""
    handler.send_error(404 if handler.web.asked.count("/robots.txt") == 1 else 503)


def test_broken_pages_in_a_row_pause_no_host(serve: Any) -> None:
    broken = {f"/{n}": saying(raw) for n, raw in enumerate([*MALFORMED.values(), *BROKEN_OFF.values()])}
    broken |= {f"/status-{status}": (status, {}, b"") for status in (500, 502, 503, 504, 599)}
    web = serve({**broken, "/fine": html()})
    outcomes, shown = crawled(web, *broken, *broken, "/fine")
    assert outcomes[-1].status == 200
    assert shown == []
    assert web.asked.count("/robots.txt") == 1 + 4, "once for each three refusals in a row, of which there are twelve"


def test_a_host_that_is_down_is_paused_and_named_until_it_answers(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "BACKOFF_S", 0.05)
    web = serve({"/": html()})
    web.pages["/robots.txt"] = falling_silent
    web.pages |= {f"/{n}": (503, {}, b"") for n in range(5)}
    start = time.monotonic()
    outcomes, shown = crawled(web, *(f"/{n}" for n in range(5)), "/")
    assert [pause.seconds for pause in shown] == [0.05, 0.1, 0.2]
    assert {(pause.host, str(pause.refusal)) for pause in shown} == {(web.host, "status 503")}
    assert time.monotonic() - start >= 0.3, "no request before a pause is over"
    assert outcomes[-1].status == 200


def test_a_client_that_does_not_wait_fails_at_once_while_a_host_is_down(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "BACKOFF_S", 60.0)
    web = serve({"/": html()})
    web.pages["/robots.txt"] = falling_silent
    web.pages |= {f"/{n}": (503, {}, b"") for n in range(20)}
    outcomes, shown = crawled(web, *(f"/{n}" for n in range(20)), waits=False)
    assert len(shown) == 1
    skipped = [outcome for outcome in outcomes if isinstance(outcome, HostPaused)]
    assert len(skipped) == 20 - IN_A_ROW
    assert {str(outcome) for outcome in skipped} == {"http_status: status 503; the host is paused"}
    assert all(outcome.retry.transient for outcome in skipped), "they are asked for again later"
    assert sum(path[1:].isdigit() for path in web.asked) == IN_A_ROW


@pytest.mark.parametrize("named", ["1", ""])
def test_a_busy_host_is_left_alone_at_once_for_as_long_as_it_says(serve: Any, named: str) -> None:
    busy = (429, {"Retry-After": named} if named else {}, b"")
    web = serve({"/busy": busy, "/": html()})
    start = time.monotonic()
    for waits in (True, False):
        _, shown = crawled(web, "/busy", "/", waits=waits)
        assert [(pause.seconds, str(pause.refusal)) for pause in shown] == [(1.0 if named else 0.5, "status 429")]
        assert shown[0].until == pytest.approx(time.time(), abs=30)
    assert time.monotonic() - start >= 2 * (1.0 if named else 0.5) - 0.05
