"""Reads captures from WARC files, bounded in memory (ISO 28500; parser: warcio).

Only `response` records are pages. A body is read up to a limit, after chunked and gzip encodings are undone, so that a
small record that unpacks to gigabytes costs no more than the limit.

Limits: Brotli bodies are read only where the `brotli` package is installed; `revisit` records carry no body and are
left out.
"""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import SourceError
from pipeline.files.inputs import FAULTS, reason
from pipeline.records import Capture, Decision, DropReason, sha256_hex

log = logging.getLogger("wenlan")


def read_captures(
    url: str, max_body: int, info: dict[str, Any], must_hold: bool = True
) -> Iterator[Capture | Decision]:
    """The captures of one WARC file in its order; for a body above `max_body` bytes a Decision (without a source).

    What comes before the end of a truncated file is read, and `info["truncated"]` then says where it ends. Raises
    SourceError for a file that is missing, no WARC at all, or (with `must_hold`) without a single record.
    """
    import fsspec
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    records = 0
    try:
        with fsspec.open(url, "rb") as f:
            iterator = ArchiveIterator(f)
            for record in iterator:
                if record.rec_type == "response" and record.http_headers is not None:
                    capture = _capture(record, max_body)
                    if not _is_whole(record):
                        raise EOFError("the last record is cut off")
                    if capture is not None:
                        yield capture
                records += 1
    except (ArchiveLoadFailed, EOFError, zlib.error, ValueError) as e:
        if not records:
            raise SourceError(url, f"is not a WARC file ({reason(e)})") from None
        info["truncated"] = f"after {records} records: {reason(e)}"
        log.warning("%s: breaks off after %d records (%s); going on with those", url, records, reason(e))
    except FAULTS as e:
        raise SourceError(url, f"cannot be read ({reason(e)})") from None
    if not records and must_hold:
        raise SourceError(url, "is not a WARC file (it holds no record)")


def capture_of(member: bytes, max_body: int) -> Capture | None:
    """The page in one record of a WARC file; None if the bytes are no such record or the page is too large."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    try:
        for record in ArchiveIterator(io.BytesIO(member)):
            if record.rec_type == "response" and record.http_headers is not None:
                capture = _capture(record, max_body)
                return capture if isinstance(capture, Capture) else None
    except (ArchiveLoadFailed, EOFError, zlib.error, ValueError):
        return None
    return None


def _capture(record: Any, max_body: int) -> Capture | Decision | None:
    """The capture of one response record; None for what is no page of the web (dns:, whois:)."""
    url = record.rec_headers.get_header("WARC-Target-URI") or ""
    url = url.strip("<> ")
    if not url.startswith(("http://", "https://")):
        return None
    body = _read(record.content_stream(), max_body + 1)
    if len(body) > max_body:
        return Decision(
            subject="capture",
            id=sha256_hex(url),
            fetch_id="",
            source="",
            page_url=url,
            url=url,
            stage="extract",
            kept=False,
            reason=DropReason.TOO_LARGE.value,
            reasons=(DropReason.TOO_LARGE.value,),
            evidence=f"more than {max_body} bytes",
        )
    headers = tuple((str(name), str(value)) for name, value in record.http_headers.headers)
    status = record.http_headers.get_statuscode()
    return Capture(
        url=url,
        status=int(status) if status.isdigit() else 0,
        fetched_at=record.rec_headers.get_header("WARC-Date") or "",
        content_type=record.http_headers.get_header("Content-Type") or "",
        body=body,
        headers=headers,
    )


def _read(stream: Any, size: int) -> bytes:
    """Up to `size` bytes of a stream of warcio, which returns a block at a time."""
    parts, remaining = [], size
    while remaining > 0 and (part := stream.read(min(remaining, 1 << 16))):
        parts.append(part)
        remaining -= len(part)
    return b"".join(parts)


def _is_whole(record: Any) -> bool:
    """Read a record to its end; False if the file ends before the record does."""
    raw = record.raw_stream
    while raw.read(1 << 16):
        pass
    return not getattr(raw, "limit", 0)


def copy_without(source: Path, target: Path, removed: Callable[[str], bool]) -> dict[str, int] | None:
    """Copy a WARC file without the records of the pages that are `removed`, by URL; None, and no file, if it has none.

    Returns where each remaining record now begins: {old offset as a string: new offset}. Bytes are copied as they are.
    """
    from warcio.archiveiterator import ArchiveIterator

    places: list[tuple[int, int]] = []
    any_removed = False
    with source.open("rb") as f:
        records = ArchiveIterator(f)
        for record in records:
            url = (record.rec_headers.get_header("WARC-Target-URI") or "").strip("<> ")
            goes = bool(url) and removed(url)
            length = records.get_record_length()  # reads the record to its end
            any_removed = any_removed or goes
            if not goes:
                places.append((records.get_record_offset(), length))
    if not any_removed:
        return None
    moved = {}
    with source.open("rb") as f, target.open("wb") as out:
        for offset, length in places:
            moved[str(offset)] = out.tell()
            f.seek(offset)
            for remaining in range(length, 0, -(1 << 20)):
                out.write(f.read(min(remaining, 1 << 20)))
    return moved
