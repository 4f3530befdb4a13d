"""Pictures of the quality report: a sheet of kept and dropped samples, and the largest duplicate clusters.

The sheet is a random but reproducible sample (`pipeline.report.fates`), new ones first. Half of it shows kept
candidates, the other half the reasons in turn. Candidates that were dropped before their image was fetched are shown by
their text, and with the picture if it lies in their source.

Regions are drawn on kept samples as their shards hold them. A dropped candidate never reached `detect`: its boxes come
from STORE's cache if any build has detected them. Otherwise the spec's first detector runs here, and so does every
detector that needs no pixels.

Never shown, neither picture nor text nor URL: items that were opted out, refused by robots.txt or by the address guard,
or are on STORE's list of takedowns (by URL, image or domain). Items that `screen` dropped as not safe for work, and
copies of them, are shown without their picture; so are, where the spec has a filter that looks at pixels, pictures of a
source that no stage has looked at.

Limits: memory is one partition's decisions and the chosen rows, and 8 bytes for each id that is never shown; thumbnails
stop at a budget of bytes.
"""

from __future__ import annotations

import base64
import itertools
import logging
import types
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import KEY_LENGTH
from pipeline.detectors import Boxes, Detector, detector_ids, detectors_of
from pipeline.detectors._boxes import blank, boxes_of, cleaned, look, most_boxes
from pipeline.pictures import decode as pictures
from pipeline.pictures.encode import stored_sides
from pipeline.records import BOX_SCHEMA, DropReason, sha256_hex
from pipeline.report import elsewhere
from pipeline.report.at_source import in_sources
from pipeline.report.fates import HIDDEN, Fates, Ids, Place, Smallest, columns, places
from pipeline.report.unshown import Hide, faces_hider, unshown_candidates, unshown_images
from pipeline.store.build import Build
from pipeline.store.frames import Frames, decisions_of
from pipeline.store.images import read_images
from pipeline.store.takedowns import Takedowns
from pipeline.unreadable import OURS, evidence

log = logging.getLogger("wenlan")

CLUSTERS, MEMBERS = 6, 8
"""Groups of duplicates on the page, and rows shown of each."""
KNOWN = 14
"""Rows of the sheet that show what the dataset holds already."""
PICTURE_BUDGET = 3_000_000
"""Total bytes of the thumbnails: as base64 they keep the page below 5 MB."""


@dataclass
class Choice:
    """The rows of the decisions that the page shows.

    sheet: kept and dropped candidates. clusters: groups of duplicates, each with its leader first. hidden: how many
    candidates may not be shown. duplicates: how many candidates duplicate another one; known ones are none.
    elsewhere: stored JPEGs of leaders that an earlier build kept, by candidate_id. opted_out: fetch_ids of images, and
    ids of pages, that are never shown. shards: partitions of `shard` that hold what is shown of it.
    """

    sheet: list[dict[str, Any]] = field(default_factory=list)
    clusters: list[dict[str, Any]] = field(default_factory=list)
    hidden: int = 0
    duplicates: int = 0
    sizes: Counter[int] = field(default_factory=Counter)
    """How many groups of duplicates there are of each size, leaders included."""
    elsewhere: dict[str, bytes] = field(default_factory=dict)
    opted_out: Ids = field(default_factory=Ids)
    shards: set[str] = field(default_factory=set)

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the order of the page."""
        return [*self.sheet, *(member for cluster in self.clusters for member in cluster["members"])]


def choose(build: Build, takedowns: Takedowns, counted: Fates) -> Choice:
    """Choose the rows to show, by what was counted of all decisions."""
    size, opted_out = build.spec.report.pictures, counted.opted_out
    choice = Choice(hidden=counted.hidden, duplicates=counted.duplicates, opted_out=opted_out)
    choice.sizes = counted.groups.sizes()
    sheet = [place for place in _balanced(counted.smallest, size) if place.fetch_id not in opted_out]
    clusters = _clusters(build, counted, takedowns)
    shown = [*sheet, *(place for _, _, members in clusters for place in members)]
    rows = _rows(build, shown)
    choice.shards = {place.part[1] for place in shown if rows[place]["kept"]}
    choice.sheet = [rows[place] for place in sheet]
    for leader, of_leader, members in clusters:
        own_rows = [dict(rows[place]) for place in members]  # one that is on the sheet as well is shown twice
        choice.clusters.append({"leader": leader, "size": of_leader, "members": own_rows, "held_by": ""})
    _add_leaders_elsewhere(build, choice, takedowns, opted_out)
    return choice


def _rows(build: Build, places: Iterable[Place]) -> dict[Place, dict[str, Any]]:
    """The decisions at some places, file by file."""
    wanted: dict[tuple[int, str], set[Place]] = {}
    for place in places:
        wanted.setdefault(place.part, set()).add(place)
    rows: dict[Place, dict[str, Any]] = {}
    for (number, partition), of_part in wanted.items():
        stage, own = build.stage(list(build.fingerprints)[number]), sorted(of_part)
        part = decisions_of(build, stage.record(partition))
        assert part is not None, "it was read before"
        rows |= zip(own, part.table().take(pa.array([place.at for place in own])).to_pylist(), strict=True)
    return rows


def _balanced(fates: dict[str, Smallest], size: int) -> list[Place]:
    """Half kept, half dropped, the reasons in turn. If one half has too few rows, the other takes its room.

    Few of those that are known: the report of the build that holds them shows them.
    """
    known = DropReason.KNOWN.value
    kept = fates[""].places() if "" in fates else []
    piles = [fates[reason].places()[: KNOWN if reason == known else size] for reason in sorted(fates) if reason]
    dropped: list[Place] = []
    for depth in range(max(map(len, piles), default=0)):
        dropped += [pile[depth] for pile in piles if depth < len(pile)]
    half = size // 2
    take_dropped = min(len(dropped), max(half, size - len(kept)))
    return kept[: size - take_dropped] + dropped[:take_dropped]


def _clusters(build: Build, counted: Fates, takedowns: Takedowns) -> list[tuple[str, int, list[Place]]]:
    """(leader, size, members) of the largest clusters, the leader first and at most MEMBERS - 1 of its duplicates.

    More leaders are looked for than are shown, since whole clusters may be hidden. Read of the decisions are two
    columns: what copies duplicate, where a stage says so; and ids until every leader was found that is kept.
    """
    sizes, stages = counted.groups.largest(2 * CLUSTERS), list(build.fingerprints)
    leaders = pa.array(sorted(sizes), pa.string())
    copies: dict[str, dict[str, Place]] = {leader: {} for leader in sizes}
    for number in sorted(counted.copying) if sizes else ():
        for place, row in _found(build, number, "duplicate_of", leaders, counted, takedowns):
            own = copies[row["duplicate_of"]]
            if row["id"] != row["duplicate_of"]:
                own[row["id"]] = place
            if len(own) > MEMBERS:  # of the duplicates those with the smallest ids stay
                del own[max(own)]
    first: dict[str, tuple[bool, Place]] = {}
    for number in sorted(range(len(stages)), key=lambda number: (stages[number] != "shard", number)):
        if len(first) == len(sizes) and not any(dropped for dropped, _ in first.values()):
            break
        for place, row in _found(build, number, "id", leaders, counted, takedowns):
            # the same candidate may have come a second time and been dropped; one of its rows says it was kept
            first[row["id"]] = min((not row["kept"], place), first.get(row["id"], (True, _NOWHERE)))
    clusters: list[tuple[str, int, list[Place]]] = []
    for leader, size in sizes.items():
        led = [first[leader][1]] if leader in first else []
        members = [*led, *(place for _, place in sorted(copies[leader].items()))][:MEMBERS]
        if members and len(clusters) < CLUSTERS:
            clusters.append((leader, size + 1, members))
    return clusters


_NOWHERE = Place((1 << 30, ""), 0, "", "")
"""After every place."""


def _found(
    build: Build, number: int, column: str, values: pa.Array, counted: Fates, takedowns: Takedowns
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """(place, row) of a stage's decisions that may be shown and have one of the values in a column."""
    stage = build.stage(list(build.fingerprints)[number])
    for record in stage.records():
        decisions = decisions_of(build, record)
        if decisions is None:
            continue
        mask = pc.is_in(decisions.table([column])[column], values)
        if not pc.any(mask).as_py():
            continue
        table = decisions.table(columns(takedowns))
        named = table.append_column("at", pa.array(np.arange(table.num_rows))).filter(mask)
        for place, row in zip(places((number, record.partition), named), named.to_pylist(), strict=True):
            if row["fetch_id"] in counted.opted_out or row["reason"] in HIDDEN:
                continue
            if not (takedowns.hashes and takedowns.names(row)):
                yield place, row


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


def add_boxes(build: Build, rows: Iterable[dict[str, Any]], shards: Collection[str]) -> None:
    """Set `boxes` of rows with a picture: detector id -> [[x1, y1, x2, y2, score], ...], pixels of the stored image.

    shards: partitions of `shard` in which kept rows are.
    """
    kept: dict[str, list[dict[str, Any]]] = {}
    dropped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["picture"] and row["kept"]:
            kept.setdefault(row["id"][:KEY_LENGTH], []).append(row)
        elif row["picture"]:
            dropped.setdefault(row["sha256"], []).append(row)
    if kept:
        _add_stored_boxes(build, kept, shards)
    if dropped:
        _add_detected_boxes(build, dropped)


def _add_stored_boxes(build: Build, rows_of_key: dict[str, list[dict[str, Any]]], shards: Collection[str]) -> None:
    """Boxes of kept samples, from the regions of the shards."""
    records = [build.stage("shard").record(partition) for partition in sorted(shards)]
    frames = Frames.of(build, [record for record in records if "tar" in record.files])
    columns = ["key", *BOX_SCHEMA.names]
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
