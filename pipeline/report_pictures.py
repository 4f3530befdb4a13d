"""Pictures of the quality report: a sheet of kept and dropped samples, and the largest duplicate clusters.

The sheet is a random sample that is the same every time: of each kind of fate the candidates with the smallest keyed
hash of their id are taken, half of the sheet for kept ones, the other half in turn for each reason to drop. Candidates
that were dropped before their image was fetched are shown by their text.

Never shown, neither picture nor text nor URL: what was opted out, refused by robots.txt or by the guard, or is on
STORE's list of takedowns (by URL, by image or by domain).

Limits: memory is one partition's decisions and the chosen rows; thumbnails end at a budget of bytes.
"""

from __future__ import annotations

import base64
import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_specs.shard import KEY_LENGTH
from pipeline.images import FetchedImage, read_images
from pipeline.records import DropReason, order_key, sha256_hex
from pipeline.report_figures import trim
from pipeline.shards import detector_ids
from pipeline.store import Build
from pipeline.urls import host_names

HIDDEN = frozenset(
    reason.value
    for reason in (
        DropReason.OPT_OUT,
        DropReason.FORGOTTEN,
        DropReason.ROBOTS_DISALLOWED,
        DropReason.ROBOTS_UNREACHABLE,
        DropReason.EGRESS_REFUSED,
    )
)
CLUSTERS, MEMBERS = 6, 8
PICTURE_BUDGET = 3_000_000
"""Bytes of all thumbnails together, so that the page stays below 5 MB as base64."""


@dataclass
class Choice:
    """What of the decisions is shown: `sheet` rows, and `clusters` of rows with the leader first."""

    sheet: list[dict[str, Any]] = field(default_factory=list)
    clusters: list[dict[str, Any]] = field(default_factory=list)
    hidden: int = 0
    duplicates: int = 0

    def rows(self) -> list[dict[str, Any]]:
        return [*self.sheet, *(member for cluster in self.clusters for member in cluster["members"])]


class Takedowns:
    """STORE's list of takedowns, asked about a row of the decisions."""

    def __init__(self, hashes: set[str]) -> None:
        self._hashes = hashes

    def names(self, row: dict[str, Any]) -> bool:
        """Whether a row's image URL, or the domain of image or page (or one above it), is on the list."""
        if not self._hashes:
            return False
        hosts = [name for url in (row["url"], row["page_url"]) for name in host_names(url)]
        return row["fetch_id"] in self._hashes or any(sha256_hex(name) in self._hashes for name in hosts)

    def names_image(self, sha256: str) -> bool:
        return sha256 in self._hashes


def choose(build: Build, takedowns: Takedowns) -> Choice:
    """Choose what is shown, in two passes over the decisions."""
    fates: dict[str, _Smallest] = {}
    sizes: Counter[str] = Counter()
    choice = Choice()
    wanted = build.spec.report.pictures
    opted_out: set[str] = set()
    for table in build.decisions():
        table = table.filter(pc.equal(table["subject"], "candidate"))
        opted_out.update(table.filter(pc.is_in(table["reason"], pa.array(sorted(HIDDEN))))["fetch_id"].to_pylist())
        for leader in table["duplicate_of"].to_pylist():
            if leader:
                sizes[leader] += 1
        trim(sizes)
        for row in table.to_pylist():
            if row["reason"] in HIDDEN or takedowns.names(row):
                choice.hidden += 1
                continue
            fates.setdefault(row["reason"], _Smallest(wanted)).offer(order_key(row["id"], build.spec.seed), row)
    choice.sheet = [row for row in _balanced(fates, wanted) if row["fetch_id"] not in opted_out]
    choice.duplicates = sum(sizes.values())
    top = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[: 2 * CLUSTERS]
    choice.clusters = _clusters(build, dict(top), takedowns, opted_out)
    return choice


class _Smallest:
    """The rows with the smallest keys of all that were offered."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[int, int, dict[str, Any]]] = []
        self._offered = 0

    def offer(self, key: str, row: dict[str, Any]) -> None:
        self._offered += 1
        entry = (-int(key, 16), -self._offered, row)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, entry)
        elif self._heap and entry[0] > self._heap[0][0]:
            heapq.heapreplace(self._heap, entry)

    def rows(self) -> list[dict[str, Any]]:
        """Smallest key first, an image URL once: an icon that stands on every page would fill the sheet."""
        first: dict[str, dict[str, Any]] = {}
        for _, _, row in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1])):
            first.setdefault(row["fetch_id"] or row["id"], row)
        return list(first.values())


def _balanced(fates: dict[str, _Smallest], wanted: int) -> list[dict[str, Any]]:
    """Half kept, half dropped in turn over the reasons; a half that is short leaves its room to the other."""
    kept = fates[""].rows() if "" in fates else []
    piles = [fates[reason].rows() for reason in sorted(fates) if reason]
    dropped: list[dict[str, Any]] = []
    for depth in range(max(map(len, piles), default=0)):
        dropped += [pile[depth] for pile in piles if depth < len(pile)]
    half = wanted // 2
    take_dropped = min(len(dropped), max(half, wanted - len(kept)))
    return kept[: wanted - take_dropped] + dropped[:take_dropped]


def _clusters(build: Build, sizes: dict[str, int], takedowns: Takedowns, opted_out: set[str]) -> list[dict[str, Any]]:
    """The largest clusters, each with its leader first and then at most MEMBERS - 1 of its duplicates."""
    members: dict[str, dict[str, dict[str, Any]]] = {leader: {} for leader in sizes}
    leaders = pa.array(sorted(sizes), pa.string())
    for table in build.decisions():
        mask = pc.or_(pc.is_in(table["duplicate_of"], leaders), pc.is_in(table["id"], leaders))
        for row in table.filter(mask).to_pylist():
            if takedowns.names(row) or row["fetch_id"] in opted_out or row["reason"] in HIDDEN:
                continue
            for leader in {row["id"], row["duplicate_of"]} & set(members):
                known = members[leader]
                if row["id"] == leader and not row["kept"] and leader in known:
                    continue  # the same candidate seen a second time; the first row says it was kept
                known[row["id"]] = row
                if len(known) > MEMBERS:
                    del known[max(set(known) - {leader})]
    found: list[dict[str, Any]] = []
    for leader, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        rows = sorted(members[leader].values(), key=lambda row: (row["id"] != leader, row["id"]))
        if rows and len(found) < CLUSTERS:
            found.append({"leader": leader, "size": size + 1, "members": rows})
    return found


def add_pictures(build: Build, rows: Iterable[dict[str, Any]], takedowns: Takedowns) -> None:
    """Give each row `picture`: a JPEG thumbnail as a data: URI, "" where there is none, and its sides as stored."""
    rows = list(rows)
    for row in rows:
        row["picture"], row["width"], row["height"], row["boxes"] = "", 0, 0, {}
    spent = 0
    by_fetch_id: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_fetch_id.setdefault(row["fetch_id"], []).append(row)
    thumbnails = {}
    for image in read_images(build, [fetch_id for fetch_id in by_fetch_id if fetch_id], sparse=True):
        if not takedowns.names_image(image.sha256):
            thumbnails[image.fetch_id] = _thumbnail(build, image)
    for row in rows:  # in the order of the page, so that what the budget cuts off is its end
        thumbnail = thumbnails.get(row["fetch_id"])
        if thumbnail is None:
            continue
        data, row["width"], row["height"] = thumbnail
        if spent + len(data) <= PICTURE_BUDGET:
            row["picture"] = "data:image/jpeg;base64," + base64.b64encode(data).decode()
            spent += len(data)


def _thumbnail(build: Build, image: FetchedImage) -> tuple[bytes, int, int] | None:
    """(JPEG bytes, width, height of the picture as shown); None for bytes that do not decode."""
    from PIL import Image

    from pipeline import pictures

    side = build.spec.report.picture_side
    try:
        picture = pictures.decode(image.data, build.spec.fetch.max_pixels, reduce_to=side)
    except pictures.PictureError:
        return None
    width, height = picture.header.width, picture.header.height
    scale = min(1.0, side / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(picture.pixels, "RGB").resize(size, Image.Resampling.LANCZOS)
    return pictures.encode_jpeg(_array(small), 72), width, height


def _array(image: Any) -> Any:
    import numpy as np

    return np.asarray(image)


def add_boxes(build: Build, rows: Iterable[dict[str, Any]]) -> None:
    """Give kept rows `boxes`: detector id -> [[x1, y1, x2, y2, score], ...], from the regions of the shards."""
    kept: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["kept"] and row["picture"]:
            kept.setdefault(row["id"][:KEY_LENGTH], []).append(row)
    if not kept:
        return
    stage = build.stage("shard")
    keys = pa.array(sorted(kept), pa.string())
    for record in stage.records():
        for detector in detector_ids(build):
            with stage.file(record, f"regions/{detector}") as path:
                table = pq.read_table(path, columns=["key", "boxes", "scores"], filters=pc.field("key").isin(keys))
            for entry in table.to_pylist():
                boxes = [entry["boxes"][i : i + 4] for i in range(0, len(entry["boxes"]), 4)]
                found = [[*(round(x, 1) for x in b), round(s, 3)] for b, s in zip(boxes, entry["scores"], strict=True)]
                for row in kept[entry["key"]]:
                    row["boxes"][detector] = found
