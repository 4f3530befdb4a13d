"""THE CONTRACT between `pipeline` (writes shards) and `training` (reads them).

It defines the typed records of a shard folder, the encoding of the members of a sample, the columns of the Parquet
beside each tar, and the manifest. Nothing else in the project may define any of these.

    shards/train-000000.tar                      KEY.jpg, KEY.txt, KEY.json of each sample, in a keyed-hash order
    shards/train-000000.parquet                  one row per sample, same order: SHARD_SCHEMA
    shards/regions/<detector-id>/train-000000.parquet   boxes of the same samples, same order: REGION_SCHEMA
    shards/manifest.json                         Manifest, written last: a folder without it is not a dataset

A release (`data_specs.release`) is a Manifest too, over the shards of several builds, each in a folder of its own.

Why: plain `webdataset`, Ray Data, Hugging Face `datasets` and open_clip read the tars as they are. Boxes are stored
beside the images, so that a new detector rewrites no image. KEY.json holds only what follows from captures, image bytes
and spec, so that tars are byte-reproducible. A text's `original` is in KEY.json only, and only if the text has one.

Limits: one image type (JPEG) per dataset, because several readers lose or refuse mixed ones.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import posixpath
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from data_specs.errors import ContractError as ContractError
from data_specs.names import FEWEST_MEASURED as FEWEST_MEASURED
from data_specs.names import MANIFEST as MANIFEST
from data_specs.names import SOURCE_KINDS as SOURCE_KINDS
from data_specs.names import SPLITS as SPLITS
from data_specs.names import TEXT_KINDS as TEXT_KINDS
from data_specs.names import SourceKind as SourceKind
from data_specs.names import Split as Split
from data_specs.names import TextKind as TextKind
from data_specs.storage.credentials import OBJECT_STORES

SCHEMA_VERSION = 1
"""Raised when a field changes its meaning; new optional fields keep it. Readers refuse a higher version."""

KEY_LENGTH = 32
"""`KEY` is the first 32 hex digits of candidate_id: unique across builds, unchanged by a takedown or a repacking."""

MEMBERS = {"jpg": "image", "txt": "text", "json": "json"}
"""Suffixes of a sample's members in the order of the tar, and the names of their columns: `image_offset` and so on."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text of a sample; `kind` is its place on the page.

    original: the text before the build rewrote it (from Traditional script, for example), if the build keeps it,
    otherwise "". It is for people and for other uses of the dataset: training reads `text` only.
    """

    kind: TextKind
    text: str
    original: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its texts: exactly the content of KEY.json.

    sha256: of the bytes as fetched, even if the stored image was re-encoded or scaled down. width, height: of the
    stored JPEG, in pixels. texts[0]: the primary text, which is also the content of KEY.txt.
    """

    candidate_id: str
    source: str
    source_kind: SourceKind
    page_url: str
    image_url: str
    sha256: str
    width: int
    height: int
    texts: tuple[Text, ...]

    @property
    def key(self) -> str:
        """KEY, the name of the sample's members in its tar."""
        return self.candidate_id[:KEY_LENGTH]


_TEXTS_TYPE = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string()), ("text_leader", pa.string())]))

SHARD_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("candidate_id", pa.string()),
        ("source", pa.string()),
        ("source_kind", pa.string()),
        ("page_url", pa.string()),
        ("image_url", pa.string()),
        ("sha256", pa.string()),  # of the bytes as fetched
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("texts", _TEXTS_TYPE),  # text_leader: sha256 hex of the leader of this text's cluster
        ("image_leader", pa.string()),  # sha256 hex of the leading image of this image's cluster
        ("split", pa.string()),
        ("format", pa.string()),  # of the bytes as fetched, e.g. "png"; stored bytes are always JPEG
        ("fetched_at", pa.string()),  # RFC 3339, UTC
        ("image_offset", pa.int64()),  # of the member's data in the tar, bytes
        ("image_size", pa.int64()),
        ("text_offset", pa.int64()),
        ("text_size", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("text_rank", pa.int32()),  # 0: the primary text is the best that was found; n: n better ones were removed
    ]
)

PAIR_SCORE = pa.field("pair_score", pa.float32())
"""Column that a shard has beside those of SHARD_SCHEMA if the spec asks for scores: the cosine of the features of the
image and of its primary text, to four decimals; null for a pair that the towers could not read."""

REGION_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("sha256", pa.string()),
        ("boxes", pa.list_(pa.float32())),  # R x 4 flattened, pixels of the stored image, scores descending
        ("scores", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.int32())),
    ]
)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # additive fields keep the version


def leaves_folder(path: str) -> bool:
    """True if a path in a manifest leads out of the folder that it is relative to."""
    return path.startswith("/") or "://" in path or ".." in path.split("/")


_STORES = OBJECT_STORES | {"oci", "tos", "tosfs"}
"""Schemes of object stores: those of OBJECT_STORES, and others whose address does not name a server."""

_LED_TO = _STORES | {"file", "local", "simplecache", "filecache", "blockcache"}
"""Schemes of the places that a release leads to, those of a copy on the disk among them (`simplecache::s3://...`)."""


def unsafe_place_reason(place: str, manifest: str) -> str:
    """Reason not to open a place that an untrusted manifest or latest.json names; "" if it is safe.

    Builds lie on disks and in object stores; on any other server only where the file itself comes from there. A
    relative place is one in the folder of a copy, or below the folder in which STORE lies (`resolve_place`).
    """
    if "://" in place or "::" in place:  # fsspec opens `github::` too
        own = "::" not in place and place.split("/", 3)[:3] == manifest.split("/", 3)[:3]
        if not own and not _LED_TO.issuperset(part.partition("://")[0].lower() for part in place.split("::")):
            stores = ", ".join(f"{scheme}://" for scheme in sorted(_STORES))
            where = f"disks, object stores ({stores}) and the server that it comes from"
            return f"names {place!r}: a release may only refer to {where}"
    elif not place.startswith("/"):
        in_store = manifest.split("/")[-3:-2] == ["datasets"]
        if ".." in (place.removeprefix(FROM_RELEASE) if in_store else place).split("/"):
            return f"names {place!r}, which is outside its folder"
    return ""


FROM_RELEASE = "../../../"
"""From the folder of a release, STORE/datasets/NAME, to the one in which STORE lies."""


def resolve_place(place: str, base: str) -> str:
    """The path or URL of a place that a manifest in the folder `base` names; "" for "".

    Relative to the manifest are the builds of a copy, and those below the folder in which STORE lies.
    """
    if not place or place.startswith("/") or "://" in place:
        return place
    if not place.startswith(".."):
        return posixpath.join(base, place)
    if "://" not in base:
        return posixpath.normpath(posixpath.join(os.path.realpath(base), place))  # as the disk follows `..`
    scheme, _, rest = base.rpartition("://")
    server, _, path = rest.partition("/")
    return f"{scheme}://{server}{posixpath.normpath(f'/{path}/{place}')}"


class FileDigest(_Model):
    """A file of the shard folder: path relative to the manifest, size in bytes, sha256 in hex."""

    path: str
    bytes: int
    sha256: str


class ShardFiles(_Model):
    """One shard: its tar, its Parquet, and its regions by detector id.

    build: in a release, the build_id of the build that packed it, in whose folder the files lie; "" in a build.
    """

    split: Split
    samples: int
    tar: FileDigest
    parquet: FileDigest
    regions: dict[str, FileDigest] = Field(default_factory=dict)
    build: str = ""

    @property
    def name(self) -> str:
        """The tar's name within the dataset: keys are unique across builds, names of tars are not."""
        return f"{self.build}/{self.tar.path}" if self.build else self.tar.path


class ReleasedBuild(_Model):
    """A build of a release.

    folder: where its shards lie, a path or a URL; in the file it may be relative to the manifest. out: BUILD, likewise,
    where its decisions and its report lie; "" in a copy. revision, content_digest: those of its own manifest.
    """

    build_id: str
    revision: int
    snapshot: str
    folder: str
    out: str = ""
    spec_digest: str
    content_digest: str
    samples: dict[Split, int]


class StoredImages(_Model):
    """Encoding of the stored images.

    reencode: "never" (bytes as fetched, if readers can decode them) or "all". max_side: longest side in pixels, 0 for
    no limit; regions are scaled with their image. faces_blurred: the detector in whose boxes every image is a mosaic,
    "" where faces were kept.
    """

    reencode: Literal["never", "all"] = "never"
    max_side: int = 0
    jpeg_quality: int = 92
    faces_blurred: str = ""


class Manifest(_Model):
    """The files of a dataset: `manifest.json` of a build, written last, or a release of a named dataset.

    dataset, release, generation, builds: of a release only. Releases of a dataset are numbered from 1. A generation
    begins with a build that makes the whole dataset again.
    """

    schema_version: int
    build_id: str
    revision: int = 0
    parent: str | None = None
    spec_digest: str
    content_digest: str
    created_at: str
    samples: dict[Split, int]
    detectors: tuple[str, ...]
    shards: tuple[ShardFiles, ...]
    accepted: dict[str, str] = Field(default_factory=dict)
    """Gates that failed and were accepted, each with the reason given."""
    images: StoredImages | None = None
    """None in manifests older than these options: images as fetched, of any size."""
    dataset: str = ""
    release: int = 0
    generation: int = 0
    builds: tuple[ReleasedBuild, ...] = ()

    def folder_of(self, shard: ShardFiles, base: str) -> str:
        """The folder, path or URL, to which the paths of a shard's files are relative; `base` is the manifest's own."""
        folder = self._folders.get(shard.build, "")
        return posixpath.join(base, folder) if folder and "://" not in folder else folder or base

    @functools.cached_property
    def _folders(self) -> dict[str, str]:
        return {build.build_id: build.folder for build in self.builds}

    def __copy__(self) -> Manifest:
        copied = super().__copy__()
        copied.__dict__.pop("_folders", None)  # of this one's builds; `model_copy` may have been given others
        return copied

    def of_split(self, split: Split) -> tuple[ShardFiles, ...]:
        """Shards of one split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)


def content_digest(shards: Sequence[ShardFiles]) -> str:
    """Digest over the tars only, ordered by name: two datasets with the same samples and images have the same one."""
    digest = hashlib.sha256()
    for shard in sorted(shards, key=lambda s: s.name):
        digest.update(f"{shard.name} {shard.tar.sha256}\n".encode())
    return digest.hexdigest()


def pretty_manifest(manifest: Manifest) -> bytes:
    """The bytes of a manifest's file: one shard per line, so that two releases can be compared line by line.

    What only a release has is left out of a build's.
    """
    raw = manifest.model_dump(mode="json")
    shards = [shard if shard["build"] else _omit(shard, "build") for shard in raw.pop("shards")]
    if not manifest.dataset:
        raw = _omit(raw, "dataset", "release", "generation", "builds")
    lines = ",\n  ".join(canonical_json(shard).decode() for shard in shards)
    head = json.dumps(raw, indent=1, ensure_ascii=False, sort_keys=True)
    return f'{head.removesuffix("}").rstrip()},\n "shards": [\n  {lines}\n ]\n}}\n'.encode()


def _omit(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def parse_manifest(data: bytes | str, name: str, own: bool = False) -> Manifest:
    """Read a manifest. `name` is its path or URL: places that it names relative to itself are given as they lie.

    own: it is trusted.

    Raises ContractError for invalid JSON, missing fields, a schema version above SCHEMA_VERSION, and builds at places
    that it must not lead to (`unsafe_place_reason`), unless it is our own.
    """
    manifest: Manifest | None
    try:
        manifest = Manifest.model_validate_json(data, strict=True)  # without Python's objects in between: less memory
    except ValueError:  # what is wrong is found below; and whatever strictness refused is read there
        manifest = None
    if manifest is not None and manifest.schema_version <= SCHEMA_VERSION:
        return _with_places(manifest, name, own)
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as e:  # ValueError: no JSON, no UTF-8, or a number of more than 4,300 digits
        raise ContractError(f"{name}: not a JSON manifest ({e})") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(version, int):
        raise ContractError(f"{name}: schema_version is missing; is this a wenlan manifest.json?")
    if version > SCHEMA_VERSION:
        raise ContractError(
            f"{name}: schema version {version} is newer than this wenlan reads ({SCHEMA_VERSION}); upgrade wenlan"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValueError as e:
        first = e.errors()[0] if hasattr(e, "errors") else {"loc": (), "msg": str(e)}
        where = ".".join(str(part) for part in first["loc"])
        raise ContractError(f"{name}: {where}: {first['msg']}") from None
    return _with_places(manifest, name, own)


def _with_places(manifest: Manifest, name: str, own: bool) -> Manifest:
    """The same, with the places of its builds. Raises ContractError for a release that leads where none does."""
    base, builds = posixpath.dirname(name), list[ReleasedBuild]()
    for build in manifest.builds:
        if not own and (why := unsafe_place_reason(build.folder, name) or unsafe_place_reason(build.out, name)):
            raise ContractError(f"{name}: {why}")
        places = {"folder": resolve_place(build.folder, base), "out": resolve_place(build.out, base)}
        builds.append(build.model_copy(update=places))
    return manifest.model_copy(update={"builds": tuple(builds)}) if builds else manifest


def read_manifest(path: Path) -> Manifest:
    """Read `manifest.json`, given its path or that of its folder, from the local disk. Raises ContractError."""
    path = path / MANIFEST if path.is_dir() else path
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except OSError as e:
        raise ContractError(
            f"{path}: cannot be read ({e.strerror}); a build has a manifest once it is published"
        ) from e


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values have equal bytes everywhere."""
    return _CANONICAL.encode(value).encode()


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def nfc(text: str) -> str:
    """A text in Unicode NFC, the form in which every text of a shard is stored."""
    return unicodedata.normalize("NFC", text)


_SAMPLE_FIELDS = tuple(field.name for field in fields(Sample))


def encode_sample(sample: Sample, image: bytes | memoryview) -> list[tuple[str, bytes | memoryview]]:
    """Members of one sample in the order of the tar: [(name, data)] for KEY.jpg, KEY.txt, KEY.json.

    `image` are JPEG bytes. Raises ContractError if the sample lacks a text or the image is not a JPEG.
    """
    if not sample.texts:
        raise ContractError(f"{sample.key}: a sample needs at least one text")
    if image[:2] != b"\xff\xd8":
        raise ContractError(f"{sample.key}: stored images are JPEG; got bytes {image[:4].hex()}")
    record: dict[str, Any] = {name: getattr(sample, name) for name in _SAMPLE_FIELDS}
    record["texts"] = [
        {"kind": t.kind, "text": nfc(t.text), **({"original": nfc(t.original)} if t.original else {})}
        for t in sample.texts
    ]
    record["schema"] = SCHEMA_VERSION
    return [
        (f"{sample.key}.jpg", image),
        (f"{sample.key}.txt", nfc(sample.texts[0].text).encode()),
        (f"{sample.key}.json", canonical_json(record)),
    ]


def decode_sample(data: bytes | Mapping[str, Any], name: str) -> Sample:
    """A sample from the bytes (or the parsed object) of KEY.json. `name` is its name in error messages.

    Raises ContractError. Unknown fields are ignored: additive fields keep the version.
    """
    try:
        raw = json.loads(data) if isinstance(data, bytes) else data
        if raw["schema"] > SCHEMA_VERSION:
            raise ContractError(f"{name}: schema {raw['schema']} is newer than this wenlan reads ({SCHEMA_VERSION})")
        return Sample(
            candidate_id=raw["candidate_id"],
            source=raw["source"],
            source_kind=raw["source_kind"],
            page_url=raw["page_url"],
            image_url=raw["image_url"],
            sha256=raw["sha256"],
            width=raw["width"],
            height=raw["height"],
            texts=tuple(Text(t["kind"], t["text"], t.get("original", "")) for t in raw["texts"]),
        )
    except ContractError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as e:  # ValueError: see parse_manifest
        raise ContractError(f"{name}: not a wenlan sample ({type(e).__name__}: {e})") from None
