"""The address guard: what may be connected to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.build import BuildSpec, SpecError
from pipeline.web import guard
from pipeline.web.client import Client, RequestFailed, image_kind
from pipeline.web.guard import EgressRefused, Guard, enforce

OPEN = Guard()


def spec(**egress_options: object) -> BuildSpec:
    source = {"kind": "site", "name": "s", "source_kind": "news", "start": ["http://a.cn/"]}
    return BuildSpec.model_validate({"name": "t", "contact": "a@b.cn", "sources": [source], "egress": egress_options})


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "100.100.100.200",
        "168.63.129.16", "192.0.0.192", "0.0.0.0", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.88.99.1",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "2002:7f00:1::", "2001:0::1",
        "::127.0.0.1", "::8.8.8.8", "localhost", "2130706433", "127.1", "0x7f.1", "example.cn", "",
    ],
)  # fmt: skip
def test_what_leads_inside_or_is_no_address_is_refused(address):
    with pytest.raises(EgressRefused):
        OPEN.check_address(address, 80)


@pytest.mark.parametrize("address", ["8.8.8.8", "114.114.114.114", "2400:3200::1", "::ffff:8.8.8.8"])
def test_public_addresses_pass(address):
    assert OPEN.check_address(address, 443) is None, "it refuses by raising"


@given(st.ip_addresses())
def test_nothing_passes_that_the_standard_library_calls_not_global(address):
    if not address.is_global:
        with pytest.raises(EgressRefused):
            OPEN.check_address(str(address), 80)


@pytest.mark.slow
@given(st.ip_addresses(v=4).filter(lambda a: not a.is_global))
def test_an_inside_address_hidden_in_ipv6_is_refused(address):
    for prefix in ("::ffff:", "64:ff9b::", "::"):
        with pytest.raises(EgressRefused):
            OPEN.check_address(f"{prefix}{address}", 80)
    with pytest.raises(EgressRefused):
        OPEN.check_address(str(ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80))), 80)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://8.8.8.8/", "data:,x", "gopher://8.8.8.8/", "http://", "http://10.0.0.1/x",
            "http://[::1]/", "http://[fe80::1", "http://8.8.8.8:99999999/", "//8.8.8.8/", "http://127.0.0.1:80/"]
)  # fmt: skip
def test_urls_are_judged_before_anything_is_looked_up(url):
    with pytest.raises(EgressRefused):
        OPEN.check_url(url)


def test_only_the_named_port_of_a_loopback_address_passes():
    one = guard.guard_of(spec(allow=["127.0.0.1:8080", "localhost:81"]))
    one.check_address("127.0.0.1", 8080)
    one.check_address("::ffff:127.0.0.1", 8080)
    one.check_address("::1", 81)
    for address, port in [("127.0.0.1", 8081), ("127.0.0.2", 8080), ("10.0.0.1", 8080), ("::1", 8080)]:
        with pytest.raises(EgressRefused):
            one.check_address(address, port)


def test_what_one_guard_lets_pass_another_still_refuses():
    one, other = (guard.guard_of(spec(allow=[f"127.0.0.1:{port}"])) for port in (8080, 8081))
    for _ in range(2):
        assert one.check_url("http://127.0.0.1:8080/a") is None, "it refuses by raising"
        for strict in (other, OPEN):
            with pytest.raises(EgressRefused, match="not a public address"):
                strict.check_url("http://127.0.0.1:8080/a")
        for url in ("https://127.0.0.1:8443/a", "ftp://127.0.0.1:8080/a", "http://127.0.0.1/a"):
            with pytest.raises(EgressRefused):
                one.check_url(url)


@pytest.mark.parametrize("entry", ["127.0.0.1", "10.0.0.1:80", "intranet:80", "8.8.8.8:53", "http://127.0.0.1:80", ""])
def test_a_spec_can_open_nothing_but_loopback(entry):
    with pytest.raises(SpecError, match=r"egress\.allow\[0\]") as e:
        guard.guard_of(spec(allow=[entry]))
    assert len(e.value.problems) == 1


def test_the_hook_stops_a_connection_inside_the_scope_only(serve):
    web = serve({"/": b"x"})
    with enforce(OPEN) as scope:
        with pytest.raises(OSError, match="not a public address"):
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(web.url(), timeout=120)
        with socket.socket() as sock, pytest.raises(EgressRefused):
            sock.connect_ex(("127.0.0.1", web.port))
    assert len(scope.refused) == 2
    assert web.asked == []
    with socket.create_connection(("127.0.0.1", web.port), timeout=120):
        pass


def test_a_name_that_leads_to_loopback_is_refused_after_the_lookup(serve):
    web = serve({"/": b"x"})
    with enforce(OPEN) as scope, pytest.raises(OSError, match="public"):
        socket.create_connection(("localhost", web.port), timeout=120)
    assert scope.refused
    assert web.asked == []


def test_another_thread_is_not_held_by_the_scope(serve):
    web = serve()
    done = []

    def connect() -> None:
        with socket.create_connection(("127.0.0.1", web.port), timeout=120):
            done.append(True)

    with enforce(OPEN):
        thread = threading.Thread(target=connect)
        thread.start()
        thread.join()
    assert done == [True]


def test_a_name_that_changes_its_address_between_two_lookups_is_judged_at_each(serve, monkeypatch):
    """DNS rebinding: the first answer is public, the second leads inside. What is connected to is what is judged."""
    web = serve({"/x": b"secret"})
    answers = iter(["93.184.216.34", "127.0.0.1", "10.0.0.1", "169.254.169.254"])
    asked = []

    def resolver(host, port, *_, **__):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    socket.getaddrinfo("rebind.example", web.port)  # whoever checks a name here, and connects below, is fooled
    refused = []

    async def connect() -> None:
        for _ in range(3):
            client = Client(spec(obey_robots=False, delay_s=0))  # a new one: a client keeps a name for some seconds
            try:
                await client.get(f"http://rebind.example:{web.port}/x", image_kind(spec().egress))
            except RequestFailed as e:
                refused.append(str(e))
            await client.close()

    asyncio.run(connect())
    assert asked == ["rebind.example"] * 4
    wanted = ["127.0.0.1", "10.0.0.1", "169.254.169.254"]
    assert refused == [f"egress_refused: {address} port {web.port} is not a public address" for address in wanted]
    assert web.asked == []
