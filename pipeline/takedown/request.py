"""Takedown requests: resolves what a request names to hashes and looks, by the builds.

Asked for by URL (of an image or of a page), by domain, by the sha256 of a picture's bytes, by a picture that it looks
like, or by a file or key (`pipeline.store.subjects`). A picture that is named takes its copies along, as dedup knows
copies: the same bytes at other addresses, and what looks the same within the distance. Of a build that `gc` expired
the shards tell which pictures it has.

Limits: looks of an expired build that STORE does not have are measured again by each takedown that compares looks.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import Dedup, SpecError
from pipeline.errors import SourceError
from pipeline.features import feature_id
from pipeline.features._rows import measure_image
from pipeline.pictures.decode import MAX_PIXELS, PictureError
from pipeline.rows.records import PROVENANCE, sha256_hex
from pipeline.store.build import Build
from pipeline.store.commits import Record
from pipeline.store.image_features import known_features, measure_images
from pipeline.store.partitions import StageDir
from pipeline.store.store import Store
from pipeline.store.subjects import exactly
from pipeline.store.takedowns import LOOKED_AT, Look, Takedowns, domain_hashes, url_hashes
from pipeline.takedown import indexes


@dataclass(frozen=True)
class Request:
    """Request for a takedown. `distance`: bits of 64 by which another picture may differ; `exact`: no copies."""

    urls: Sequence[str] = ()
    items: Sequence[str] = ()
    """Images and pages as `pipeline.store.subjects` understands them: files, keys, ids, sha256, URLs."""
    domains: Sequence[str] = ()
    sha256s: Sequence[str] = ()
    gone: Sequence[str] = ()
    """URLs, or their sha256, of images and pages that are no longer there: the same bytes at another address stay."""
    pictures: Sequence[Path] = ()
    distance: int = Dedup().image_distance
    exact: bool = False

    def hashes(self) -> set[str]:
        """Hashes of URLs and pictures. Raises SpecError."""
        for name in self.sha256s:
            if not re.fullmatch(r"[0-9a-f]{64}", name.lower()):
                raise SpecError([f"--sha256 {name}: not 64 hex digits"])
        for url in self.urls:
            if "://" not in url:
                hint = "for a domain use --domain, for a file or a key --item"
                raise SpecError([f"--url {url}: not a URL; {hint}"])
        return url_hashes(self.urls) | {name.lower() for name in self.sha256s}

    def addresses(self) -> set[str]:
        """Hashes of what is gone."""
        return {name for name in self.gone if "://" not in name} | url_hashes(n for n in self.gone if "://" in n)

    def hosts(self) -> set[str]:
        """Hashes of domains. Raises SpecError."""
        for domain in self.domains:
            if not re.fullmatch(r"[^\s/@]+[.:][^\s/@]+", domain.strip(".")):
                raise SpecError([f"--domain {domain}: not a domain name"])
        return {name for domain in self.domains for name in domain_hashes(domain)}

    def check(self) -> None:
        """Raises SpecError for an invalid request."""
        self.hashes()
        self.hosts()


def resolve(request: Request, store: Store, builds: Sequence[Build], searched: Sequence[Path] = ()) -> Takedowns:
    """All that is taken down from now on: what is already, and what the request means in these builds and indexes.

    searched: folders of search indexes.

    Raises SpecError, and SourceError for a picture that cannot be read.
    """
    known, named, images = store.takedowns(), request.hashes(), {name.lower() for name in request.sha256s}
    for item in request.items:
        subject = exactly(item, builds)
        named |= subject.hashes
        images |= subject.images
    for rows in fetched_images(builds):
        images.update(rows.filter(pc.is_in(rows["fetch_id"], text_array(named)))["sha256"].to_pylist())
    images |= indexes.images_named(searched, named)
    looks = [look_of(row, request.distance) for row in _features_of_files(request.pictures)]
    if not request.exact:
        looks += [look_of(row, request.distance) for row in _features_of_images(store, builds, images, searched)]
    by_look = Takedowns(looks=(*known.looks, *looks))
    alike = set[str]()
    for rows in _features(store, builds) if by_look.looks else ():
        alike.update(by_look.alike(rows, feature_id()))
    hashes = known.hashes | named | request.hosts() | images | alike | request.addresses()
    for rows in fetched_images(builds):  # the same bytes at other addresses
        hashes |= set(rows.filter(pc.is_in(rows["sha256"], text_array(hashes)))["fetch_id"].to_pylist())
    for build in builds:  # a picture that lies in a source may have other bytes there than it had at its URL
        for rows in build.tables("extract", PROVENANCE, ["fetch_id", "sha256"]):
            hashes |= set(rows.filter(pc.is_in(rows["sha256"], text_array(hashes)))["fetch_id"].to_pylist())
    return Takedowns(frozenset(hashes), tuple(dict.fromkeys(by_look.looks)), known.found)


def look_of(row: dict[str, Any], distance: int) -> Look:
    """The look of a picture, given its row of FEATURE_SCHEMA."""
    threshold = Dedup().image_signature
    return Look(tuple(row["phash"]), row["signature"], distance, threshold, feature_id(), row["details"])


def _features_of_files(pictures: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Features of pictures given as files. Raises SourceError."""
    for path in pictures:
        try:
            yield measure_image(path.read_bytes(), MAX_PIXELS)
        except OSError as e:
            raise SourceError(str(path), f"cannot be read ({e.strerror})") from None
        except PictureError as e:
            raise SourceError(str(path), f"not a readable picture ({e})") from None


def _features_of_images(
    store: Store, builds: Sequence[Build], images: set[str], searched: Sequence[Path]
) -> Iterator[dict[str, Any]]:
    """Features of images by sha256, from STORE or from a build that measured them, or from an index's pictures."""
    by_image = {row["sha256"]: row for row in known_features(store, images).to_pylist()}
    if set(by_image) != images:
        for rows in _features(store, builds):
            some = rows.filter(pc.is_in(rows["sha256"], text_array(images)))
            by_image |= {row["sha256"]: row for row in some.to_pylist()}
    by_image = indexes.features_of(searched, images - set(by_image)) | by_image
    yield from (by_image[sha256] for sha256 in sorted(by_image))


def _features(store: Store, builds: Sequence[Build]) -> Iterator[pa.Table]:
    for build in builds:
        found = (
            build.tables("measure", "parquet"),
            _features_of_shards(store, build),
            _features_of_fetched(store, build),
        )
        for rows in itertools.chain(*found):
            yield rows.select([name for name in LOOKED_AT if name in rows.column_names])


def _features_of_shards(store: Store, build: Build) -> Iterator[pa.Table]:
    """Features of what an expired build has packed: from STORE, or measured of the pictures as they are stored."""
    for stage, record in _shards_without(build, "measure"):
        rows = stage.table(record, "parquet", ["sha256", "image_offset", "image_size"])
        yield from _features_in_tar(store, stage, record, rows.rename_columns(["sha256", "offset", "size"]))


def _features_of_fetched(store: Store, build: Build) -> Iterator[pa.Table]:
    """Features of what a build has fetched and not measured, since it was killed or was to stop before that."""
    for stage in build.history("fetch"):
        for record in stage.records():
            rows = stage.table(record, columns=["sha256", "offset", "size"], filters=pc.field("ok"))
            for done in build.history("measure"):
                if record.partition in done.partitions():
                    known = done.column(done.record(record.partition), "parquet", "sha256")
                    rows = rows.filter(pc.invert(pc.is_in(rows["sha256"], known)))
            yield from _features_in_tar(store, stage, record, rows)


def _features_in_tar(store: Store, stage: StageDir, record: Record, rows: pa.Table) -> Iterator[pa.Table]:
    """Features of pictures in a partition's tar, from STORE or measured. rows: sha256, offset and size of each."""
    places = {row["sha256"]: (row["offset"], row["size"]) for row in rows.to_pylist()}
    yield (known := known_features(store, places))
    if missing := places.keys() - set(known["sha256"].to_pylist()):
        with stage.file(record, "tar") as path, path.open("rb") as tar:
            images = ((own, os.pread(tar.fileno(), size, at)) for own, (at, size) in places.items() if own in missing)
            yield measure_images(images, MAX_PIXELS)[0]


def fetched_images(builds: Sequence[Build]) -> Iterator[pa.Table]:
    """fetch_id and sha256 of the images that were fetched; of an expired build, of those that it has packed."""
    for build in builds:
        for rows in build.tables("fetch", "parquet", ["fetch_id", "sha256", "ok"]):
            yield rows.filter(rows["ok"])
        for stage, record in _shards_without(build, "fetch"):
            rows = stage.table(record, "parquet", ["image_url", "sha256"])
            ids = [sha256_hex(url) for url in rows["image_url"].to_pylist()]
            yield pa.table({"fetch_id": pa.array(ids, pa.string()), "sha256": rows["sha256"]})


def _shards_without(build: Build, name: str) -> Iterator[tuple[StageDir, Record]]:
    """The shards of a build, if they are there and what stage `name` wrote is not."""
    if "shard" in build.fingerprints and not build.history(name):
        yield from ((build.stage("shard"), record) for record in build.packed())


def text_array(names: set[str] | frozenset[str]) -> pa.Array:
    """Names as a sorted Arrow array, to look rows up in."""
    return pa.array(sorted(names), pa.string())
