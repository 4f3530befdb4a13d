"""Pictures of the quality report: a sheet of kept and dropped samples, and the largest duplicate clusters.

The sheet is a random but reproducible sample, new ones first: for each fate (kept, or a reason to drop) it takes the
candidates with the smallest keyed hash of their id. Half of the sheet shows kept candidates, the other half the reasons
in turn. Candidates that were dropped before their image was fetched are shown by their text, and with the picture if it
lies in their source.

Regions are drawn on kept samples as their shards hold them. A dropped candidate never reached `detect`: its boxes come
from STORE's cache if any build has detected them. Otherwise the spec's first detector runs here, and so does every
detector that needs no pixels.

Never shown, neither picture nor text nor URL: items that were opted out, refused by robots.txt or by the address guard,
or are on STORE's list of takedowns (by URL, image or domain). Items that `screen` dropped as not safe for work, and
copies of them, are shown without their picture; so are, where the spec has a filter that looks at pixels, pictures of a
source that no stage has looked at.

Limits: memory is one partition's decisions and the chosen rows; thumbnails stop at a budget of bytes.
"""

from __future__ import annotations

import base64
import itertools
import logging
import types
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import KEY_LENGTH
from pipeline.detectors import Boxes, Detector, detector_ids, detectors_of
from pipeline.detectors._boxes import blank, boxes_of, cleaned, look, most_boxes
from pipeline.pictures import decode as pictures
from pipeline.pictures.encode import stored_sides
from pipeline.records import BOX_SCHEMA, DropReason, order_key, sha256_hex
from pipeline.report import elsewhere
from pipeline.report.at_source import in_sources
from pipeline.report.figures import trim
from pipeline.report.unshown import Hide, faces_hider, unshown_candidates, unshown_images
from pipeline.store.build import Build
from pipeline.store.frames import Frames
from pipeline.store.images import read_images
from pipeline.store.takedowns import Takedowns
from pipeline.unreadable import OURS, evidence

log = logging.getLogger("wenlan")

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
"""Reasons whose candidates are never shown."""
CLUSTERS, MEMBERS = 6, 8
"""Groups of duplicates on the page, and rows shown of each."""
KNOWN = 14
"""Rows of the sheet that show what the dataset holds already."""
PICTURE_BUDGET = 3_000_000
"""Total bytes of the thumbnails: as base64 they keep the page below 5 MB."""


class Ids:
    """Ids, of which a dataset may have millions, by their first 64 bits: 8 bytes each, where text takes 150.

    Two that begin alike count as one.
    """

    def __init__(self) -> None:
        self._sorted, self._added = np.zeros(0, np.uint64), list[npt.NDArray[np.uint64]]()

    def update(self, ids: Iterable[str]) -> None:
        """Add ids, in hexadecimal; "" is none."""
        self._added.append(np.array([int(one[:16], 16) for one in ids if one], np.uint64))

    def __contains__(self, one: str) -> bool:
        if self._added:
            self._sorted, self._added = np.unique(np.concatenate([self._sorted, *self._added])), []
        if not one:
            return False
        head = np.uint64(int(one[:16], 16))
        at = int(np.searchsorted(self._sorted, head))
        return at < len(self._sorted) and bool(self._sorted[at] == head)


@dataclass
class Choice:
    """The rows of the decisions that the page shows.

    sheet: kept and dropped candidates. clusters: groups of duplicates, each with its leader first. hidden: how many
    candidates may not be shown. duplicates: how many candidates duplicate another one; known ones are none.
    elsewhere: stored JPEGs of leaders that an earlier build kept, by candidate_id. opted_out: fetch_ids of images, and
    ids of pages, that are never shown.
    """

    sheet: list[dict[str, Any]] = field(default_factory=list)
    clusters: list[dict[str, Any]] = field(default_factory=list)
    hidden: int = 0
    duplicates: int = 0
    sizes: list[int] = field(default_factory=list)
    """Of all groups of duplicates, leaders included."""
    elsewhere: dict[str, bytes] = field(default_factory=dict)
    opted_out: Ids = field(default_factory=Ids)

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the order of the page."""
        return [*self.sheet, *(member for cluster in self.clusters for member in cluster["members"])]


def choose(build: Build, takedowns: Takedowns) -> Choice:
    """Choose the rows to show: two passes over the decisions, for the sheet and the clusters, then the whole rows."""
    fates: dict[str, _Smallest] = {}
    sizes: Counter[str] = Counter()
    choice = Choice()
    size = build.spec.report.pictures
    opted_out = choice.opted_out
    for number, table in enumerate(Frames.of(build).tables("decisions", _columns(takedowns))):
        pages = table.filter(pc.equal(table["subject"], "capture"))
        opted_out.update(pages.filter(pc.equal(pages["reason"], DropReason.OPT_OUT.value))["id"].to_pylist())
        table = table.append_column("at", pa.array(np.arange(table.num_rows))).filter(
            pc.equal(table["subject"], "candidate")
        )
        opted_out.update(table.filter(pc.is_in(table["reason"], pa.array(sorted(HIDDEN))))["fetch_id"].to_pylist())
        copies = table.filter(pc.not_equal(table["duplicate_of"], ""))
        choice.duplicates += pc.sum(pc.not_equal(copies["reason"], DropReason.KNOWN.value)).as_py() or 0
        # a known candidate that is itself the sample held, found again, is no copy
        sizes.update(copies.filter(pc.not_equal(copies["duplicate_of"], copies["id"]))["duplicate_of"].to_pylist())
        trim(sizes)
        visible = _visible(table, takedowns)
        choice.hidden += table.num_rows - visible.num_rows
        for reason in pc.unique(visible["reason"]).to_pylist():
            own = visible.filter(pc.equal(visible["reason"], reason))
            keys = [int(order_key(name, build.spec.seed), 16) for name in own["id"].to_pylist()]
            fates.setdefault(reason, _Smallest(size)).add(np.array(keys, np.uint64), number, own)
    sheet = [place for place in _balanced(fates, size) if place.fetch_id not in opted_out]
    choice.sizes = [duplicates + 1 for duplicates in sizes.values()]
    top = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[: 2 * CLUSTERS]
    clusters = _clusters(build, dict(top), takedowns, opted_out)
    rows = _rows(build, [*sheet, *(place for _, _, members in clusters for place in members)])
    choice.sheet = [rows[place] for place in sheet]
    for leader, of_leader, members in clusters:
        own_rows = [dict(rows[place]) for place in members]  # one that is on the sheet as well is shown twice
        choice.clusters.append({"leader": leader, "size": of_leader, "members": own_rows, "held_by": ""})
    _add_leaders_elsewhere(build, choice, takedowns, opted_out)
    return choice


PLACED, NAMED = ("subject", "id", "fetch_id", "reason", "kept", "duplicate_of"), ("url", "page_url")
"""Columns of the decisions by which rows are chosen, and those that takedowns look at. The others, most of the bytes,
are read of what is shown."""


def _columns(takedowns: Takedowns) -> tuple[str, ...]:
    return (*PLACED, *NAMED) if takedowns.hashes else PLACED


class _Place(NamedTuple):
    """Where a row of the decisions is: its file, and its number in it."""

    part: int
    at: int
    id: str
    fetch_id: str


def _places(part: int, rows: pa.Table) -> list[_Place]:
    """The places of rows of PLACED with their numbers `at` in a file."""
    columns = (rows[name].to_pylist() for name in ("at", "id", "fetch_id"))
    return [_Place(part, *values) for values in zip(*columns, strict=True)]


def _rows(build: Build, places: Iterable[_Place]) -> dict[_Place, dict[str, Any]]:
    """The decisions at some places, file by file."""
    wanted: dict[int, set[_Place]] = {}
    for place in places:
        wanted.setdefault(place.part, set()).add(place)
    rows: dict[_Place, dict[str, Any]] = {}
    for number, part in enumerate(Frames.of(build).parts("decisions")):
        own = sorted(wanted.get(number, ()))
        if own:
            rows |= zip(own, part.table().take(pa.array([place.at for place in own])).to_pylist(), strict=True)
    return rows


def _visible(decisions: pa.Table, takedowns: Takedowns) -> pa.Table:
    """The decisions whose picture may be shown."""
    decisions = decisions.filter(pc.invert(pc.is_in(decisions["reason"], pa.array(sorted(HIDDEN)))))
    if not takedowns.hashes:
        return decisions
    named = decisions.select(["fetch_id", "url", "page_url"]).to_pylist()
    return decisions.filter(pa.array([not takedowns.names(row) for row in named], pa.bool_()))


class _Smallest:
    """The `count` rows with the smallest keys of all that are added; of equal keys the earliest stay."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._keys = np.zeros(0, np.uint64)
        self._places: list[_Place] = []

    def add(self, keys: npt.NDArray[np.uint64], part: int, rows: pa.Table) -> None:
        """Keep those rows of a file that belong to the smallest. keys [N]; rows [N] of PLACED with `at`."""
        full = len(self._keys) >= self._count
        low = np.flatnonzero(keys < self._keys[-1]) if full and self._count else np.arange(0 if full else len(keys))
        low = low[np.argsort(keys[low], kind="stable")[: self._count]]
        every = np.concatenate([self._keys, keys[low]])
        places = [*self._places, *_places(part, rows.take(pa.array(low)))]
        order = np.argsort(every, kind="stable")[: self._count]
        self._keys, self._places = every[order], [places[at] for at in order]

    def places(self) -> list[_Place]:
        """The rows, smallest key first, one per image URL: an icon that is on every page would fill the sheet."""
        first: dict[str, _Place] = {}
        for place in self._places:
            first.setdefault(place.fetch_id or place.id, place)
        return list(first.values())


def _balanced(fates: dict[str, _Smallest], size: int) -> list[_Place]:
    """Half kept, half dropped, the reasons in turn. If one half has too few rows, the other takes its room.

    Few of those that are known: the report of the build that holds them shows them.
    """
    known = DropReason.KNOWN.value
    kept = fates[""].places() if "" in fates else []
    piles = [fates[reason].places()[: KNOWN if reason == known else size] for reason in sorted(fates) if reason]
    dropped: list[_Place] = []
    for depth in range(max(map(len, piles), default=0)):
        dropped += [pile[depth] for pile in piles if depth < len(pile)]
    half = size // 2
    take_dropped = min(len(dropped), max(half, size - len(kept)))
    return kept[: size - take_dropped] + dropped[:take_dropped]


def _clusters(
    build: Build, sizes: dict[str, int], takedowns: Takedowns, opted_out: Ids
) -> list[tuple[str, int, list[_Place]]]:
    """(leader, size, members) of the largest clusters, the leader first and at most MEMBERS - 1 of its duplicates.

    sizes: duplicates of each leader, for more leaders than are shown, since whole clusters may be hidden.
    """
    members: dict[str, dict[str, _Place]] = {leader: {} for leader in sizes}
    leaders = pa.array(sorted(sizes), pa.string())
    for number, table in enumerate(Frames.of(build).tables("decisions", _columns(takedowns))):
        mask = pc.or_(pc.is_in(table["duplicate_of"], leaders), pc.is_in(table["id"], leaders))
        named = table.append_column("at", pa.array(np.arange(table.num_rows))).filter(mask)
        for place, row in zip(_places(number, named), named.to_pylist(), strict=True):
            if row["fetch_id"] in opted_out or row["reason"] in HIDDEN:
                continue
            if takedowns.hashes and takedowns.names(row):
                continue
            for leader in {row["id"], row["duplicate_of"]} & set(members):
                cluster = members[leader]
                if row["id"] == leader and not row["kept"] and leader in cluster:
                    continue  # the same candidate came a second time and was dropped; its first row says it was kept
                cluster[row["id"]] = place
                if len(cluster) > MEMBERS:  # the leader stays, and of the duplicates those with the smallest ids
                    del cluster[max(set(cluster) - {leader})]
    clusters: list[tuple[str, int, list[_Place]]] = []
    for leader, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        places = sorted(members[leader].values(), key=lambda place: (place.id != leader, place.id))
        if places and len(clusters) < CLUSTERS:
            clusters.append((leader, size + 1, places))
    return clusters


def _add_leaders_elsewhere(build: Build, choice: Choice, takedowns: Takedowns, opted_out: Ids) -> None:
    """Name the build that holds the leader of a cluster, if it is an earlier one, and show what it holds."""
    own = {row["id"] for cluster in choice.clusters for row in cluster["members"] if row["kept"]}
    held = elsewhere.holders(build, {cluster["leader"] for cluster in choice.clusters} - own)
    for cluster in choice.clusters:
        if cluster["leader"] in held:
            cluster["held_by"] = held[cluster["leader"]].build_id
    found = {row["id"]: (row, data) for row, data in elsewhere.samples(held)}
    for cluster in choice.clusters:
        here = any(row["id"] == cluster["leader"] for row in cluster["members"])
        row, data = found.get(cluster["leader"], ({}, b""))
        if here or not row or row["fetch_id"] in opted_out or sha256_hex(row["page_url"]) in opted_out:
            continue
        if takedowns.names(row) or row["sha256"] in takedowns.hashes:
            continue
        cluster["members"] = [row, *cluster["members"]][:MEMBERS]
        choice.elsewhere[row["id"]] = data


def add_pictures(
    build: Build,
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
    unshown = unshown_candidates(build, (row[name] for row in rows for name in ("id", "duplicate_of")))
    own = [row for row in rows if row["fetch_id"] and row["id"] not in foreign]
    asked = {row["fetch_id"] for row in own if not {row["id"], row["duplicate_of"]} & unshown}
    for image in itertools.chain(read_images(build, sorted(asked), sparse=True), in_sources(build, own, takedowns)):
        if image.sha256 in takedowns.hashes or unshown_images(build, [image.sha256]):
            continue
        if made := thumbnail(image.data, *sizes, image.sha256, hide):
            thumbnails[image.fetch_id] = (image.sha256, *made)
    for candidate_id, data in foreign.items():
        if unshown_images(build, [sha256_of[candidate_id]]):
            continue
        if made := thumbnail(data, *sizes, sha256_of[candidate_id], hide):
            thumbnails[candidate_id] = (sha256_of[candidate_id], *made)
    for row in rows:  # in the order of the page, so that the budget runs out at its end
        own_thumbnail = thumbnails.get(row["id"] if row["id"] in foreign else row["fetch_id"])
        if own_thumbnail is None or {row["id"], row["duplicate_of"]} & unshown:
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


def add_boxes(build: Build, rows: Iterable[dict[str, Any]]) -> None:
    """Set `boxes` of rows with a picture: detector id -> [[x1, y1, x2, y2, score], ...], pixels of the stored image."""
    kept: dict[str, list[dict[str, Any]]] = {}
    dropped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["picture"] and row["kept"]:
            kept.setdefault(row["id"][:KEY_LENGTH], []).append(row)
        elif row["picture"]:
            dropped.setdefault(row["sha256"], []).append(row)
    if kept:
        _add_stored_boxes(build, kept)
    if dropped:
        _add_detected_boxes(build, dropped)


def _add_stored_boxes(build: Build, rows_of_key: dict[str, list[dict[str, Any]]]) -> None:
    """Boxes of kept samples, from the regions of the shards."""
    frames, columns = Frames.of(build), ["key", *BOX_SCHEMA.names]
    of_rows = pc.field("key").isin(pa.array(sorted(rows_of_key), pa.string()))
    for name in detector_ids(build.spec):
        for table in frames.tables(f"regions/{name}", columns, of_rows):
            boxes = boxes_of(table)
            for key, sha256 in zip(table["key"].to_pylist(), table["sha256"].to_pylist(), strict=True):
                for row in rows_of_key[key]:
                    row["boxes"][name] = _plain(boxes[sha256])
    for row in (row for rows in rows_of_key.values() for row in rows):
        sides = stored_sides(row["width"], row["height"], build.spec.shards.max_side)
        row["width"], row["height"] = map(int, sides)


def _add_detected_boxes(build: Build, rows_of_image: dict[str, list[dict[str, Any]]]) -> None:
    """Boxes of dropped samples, by sha256: from STORE's cache, and for images that it lacks from the first detector
    and from those that need no decoding.

    STORE is only read: what is detected here was dropped, so only the next report would look it up.
    """
    for number, detector in enumerate(detectors_of(build.spec)):
        name = detector.detector_id
        cached = build.store.regions(name).get(rows_of_image)
        detected = {} if cached is None else boxes_of(cached)
        missing = {sha256: rows[0] for sha256, rows in rows_of_image.items() if sha256 not in detected}
        if missing and (number == 0 or not detector.NEEDS_PIXELS):
            detected.update(_detect(build, detector, missing))
        for sha256, raw in detected.items():
            for row in rows_of_image[sha256]:
                boxes = cleaned(raw, row["width"], row["height"], most_boxes(detector, build.spec))
                row["boxes"][name] = _plain(boxes)


def _detect(build: Build, detector: Detector, rows: dict[str, dict[str, Any]]) -> dict[str, Boxes]:
    """Run a detector on the images of `rows`; returns raw boxes by sha256. Holds one picture in memory at a time.

    Raises DetectorError.
    """
    if not detector.NEEDS_PIXELS:
        return {s: look(detector, None, [blank(row["width"], row["height"])])[0] for s, row in rows.items()}
    state, detected = detector.load(), dict[str, Boxes]()
    for image in read_images(build, [row["fetch_id"] for row in rows.values()], sparse=True):
        try:
            picture = pictures.decode(image.data, build.spec.fetch.max_pixels).pixels
            detected[image.sha256] = look(detector, state, [picture])[0]
        except pictures.PictureError:
            continue  # it decodes at the size of a thumbnail only, and is shown without boxes
        except OURS:
            raise
        except Exception as e:
            log.warning("the report shows no boxes: %s", evidence(e, f"image {image.sha256}"))
    return detected


def _plain(regions: Boxes) -> list[list[float]]:
    """Boxes and scores as JSON values [[x1, y1, x2, y2, score], ...], rounded to more than a thumbnail shows."""
    boxes, scores, _ = regions
    rows = zip(boxes.tolist(), scores.tolist(), strict=True)
    return [[*(round(x, 1) for x in box), round(score, 3)] for box, score in rows]
