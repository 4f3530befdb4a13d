"""Boxes of pictures that no build holds, by one detector and through its region cache.

For `wenlan-train embed`, `search` and `serve`, and for `wenlan.load(detector=...)`. The boxes are those that stage
`detect` would make of the same bytes: raw ones are cached under the picture's sha256 in a folder of STORE's layout
(REGIONS/<detector-id>/), so that builds and embeddings share them, and they are cleaned on the way out.

Boxes come back in pixels of the picture as stored, best first. The detector looks at it as shown, that is, turned by
its EXIF orientation; who reads the file without regard to that (training does) gets boxes that fit.

Limits: up to SAVE new pictures' boxes are in memory; a kill loses them. A picture on which the detector fails has no
boxes, and is named in the log.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data_specs.build import SpecError, load
from data_specs.pictures.boxes import cleaned
from pipeline.detectors import NONE, Boxes, Detector, detectors_of
from pipeline.detectors._boxes import blank, boxes_of, raw_boxes, rows_of
from pipeline.errors import OURS, evidence
from pipeline.files.folder import Folder
from pipeline.pictures.decode import MAX_PIXELS, Header, PictureError, decode, header
from pipeline.plugins import configure
from pipeline.store.cache import Cache

log = logging.getLogger("wenlan")


def open_maker(name: str, wanted: str = "", regions: str = "") -> BoxMaker:
    """A BoxMaker by a detector's name, with its defaults, or by the file of a spec (.yaml) whose first one it is.

    wanted: the id that it must have; "" for any. Raises SpecError, and DetectorError where its weights are missing.
    """
    if name.endswith((".yaml", ".yml")):
        known = detectors_of(load(name))
    else:
        known = [configure("detectors", name, {}, Detector)]
    chosen = next((one for one in known if wanted in ("", one.detector_id)), None)
    if chosen is None:
        ids = ", ".join(one.detector_id for one in known) or "none"
        raise SpecError([f"{name}: is {ids}, not {wanted}; give the spec (.yaml) with that detector"])
    if chosen.OF_SOURCES:
        raise SpecError([f"{name}: takes its boxes from the sources of a build and cannot detect any"])
    return BoxMaker(chosen, regions)


MOST_BOXES = 1_000
"""Boxes of a picture, best first: more than any tower reads. A spec has a cap of its own."""

SAVE = 256
"""New pictures after which their boxes go into the cache."""

BATCH_PIXELS = 32_000_000
"""Pixels of the pictures that are decoded at once."""


class BoxMaker:
    """Makes boxes by a detector. regions: folder of region caches, such as STORE/regions; "" to cache nothing."""

    def __init__(self, detector: Detector, regions: str = "", max_pixels: int = MAX_PIXELS) -> None:
        self._detector, self._max_pixels = detector, max_pixels
        self._cache = Cache(Folder(regions) / detector.detector_id, "sha256") if regions else None
        self._new: dict[str, Boxes] = {}
        self.detector_id = detector.detector_id
        self.made = 0
        """Pictures that the detector has looked at so far."""

    def of(self, contents: Sequence[bytes]) -> list[npt.NDArray[np.float32] | str]:
        """Boxes [R, 4] of each picture by the content of its file, or why it cannot be read.

        Raises DetectorError, StoreError.
        """
        digests = [hashlib.sha256(content).hexdigest() for content in contents]
        headers: list[Header | str] = [self._header(content) for content in contents]
        raw = self._cached(digests)
        batch, pixels = dict[str, bytes](), 0
        for digest, content, about in zip(digests, contents, headers, strict=True):
            if isinstance(about, str) or digest in raw or digest in batch:
                continue
            batch[digest] = content
            pixels += about.pixels
            if pixels >= BATCH_PIXELS:
                raw |= self._detected(batch)
                batch, pixels = {}, 0
        raw |= self._detected(batch)
        return [
            about if isinstance(about, str) else _as_stored(raw.get(digest, NONE), about)
            for digest, about in zip(digests, headers, strict=True)
        ]

    def save(self) -> None:
        """Put the boxes that were made since into the cache."""
        if self._cache is not None and self._new:
            self._cache.put(rows_of(self._new))
        self._new = {}

    @functools.cached_property
    def _state(self) -> Any:
        return self._detector.load()

    def _header(self, content: bytes) -> Header | str:
        try:
            about = header(content)
        except PictureError as e:
            return str(e)
        return about if about.pixels <= self._max_pixels else f"{about.pixels:,} pixels, {self._max_pixels:,} allowed"

    def _cached(self, digests: Sequence[str]) -> dict[str, Boxes]:
        known = {digest: self._new[digest] for digest in digests if digest in self._new}
        rows = None if self._cache is None else self._cache.get(set(digests) - known.keys())
        return known if rows is None else {**known, **boxes_of(rows)}

    def _detected(self, contents: dict[str, bytes]) -> dict[str, Boxes]:
        """Raw boxes of pictures by sha256; of one that cannot be decoded none, which is logged, and not cached."""
        pictures = {}
        for digest, content in contents.items():
            try:
                about = header(content)
                needs_pixels = self._detector.NEEDS_PIXELS
                pictures[digest] = (
                    decode(content, self._max_pixels).pixels if needs_pixels else blank(about.width, about.height)
                )
            except PictureError as e:
                log.warning("image %s gets no boxes: %s", digest, e)
        if not pictures:
            return {}
        made = self._detect_boxes(pictures)
        self.made += len(made)
        self._new |= made
        if len(self._new) >= SAVE:
            self.save()
        return made

    def _detect_boxes(self, pictures: dict[str, npt.NDArray[np.uint8]]) -> dict[str, Boxes]:
        """Raw boxes by sha256. A batch on which the detector fails is run picture by picture."""
        try:
            return dict(zip(pictures, raw_boxes(self._detector, self._state, list(pictures.values())), strict=True))
        except OURS:
            raise
        except Exception as e:
            if len(pictures) == 1:
                (digest,) = pictures
                log.warning("image %s gets no boxes: %s", digest, evidence(e, f"image {digest}"))
                return {}
        made: dict[str, Boxes] = {}
        for digest, picture in pictures.items():
            made |= self._detect_boxes({digest: picture})
        return made


def _as_stored(raw: Boxes, about: Header) -> npt.NDArray[np.float32]:
    """Boxes [R, 4] as the contract asks for them, turned back from the picture as shown to the picture as stored."""
    boxes_R4 = cleaned(raw, about.width, about.height, MOST_BOXES)[0]
    x1, y1, x2, y2 = boxes_R4.T
    # The inverse of how decoding turns a picture (pictures/decode.py): transposed, then mirrored.
    if about.orientation in (3, 4, 7, 8):
        y1, y2 = about.height - y2, about.height - y1
    if about.orientation in (2, 3, 6, 7):
        x1, x2 = about.width - x2, about.width - x1
    sides = (y1, x1, y2, x2) if about.orientation >= 5 else (x1, y1, x2, y2)
    return np.stack(sides, axis=1).astype(np.float32)
