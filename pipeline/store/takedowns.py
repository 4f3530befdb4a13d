"""Takedowns: what must not be in any dataset, and how a row, a URL or a picture is recognised as such.

STORE/forgotten holds one file per takedown, with hashes only: it does not reveal what was taken down, but a picture or
an address can be checked against it.

    hashes   sha256 of an image's or a page's URL, of an image's bytes, of a domain
    found    the same of URLs at which a build has met such a picture since
    looks    perceptual hashes and signatures of pictures, with the distance up to which another one is the same

Used by: `admit` before a byte is fetched (URL, page, domain), `fetch` (bytes), `measure` (looks), `report`, `verify`,
`publish`, and `forget`, which takes things out of what is there already.

Limits: looks are compared with those of the same feature id only.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import canonical_json
from pipeline.matching.image_comparison import Bytes, Codes, Details, Rule, hashes_of, signatures_of
from pipeline.matching.image_edges import first_alike
from pipeline.rows.records import LOOKS, sha256_hex
from pipeline.urls import canonical_url, host_names, split_userinfo

LOOKED_AT = ("sha256", *LOOKS)
"""Columns of FEATURE_SCHEMA by which pictures are compared with what was taken down."""

Looks = tuple[Codes, Bytes, Details]
"""Hashes, signatures and details of pictures."""

UNFINISHED = "_forget.json"
"""File in a build's folder while a takedown is running there: what it removes, and the state before."""


@dataclass(frozen=True)
class Look:
    """Look of a forgotten picture. `distance` bits of 64, `threshold` between two signatures, 0 to 1."""

    phash: tuple[int, ...]
    signature: bytes
    distance: int
    threshold: float
    features: str
    details: bytes | None = None

    @staticmethod
    def read(raw: dict[str, Any]) -> Look:
        signature = base64.b64decode(raw["signature"])
        details = base64.b64decode(raw["details"]) if "details" in raw else None
        return Look(tuple(raw["phash"]), signature, raw["distance"], raw["threshold"], raw["features"], details)

    def value(self) -> dict[str, Any]:
        """The look as JSON values."""
        signature = base64.b64encode(self.signature).decode()
        more: dict[str, Any] = {"distance": self.distance, "threshold": self.threshold, "features": self.features}
        if self.details is not None:
            more["details"] = base64.b64encode(self.details).decode()
        return {"phash": list(self.phash), "signature": signature, **more}


@dataclass(frozen=True)
class Takedowns:
    """Everything that was taken down."""

    hashes: frozenset[str] = frozenset()
    looks: tuple[Look, ...] = ()
    found: frozenset[str] = frozenset()
    """Those of the hashes that builds have found: what they name is refused by its bytes or looks anyway."""
    _hosts: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)
    _groups: dict[str, list[tuple[Rule, Looks]]] = field(default_factory=dict, repr=False, compare=False)

    def __bool__(self) -> bool:
        return bool(self.hashes or self.looks)

    @property
    def revision(self) -> str:
        """Digest of what they hold, however it is filed; what was found changes nothing of what a build keeps."""
        looks, hashes = sorted(look.signature.hex() for look in self.looks), sorted(self.hashes - self.found)
        value = [hashes, looks] if looks else hashes
        return hashlib.sha256(canonical_json(value)).hexdigest()[:16]

    def takedown_reason(self, image_url: str, page_url: str) -> str:
        """Returns why an image on a page is taken down; "" if it is not."""
        if not self.hashes:
            return ""
        if sha256_hex(image_url) in self.hashes:
            return "this image URL was taken down"
        if page_url and sha256_hex(page_url) in self.hashes:
            return "its page was taken down"
        return "its domain was taken down" if self.host(image_url) or self.host(page_url) else ""

    def names(self, row: dict[str, Any]) -> bool:
        """True if a row of the decisions (fetch_id, url, page_url) is about something that is taken down."""
        return row["fetch_id"] in self.hashes or bool(self.takedown_reason(row["url"], row["page_url"]))

    def taken_down_mask(self, rows: pa.Table) -> pa.ChunkedArray:
        """[N] mask of the rows of the decisions for which `names` holds. Shared values are looked at once."""
        found = pc.is_in(rows["fetch_id"], pa.array(sorted(self.hashes), pa.string()))
        for name in ("url", "page_url"):
            urls = rows[name].combine_chunks().dictionary_encode()
            own = [
                self.host(url) or (bool(url) and sha256_hex(url) in self.hashes) for url in urls.dictionary.to_pylist()
            ]
            found = pc.or_(found, pa.array(own, pa.bool_()).take(urls.indices))
        return found

    def host(self, url: str) -> bool:
        """True if the host of a URL, or a domain above it, is taken down."""
        if not url or not self.hashes:
            return False
        start = "/".join(url.split("/", 3)[:3])
        known = self._hosts.get(start)
        if known is None:
            if len(self._hosts) > 100_000:
                self._hosts.clear()
            known = self._hosts[start] = any(sha256_hex(name) in self.hashes for name in host_names(url))
        return known

    COLUMNS: ClassVar = ("key", "image_url", "page_url", "sha256")
    """Columns of a shard's table that `taken_down_keys` needs."""

    def taken_down_keys(self, rows: Iterable[dict[str, Any]]) -> list[str]:
        """Keys of the samples (rows with COLUMNS) that are taken down."""
        return [row["key"] for row in rows if self.holds(row)] if self.hashes else []

    def holds(self, row: dict[str, Any]) -> bool:
        """True if a sample (a row with COLUMNS) is taken down."""
        return row["sha256"] in self.hashes or bool(self.takedown_reason(row["image_url"], row["page_url"]))

    def images(self, sha256: Iterable[str]) -> set[str]:
        """Returns the images, by sha256 of their bytes, that are taken down."""
        return set(self.hashes.intersection(sha256))

    def alike(self, rows: pa.Table, features: str) -> list[str]:
        """Returns the sha256 of rows whose picture looks like one that was taken down.

        rows: with the columns LOOKED_AT.

        features: the feature id by which the rows were measured; looks of another one are not compared.
        """
        if not rows.num_rows:
            return []
        looks = looks_of(rows)
        alike = np.zeros(rows.num_rows, np.bool_)
        for rule, taken_down in self._groups_of(features):
            alike |= first_alike(rule, looks, taken_down) >= 0
        names: list[str] = rows["sha256"].filter(pa.array(alike)).to_pylist()
        return names

    def _groups_of(self, features: str) -> list[tuple[Rule, Looks]]:
        """The looks of each rule (distance and threshold) that a takedown asked for."""
        if features not in self._groups:
            by_rule: dict[Rule, list[Look]] = {}
            for look in self.looks:
                if look.features == features:
                    by_rule.setdefault(Rule(look.distance, look.threshold), []).append(look)
            self._groups[features] = [(rule, looks_of(_table(looks))) for rule, looks in by_rule.items()]
        return self._groups[features]


def _table(looks: Sequence[Look]) -> pa.Table:
    """Looks as rows that have them."""
    return pa.table(
        {
            "phash": pa.array([look.phash for look in looks], pa.list_(pa.uint64())),
            "signature": pa.array([look.signature for look in looks], pa.binary()),
            "details": pa.array([look.details for look in looks], pa.binary()),
        }
    )


NO_TAKEDOWNS = Takedowns()


def looks_of(rows: pa.Table) -> Looks:
    """phash [N, hashes], signature [N, bytes] and details of rows that have these columns."""
    return hashes_of(rows), signatures_of(rows["signature"]), Details.of_table(rows)


def url_hashes(urls: Iterable[str]) -> set[str]:
    """Hashes by which URLs may have been taken down: as they are given, and as the pipeline spells them."""
    spelled = set(urls)
    for url in tuple(spelled):
        with contextlib.suppress(ValueError):
            spelled.add(canonical_url(split_userinfo(url)[0]))
    return {sha256_hex(url) for url in spelled}


def domain_hashes(domain: str) -> set[str]:
    """Hashes of a domain as URLs spell it: in lower case, as given and in its IDNA form."""
    name = domain.strip().strip(".").lower()
    names = {name}
    with contextlib.suppress(UnicodeError):
        names.add(name.encode("idna").decode())
    return {sha256_hex(name) for name in names}


def merged(parts: Sequence[dict[str, Any]]) -> Takedowns:
    """The takedowns in all files of STORE/forgotten, as one."""
    hashes = frozenset(name for part in parts for name in part["hashes"])
    looks = dict.fromkeys(Look.read(look) for part in parts for look in part.get("looks", ()))
    found = frozenset(name for part in parts for name in part.get("found", ())) - hashes
    return Takedowns(hashes | found, tuple(looks), found)
