"""Bodies of HTTP responses: Content-Encoding undone within a byte cap."""

from __future__ import annotations

import zlib


class BodyTooLarge(ValueError):
    """A body, or what it unpacks to, is larger than allowed."""


def unpacked(body: bytes, encoding: str, cap: int) -> bytes:
    """A body without its Content-Encoding, never holding more than `cap` bytes of it.

    Raises BodyTooLarge, and ValueError for an encoding that we did not ask for or that is damaged.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity") or not body:
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"Content-Encoding {encoding[:40]!r} was not asked for")
    # "deflate" means a zlib stream (RFC 9110, 8.4.1.2), but some servers send a raw one: both are tried
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # zlib or gzip by its header; then raw deflate
        machine = zlib.decompressobj(window)
        try:
            data = machine.decompress(body, cap + 1)
        except zlib.error:
            continue
        if len(data) > cap:
            raise BodyTooLarge(f"unpacks to more than {cap} bytes")
        if not machine.eof:
            raise ValueError("compressed body ends too early")
        return data
    raise ValueError("compressed body is damaged")
