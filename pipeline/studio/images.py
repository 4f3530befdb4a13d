"""Pictures of candidates: where their bytes lie, and thumbnails by the pipeline's own decoder.

    kept               the JPEG in its shard
    fetched, dropped   the bytes as fetched, in the images of the build
    not fetched        from the source on this machine, if it lies in one (`pipeline.report.pictures`)

Shown under the rules of the report: nothing whose owner opted out or that was taken down, and no picture that a filter
judged unsafe or could not judge.

Limits: the decoder is not for threads, so one picture is decoded at a time; a picture of more than MOST_PIXELS is not.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from data_specs.errors import WenlanError
from data_specs.shard import KEY_LENGTH
from pipeline.errors import StoreError
from pipeline.filters import pixel_filters
from pipeline.report import earlier_samples
from pipeline.report.hidden_content import HIDDEN, HIDDEN_PICTURES, Hide, faces_hider, hidden_images
from pipeline.report.pictures import rounded_boxes, source_pictures, thumbnail
from pipeline.report.translations import REASONS
from pipeline.rows.decisions import DropReason
from pipeline.sources import TableSource, sources_of
from pipeline.store.build import Build
from pipeline.store.images import read_images
from pipeline.store.sql import parquet
from pipeline.store.takedowns import Takedowns
from pipeline.studio.catalog import Catalog, DecisionFile
from pipeline.studio.similar import Similar

MOST_PIXELS = 50_000_000
SIDES = (160, 320, 960)
"""Longer sides in pixels of the thumbnails that are made."""
_BEFORE_BYTES = ("crawl", "extract", "admit", "fetch")
"""Stages that decide without the picture's bytes, or for want of them."""
CACHE = 24 << 20
"""Bytes of thumbnails that are kept."""

Row = dict[str, Any]


class NoPicture(Exception):
    """Raised if a picture cannot be shown. en, zh: why."""

    def __init__(self, en: str, zh: str) -> None:
        super().__init__(en)
        self.en, self.zh = en, zh


@dataclass(frozen=True, slots=True)
class Thumb:
    """A JPEG; width and height of the picture that it is made of, in pixels."""

    jpeg: bytes
    width: int
    height: int
    sha256: str


WITHHELD = {reason: REASONS[reason] for reason in HIDDEN}
"""Words, in English and Chinese, of what is never shown."""


def withheld_reason(row: Row, takedowns: Takedowns) -> tuple[str, str] | None:
    """Why neither text nor address nor picture of a row is shown, in English and Chinese; None if they are."""
    if row["reason"] in WITHHELD:
        return WITHHELD[row["reason"]]
    return WITHHELD[DropReason.FORGOTTEN.value] if takedowns.names(row) else None


class Pictures:
    """The pictures of a catalog's rows. Safe for several threads."""

    def __init__(self, catalog: Catalog, takedowns: Takedowns, index: Similar | None = None) -> None:
        """index: of a place that is a search index alone."""
        self._catalog, self._takedowns, self._index = catalog, takedowns, index
        self._decoding, self._lock = threading.Lock(), threading.Lock()
        self._places_in = functools.lru_cache(6)(self._sample_places)
        self._thumbs: OrderedDict[tuple[int, int, str], Thumb] = OrderedDict()
        self._bytes, self._hiders = 0, dict[str, Hide | None]()

    def thumb(self, row: Row, side: int) -> Thumb:
        """A thumbnail whose longer side is at most the smallest of SIDES that reaches `side`. Raises NoPicture."""
        side = next((own for own in SIDES if own >= side), SIDES[-1])
        return self._cached_thumb((row["pos"], side, ""), side, lambda: self.bytes_of(row), self._hide(row))

    def earlier_thumb(self, row: Row, candidate_id: str, side: int) -> Thumb:
        """Returns the picture of the sample of an earlier build that a row duplicates. Raises NoPicture."""

        def read() -> tuple[bytes, str]:
            build = self._source(row).build
            held = {} if build is None else earlier_samples.holders(build, {candidate_id})
            for own, data in earlier_samples.samples(held):
                self._check_image(build, own["sha256"])
                if self._takedowns.names(own):
                    raise NoPicture(*WITHHELD[DropReason.FORGOTTEN.value])
                return data, own["sha256"]
            raise NoPicture("its build is missing", "保存它的构建不在手边")

        return self._cached_thumb((row["pos"], side, candidate_id), side, read, self._hide(row))

    def _hide(self, row: Row) -> Hide | None:
        """Returns the mosaic for a row's picture, if its build's spec blurs faces."""
        build = self._source(row).build
        if build is None or build.spec.shards.faces == "keep":
            return None
        with self._decoding:
            if build.out not in self._hiders:
                self._hiders[build.out] = faces_hider(build.spec)
            return self._hiders[build.out]

    def _cached_thumb(self, key: tuple[int, int, str], side: int, read: Any, hide: Hide | None) -> Thumb:
        with self._lock:
            if key in self._thumbs:
                self._thumbs.move_to_end(key)
                return self._thumbs[key]
        data, sha256 = read()
        with self._decoding:
            made = thumbnail(data, side, MOST_PIXELS, sha256, hide)
        if made is None:
            raise NoPicture("it cannot be decoded", "无法解码")
        thumb = Thumb(*made, sha256)
        with self._lock:
            self._thumbs[key] = thumb
            self._bytes += len(thumb.jpeg)
            while self._bytes > CACHE:
                self._bytes -= len(self._thumbs.popitem(last=False)[1].jpeg)
        return thumb

    def bytes_of(self, row: Row) -> tuple[bytes, str]:
        """(bytes, sha256 of the picture as fetched). Raises NoPicture."""
        if row["subject"] != "candidate":
            raise NoPicture("this is a page", "这是网页")
        if why := withheld_reason(row, self._takedowns):
            raise NoPicture(*why)
        source = self._source(row)
        if {row["id"], row["duplicate_of"]} & self._unsafe_ids:
            raise NoPicture("a filter judged it unsafe, or could not judge it", "过滤器判定其不宜展示，或无法判定")
        try:
            found = (
                self._shard_image(source, row)
                if source.shard is not None and row["kept"]
                else self._fetched_image(source, row)
            )
        except (WenlanError, OSError):
            found = None
        if found is None:
            raise NoPicture(*self._missing_reason(source, row))
        self._check_image(source.build, found[1])
        return found

    def may_have(self, row: Row) -> bool:
        """True if it is worth asking for a picture: without looking, so that a listing asks for none in vain."""
        if row["subject"] != "candidate" or withheld_reason(row, self._takedowns):
            return False
        return row["stage"] not in _BEFORE_BYTES or row["source"] in self._in_sources

    @functools.cached_property
    def _in_sources(self) -> frozenset[str]:
        """Sources whose pictures lie in them: those of candidates that were never fetched may be read there."""
        builds = self._catalog.frames.builds
        return frozenset(
            s.name for b in builds for s in sources_of(b.spec) if isinstance(s, TableSource) and _has_pictures(s)
        )

    def _source(self, row: Row) -> DecisionFile:
        return self._catalog.source(row["pos"])

    def _check_image(self, build: Build | None, sha256: str) -> None:
        """Raises NoPicture for an image, by its bytes, that may not be shown."""
        if sha256 in self._takedowns.hashes:
            raise NoPicture(*WITHHELD[DropReason.FORGOTTEN.value])
        if build is not None and pixel_filters(build.spec) and hidden_images(build, [sha256]):
            raise NoPicture("a filter judged it unsafe", "过滤器判定其不宜展示")

    def _shard_image(self, source: DecisionFile, row: Row) -> tuple[bytes, str] | None:
        """Returns a sample's picture from its shard."""
        assert source.shard is not None
        folder, shard = source.shard
        places = self._places_in(folder.at(shard.parquet.path), shard.parquet.bytes)
        offset, size, sha256 = places.get(row["id"][:KEY_LENGTH], (-1, 0, ""))
        if not 0 <= offset <= offset + size <= shard.tar.bytes:
            return None
        return folder.read_range(shard.tar.path, offset, size), sha256

    def _sample_places(self, url: str, size: int) -> dict[str, tuple[int, int, str]]:
        """(offset, size, sha256) of the samples of a shard, by key. size: of its Parquet, so that a new one is read."""
        rows = self._catalog.query(f"SELECT key, image_offset, image_size, sha256 FROM {parquet([url])}")
        return {key: (offset, size, sha256) for key, offset, size, sha256 in rows}

    def stored_boxes(self, row: Row) -> dict[str, list[list[float]]]:
        """Regions of a sample [[x1, y1, x2, y2, score], ...] by detector, as its shard holds them; empty for others.

        A detector whose file is missing has none.
        """
        shard = self._source(row).shard if row["kept"] else None
        if shard is None:
            return {}
        found: dict[str, list[list[float]]] = {name: [] for name in shard[1].regions}
        for name, file in shard[1].regions.items():
            with contextlib.suppress(StoreError):
                sql = f"SELECT boxes, scores FROM {parquet([shard[0].at(file.path)])} WHERE key = ?"
                for boxes, scores in self._catalog.query(sql, [row["id"][:KEY_LENGTH]]):
                    found[name] = rounded_boxes(boxes, scores)
        return found

    def _fetched_image(self, source: DecisionFile, row: Row) -> tuple[bytes, str] | None:
        """Returns the fetched picture of a dropped candidate, or its source's; of a search index, its picture."""
        build = source.build
        if source.layout == "index" and self._index is not None:
            return self._index.picture(row["row_id"])[0], ""
        if build is None:
            return None
        if "fetch" in build.fingerprints:
            for image in read_images(build, [row["fetch_id"]], sparse=True):
                return bytes(image.data), image.sha256
        for image in source_pictures(build, [row], self._takedowns):
            return bytes(image.data), image.sha256
        return None

    def _missing_reason(self, source: DecisionFile, row: Row) -> tuple[str, str]:
        """Returns the reason for missing bytes."""
        if row["stage"] in _BEFORE_BYTES:
            return "it was not fetched", "没有获取图片"
        return "its bytes are no longer stored: deleted by gc, or taken down", "图片已不再保存：被 gc 清理或已下架"

    @functools.cached_property
    def _unsafe_ids(self) -> frozenset[str]:
        """Candidates that a judge dropped for a reason that forbids to show them."""
        sql = "SELECT id FROM decisions WHERE stage = 'curate' AND list_has_any(reasons, ?::VARCHAR[])"
        return frozenset(name for (name,) in self._catalog.query(sql, [sorted(HIDDEN_PICTURES)]))


def _has_pictures(source: TableSource) -> bool:
    """True if pictures of a source may lie in it: not of a table that has addresses alone."""
    return bool(source.root()) or type(source).plugin_name() == "webdataset"
