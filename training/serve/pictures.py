"""Stored pictures of a collection: unchanged, or as a smaller JPEG.

A picture is read from where its index says that it lies, a disk or an object store, and checked against its sha256. An
object store that is busy is 503, one that refuses is 502; the log has the URL and the reason, the client neither.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from data_specs.search.index import IndexFault
from data_specs.search.pictures import StoreFault
from data_specs.search.rows import PictureLocation
from data_specs.search.search import SearchIndex
from data_specs.storage.object_store import is_object_store
from training.data.transforms import UnreadableImage, decode
from training.serve.galleries import Gallery
from training.serve.refusals import Refused, overloaded
from training.serve.service import Service

LOG = logging.getLogger(__name__)

LARGEST_SIDE = 4096
"""Pixels of a picture that is made smaller."""

AS_STORED = ("image/jpeg", "image/png", "image/webp", "image/gif")
"""Media types that browsers show; other pictures become JPEGs."""

_Name = tuple[PictureLocation | None, str] | tuple[Path, int, str, int]
"""Key of a picture in memory: where it is stored and its sha256, or the index, its revision, the id and the side."""

_BUSY = "the object store cannot deliver this picture now; try again later"


def unknown_sample(id: str) -> Refused:
    """The answer 404 for an unknown sample id."""
    return Refused(404, "no_sample", f"sample {id[:80]!r} is not in this collection", param="id")


class Pictures:
    """Stored pictures, as they are or smaller.

    The last ones that were made smaller are kept, and those that came from an object store: a hit, its detail and a
    search by a part of it cost one request there. A takedown is seen before they are looked at.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._kept: OrderedDict[_Name, tuple[bytes, str]] = OrderedDict()
        self._lock = threading.Lock()

    async def read(self, gallery: Gallery, id: str, side: int | None) -> tuple[bytes, str]:
        """(bytes, media type) of a sample's picture. Raises Refused."""
        index = gallery.index
        if side is not None:
            return await self._service.run_fetch(lambda: self._thumbnail(index, index.revision, id, side))
        content, kind = await self.read_stored(index, id)
        if kind in AS_STORED:
            return content, kind
        return await self._service.run_fetch(lambda: self._thumbnail(index, index.revision, id, LARGEST_SIDE))

    async def read_stored(self, index: SearchIndex, id: str) -> tuple[bytes, str]:
        """(bytes, media type) of a sample's picture as it is stored. Raises Refused."""
        return await self._service.run_fetch(lambda: self._read_stored(index, id))

    def _read_stored(self, index: SearchIndex, id: str) -> tuple[bytes, str]:
        record = index.row(id)
        if record is None:
            raise unknown_sample(id)
        remote = record.where is not None and is_object_store(record.where.path)
        name = record.where, record.sha256
        if (kept := self._cached(name)) is not None:
            return kept
        try:
            found = index.picture(id)
        except StoreFault as e:
            LOG.warning("%s", e)
            if e.denied:
                raise Refused(
                    502, "store_denied", "the object store denies access to this picture; see the server's log"
                ) from None
            raise overloaded("store_busy", _BUSY, 5) from None
        except IndexFault as e:
            raise Refused(404, "no_picture", f"the picture of this sample cannot be read: {e}") from None
        if remote:
            self._cache(name, found)
        return found

    def _cached(self, name: _Name) -> tuple[bytes, str] | None:
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def _cache(self, name: _Name, found: tuple[bytes, str]) -> None:
        with self._lock:
            self._kept[name] = found
            while sum(len(content) for content, _ in self._kept.values()) > self._service.options.kept_mb << 20:
                self._kept.popitem(last=False)

    def _thumbnail(self, index: SearchIndex, revision: int, id: str, side: int) -> tuple[bytes, str]:
        """A JPEG of at most `side` pixels; `revision` makes a takedown forget what is kept."""
        name = index.folder, revision, id, side
        found = self._cached(name)
        if found is None:
            found = self._make_thumbnail(index, id, side)
            self._cache(name, found)
        return found

    def _make_thumbnail(self, index: SearchIndex, id: str, side: int) -> tuple[bytes, str]:
        content, _ = self._read_stored(index, id)
        try:
            image = decode(content, self._service.options.pixels)
        except UnreadableImage as e:
            raise Refused(404, "no_picture", f"the picture of this sample cannot be read: {e}") from None
        return _jpeg(image, side), "image/jpeg"


def _jpeg(image: Any, side: int) -> bytes:
    import simplejpeg
    from torchvision.transforms.v2 import functional

    height, width = image.shape[1:]
    share = side / max(height, width)
    if share < 1:
        size = [max(1, round(height * share)), max(1, round(width * share))]
        image = functional.resize(image, size, antialias=True)
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return bytes(simplejpeg.encode_jpeg(pixels, quality=85, colorspace="RGB"))
