"""Limits of the server: how much it takes at once, of one request and of one client.

Each has a default that fits a machine of a few cores; the command's options name those that people change.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

MOST_PICTURES = 32
"""Pictures of one request."""


@dataclass(frozen=True, slots=True)
class Options:
    """Limits of one server.

    batch: inputs that a tower computes at once. gather_ms: the longest that a batch waits for more of them.
    waiting_pictures, waiting_texts: inputs that are admitted and not yet answered; beyond them a request gets 503.
    request_s: in which a request is answered, or gets 503. health_s: in which the towers answer a probe.
    body_mb, body_s: of a request's body, and the seconds in which it must have arrived. bodies_mb: of all bodies in
    memory. header_s: in which a request's headers must have arrived. connections: open at once.
    pixels: of a picture, by its header. texts: of one request. per_minute: requests of one client; None for any number.
    drain_s: what is in flight at SIGTERM has so long to end. decoders, searchers, fetchers: threads that decode
    pictures, that read indexes, and that read stored pictures; waiting_searches: requests before each of the last two.
    kept_mb: of pictures that came from an object store, or were made smaller, in memory.
    """

    batch: int = 16
    gather_ms: float = 50.0
    waiting_pictures: int = 256
    waiting_texts: int = 4096
    request_s: float = 60.0
    health_s: float = 10.0
    body_mb: int = 32
    body_s: float = 30.0
    bodies_mb: int = 256
    header_s: float = 10.0
    connections: int = 512
    pixels: int = 50_000_000
    texts: int = 2048
    per_minute: int | None = None
    drain_s: float = 30.0
    waiting_searches: int = 128
    searchers: int = 2
    fetchers: int = 4
    kept_mb: int = 64
    decoders: int = field(default_factory=lambda: max(1, min(4, os.cpu_count() or 1)))
