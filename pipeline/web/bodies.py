"""Bodies of HTTP responses: Content-Encoding undone within a byte cap.

gzip and deflate are undone by zlib, br and zstd by pyarrow, whether we asked for them or not: some servers send what
was not asked for, and so do archives of browsers.

Limits: one encoding; of several in a row the body is undecodable.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable


class Undecodable(ValueError):
    """A body that its Content-Encoding does not describe: unknown, damaged or truncated."""


class BodyTooLarge(ValueError):
    """A body, or what it unpacks to, is larger than allowed."""


_BLOCK, _GZIP = 1 << 16, b"\x1f\x8b"

MAX_MEMBERS = 10_000
"""Members of a gzip body: block compressors make one per 64 kB, and each costs as much as some kilobytes."""

_TRUNCATED, _DAMAGED = "truncated", "damaged"

_Data = tuple[bytes, str]  # the first bytes of what a body unpacks to; what is wrong behind them, "" for nothing


def unpacked(body: bytes, encoding: str, cap: int, whole: bool = True) -> bytes:
    """A body without its Content-Encoding, never holding more than `cap` bytes of it.

    Raises BodyTooLarge, and Undecodable. Without `whole` a body that is larger, or that breaks off, is cut there.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity") or not body:
        return body
    if encoding not in _DECODERS:
        raise Undecodable(f"unknown Content-Encoding {encoding[:40]!r}")
    data, fault = _DECODERS[encoding](body, cap + 1)
    if len(data) > cap and whole:
        raise BodyTooLarge(f"unpacks to more than {cap} bytes")
    if (fault and whole) or (fault == _DAMAGED and not data):
        raise Undecodable(f"{encoding} body is {fault}")
    return data[:cap]


def _inflated(body: bytes, limit: int) -> _Data:
    """By zlib. "deflate" means a zlib stream (RFC 9110, 8.4.1.2), but some servers send a raw one: both are tried."""
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # zlib or gzip by its header; then raw deflate
        try:
            return _members(body, window, limit)
        except zlib.error:
            continue
    return b"", _DAMAGED


def _members(body: bytes, window: int, limit: int) -> _Data:
    """A gzip body may have several members, one behind the other (RFC 1952, 2.2). Raises zlib.error, Undecodable."""
    data, at = bytearray(), 0
    for _ in range(MAX_MEMBERS):
        machine = zlib.decompressobj(window)
        while at < len(body) and not machine.eof and len(data) < limit:
            block = body[at : at + _BLOCK]  # not all of it: what is behind the end of a member is copied
            data += machine.decompress(block, limit - len(data))
            at += len(block) - len(machine.unused_data)
        if not machine.eof or len(data) >= limit or not body.startswith(_GZIP, at):
            return bytes(data), "" if machine.eof else _TRUNCATED
    raise Undecodable(f"compressed body of more than {MAX_MEMBERS} members")


def _by_arrow(codec: str) -> Callable[[bytes, int], _Data]:
    """By pyarrow, which raises OSError both for damage and for a body that ends too early."""

    def decoded(body: bytes, limit: int) -> _Data:
        import pyarrow as pa

        data = bytearray()
        with pa.CompressedInputStream(pa.BufferReader(body), codec) as stream:
            while len(data) < limit:
                try:
                    block = stream.read(min(_BLOCK, limit - len(data)))
                except OSError as e:
                    return bytes(data), _TRUNCATED if "runcated" in str(e) else _DAMAGED
                if not block:
                    break
                data += block
        return bytes(data), ""

    return decoded


_DECODERS: dict[str, Callable[[bytes, int], _Data]] = {
    "gzip": _inflated,
    "x-gzip": _inflated,
    "deflate": _inflated,
    "br": _by_arrow("brotli"),
    "zstd": _by_arrow("zstd"),
}
