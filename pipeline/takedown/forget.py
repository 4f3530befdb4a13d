"""Takedown: what an owner wants out goes out of every build and out of STORE, and never comes in again.

Asked for by URL (of an image or of a page), by domain, by the sha256 of a picture's bytes, or by a picture that it
looks like. A picture that is named takes its copies along, as dedup knows copies: the same bytes at other addresses,
and what looks the same within the distance. A page or a domain takes what was found there; a picture that another
page shows too stays.

In this order, so that a kill at any moment leaves a state that the same command finishes:

    1  what is meant is found in all builds
    2  STORE/forgotten gets it, as hashes: from now on nothing of it is let in, and no build that holds it is published
    3  BUILD/_forget.json notes what this build loses, until all of it is done
    4  new shards are written beside the dataset; then the manifest goes, they take their places, and the next revision
       is published, which names its parent. Shards that hold nothing of it are not touched
    5  captures, candidates, images, features, pairs, decisions, regions of the build (`pipeline.takedown.erase`), its
    report 6  STORE's identities and caches

Builds that STORE knows (those that were published) are done whether they are named or not. Without anything named, all
that is in STORE/forgotten is taken out of the builds given.

Limits: one process. A capture goes with any picture on it that goes. Copies of a dataset elsewhere are out of reach:
the manifest's parent says which revision to replace. Ids and hashes of what went stay in decisions and STORE.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import Dedup, SpecError
from data_specs.shard import canonical_json, parse_manifest
from pipeline.errors import SourceError
from pipeline.features import feature_id
from pipeline.publish import release
from pipeline.records import sha256_hex
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.identities import Identities
from pipeline.store.partitions import DECISIONS
from pipeline.store.rewrite import Removal
from pipeline.store.store import Store
from pipeline.store.takedowns import Look, Takedowns, domain_hashes
from pipeline.takedown import erase, restage
from pipeline.urls import canonical_url

MARKER = "_forget.json"
COUNTED = ("samples", "candidates", "images", "captures")
"""Of what a build held, in the answer of `forget`."""


@dataclass(frozen=True)
class Request:
    """What to take down. `distance`: bits of 64 by which another picture may differ; `exact`: no copies."""

    urls: Sequence[str] = ()
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
                spelled.add(canonical_url(url))
            if "://" not in url:
                raise SpecError([f"--url {url}: is no URL; a domain is taken down with --domain"])
        return {sha256_hex(url) for url in spelled} | {name.lower() for name in self.sha256s}

    def hosts(self) -> set[str]:
        """Hashes of domains. Raises SpecError."""
        for domain in self.domains:
            if not re.fullmatch(r"[^\s/@]+[.:][^\s/@]+", domain.strip(".")):
                raise SpecError([f"--domain {domain}: is not the name of a domain"])
        return {name for domain in self.domains for name in domain_hashes(domain)}


@dataclass
class Found:
    """What one build holds of it. `hashes`: ids, URLs, pages and pictures that go."""

    build: Build
    hashes: set[str] = field(default_factory=set)
    candidates: int = 0
    images: int = 0
    captures: int = 0
    samples: list[dict[str, str]] = field(default_factory=list)

    def value(self) -> dict[str, Any]:
        """For people and for --json."""
        shards = sorted({sample["shard"] for sample in self.samples})
        counts = {"candidates": self.candidates, "images": self.images, "captures": self.captures}
        return {
            "build_id": self.build.build_id,
            "out": self.build.out,
            **counts,
            "samples": self.samples,
            "shards": shards,
        }


def forget(store: Store, builds: Sequence[Build], request: Request, dry_run: bool = False) -> dict[str, Any]:
    """Take down what `request` names, and whatever an earlier takedown left undone.

    Gives {"builds": [what each held, and its new revision], "tombstone": name of the file in STORE/forgotten or ""}.
    dry_run: says what would go and changes nothing. Raises SpecError for a request that cannot be meant, SourceError
    for a picture that cannot be read, and StoreError for a build in which another command is at work.
    """
    request.named(), request.hosts()
    with contextlib.ExitStack() as held:
        if not dry_run:
            for build in builds:
                held.enter_context(build_json.sole_owner(build))
                _move_staged(build)
        takedowns = _meant(store, builds, request)
        found = [_find(build, takedowns) for build in builds]
        if dry_run:
            return {"dry_run": True, "builds": [one.value() for one in found], "tombstone": ""}
        name = _tombstone(store, takedowns)
        done = [_take_out(one, takedowns) for one in found]
        hashes = {h for one in found for h in one.hashes}
        _clean_store(store, takedowns, hashes, builds)
        for one in found:
            one.build.folder.delete(MARKER)
        return {"dry_run": False, "builds": done, "tombstone": name}


def _meant(store: Store, builds: Sequence[Build], request: Request) -> Takedowns:
    """All that is taken down from now on: what is already, and what the request means in these builds."""
    known, named = store.takedowns(), request.named()
    pictures = set(request.sha256s)
    for rows in _fetched(builds):
        pictures.update(rows.filter(pc.is_in(rows["fetch_id"], _array(named)))["sha256"].to_pylist())
    looks = [_look(row, request) for row in _shown(request.pictures)]
    if not request.exact:
        looks += [_look(row, request) for row in _measured(store, builds, pictures)]
    by_look = Takedowns(looks=(*known.looks, *looks))
    alike = (
        {name for rows in _features(builds) for name in by_look.alike(rows, feature_id())} if by_look.looks else set()
    )
    hashes = known.hashes | named | request.hosts() | pictures | alike
    for rows in _fetched(builds):
        hashes |= set(rows.filter(pc.is_in(rows["sha256"], _array(hashes)))["fetch_id"].to_pylist())
    unique = {look.signature: look for look in by_look.looks}
    return Takedowns(frozenset(hashes), tuple(unique.values()))


def _look(row: dict[str, Any], request: Request) -> Look:
    threshold = Dedup().image_signature
    return Look(tuple(row["phash"]), row["signature"], request.distance, threshold, feature_id())


def _shown(pictures: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Features of pictures given as files. Raises SourceError."""
    from pipeline.features._rows import measure_image
    from pipeline.pictures.decode import MAX_PIXELS, PictureError

    for path in pictures:
        try:
            yield measure_image(path.read_bytes(), MAX_PIXELS)
        except OSError as e:
            raise SourceError(str(path), f"cannot be read ({e.strerror})") from None
        except PictureError as e:
            raise SourceError(str(path), f"is no picture that can be read ({e})") from None


def _measured(store: Store, builds: Sequence[Build], pictures: set[str]) -> Iterator[dict[str, Any]]:
    """Features of pictures by sha256, from STORE or from a build that measured them."""
    rows = store.features(feature_id()).get(pictures)
    found = {} if rows is None else {row["sha256"]: row for row in rows.to_pylist()}
    if set(found) != pictures:
        for rows in _features(builds):
            some = rows.filter(pc.is_in(rows["sha256"], _array(pictures)))
            found |= {row["sha256"]: row for row in some.to_pylist()}
    yield from (found[name] for name in sorted(found))


def _array(names: set[str] | frozenset[str]) -> pa.Array:
    return pa.array(sorted(names), pa.string())


def _tables(build: Build, name: str, suffix: str, columns: list[str]) -> Iterator[pa.Table]:
    """One file of every partition of a stage, whichever spec of the build made it."""
    for stage in build.history(name):
        for record in stage.records():
            if suffix in record.files:
                yield stage.table(record, suffix, columns)


def _fetched(builds: Sequence[Build]) -> Iterator[pa.Table]:
    """fetch_id and sha256 of images that were got."""
    for build in builds:
        for rows in _tables(build, "fetch", "parquet", ["fetch_id", "sha256", "ok"]):
            yield rows.filter(rows["ok"])


def _features(builds: Sequence[Build]) -> Iterator[pa.Table]:
    for build in builds:
        yield from _tables(build, "measure", "parquet", ["sha256", "phash", "signature"])


def _find(build: Build, takedowns: Takedowns) -> Found:
    """What a build holds of what is taken down."""
    found = Found(build)
    ids, pages = _candidates(build, takedowns)
    captures = set[str]()
    for rows in _tables(build, "crawl", "parquet", ["url"]):
        captures |= {url for url in rows["url"].to_pylist() if sha256_hex(url) in pages or takedowns.host(url)}
    fetch_ids, pictures = _pictures(build, takedowns, ids)
    found.hashes = ids | pages | {sha256_hex(url) for url in captures} | fetch_ids | pictures
    found.candidates, found.images, found.captures = len(ids), len(fetch_ids), len(captures)
    if "shard" in build.fingerprints:
        stage = build.stage("shard")
        for record in build.packed():
            rows = stage.table(record, "parquet", ["candidate_id", "key", "image_url"])
            for row in rows.filter(pc.is_in(rows["candidate_id"], _array(ids))).to_pylist():
                found.samples.append({"key": row["key"], "shard": record.partition, "image_url": row["image_url"]})
    known = build.folder.read_json(MARKER)["hashes"] if build.folder.exists(MARKER) else []
    found.hashes |= set(known)
    return found


def _candidates(build: Build, takedowns: Takedowns) -> tuple[set[str], set[str]]:
    """(ids of candidates that go; hashes of pages that go or showed one). Captures that go are among the pages."""
    ids, pages = set[str](), set[str]()

    def judge(name: str, fetch_id: str, image: str, page: str) -> None:
        if fetch_id in takedowns.hashes or takedowns.why(image, page):
            ids.add(name)
            if page:
                pages.add(sha256_hex(page))

    for rows in _tables(build, "extract", "parquet", ["candidate_id", "fetch_id", "image_url", "page_url"]):
        for row in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            judge(*row)
    for name in build.fingerprints:
        for rows in _tables(build, name, DECISIONS, ["id", "fetch_id", "url", "page_url", "subject"]):
            for own, fetch_id, url, page, subject in zip(*(column.to_pylist() for column in rows.columns), strict=True):
                if not url:
                    continue  # done before
                if subject == "candidate":
                    judge(own, fetch_id, url, page)
                elif own in takedowns.hashes or takedowns.host(url):
                    pages.add(own)
    return ids, pages


def _pictures(build: Build, takedowns: Takedowns, ids: set[str]) -> tuple[set[str], set[str]]:
    """Images that go, those named and those of which no admitted candidate is left: (fetch_ids of those that were got,
    sha256 of their bytes and fetch_ids of those that were not)."""
    tables = ["candidate_id", "fetch_id"]
    gone = _array(ids)
    lost = {
        name
        for rows in _tables(build, "admit", "parquet", tables)
        for name in rows.filter(pc.is_in(rows["candidate_id"], gone))["fetch_id"].to_pylist()
    }
    asked = _array(lost)
    for rows in _tables(build, "admit", "parquet", tables):
        stays = pc.and_(pc.invert(pc.is_in(rows["candidate_id"], gone)), pc.is_in(rows["fetch_id"], asked))
        lost -= set(rows.filter(stays)["fetch_id"].to_pylist())
    images, others = dict[str, str](), set[str]()
    asked, named = _array(lost | takedowns.hashes), _array(takedowns.hashes)
    for rows in _fetched([build]):
        rows = rows.filter(pc.or_(pc.is_in(rows["fetch_id"], asked), pc.is_in(rows["sha256"], named)))
        images |= zip(rows["fetch_id"].to_pylist(), rows["sha256"].to_pylist(), strict=True)
    asked, known = _array(set(images.values())), _array(set(images))
    for rows in _fetched([build]):
        same = pc.and_(pc.is_in(rows["sha256"], asked), pc.invert(pc.is_in(rows["fetch_id"], known)))
        others |= set(rows.filter(same)["sha256"].to_pylist())
    return set(images), lost | (set(images.values()) - others)


def _tombstone(store: Store, takedowns: Takedowns) -> str:
    """Add to STORE/forgotten what is not there yet; the name of the file, "" if there was nothing to add."""
    with store.lock():
        known = store.takedowns()
        hashes = sorted(takedowns.hashes - known.hashes)
        seen = {look.signature for look in known.looks}
        looks = [look.value() for look in takedowns.looks if look.signature not in seen]
        if not hashes and not looks:
            return ""
        value = {"version": 1, "hashes": hashes, "looks": looks}
        name = f"forgotten/{hashlib.sha256(canonical_json(value)).hexdigest()[:16]}.json"
        made = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        store.folder.write_json(name, {**value, "made_at": made})
        return name


def _take_out(found: Found, takedowns: Takedowns) -> dict[str, Any]:
    """Steps 3 to 5 for one build; what it held, and its new revision if it has one."""
    build, answer = found.build, {**found.value(), "revision": None}
    begun = build.folder.exists(MARKER)
    if not found.hashes:
        return answer
    marker = build.folder.read_json(MARKER) if begun else _state(build)
    build.folder.write_json(MARKER, {**marker, "hashes": sorted(found.hashes)})
    removal = Removal(found.hashes, takedowns)
    if "shard" in build.fingerprints:
        _new_shards(build, removal)
    erase.erase(build, removal, ["lead"])  # what publishing hands to STORE
    if marker["published"]:
        answer["revision"] = release.renew(build, marker["accepted"]).revision
    erase.erase(build, removal, erase.erasable(build))
    if marker["reported"]:
        build.stages["report"].run(build, "all")
    _note(build)
    return answer


def _note(build: Build) -> None:
    """What shard counts now, in build.json."""
    known = build.folder.read_json("build.json") if build.folder.exists("build.json") else {"stages": {}}
    if "shard" in known["stages"]:
        funnel = Counter[str]()
        for record in build.stage("shard").records():
            funnel.update(record.counts)
        known["stages"]["shard"]["funnel"] = dict(funnel)
        build.folder.write_json("build.json", known)


def _state(build: Build) -> dict[str, Any]:
    """What a build was before anything was taken out of it."""
    state = {"published": False, "accepted": {}, "reported": False}
    folder = build.folder / "shards"
    if folder.exists("manifest.json"):
        manifest = parse_manifest(folder.read("manifest.json"), folder.at("manifest.json"))
        state |= {"published": True, "accepted": manifest.accepted}
    if "report" in build.fingerprints:
        state["reported"] = build.stage("report").finished()
    return state


def _new_shards(build: Build, removal: Removal) -> None:
    """The manifest is away only while files are moved; `renew` writes the next one."""
    if restage.restage(build, removal):
        _move_staged(build)


def _move_staged(build: Build) -> None:
    """Put new shards into their places; also those of a takedown that was killed, before anything of it is read: until
    their records are written, files are not what the old ones say."""
    if restage.staged(build):
        release.withdraw(build.folder / "shards")
        restage.apply(build)


def _clean_store(store: Store, takedowns: Takedowns, hashes: set[str], builds: Sequence[Build]) -> None:
    """Step 6. Identities of builds that were done are those of their own files already."""
    ids = _array(hashes | takedowns.hashes)
    named = pa.array([bytes.fromhex(name) for name in sorted(takedowns.hashes)], pa.binary(32))
    candidates = pa.array([bytes.fromhex(name) for name in sorted(hashes)], pa.binary(32))

    def published(rows: pa.Table) -> Any:
        mask = pc.is_in(rows["candidate_id"], candidates)
        for name in ("fetch_id", "sha256"):
            mask = pc.or_(mask, pc.is_in(rows[name], named))
        return np.array(mask.to_pylist(), np.bool_)

    with store.lock():
        Identities(store).forget(published)
    for name, cache in store.caches():
        cache.forget(functools.partial(_in_cache, name, cache.key, ids, takedowns))
    for build in builds:
        _rename(build)


def _in_cache(name: str, key: str, ids: pa.Array, takedowns: Takedowns, rows: pa.Table) -> pa.Array:
    mask = pc.is_in(rows[key], ids)
    if name == "fetched":
        hosts = pa.array([takedowns.host(url) for url in rows["image_url"].to_pylist()], pa.bool_())
        mask = pc.or_(mask, hosts)
    return mask


def _rename(build: Build) -> None:
    """Identities that a build reads may have another name now."""
    if not build.folder.exists("build.json"):
        return
    known, identities = build.folder.read_json("build.json"), Identities(build.store)
    there, read = set(identities.names()), list(known.get("identities", ()))
    names = [name if name in there else identities.of(name.rsplit(".", 2)[0]) for name in read]
    if names != read:
        build.folder.write_json("build.json", {**known, "identities": [name for name in names if name]})
