"""Understands what a person names: a URL, a file, a key, an id or the sha256 of a picture, as builds know it.

`explain` and `forget` ask here, so that both understand the same names:

    https://..., folder:///NAME/PATH      an image or a page, in any spelling of its address
    PATH, file:///PATH                    a picture of a source on this machine, by its path, or by its path in the
                                          source; one that lies in no source is known by its bytes
    8 to 64 hexadecimal digits            the beginning of a key or id, or a whole sha256; `KEY.jpg` as in a shard

Limits: a path is looked up in the sources of the builds asked; members of tars have the address `webdataset:///...`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import SpecError
from data_specs.storage.whole_files import sha256_of
from pipeline.errors import PipelineError
from pipeline.rows.records import PROVENANCE, sha256_hex
from pipeline.sources import TableSource, local_path, sources_of
from pipeline.store.build import Build
from pipeline.store.commits import DECISIONS
from pipeline.urls import canonical_url, split_userinfo, without_userinfo

PREFIX = 8
"""Fewest digits of an id."""

_DIGITS = re.compile(rf"([0-9a-f]{{{PREFIX},64}})(?:\.(?:jpg|txt|json))?", re.I)


@dataclass(frozen=True)
class Subject:
    """The subject that a person named, as rows are found by.

    urls: of an image or a page. fetch_ids: of images, beside those of `urls`. images: sha256 of bytes as fetched.
    prefix: the beginning of an id, "" if none was named. tried: what it was taken for, in words.
    """

    tried: str
    urls: frozenset[str] = frozenset()
    fetch_ids: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    prefix: str = ""

    @property
    def hashes(self) -> set[str]:
        """Hashes of what is named in full, as takedowns have them."""
        return {sha256_hex(url) for url in self.urls} | self.fetch_ids | self.images

    @property
    def where_clause(self) -> tuple[str, list[Any]]:
        """SQL condition for decisions about it (`pipeline.store.sql`), and the values of its question marks."""
        urls = sorted(self.urls)
        # the url column is cut at 2,000 characters, fetch_id is of the whole
        fetch_ids = sorted(self.fetch_ids | {sha256_hex(url) for url in urls})
        asked = {"url": urls, "page_url": urls, "fetch_id": fetch_ids}
        clauses, values = [f"list_contains(?::VARCHAR[], {name})" for name in asked], list[Any](asked.values())
        for name in ("id", "fetch_id", "duplicate_of") if self.prefix else ():
            clauses.append(f"starts_with({name}, ?)")
            values.append(self.prefix)
        return " OR ".join(clauses), values


def subject_of(named: str, builds: Sequence[Build]) -> Subject:
    """The subject that `named` means in these builds. Raises SpecError if it names nothing, or several things."""
    named = named.strip()
    if "://" in named and not named.startswith("file://"):
        return _with_fetched(Subject("a URL", _spellings(named)), builds)
    digits = _DIGITS.fullmatch(named)
    if digits and not os.path.exists(named):  # noqa: PTH110 (Path raises for a name that is too long)
        prefix = digits[1].lower()
        images = frozenset([prefix] if len(prefix) == 64 else [])
        return _with_fetched(Subject("a key, an ID or the sha256 of an image", images=images, prefix=prefix), builds)
    if not named.startswith("file://") and not re.search(r"[/\\.]", named) and not os.path.exists(named):  # noqa: PTH110
        raise SpecError([f"{named}: expected a URL, a file, or at least {PREFIX} digits of a key, ID or sha256"])
    return _with_fetched(_of_file(named, builds), builds)


def exactly(named: str, builds: Sequence[Build]) -> Subject:
    """The same for a takedown, which must name one thing: digits become the image that they are of.

    Raises SpecError as `subject_of`, and for digits with which several images begin; PipelineError for digits that name
    nothing, and for a path of no file.
    """
    subject = subject_of(named, builds)
    if subject.prefix:
        begun = _begins_with(subject.prefix, builds) | subject.fetch_ids
        if len(begun) > 1 and not subject.images:
            raise SpecError([f"{named}: ambiguous, {len(begun)} images match; give more digits"])
        if not begun and not subject.images:
            have = f"{len(builds):,} builds have" if len(builds) != 1 else f"build {builds[0].build_id} has"
            raise PipelineError(named, f"{have} no key, ID or sha256 with this prefix")
        subject = replace(subject, fetch_ids=frozenset(begun))
    if not subject.hashes:
        raise PipelineError(named, f"no match; looked up as {subject.tried}")
    return subject


def _spellings(url: str) -> frozenset[str]:
    """A URL as it is written, in canonical form, and with the path quoted as sources quote it."""
    spelled = {without_userinfo(url)}
    with contextlib.suppress(ValueError):
        spelled.add(canonical_url(split_userinfo(url)[0]))
    if not url.startswith(("http://", "https://")):
        scheme, _, rest = url.partition(":///")
        spelled.add(f"{scheme}:///{quote(unquote(rest))}")
    return frozenset(spelled)


def _of_file(named: str, builds: Sequence[Build]) -> Subject:
    """A picture by its path; by its bytes if it lies in no source. Raises SpecError if several sources have it."""
    relative = unquote(urlsplit(named).path) if named.startswith("file://") else named
    path = local_path(relative)
    sources = {(build.out, source.name): source for build in builds for source in _tables(build)}
    addresses = {source.address_of(path) for source in sources.values()} - {""}
    if addresses:
        return Subject(f"the file {path} of a source", frozenset(addresses))
    inside = [source.address_of(f"{root}/{relative}") for source in sources.values() if (root := source.root())]
    known = _known_addresses({address for address in inside if address}, builds)
    if len(known) > 1:
        raise SpecError([f"{named}: several sources contain this file: {', '.join(sorted(known))}; give one of these"])
    if known:
        return Subject(f"the file {relative} of a source", frozenset(known))
    if os.path.isfile(path):  # noqa: PTH113
        return Subject(f"an image with the bytes of {path}", images=frozenset([sha256_of(Path(path))]))
    roots = sorted({root for source in sources.values() if (root := source.root())})
    return Subject(f"the file {path}, and {relative} in the folders of the sources ({', '.join(roots) or 'none'})")


def _tables(build: Build) -> list[TableSource]:
    return [source for source in sources_of(build.spec) if isinstance(source, TableSource)]


def _known_addresses(addresses: Iterable[str], builds: Sequence[Build]) -> set[str]:
    """Returns the addresses at which a build has found a picture."""
    by_id = {sha256_hex(address): address for address in addresses}
    wanted, known = pa.array(sorted(by_id), pa.string()), set[str]()
    if not by_id:
        return known
    for build in builds:
        for suffix in ("parquet", DECISIONS):
            for rows in build.tables("extract", suffix, ["fetch_id"]):
                known |= {by_id[i] for i in rows.filter(pc.is_in(rows["fetch_id"], wanted))["fetch_id"].to_pylist()}
        for rows in build.tables("extract", PROVENANCE, ["stored_at"]):
            known |= set(rows["stored_at"].to_pylist()) & set(by_id.values())
    return known


def _with_fetched(subject: Subject, builds: Sequence[Build]) -> Subject:
    """The same, with the images that have these bytes, or lie in a source at one of these addresses."""
    found = set[str]()
    images, urls = (pa.array(sorted(names), pa.string()) for names in (subject.images, subject.urls))
    for build in builds:
        for rows in build.tables("fetch", "parquet", ["fetch_id", "sha256"]) if subject.images else ():
            found |= set(rows.filter(pc.is_in(rows["sha256"], images))["fetch_id"].to_pylist())
        for rows in build.tables("extract", PROVENANCE, ["fetch_id", "stored_at"]) if subject.urls else ():
            found |= set(rows.filter(pc.is_in(rows["stored_at"], urls))["fetch_id"].to_pylist())
    return replace(subject, fetch_ids=subject.fetch_ids | found)


def _begins_with(prefix: str, builds: Sequence[Build]) -> set[str]:
    """fetch_ids of the images whose key or id, or that of a candidate of theirs, begins so."""
    found = set[str]()
    for build in builds:
        stages = [("extract", "parquet", "candidate_id"), *((name, DECISIONS, "id") for name in build.fingerprints)]
        for stage, suffix, column in stages:
            for rows in build.tables(stage, suffix, [column, "fetch_id"]):
                begins = pc.or_(pc.starts_with(rows[column], prefix), pc.starts_with(rows["fetch_id"], prefix))
                found |= set(rows.filter(begins)["fetch_id"].to_pylist())
    return found - {""}
