"""Pictures of the rows that a report shows: thumbnails, and the boxes that are drawn on them.

Candidates that were dropped before their image was fetched are shown by their text, and with the picture if it lies in
their source. Regions are drawn on kept samples as their shards hold them; a dropped candidate never reached `detect`.

Items that were dropped as not safe for work, and copies of them, are shown without their picture; so are, where the
spec has a filter that looks at pixels, pictures of a source that no stage has looked at
(`pipeline.report.hidden_content`).

A picture that no stage has read is read from its source as carefully as stages do it: what was taken down, or looks
like it, is not returned, and nothing where the spec has a filter that looks at pixels.

Limits: thumbnails stop at a budget of bytes.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import logging
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import KEY_LENGTH
from pipeline.detectors import detector_ids
from pipeline.errors import OURS, SourceError, evidence
from pipeline.features import feature_id
from pipeline.filters import pixel_filters
from pipeline.pictures import decode as pictures
from pipeline.pictures.encode import stored_sides
from pipeline.report.hidden_content import Hide, faces_hider, hidden_candidates, hidden_images
from pipeline.rows.records import PROVENANCE
from pipeline.sources import TableSource, sources_of
from pipeline.store.build import Build, in_funnel
from pipeline.store.image_features import measure_images
from pipeline.store.images import FetchedImage, read_images
from pipeline.store.sql import Tables
from pipeline.store.takedowns import Takedowns

log = logging.getLogger("wenlan")

PICTURE_BUDGET = 3_000_000
"""Total bytes of the thumbnails: as base64 they keep the page below 5 MB."""


def add_pictures(
    build: Build,
    tables: Tables,
    rows: Iterable[dict[str, Any]],
    takedowns: Takedowns,
    foreign: Mapping[str, bytes] = types.MappingProxyType({}),
    budget: int = PICTURE_BUDGET,
    side: int = 0,
    hide: Hide | None = None,
) -> None:
    """Set each row's `picture` (JPEG thumbnail as a data: URI, or "") and its image's `sha256`, `width`, `height`.

    foreign: images of rows that are samples of other builds, by candidate_id. budget: bytes of all thumbnails. side: of
    a thumbnail, in pixels; 0 for what the spec says. hide: what makes faces unrecognisable, if the spec keeps them.
    """
    sizes = side or build.spec.report.picture_side, build.spec.fetch.max_pixels
    hide = faces_hider(build.spec) or hide
    rows = list(rows)
    sha256_of = {row["id"]: row["sha256"] for row in rows if row["id"] in foreign}
    for row in rows:
        row["picture"], row["sha256"], row["width"], row["height"], row["boxes"] = "", "", 0, 0, {}
    spent = 0
    thumbnails = {}
    hidden = hidden_candidates(tables, (row[name] for row in rows for name in ("id", "duplicate_of")))
    own_rows = [row for row in rows if row["fetch_id"] and row["id"] not in foreign]
    to_show = {row["fetch_id"] for row in own_rows if not {row["id"], row["duplicate_of"]} & hidden}
    foreign_images = (FetchedImage(name, sha256, foreign[name]) for name, sha256 in sha256_of.items())
    fetched = read_images(build, sorted(to_show), sparse=True)
    for image in itertools.chain(fetched, source_pictures(build, own_rows, takedowns), foreign_images):
        if image.sha256 in takedowns.hashes or hidden_images(build, [image.sha256]):
            continue
        if small := thumbnail(image.data, *sizes, image.sha256, hide):
            thumbnails[image.fetch_id] = (image.sha256, *small)
    for row in rows:  # in the order of the page, so that the budget runs out at its end
        own_thumbnail = thumbnails.get(row["id"] if row["id"] in foreign else row["fetch_id"])
        if own_thumbnail is None or {row["id"], row["duplicate_of"]} & hidden:
            continue
        row["sha256"], data, row["width"], row["height"] = own_thumbnail
        if spent + len(data) <= budget:
            row["picture"] = "data:image/jpeg;base64," + base64.b64encode(data).decode()
            spent += len(data)


def thumbnail(
    data: bytes | memoryview, side: int, max_pixels: int, name: str, hide: Hide | None = None
) -> tuple[bytes, int, int] | None:
    """(JPEG of the thumbnail, width and height of the picture itself); None for bytes that do not decode.

    hide: what makes faces unrecognisable, of a dataset that must show none; it sees the picture as `detect` does.
    """
    import numpy as np
    from PIL import Image

    try:
        picture = pictures.decode(data, max_pixels, reduce_to=0 if hide else side)
        pixels = hide(picture.pixels) if hide else picture.pixels
    except pictures.PictureError:
        return None
    except OURS:
        raise
    except Exception as e:
        log.warning("no thumbnail: %s", evidence(e, f"image {name}"))
        return None
    width, height = picture.header.width, picture.header.height
    scale = min(1.0, side / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(pixels, "RGB").resize(size, Image.Resampling.LANCZOS)
    return pictures.encode_jpeg(np.asarray(small), 72), width, height


def add_boxes(build: Build, tables: Tables, rows: Iterable[dict[str, Any]]) -> None:
    """Set `boxes` of kept rows with a picture, from the regions of the shards.

    By detector id: [[x1, y1, x2, y2, score], ...] in pixels of the stored image.
    """
    rows_of_key: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["picture"] and row["kept"]:
            rows_of_key.setdefault(row["id"][:KEY_LENGTH], []).append(row)
    sql = "SELECT detector, key, boxes, scores FROM regions WHERE key IN (SELECT unnest(?::VARCHAR[]))"
    order = detector_ids(build.spec).index
    stored = tables.rows(sql, [sorted(rows_of_key)]) if rows_of_key else ()
    for found in sorted(stored, key=lambda own: order(own["detector"])):
        for row in rows_of_key[found["key"]]:
            row["boxes"][found["detector"]] = rounded_boxes(found["boxes"], found["scores"])
    for row in (row for rows in rows_of_key.values() for row in rows):
        sides = stored_sides(row["width"], row["height"], build.spec.shards.max_side)
        row["width"], row["height"] = map(int, sides)


def rounded_boxes(boxes: Sequence[float], scores: Sequence[float]) -> list[list[float]]:
    """[[x1, y1, x2, y2, score], ...], rounded to more than a thumbnail shows. boxes: four numbers each, flattened."""
    numbers = [round(x, 1) for x in boxes]
    return [[*numbers[4 * at : 4 * at + 4], round(score, 3)] for at, score in enumerate(scores)]


def source_pictures(build: Build, rows: Iterable[dict[str, Any]], takedowns: Takedowns) -> Iterator[FetchedImage]:
    """Pictures of rows that were dropped before `fetch` read them, where they lie in the row's source."""
    before = set(in_funnel(build, "extract", "admit"))
    sources = {source.name: source for source in sources_of(build.spec) if isinstance(source, TableSource)}
    waiting = {row["id"]: row for row in rows if row["stage"] in before and row["source"] in sources}
    if not waiting or pixel_filters(build.spec):
        return
    places = {name: row["url"] for name, row in waiting.items()}
    wanted = pc.field("candidate_id").isin(pa.array(sorted(waiting), pa.string()))
    stage = build.stage("extract")
    for record in stage.records():
        if PROVENANCE in record.files:
            stored = stage.table(
                record, PROVENANCE, ["candidate_id", "stored_at"], wanted & (pc.field("stored_at") != "")
            )
            places |= dict(zip(*(stored[name].to_pylist() for name in stored.column_names), strict=True))
    for name, row in waiting.items():
        try:
            data = sources[row["source"]].read_image(places[name])
        except SourceError:  # it was moved or is not mounted: the report says what it can without it
            return
        except OURS:
            raise
        except Exception as e:
            log.warning("the report shows no thumbnail: %s", evidence(e, places[name]))
            continue
        if data is not None and not _looks_forgotten(build, data, takedowns):
            yield FetchedImage(row["fetch_id"], hashlib.sha256(data).hexdigest(), data)


def _looks_forgotten(build: Build, data: bytes, takedowns: Takedowns) -> bool:
    """True if a picture that `measure` has not seen looks like one that was taken down; also if that cannot be told."""
    if not takedowns.looks:
        return False
    rows, faults = measure_images([("", data)], build.spec.fetch.max_pixels)
    return bool(faults) or bool(takedowns.alike(rows, feature_id()))
