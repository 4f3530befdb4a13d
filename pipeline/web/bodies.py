"""Bodies of HTTP responses: Content-Encoding undone within a byte cap."""

from __future__ import annotations

import zlib


class BodyTooLarge(ValueError):
    """A body, or what it unpacks to, is larger than allowed."""


_BLOCK, _GZIP = 1 << 16, b"\x1f\x8b"

MAX_MEMBERS = 10_000
"""Members of a gzip body: block compressors make one per 64 kB, and each costs as much as some kilobytes."""


def unpacked(body: bytes, encoding: str, cap: int, whole: bool = True) -> bytes:
    """A body without its Content-Encoding, never holding more than `cap` bytes of it.

    Raises BodyTooLarge, and ValueError for an encoding that we did not ask for or that is damaged. Without `whole` a
    body that is larger, or that ends too early, is cut there.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity") or not body:
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"Content-Encoding {encoding[:40]!r} was not requested")
    # "deflate" means a zlib stream (RFC 9110, 8.4.1.2), but some servers send a raw one: both are tried
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # zlib or gzip by its header; then raw deflate
        try:
            data, ended = _unpacked(body, window, cap + 1)
        except zlib.error:
            continue
        if len(data) > cap and whole:
            raise BodyTooLarge(f"unpacks to more than {cap} bytes")
        if not ended and whole:
            raise ValueError("compressed body is truncated")
        return data[:cap]
    raise ValueError("compressed body is damaged")


def _unpacked(body: bytes, window: int, most: int) -> tuple[bytes, bool]:
    """The first `most` bytes of what a body unpacks to, and whether its last stream was read to the end.

    A gzip body may have several members, one behind the other (RFC 1952, 2.2). Raises zlib.error, ValueError.
    """
    data, at = bytearray(), 0
    for _ in range(MAX_MEMBERS):
        machine = zlib.decompressobj(window)
        while at < len(body) and not machine.eof and len(data) < most:
            block = body[at : at + _BLOCK]  # not all of it: what is behind the end of a member is copied
            data += machine.decompress(block, most - len(data))
            at += len(block) - len(machine.unused_data)
        if not machine.eof or len(data) >= most or not body.startswith(_GZIP, at):
            return bytes(data), machine.eof
    raise ValueError(f"compressed body of more than {MAX_MEMBERS} members")
