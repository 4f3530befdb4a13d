"""Takedown requests: what a request names, looked up in the builds, becomes hashes and looks.

Asked for by URL (of an image or of a page), by domain, by the sha256 of a picture's bytes, by a picture that it looks
like, or by a file or key (`pipeline.store.subjects`). A picture that is named takes its copies along, as dedup knows
copies: the same bytes at other addresses, and what looks the same within the distance.
"""

from __future__ import annotations

import contextlib
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
from pipeline.records import PROVENANCE, sha256_hex
from pipeline.store.build import Build
from pipeline.store.store import Store
from pipeline.store.subjects import exactly
from pipeline.store.takedowns import LOOKED_AT, Look, Takedowns, domain_hashes
from pipeline.takedown import indexes
from pipeline.urls import canonical_url, split_userinfo


@dataclass(frozen=True)
class Request:
    """What to take down. `distance`: bits of 64 by which another picture may differ; `exact`: no copies."""

    urls: Sequence[str] = ()
    items: Sequence[str] = ()
    """Images and pages as `pipeline.store.subjects` understands them: files, keys, ids, sha256, URLs."""
    domains: Sequence[str] = ()
    sha256s: Sequence[str] = ()
    pictures: Sequence[Path] = ()
    distance: int = Dedup().image_distance
    exact: bool = False

    def named(self) -> set[str]:
        """Hashes of URLs and pictures. Raises SpecError."""
        for name in self.sha256s:
            if not re.fullmatch(r"[0-9a-f]{64}", name.lower()):
                raise SpecError([f"--sha256 {name}: is not 64 hex digits"])
        spelled = set(self.urls)
        for url in self.urls:
            with contextlib.suppress(ValueError):
                spelled.add(canonical_url(split_userinfo(url)[0]))
            if "://" not in url:
                hint = "a domain is taken down with --domain, a file or a key with --item"
                raise SpecError([f"--url {url}: is no URL; {hint}"])
        return {sha256_hex(url) for url in spelled} | {name.lower() for name in self.sha256s}

    def hosts(self) -> set[str]:
        """Hashes of domains. Raises SpecError."""
        for domain in self.domains:
            if not re.fullmatch(r"[^\s/@]+[.:][^\s/@]+", domain.strip(".")):
                raise SpecError([f"--domain {domain}: is not the name of a domain"])
        return {name for domain in self.domains for name in domain_hashes(domain)}

    def check(self) -> None:
        """Raises SpecError for an invalid request."""
        self.named()
        self.hosts()


def resolve(request: Request, store: Store, builds: Sequence[Build], searched: Sequence[Path] = ()) -> Takedowns:
    """All that is taken down from now on: what is already, and what the request means in these builds and indexes.

    searched: folders of search indexes.

    Raises SpecError, and SourceError for a picture that cannot be read.
    """
    known, named, images = store.takedowns(), request.named(), {name.lower() for name in request.sha256s}
    for item in request.items:
        subject = exactly(item, builds)
        named |= subject.hashes
        images |= subject.images
    for rows in fetched_images(builds):
        images.update(rows.filter(pc.is_in(rows["fetch_id"], text_array(named)))["sha256"].to_pylist())
    images |= indexes.images_named(searched, named)
    looks = [_look(row, request) for row in _features_of_files(request.pictures)]
    if not request.exact:
        looks += [_look(row, request) for row in _features_of_images(store, builds, images, searched)]
    by_look = Takedowns(looks=(*known.looks, *looks))
    alike = set[str]()
    for rows in _features(builds) if by_look.looks else ():
        alike.update(by_look.alike(rows, feature_id()))
    hashes = known.hashes | named | request.hosts() | images | alike
    for rows in fetched_images(builds):  # the same bytes at other addresses
        hashes |= set(rows.filter(pc.is_in(rows["sha256"], text_array(hashes)))["fetch_id"].to_pylist())
    for build in builds:  # a picture that lies in a source may have other bytes there than it had at its URL
        for rows in build.tables("extract", PROVENANCE, ["fetch_id", "sha256"]):
            hashes |= set(rows.filter(pc.is_in(rows["sha256"], text_array(hashes)))["fetch_id"].to_pylist())
    unique = {look.signature: look for look in by_look.looks}
    return Takedowns(frozenset(hashes), tuple(unique.values()))


def _look(row: dict[str, Any], request: Request) -> Look:
    threshold = Dedup().image_signature
    details = row.get("details")  # not in rows of an older wenlan
    return Look(tuple(row["phash"]), row["signature"], request.distance, threshold, feature_id(), details)


def _features_of_files(pictures: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Features of pictures given as files. Raises SourceError."""
    from pipeline.pictures.decode import MAX_PIXELS, PictureError

    for path in pictures:
        try:
            yield measure_image(path.read_bytes(), MAX_PIXELS)
        except OSError as e:
            raise SourceError(str(path), f"cannot be read ({e.strerror})") from None
        except PictureError as e:
            raise SourceError(str(path), f"is no picture that can be read ({e})") from None


def _features_of_images(
    store: Store, builds: Sequence[Build], images: set[str], searched: Sequence[Path]
) -> Iterator[dict[str, Any]]:
    """Features of images by sha256, from STORE or from a build that measured them, or from an index's pictures."""
    rows = store.features(feature_id()).get(images)
    by_image = {} if rows is None else {row["sha256"]: row for row in rows.to_pylist()}
    if set(by_image) != images:
        for rows in _features(builds):
            some = rows.filter(pc.is_in(rows["sha256"], text_array(images)))
            by_image |= {row["sha256"]: row for row in some.to_pylist()}
    by_image = indexes.features_of(searched, images - set(by_image)) | by_image
    yield from (by_image[sha256] for sha256 in sorted(by_image))


def _features(builds: Sequence[Build]) -> Iterator[pa.Table]:
    for build in builds:
        for rows in build.tables("measure", "parquet"):
            yield rows.select([name for name in LOOKED_AT if name in rows.column_names])


def fetched_images(builds: Sequence[Build]) -> Iterator[pa.Table]:
    """fetch_id and sha256 of the images that were fetched."""
    for build in builds:
        for rows in build.tables("fetch", "parquet", ["fetch_id", "sha256", "ok"]):
            yield rows.filter(rows["ok"])


def text_array(names: set[str] | frozenset[str]) -> pa.Array:
    """Names as a sorted Arrow array, to look rows up in."""
    return pa.array(sorted(names), pa.string())
