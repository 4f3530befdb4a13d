"""Spool file for fetched images until their tar is written; each image is checked as it arrives.

Bytes arrive in any order and the tar has the order of the candidates. A type is detected by the first bytes, never by
name or header, and the pixel count is read from the picture's own header before anything decodes it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import IO

from data_specs.build import BuildSpec
from pipeline.errors import OURS, evidence
from pipeline.pictures.formats import format_of
from pipeline.processes import pulse
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import rfc3339
from pipeline.store.takedowns import NO_TAKEDOWNS, Takedowns
from pipeline.urls import without_userinfo
from pipeline.web.policy import LASTING_S


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome for one image: the span of its bytes in the spool, or the reason for having no bytes.

    span: (offset, size), (-1, 0) for none. retry_after: the time from which a later build may ask again.
    """

    reason: str = ""
    evidence: str = ""
    sha256: str = ""
    span: tuple[int, int] = (-1, 0)
    fetched_at: str = ""
    etag: str = ""
    retry_after: str = ""


def failure(reason: DropReason, message: str, retry_after_s: float = LASTING_S) -> Outcome:
    """The outcome of an image that could not be fetched. message: the evidence."""
    later = rfc3339(retry_after_s)
    return Outcome(reason.value, without_userinfo(message)[:300], fetched_at=rfc3339(), retry_after=later)


class Spool:
    """Bytes of images in order of arrival; pictures that were taken down are refused."""

    def __init__(self, file: IO[bytes], spec: BuildSpec, takedowns: Takedowns = NO_TAKEDOWNS) -> None:
        self._file, self._spec, self._takedowns = file, spec, takedowns

    def add(self, data: bytes, fetched_at: str, etag: str = "") -> Outcome:
        """Keep the bytes of an image, or say why they are not let in. Shown in the partition's pulse."""
        outcome = self._outcome(data, fetched_at, etag)
        pulse.advance(bytes=len(data), **{"failed" if outcome.reason else "kept": 1})
        return outcome

    def _outcome(self, data: bytes, fetched_at: str, etag: str) -> Outcome:
        try:
            refusal = _refusal(data, self._spec.egress.max_image_bytes, self._spec.fetch.max_pixels)
        except OURS:
            raise
        except Exception as e:
            refusal = DropReason.UNREADABLE, evidence(e, "an image")
        if refusal is not None:
            # what an installation cannot read, the next build may
            later = rfc3339(0.0 if refusal[0] is DropReason.UNREADABLE_FORMAT else LASTING_S)
            return Outcome(refusal[0].value, refusal[1], fetched_at=fetched_at, etag=etag, retry_after=later)
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 in self._takedowns.hashes:
            return Outcome(DropReason.FORGOTTEN.value, "this image was taken down", fetched_at=fetched_at)
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(data)
        return Outcome("", "", sha256, (offset, len(data)), fetched_at, etag)

    def read(self, span: tuple[int, int]) -> bytes:
        self._file.seek(span[0])
        return self._file.read(span[1])


def _refusal(data: bytes, max_bytes: int, max_pixels: int) -> tuple[DropReason, str] | None:
    """Returns why bytes are not let in as an image, None if they are. Nothing is decoded."""
    from pipeline.pictures import decode as pictures

    if not data:
        return DropReason.EMPTY_BODY, "0 bytes"
    if len(data) > max_bytes:
        return DropReason.TOO_LARGE, f"{len(data)} bytes; at most {max_bytes} are allowed"
    try:
        header = pictures.header(data)
    except pictures.PictureError as e:
        if e.too_many_pixels:
            return DropReason.TOO_MANY_PIXELS, e.message
        if e.unreadable_here:
            return DropReason.UNREADABLE_FORMAT, e.message
        if not format_of(data):
            start = " ".join(data[:60].decode("utf-8", "replace").split())
            return DropReason.NOT_AN_IMAGE, f"starts with {start!r}"
        return None  # a damaged picture: `measure` says so
    if header.pixels > max_pixels:
        return DropReason.TOO_MANY_PIXELS, f"{header.width} x {header.height} pixels; at most {max_pixels} are allowed"
    return None
