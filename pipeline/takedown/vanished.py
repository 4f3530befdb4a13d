"""Removes samples from a dataset whose page or picture has vanished from its source or has been opted out.

A build's crawl and fetch meet pages and pictures that earlier builds of the dataset have samples of. Opt-outs are
always honoured, at whichever address the same bytes are; an answer of 404 or 410 counts where the source says
`vanished: drop`, and for that address alone. Their samples are taken out of the earlier builds as a takedown does it,
so that the next release is without them. Unlike a takedown it is not a ban: what a later crawl meets again, without the
opt-out, is a candidate like any other.

Known addresses that no crawl or fetch meets are asked for at the pace of `fetch.recheck_every`, and counted here like
the others; there robots.txt is an opt-out, too.

Limits: what a build did not ask for is not known to be gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError
from pipeline.files.folder import place_of
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import sha256_hex
from pipeline.store.build import Build
from pipeline.store.frames import Frames
from pipeline.takedown import known_builds
from pipeline.takedown.forget import forget
from pipeline.takedown.request import Request
from pipeline.web import policy

_OPT_OUTS = (DropReason.OPT_OUT.value, DropReason.ROBOTS_DISALLOWED.value)


@dataclass(frozen=True, slots=True)
class Lost:
    """URLs of pages and pictures: whose owners opted out, and which are no longer there.

    Of an image whose Decision does not hold its URL as it is (it is cut at 2,000 characters) it is the fetch_id.
    """

    opted_out: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.opted_out or self.vanished)


def lost_in(build: Build) -> Lost:
    """Losses that a build's crawl, extract, fetch and recheck report, as far as the spec lets them count."""
    drops = {source.name for source in build.spec.sources if source.vanished == "drop"}
    opted_out, vanished = set[str](), set[str]()
    for row in _refusals(build):
        url = row["url"] if row["fetch_id"] in ("", sha256_hex(row["url"])) else row["fetch_id"]
        if row["reason"] in _OPT_OUTS:
            opted_out.add(url)
        elif row["source"] in drops and re.search(policy.GONE, row["evidence"]):
            vanished.add(url)
    return Lost(tuple(sorted(opted_out)), tuple(sorted(vanished)))


def _refusals(build: Build) -> Iterator[dict[str, Any]]:
    """Refusals of known addresses, and decisions about opt-outs and HTTP errors that name a URL."""
    for rows in build.tables("fetch.recheck", "parquet"):
        yield from ({**row, "fetch_id": ""} for row in rows.to_pylist())
    reasons = pa.array([DropReason.OPT_OUT.value, DropReason.HTTP_STATUS.value])
    wanted = pc.field("reason").isin(reasons) & (pc.field("url") != "")
    columns = ["fetch_id", "url", "source", "reason", "evidence"]
    for rows in Frames.of(build).batches("decisions", columns, wanted):
        yield from rows.to_pylist()


def leave_out(build: Build, vanished: bool = True) -> dict[str, Any]:
    """Take what a finished build found lost out of the earlier builds of its dataset; the next release is without it.

    vanished: False to honour opt-outs only.

    Returns {"opted_out": URLs that were found so, "vanished": likewise, "samples": how many were taken out}. Raises
    StoreError for a build that could not be done, once the others are.
    """
    lost = lost_in(build)
    lost = lost if vanished else Lost(lost.opted_out)
    answer = {"opted_out": len(lost.opted_out), "vanished": len(lost.vanished), "samples": 0}
    earlier, faults = _earlier(build) if lost else ([], [])
    if earlier:
        urls = [name for name in lost.opted_out if "://" in name]
        others = [name for name in lost.opted_out if "://" not in name]
        request = Request(urls=urls, sha256s=others, gone=lost.vanished, exact=True)
        done = forget(build.store, earlier, request, remember=False)
        answer["samples"] = sum(len(one["samples"]) for one in done["builds"])
        faults += done["faults"]
    if faults:
        what = "samples that opted out or vanished from their source may remain in the dataset"
        raise StoreError(build.build_id, f"{what}: {'; '.join(faults)}")
    return answer


def _earlier(build: Build) -> tuple[list[Build], list[str]]:
    """The other builds of the dataset, published or not; a line for each that is not there, or is damaged.

    Those of earlier generations too: a rollback may go to them, and must not bring back what was left out since.
    """
    own = [one for one in build.store.known_builds() if one["name"] == build.spec.name]
    others = [one for one in own if one["snapshot"] <= build.snapshot and place_of(one["out"]) != place_of(build.out)]
    return known_builds.opened(build.store, build.stages, others)
