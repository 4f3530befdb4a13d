"""Clients that mean ill, for bench_serve and for tests/training/serve/test_server.py: malformed requests.

    generated   cases that schemathesis makes of the server's own OpenAPI, wrong on purpose
    pictures    cut, flipped, mixed and forged files of every format, bombs, pictures of one pixel
    bodies      JSON that is deep, huge, half, of wrong types; multipart that is none
    raw         bytes that are no HTTP, giant headers, slow bodies, connections that are half-closed or cut

`attack` returns how often each status came, and every answer that no server may give: 500, no JSON, a secret, silence.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

GOOD = (200, 303, 304, *range(400, 432), 503)
"""Statuses that a sound server gives to whatever comes: 503 has a Retry-After or is /health's."""


@dataclass
class Outcome:
    """statuses: of all answers; 0 for a connection that the server closed without one. faults: what must not be."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.statuses += other.statuses
        self.faults += other.faults

    @property
    def requests(self) -> int:
        return sum(self.statuses.values())


def attack(url: str, count: int, seed: int = 0, clients: int = 16, generated: float = 0.3) -> Outcome:
    """Send `count` malformed requests; a share of them made by schemathesis."""
    outcome = Outcome()
    by_hand = count - int(count * generated)
    shares = [by_hand // clients + (n < by_hand % clients) for n in range(clients)]
    with ThreadPoolExecutor(clients + 1) as pool:
        made = pool.submit(_generated, url, count - by_hand, seed)
        for one in pool.map(lambda n: _by_hand(url, shares[n], seed * 1000 + n), range(clients)):
            outcome.add(one)
        outcome.add(made.result())
        missing = max(0, count - outcome.requests)  # schemathesis makes each case once
        for one in pool.map(lambda n: _by_hand(url, missing // clients + 1, seed * 1000 + 500 + n), range(clients)):
            outcome.add(one)
    return outcome


def _judge(outcome: Outcome, what: str, answer: httpx.Response) -> None:
    outcome.statuses[answer.status_code] += 1
    if answer.status_code not in GOOD:
        outcome.faults.append(f"{what}: {answer.status_code} {answer.text[:200]}")
        return
    if answer.status_code >= 400:
        try:
            told = answer.json()
            assert "reason" in told or set(told["error"]) == {"message", "type", "param", "code"}
        except (ValueError, KeyError, AssertionError, TypeError):
            outcome.faults.append(f"{what}: {answer.status_code} without the form of an error: {answer.text[:200]}")


# --- by hand


def _by_hand(url: str, count: int, seed: int) -> Outcome:
    rng, outcome = random.Random(seed), Outcome()
    with httpx.Client(base_url=url, timeout=90, verify=False) as client:
        for _ in range(count):
            kind = rng.choices([_picture, _body, _raw], [5, 3, 2])[0]
            try:
                kind(client, rng, outcome)
            except httpx.TimeoutException as e:
                outcome.statuses[0] += 1
                outcome.faults.append(f"{kind.__name__}: no answer ({type(e).__name__})")
            except httpx.TransportError:  # the server closed while we were sending
                outcome.statuses[0] += 1
    return outcome


def _picture(client: httpx.Client, rng: random.Random, outcome: Outcome) -> None:
    content = broken_picture(rng)
    text = base64.b64encode(content).decode()
    uri = f"data:image/{rng.choice(['jpeg', 'png', 'x', ''])};base64,{text}"
    region = [rng.choice([0, -1, 0.5, 10, 1e9]) for _ in range(4)]
    sent: list[Callable[[], httpx.Response]] = [
        lambda: client.post("/image_query", files={"image": ("a.jpg", content)}),
        lambda: client.post("/v1/embeddings", json={"input": [uri] * rng.choice([1, 2])}),
        lambda: client.post("/search", json={"collection": "pictures", "image": uri, "region": region}),
        lambda: client.post("/knn-service", json={"image": text, "num_images": 3}),
        lambda: client.post("/collections", data={"name": "x"}, files={"files": ("a.jpg", content)}),
    ]
    _judge(outcome, "picture", rng.choices(sent, [4, 3, 3, 2, 1])[0]())


def broken_picture(rng: random.Random) -> bytes:
    """A file that is a picture of no kind any more, or hardly one."""
    made = rng.choice([_cut, _flipped, _mixed, _bomb, _small, _noise])
    return made(rng)


def _whole(rng: random.Random) -> bytes:
    from PIL import Image

    kind = rng.choice(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
    image = Image.effect_noise((rng.randint(1, 90), rng.randint(1, 90)), 60)
    out = io.BytesIO()
    image.convert(rng.choice(["RGB", "L"])).save(out, kind, **({"progressive": True} if kind == "JPEG" else {}))
    return out.getvalue()


def _cut(rng: random.Random) -> bytes:
    content = _whole(rng)
    return content[: rng.randint(0, len(content))]


def _flipped(rng: random.Random) -> bytes:
    content = bytearray(_whole(rng))
    for _ in range(rng.randint(1, 20)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def _mixed(rng: random.Random) -> bytes:
    return _whole(rng)[: rng.randint(2, 40)] + _whole(rng)[rng.randint(0, 40) :]


def _bomb(rng: random.Random) -> bytes:
    """A header of up to 4 billion pixels; or 30 million, which are allowed, of few bytes."""
    side = rng.choice([65_535, 40_000, 5_000])

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", side, side, rng.choice([1, 8]), 0, 0, 0, 0)
    data = zlib.compress(b"\0" * (100_000 if side > 5_000 else 1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _small(rng: random.Random) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    size = rng.choice([(1, 1), (1, 3_000), (3_000, 1), (2, 2)])
    Image.new(rng.choice(["RGB", "RGBA", "P", "1", "LA"]), size).save(out, "PNG")
    return out.getvalue()


def _noise(rng: random.Random) -> bytes:
    start = rng.choice(
        [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\x10\0\0\0WEBP", b"%!PS", b"II*\0"]
    )
    return start + rng.randbytes(rng.randint(0, 2_000))


_JUNK: tuple[Any, ...] = (None, True, -1, 1e300, 2**70, "", "\x00", "a" * 50_000, [], [[]], {}, {"a": [1]}, "\ud800")
_FIELDS = {
    "/v1/embeddings": ("input", "model", "encoding_format", "dimensions"),
    "/search": (
        "collection",
        "text",
        "image",
        "region",
        "id",
        "target",
        "mode",
        "limit",
        "offset",
        "filters",
        "copies",
    ),
    "/knn-service": ("text", "image", "image_url", "embedding_input", "modality", "num_images", "indice_name"),
    "/metadata": ("ids", "indice_name"),
}


def _body(client: httpx.Client, rng: random.Random, outcome: Outcome) -> None:
    path = rng.choice(list(_FIELDS))
    headers = {
        "content-type": rng.choice(["application/json", "text/plain", "multipart/form-data", "", "a/b; charset=x"])
    }
    body: dict[str, Any] = {name: rng.choice(_JUNK) for name in _FIELDS[path] if rng.random() < 0.4}
    if rng.random() < 0.5:
        body.setdefault("collection", "pictures")
    raw = json.dumps(body).encode()
    made = rng.choice(["as it is", "cut", "deep", "flipped", "no unicode", "list"])
    if made == "cut":
        raw = raw[: rng.randint(0, len(raw))]
    elif made == "deep":
        raw = rng.choice([b"[", b'{"input":']) * rng.choice([100, 100_000])
    elif made == "flipped" and raw:
        at = rng.randrange(len(raw))
        raw = raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
    elif made == "no unicode":
        raw = b'{"input": "\xff\xfe"}'
    elif made == "list":
        raw = json.dumps({"input": [rng.choice(_JUNK) for _ in range(rng.choice([1, 3_000]))]}).encode()
    if rng.random() < 0.1:
        odd = rng.choice(["/collections/pictures/images/%00", "/collections/%2e%2e/images/x?side=-1", "/page/%2e%2e"])
        _judge(outcome, odd, client.get(odd))
        return
    _judge(outcome, f"{path} {raw[:80]!r}", client.post(path, content=raw, headers=headers))


def _raw(client: httpx.Client, rng: random.Random, outcome: Outcome) -> None:
    """One connection of our own."""
    parts = urlsplit(str(client.base_url))
    assert parts.hostname is not None
    assert parts.port is not None
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {parts.hostname}\r\nContent-Type: application/json\r\n".encode()
    body = b'{"input": "\xe7\xba\xa2"}'
    length = f"Content-Length: {len(body)}\r\n\r\n".encode()
    said = rng.choice(
        [
            rng.randbytes(rng.randint(1, 500)),
            head + b"X: " + b"x" * rng.choice([1_000, 500_000]) + b"\r\n" + length + body,
            head + b"X: y\r\n" * 20_000 + length + body,
            head + b"Content-Length: 99999999999\r\n\r\n" + body,
            head + b"Content-Length: -1\r\n\r\n" + body,
            head + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\n" + body,
            head + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
            head + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
            head + b"Transfer-Encoding: chunked\r\n" + length + body,
            head + length + body[:3],  # and the rest never comes
            head + b"Expect: 100-continue\r\n" + length + body,
            head + b"Upgrade: websocket\r\nConnection: Upgrade\r\n" + length + body,
            (head + length + body) * 30,  # pipelined
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
            b"GET /\x00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        ]
    )
    received = b""
    with contextlib.suppress(OSError):
        received = _said(parts.hostname, parts.port, said, rng.choice(["read", "leave", "half", "reset", "slow"]))
    _count(outcome, received)


def _said(host: str, port: int, said: bytes, how: str) -> bytes:
    """What comes back over a connection that is used in some way that no client should."""
    with socket.create_connection((host, port), timeout=60) as connection:
        if how == "slow":
            for at in range(0, min(len(said), 40), 4):
                connection.sendall(said[at : at + 4])
            return b""
        connection.sendall(said)
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how in ("leave", "reset"):
            return b""
        if how == "half":
            connection.shutdown(socket.SHUT_WR)
        connection.settimeout(2)
        return connection.recv(4_096)


def _count(outcome: Outcome, received: bytes) -> None:
    status = int(received[9:12]) if received.startswith(b"HTTP/1.1 ") else 0
    outcome.statuses[status] += 1
    if status and status not in (*GOOD, 100):
        outcome.faults.append(f"raw: {received[:200]!r}")


# --- by schemathesis


def _generated(url: str, count: int, seed: int) -> Outcome:
    """Cases of every operation of the OpenAPI, wrong on purpose where the operation takes anything."""
    outcome = Outcome()
    if not count:
        return outcome
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis.errors import Unsatisfiable
    from schemathesis.generation import GenerationMode

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    each = max(1, count // len(operations))

    def run(operation: Any, mode: Any, examples: int) -> None:
        strategy = operation.as_strategy(generation_mode=mode)

        @seeded(seed)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def ask(case: Any) -> None:
            try:
                answer = case.call(base_url=url, timeout=90)
            except Exception as e:  # requests cannot send it, or the server closed
                outcome.statuses[0] += 1
                if "timed out" in str(e):
                    outcome.faults.append(f"{case.method} {case.path}: {e}")
                return
            text, json_of = answer.text, answer.json
            outcome.statuses[answer.status_code] += 1
            if answer.status_code not in GOOD:
                outcome.faults.append(f"{case.method} {case.formatted_path}: {answer.status_code} {text[:200]}")
            elif answer.status_code >= 400 and case.method != "HEAD":
                with contextlib.suppress(ValueError):
                    told = json_of()
                    if "error" not in told and "reason" not in told:
                        outcome.faults.append(f"{case.method} {case.formatted_path}: {text[:200]}")

        ask()

    for operation in operations:
        try:
            run(operation, GenerationMode.NEGATIVE, each)
        except (Unsatisfiable, schemathesis.errors.SchemathesisError):
            run(operation, GenerationMode.POSITIVE, min(each, 20))
    return outcome
