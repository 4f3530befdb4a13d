"""Stage admit: what can be decided without pixels, before a byte is fetched.

A partition is a range of `order_key`, so all candidates of one image URL meet in one partition. In this order:
texts are normalised, text filters rewrite them, and those that one rejects are taken off; a candidate is dropped that
was taken down (`forgotten`), that is there twice, that has no text left, or that is one too many for its image URL.
What remains has its primary text first, by the spec's `text_kinds`.

The result does not depend on the order of files, rows or partitions before: ties go by row and texts, then by id.

A small build is cut finer than `fetch.images_per_partition`, so that all cores have work (`ranges_for`).

Limits: a partition is held in memory (`fetch.images_per_partition` candidates, more where URLs repeat). Of two
captures of one page the one with the smaller row and texts wins, not the newer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import BuildSpec
from data_specs.shard import Text
from pipeline import pulse
from pipeline.filters import Drop, TextFilter, text_filters
from pipeline.records import (
    CANDIDATE_SCHEMA,
    FIRST_SNAPSHOT,
    Candidate,
    Decision,
    DropReason,
    candidate_rows,
    candidates_of,
    drop,
)
from pipeline.store.build import Build
from pipeline.store.ranges import KeyRange
from pipeline.store.stage import Stage, StageFile
from pipeline.store.takedowns import NO_TAKEDOWNS, Takedowns
from pipeline.texts.cleaning import clean
from pipeline.texts.forms import CHUNK
from pipeline.unreadable import OURS, evidence


def token(build: Build) -> Any:
    """Caps, text filters, order of kinds, partition size, and the takedowns that the build reads."""
    spec = build.spec
    return {
        "admit": spec.admit.model_dump(mode="json"),
        "filters": [f.identity() for f in text_filters(spec)],
        "text_kinds": list(spec.text_kinds),
        "seed": spec.seed,
        "images_per_partition": spec.fetch.images_per_partition,
        "forgotten": build.store.forgotten_revision(),
    }


SMALL, ENOUGH = 250, 64
"""Candidates from which a partition is worth a task of its own; and partitions that keep any usual machine busy."""


def partitions(build: Build) -> list[str]:
    """Ranges of order_key (`KeyRange`), as many as the number of extracted candidates asks for.

    That number and the spec alone decide, never the machine. What a killed build has committed decides before both: an
    older wenlan cut small builds into one range.
    """
    begun = build.stage("admit").partitions()
    if begun:
        return [str(key_range) for key_range in KeyRange.cut(KeyRange.named(begun[0]).of)]
    total = sum(record.counts["kept"] for record in build.stage("extract").records())
    return [str(key_range) for key_range in KeyRange.cut(ranges_for(total, build.spec.fetch.images_per_partition))]


def ranges_for(candidates: int, most: int) -> int:
    """How many ranges so many candidates are cut into: each of at most `most` on average, and up to ENOUGH of SMALL."""
    return max(1, -(-candidates // most), min(ENOUGH, candidates // SMALL))


def run_partition(build: Build, partition: str) -> None:
    """Admit one range and commit it."""
    with build.stage("admit").attempt(partition) as attempt:
        candidates, first_snapshot = _candidates(build, *KeyRange.named(partition).bounds)
        rewritten = Counter(dict.fromkeys(rewriters(text_filters(build.spec)), 0))
        kept, decisions = admit(candidates, build.spec, build.store.takedowns(), rewritten, first_snapshot)
        attempt.write_table("parquet", candidate_rows(kept, build.spec.seed))
        attempt.decide(decisions)
        attempt.commit(
            {
                "seen": len(candidates),
                "kept": len(kept),
                "dropped": len(decisions),
                "images": len({c.image_url for c in kept}),
                "texts_seen": sum(len(c.texts) for c in candidates),
                "texts_kept": sum(len(c.texts) for c in kept),
                **{f"texts_rewritten_by_{name}": n for name, n in rewritten.items()},
            }
        )


def _candidates(build: Build, low: str, high: str) -> tuple[list[Candidate], dict[str, str]]:
    """Extract's candidates with an order_key in [low, high); row groups outside of it are not read.

    Beside them, by id, the oldest snapshot that shows a candidate of a new generation.
    """
    extract = build.stage("extract")
    here = (pc.field("order_key") >= low) & (pc.field("order_key") < high)
    tables = [extract.table(record, filters=here) for record in extract.records()]
    first_snapshot: dict[str, str] = {}
    for table in tables:
        if FIRST_SNAPSHOT in table.column_names:
            first_snapshot.update(zip(*(table[c].to_pylist() for c in ("candidate_id", FIRST_SNAPSHOT)), strict=True))
    rows = [table.select(CANDIDATE_SCHEMA.names) for table in tables]
    return candidates_of(pa.concat_tables(rows) if rows else CANDIDATE_SCHEMA.empty_table()), first_snapshot


def admit(
    candidates: Sequence[Candidate],
    spec: BuildSpec,
    takedowns: Takedowns = NO_TAKEDOWNS,
    rewritten: Counter[str] | None = None,
    first_snapshot: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[Candidate], list[Decision]]:
    """Kept candidates and a Decision for each of the others: len(kept) + len(decisions) == len(candidates).

    takedowns: image URLs, pages and domains that are refused. rewritten: counts the texts that each filter changed.
    first_snapshot: the oldest snapshot that shows a candidate; the cap per image URL takes older ones first, as builds
    that followed each other did. The result is the same in any order of input.
    """
    filters = text_filters(spec)
    rewritten = Counter() if rewritten is None else rewritten
    rank = {kind: i for i, kind in enumerate(spec.text_kinds)}
    by_image: dict[str, dict[str, Candidate]] = {}
    decisions: list[Decision] = []
    allowed: list[Candidate] = []
    for candidate in sorted(candidates, key=_tie):
        if why := takedowns.why(candidate.image_url, candidate.page_url):
            decisions.append(drop(candidate, "admit", DropReason.FORGOTTEN, why))
        else:
            allowed.append(candidate)
    for candidate, judged in zip(allowed, judge(allowed, filters, rank, rewritten), strict=True):
        same = by_image.get(candidate.image_url, {})
        if candidate.candidate_id in same:
            decisions.append(drop(candidate, "admit", DropReason.SAME_CANDIDATE, duplicate_of=candidate.candidate_id))
        elif isinstance(judged, Decision):
            decisions.append(judged)
        else:
            by_image.setdefault(candidate.image_url, {})[candidate.candidate_id] = judged
    kept: list[Candidate] = []
    for same in by_image.values():
        chosen, rest = _capped(list(same.values()), spec.admit.max_candidates_per_image, first_snapshot)
        kept += chosen
        count = f"{len(same)} candidates for one image URL"
        decisions += [drop(c, "admit", DropReason.CAP_PER_IMAGE_URL, count) for c in rest]
    decisions.sort(key=lambda d: (d.id, d.reason, d.text))
    return sorted(kept, key=lambda c: c.candidate_id), decisions


def _tie(candidate: Candidate) -> tuple[Any, ...]:
    """Order in which candidates are looked at: depends on what they are, not on where they were read."""
    return candidate.candidate_id, candidate.row, [(t.kind, t.text) for t in candidate.texts]


def rewriters(filters: Sequence[TextFilter]) -> list[str]:
    """Names of the filters that rewrite texts."""
    return [f.plugin_name() for f in filters if type(f).rewrite is not TextFilter.rewrite]


def judge(
    candidates: Sequence[Candidate], filters: Sequence[TextFilter], rank: dict[str, int], rewritten: Counter[str]
) -> list[Candidate | Decision]:
    """Each candidate with the texts that every filter keeps, primary first; else a Decision with every reason.

    The first reason is the primary text's: the text that the sample would have been known by. Texts are as the
    filters have rewritten them, in a Decision too; two that have become the same are one.
    """
    texts_of = [_cleaned(candidate, rank) for candidate in candidates]
    texts = [text for own in texts_of if not isinstance(own, Decision) for text in own]
    faults: list[list[Drop]] = []
    for at in range(0, len(texts), CHUNK):
        faults += _filter(texts, at, filters, rewritten)
        pulse.expect(len(candidates), done=len(candidates) * len(faults) // len(texts))
    judged: list[Candidate | Decision] = []
    at = 0  # where a candidate's texts begin among all of them
    for candidate, own in zip(candidates, texts_of, strict=True):
        if isinstance(own, Decision):
            judged.append(own)
            continue
        judged.append(_judged(candidate, texts[at : at + len(own)], faults[at : at + len(own)]))
        at += len(own)
    return judged


def _cleaned(candidate: Candidate, rank: dict[str, int]) -> list[Text] | Decision:
    """What `_clean` returns, or the Decision that its texts cannot be read."""
    try:
        return _clean(candidate, rank)
    except OURS:
        raise
    except Exception as e:
        return drop(candidate, "admit", DropReason.UNREADABLE, evidence(e, candidate.image_url))


def _clean(candidate: Candidate, rank: dict[str, int]) -> list[Text]:
    """Its texts in normal form, each once, in the order of the spec's kinds."""
    cleaned_texts: dict[str, Text] = {}
    for text in sorted(candidate.texts, key=lambda t: rank.get(t.kind, len(rank))):
        cleaned = clean(text.text)
        if cleaned:
            cleaned_texts.setdefault(cleaned, text if cleaned == text.text else replace(text, text=cleaned))
    return list(cleaned_texts.values())


def _filter(texts: list[Text], at: int, filters: Sequence[TextFilter], rewritten: Counter[str]) -> list[list[Drop]]:
    """What filters find wrong with each text of a chunk; texts that they rewrite are replaced in the list.

    Filter by filter rather than text by text: what a filter needs stays in the processor's caches, which is a third
    of the time.
    """
    here = range(at, min(at + CHUNK, len(texts)))
    faults: list[list[Drop]] = [[] for _ in here]
    for f in filters:
        check, rewrite = f.check, f.rewrite
        for i in here:
            try:
                fault = check(texts[i])
            except OURS:
                raise
            except Exception as e:
                fault = _unreadable(f, texts[i], e)
            if fault is not None:
                faults[i - at].append(fault)
        if type(f).rewrite is TextFilter.rewrite:
            continue
        for i in here:
            try:
                after = rewrite(texts[i])
            except OURS:
                raise
            except Exception as e:
                faults[i - at].append(_unreadable(f, texts[i], e))
                after = replace(texts[i], text="", original="")  # what should have been masked is written nowhere
            if after is not texts[i]:
                rewritten[f.plugin_name()] += 1
                texts[i] = after
    return faults


def _unreadable(text_filter: TextFilter, text: Text, error: Exception) -> Drop:
    """The fault of a text on which a filter failed: it goes no further, whatever the other filters say."""
    return Drop(DropReason.UNREADABLE, f"{text_filter.plugin_name()}: {evidence(error, f'a text of kind {text.kind}')}")


def _judged(candidate: Candidate, texts: Sequence[Text], faults: Sequence[list[Drop]]) -> Candidate | Decision:
    """What becomes of a candidate whose texts have these faults."""
    good: dict[str, Text] = {}
    for text, own in zip(texts, faults, strict=True):
        if not own:
            good.setdefault(text.text, text)
    remaining = tuple(good.values()) or tuple(texts)
    ordered = candidate if remaining == candidate.texts else replace(candidate, texts=remaining)
    if good:
        return ordered
    all_faults = [fault for own in faults for fault in own]
    if not all_faults:
        return drop(ordered, "admit", DropReason.NO_TEXT)
    reasons = tuple(dict.fromkeys(fault.reason.value for fault in all_faults))
    first = all_faults[0]
    return drop(ordered, "admit", first.reason, first.evidence, reasons=reasons)


def _capped(
    same: list[Candidate], most: int, first_snapshot: Mapping[str, str]
) -> tuple[list[Candidate], list[Candidate]]:
    """At most `most` candidates of one image URL: by crawl, of one crawl those first whose primary text is new."""
    seen: set[str] = set()
    ranked: list[tuple[tuple[bool, str, bool], Candidate]] = []

    def snapshot(candidate: Candidate) -> tuple[bool, str]:
        known = first_snapshot.get(candidate.candidate_id)
        return known is None, known or ""  # what no crawl shows comes last

    for candidate in sorted(same, key=lambda c: (snapshot(c), _tie(c))):
        text = candidate.texts[0].text
        ranked.append(((*snapshot(candidate), text in seen), candidate))
        seen.add(text)
    ordered = [candidate for _, candidate in sorted(ranked, key=lambda entry: entry[0])]
    return ordered[:most], ordered[most:]


STAGE = Stage(
    name="admit",
    zh="准入",
    folder="admitted",
    inputs=("extract",),
    version=2,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=(StageFile("parquet", CANDIDATE_SCHEMA, "candidate_id"),),
)
