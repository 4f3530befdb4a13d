"""Typed rows that are passed from stage to stage, and their Parquet schemas.

Capture -> Candidate -> Pair -> (data_specs.shard.Sample), and a `pipeline.rows.decisions.Decision` for each that goes
no further.

Identity: `fetch_id = sha256(image_url)`, one image URL is fetched once for all its candidates;
`candidate_id = sha256(source, page_url or row id, image_url)`. `order_key` is a keyed hash of fetch_id: partitions
from admit on are ranges of it and shards are written in its order, so that packing reads each image tar once.
"""

from __future__ import annotations

import builtins
import datetime
import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pyarrow as pa

from data_specs.shard import REGION_SCHEMA, SourceKind, Split, Text, TextKind
from pipeline.urls import SURROGATE

NO_PLACE = (-1, 0)


@dataclass(frozen=True, slots=True)
class Capture:
    """One response in a WARC, usually a page.

    place: offset and length of its record in the file; NO_PLACE for one that cannot be read alone. digest: of its body,
    as the WARC states it. refers_to: of a revisit, which lacks a body, URL and time of the capture that has it.
    """

    url: str
    status: int
    fetched_at: str  # RFC 3339, UTC
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    place: tuple[int, int] = NO_PLACE
    digest: str = ""
    refers_to: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """Origin of a picture that is stored in a table source, or is shown by a page of an archive.

    stored_at: the address by which the source reads it, "" if that is its image_url. sha256: of its bytes as they were
    at its URL. licence: as stated there. captured_at: time of the archive's page, "" for others.
    """

    stored_at: str = ""
    sha256: str = ""
    licence: str = ""
    captured_at: str = ""


@dataclass(frozen=True, slots=True)
class RemovedText:
    """A text that was taken off a candidate, the reason (DropReason) and its evidence. The text is cut for people."""

    kind: TextKind
    text: str
    reason: str
    evidence: str = ""

    @classmethod
    def of(cls, text: Text, reason: str, evidence: str = "") -> RemovedText:
        return cls(text.kind, encodable(text.text[:200]), str(reason), encodable(evidence[:300]))


Shown = Literal["alone", "among", "listed"]
"""How a page shows an image: alone or with few others, among more of them, or listed in one of several cards."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image URL with its texts, not fetched. `origin` is the page's URL, or the row id of a table.

    text_rank: how many texts that would have come before the primary one were removed; 0 if it is the best of them.
    """

    source: str
    source_kind: SourceKind
    origin: str
    page_url: str  # "" for a table that names no page
    image_url: str  # canonical
    texts: tuple[Text, ...]
    row: Annotated[int, pa.int64()] = 0  # where it stood in its page or table: a stable tie-break
    boxes: Annotated[tuple[float, ...], None] = ()  # x1 y1 x2 y2 ... of a table's row; in SOURCE_BOX_SCHEMA only
    provenance: Annotated[Provenance | None, None] = None  # in PROVENANCE_SCHEMA only
    userinfo: Annotated[str, None] = field(default="", repr=False)  # `user:password` of its URL; in USERINFO only
    text_rank: int = 0
    shown: Shown = "alone"
    removed: Annotated[tuple[RemovedText, ...], None] = ()  # in column REMOVED of the stage that removed them

    @property
    def fetch_id(self) -> str:
        return sha256_hex(self.image_url)

    @property
    def candidate_id(self) -> str:
        return sha256_hex(self.source, self.origin, self.image_url)


def encodable(text: str) -> str:
    """The text with U+FFFD for each lone surrogate: JSON may hold them (`"\\ud83d"`), UTF-8 and Parquet cannot."""
    return text if text.isascii() else SURROGATE.sub("\ufffd", text)


@dataclass(frozen=True, slots=True)
class Features:
    """Measurements of one image. Sides in pixels of the picture as shown (EXIF orientation applied)."""

    sha256: str
    format: str
    width: int
    height: int
    bytes: Annotated[int, pa.int64()]
    frames: int
    alpha: bool
    orientation: int  # EXIF 1 to 8
    blankness: float  # share of the most frequent of 64 grey levels, 0 to 1
    phash: Annotated[
        tuple[int, ...], pa.list_(pa.uint64())
    ]  # 64-bit perceptual hashes: whole picture, then centre crops
    signature: builtins.bytes  # compact colour and structure signature, for verifying hash matches
    entropy: float = 0.0  # of the grey levels, bits, 0 to 8
    sharpness: float = 0.0  # variance of the Laplacian of the grey thumb
    details: Annotated[builtins.bytes | None, pa.binary()] = None  # map and hashes of a picture without texture
    pixels: Annotated[int, pa.uint64()] = 0  # 64 bits of a digest of its thumbnails


TEXTS_TYPE = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string()), ("original", pa.string())]))

_ARROW_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int32(),
    float: pa.float32(),
    bytes: pa.binary(),
    tuple[str, ...]: pa.list_(pa.string()),
    tuple[Text, ...]: TEXTS_TYPE,
}
"""The column of a field, unless its annotation names another Arrow type: `Annotated[int, pa.int64()]`."""


def columns_of(row: type) -> list[pa.Field]:
    """A column for each field of a dataclass, in its order; fields annotated with None have none."""
    columns = []
    for name, hint in get_type_hints(row, include_extras=True).items():
        if get_origin(hint) is Annotated:
            kind = get_args(hint)[1]
        else:
            kind = pa.string() if get_origin(hint) is Literal else _ARROW_TYPES[hint]
        if kind is not None:
            columns.append(pa.field(name, kind))
    return columns


CANDIDATE_SCHEMA = pa.schema(
    [
        ("order_key", pa.string()),
        ("candidate_id", pa.string()),
        ("fetch_id", pa.string()),
        *columns_of(Candidate),
    ]
)

OWN_WORDS = ("alt", "caption")
"""Kinds of texts that are about one picture alone; others are about its page, or its row of a table."""

REMOVED = "removed"
"""Column of the texts that a stage took off its candidates, in extract's and admit's files."""

_REMOVED_FIELDS = ("kind", "text", "reason", "evidence")

WITH_REMOVED_SCHEMA = pa.schema(
    [*CANDIDATE_SCHEMA, (REMOVED, pa.list_(pa.struct([(name, pa.string()) for name in _REMOVED_FIELDS])))]
)
"""Candidates as extract and admit write them."""

FEATURE_SCHEMA = pa.schema(columns_of(Features))

LOOKS = ("phash", "signature", "details", "pixels")
"""Columns of FEATURE_SCHEMA by which images are compared. They stay in measure's file: no later table repeats them."""

PAIR_SCHEMA = pa.schema(
    [*CANDIDATE_SCHEMA, *(field for field in FEATURE_SCHEMA if field.name not in LOOKS), ("fetched_at", pa.string())]
)
"""A fetched and measured candidate."""

FETCH_SCHEMA = pa.schema(
    [
        ("fetch_id", pa.string()),
        ("image_url", pa.string()),
        ("ok", pa.bool_()),
        ("reason", pa.string()),  # DropReason, "" if ok
        ("evidence", pa.string()),
        ("sha256", pa.string()),  # of the bytes as fetched, "" if not ok
        ("offset", pa.int64()),  # of the bytes in the partition's image tar; -1 if not ok
        ("size", pa.int64()),
        ("fetched_at", pa.string()),
        ("etag", pa.string()),
        ("retry_after", pa.string()),  # RFC 3339, UTC: when a failed one may be tried again; "" if ok
    ]
)

DEDUP_SCHEMA = pa.schema(
    [
        *PAIR_SCHEMA,  # texts: with those of merged duplicates, primary first
        ("text_leaders", pa.list_(pa.string())),  # one for each of texts: sha256 hex of the leader's normalised text
        ("image_leader", pa.string()),  # sha256 hex of the leading image
        ("split", pa.string()),
    ]
)

SCORE_SCHEMA = pa.schema([("sha256", pa.string()), ("score", pa.float32())])
"""Rows of a pixel filter's STORE/features/<score-id>: its model's score of each image."""

BOX_SCHEMA = pa.schema([field for field in REGION_SCHEMA if field.name != "key"])
"""sha256, boxes (R x 4 flattened), scores, labels: raw in STORE/regions/<detector-id>, cleaned in detect's files."""

FIRST_SNAPSHOT = "first_snapshot"
"""Column of extract's file in a build that begins a generation: the oldest snapshot that shows a candidate."""

SHOWN, SHOWN_SCHEMA = (
    "shown.parquet",
    pa.schema([("url", pa.string()), ("image_url", pa.string()), ("sha256", pa.string())]),
)
"""Beside captures, of the page `url`: the pictures that it shows; sha256: "" where unknown
(`pipeline.takedown.page_pictures`)."""

OPT_OUTS, OPT_OUT_SCHEMA = "opt_outs.parquet", pa.schema([("url", pa.string())])
"""Suffix of crawl's file of pages whose owner had opted out, of a crawl that a new generation takes over."""

SOURCE_BOXES = "boxes.parquet"
"""Suffix of extract's file of the boxes that a table brought along, where one did: SOURCE_BOX_SCHEMA."""

SOURCE_BOX_SCHEMA = pa.schema(
    [("order_key", pa.string()), ("fetch_id", pa.string()), ("row", pa.int64()), ("boxes", pa.list_(pa.float32()))]
)
"""Sorted by (order_key, fetch_id, row); boxes are x1 y1 x2 y2 ... in one list."""

PROVENANCE = "provenance.parquet"
"""Suffix of extract's file of what a source knows of pictures that lie in it, where it does: PROVENANCE_SCHEMA."""

_PROVENANCE_FIELDS = [column.name for column in columns_of(Provenance)]

PROVENANCE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("order_key", "candidate_id", "fetch_id", "source", *_PROVENANCE_FIELDS)]
)
"""Sorted by (order_key, candidate_id)."""

ARCHIVED = "archived.parquet"
"""Suffix of extract's file of the pictures that a WARC file holds, where it does: ARCHIVED_SCHEMA."""

ARCHIVED_SCHEMA = pa.schema(
    [
        ("order_key", pa.string()),
        ("fetch_id", pa.string()),
        ("source", pa.string()),
        ("captured_at", pa.string()),  # RFC 3339, UTC; "" where the WARC does not say
        ("digest", pa.string()),  # as the WARC states it, "" if it does not
        ("opt_out", pa.string()),  # opt-outs of its headers, "" for none
        ("stored_at", pa.string()),  # its record (`Warc.address_of_record`); "" for what leads to another capture
        ("target", pa.string()),  # fetch_id of the capture that a redirect or a revisit leads to; "" for a picture
        ("target_at", pa.string()),  # of a revisit, time of that capture as it states it
        ("is_revisit", pa.bool_()),
    ]
)
"""One row per capture of a picture, redirect and revisit, sorted. It names no URL: rows are found by fetch_id."""

USERINFO = "userinfo.parquet"
"""Suffix of extract's file of the user names and passwords of image URLs, where there are any: USERINFO_SCHEMA.

Only fetch reads it, to send them. It is the one file of a build that holds them, and readable by its owner only."""

USERINFO_SCHEMA = pa.schema([("fetch_id", pa.string()), ("userinfo", pa.string())])
"""Sorted; one image may have several."""


def sha256_hex(*parts: str) -> str:
    """sha256 over the parts, each ended by a zero byte when there are several, so that no two lists collide.

    A lone surrogate, which UTF-8 lacks, is hashed as it is: what cannot be written can still be named.
    """
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    data = encoded[0] if len(encoded) == 1 else b"".join(part + b"\0" for part in encoded)
    return hashlib.sha256(data).hexdigest()


def rfc3339(later_s: float = 0.0) -> str:
    """The time now, or so many seconds later: RFC 3339, UTC."""
    when = datetime.datetime.now(datetime.UTC)
    if later_s:
        when += datetime.timedelta(seconds=later_s)
    return when.isoformat(timespec="seconds")[:19] + "Z"


def utc(time: str) -> str:
    """A time of a WARC record as `rfc3339` writes it, without fractions; "" for what is not a time."""
    try:
        when = datetime.datetime.fromisoformat(time)
        when = when if when.tzinfo is not None else when.replace(tzinfo=datetime.UTC)
        return when.astimezone(datetime.UTC).isoformat(timespec="seconds")[:19] + "Z"
    except (ValueError, OverflowError):
        return ""


def order_key(fetch_id: str, seed: int) -> str:
    """Keyed 64-bit hash of fetch_id, 16 hex digits: the position of an image among the shards."""
    return hashlib.blake2b(fetch_id.encode(), digest_size=8, key=str(seed).encode()).hexdigest()


def order_range(partition: int, of: int) -> tuple[str, str]:
    """Half-open range [low, high) of order keys of a partition; `high` of the last one is above every key."""
    low, high = (partition << 64) // of, ((partition + 1) << 64) // of
    return f"{low:016x}", f"{high:016x}" if high < 1 << 64 else "g"


def split_of(image_leader: str, seed: int, dev_share: float, val_share: float) -> Split:
    """The split of an image cluster: a keyed hash of its leader's sha256, as a number in [0, 1)."""
    key = f"split {seed}".encode()
    number = int.from_bytes(hashlib.blake2b(image_leader.encode(), digest_size=8, key=key).digest(), "big") / 2**64
    if number < dev_share:
        return "dev"
    return "val" if number < dev_share + val_share else "train"


_CANDIDATE_FIELDS = [column.name for column in columns_of(Candidate)]


def candidate_rows(candidates: list[Candidate], seed: int) -> pa.Table:
    """Table of WITH_REMOVED_SCHEMA sorted by (order_key, candidate_id)."""
    rows = [
        {
            **{name: getattr(c, name) for name in _CANDIDATE_FIELDS},
            "order_key": order_key(c.fetch_id, seed),
            "candidate_id": c.candidate_id,
            "fetch_id": c.fetch_id,
            "texts": [{"kind": t.kind, "text": t.text, "original": t.original} for t in c.texts],
            REMOVED: [{name: getattr(text, name) for name in _REMOVED_FIELDS} for text in c.removed],
        }
        for c in candidates
    ]
    rows.sort(key=lambda r: (r["order_key"], r["candidate_id"]))
    return pa.Table.from_pylist(rows, schema=WITH_REMOVED_SCHEMA)


def provenance_rows(candidates: list[Candidate], seed: int) -> pa.Table:
    rows = [
        {
            "order_key": order_key(c.fetch_id, seed),
            "candidate_id": c.candidate_id,
            "fetch_id": c.fetch_id,
            "source": c.source,
            **{name: getattr(c.provenance, name) for name in _PROVENANCE_FIELDS},
        }
        for c in candidates
        if c.provenance is not None
    ]
    rows.sort(key=lambda r: (r["order_key"], r["candidate_id"]))
    return pa.Table.from_pylist(rows, schema=PROVENANCE_SCHEMA)


def text_of(row: dict[str, Any]) -> Text:
    return Text(row["kind"], row["text"], row["original"])


def candidates_of(table: pa.Table) -> list[Candidate]:
    """Returns candidates from a table with CANDIDATE_SCHEMA's columns, in its order, and `removed` where it has it."""
    names = [*_CANDIDATE_FIELDS, *(name for name in [REMOVED] if name in table.column_names)]
    return [
        Candidate(
            **{
                **row,
                "texts": tuple(text_of(text) for text in row["texts"]),
                REMOVED: tuple(RemovedText(**text) for text in row.get(REMOVED) or ()),
            }
        )
        for row in table.select(names).to_pylist()
    ]
