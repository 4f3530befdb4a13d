"""Stage admit: decides what can be decided without pixels, before any image is fetched.

A partition is a range of `order_key`, so all candidates of one image URL meet in one partition. In this order:
texts are normalised, templates of their host are cut off (`_templates`), text filters rewrite them, and those that one
rejects are removed; a candidate is dropped that was taken down (`forgotten`), that stands on so many pages of the whole
crawl that it is furniture, that is there twice, that is left without a text, that is one too many for its image URL, or
whose image is one too many of its host.

What remains has its primary text first, by the spec's `text_kinds`. A text that was removed is a fact: the candidate's
row has it with the reason (`records.REMOVED`), and `text_rank` counts those that would have come before the primary
one.

The result does not depend on the order of files, rows or partitions before: ties go by row and texts, then by id.

A small build is cut finer than `fetch.images_per_partition`, so that all cores have work (`ranges_for`).

Limits: a partition is held in memory (`fetch.images_per_partition` candidates, more where URLs repeat). Of two
captures of one page the one with the smaller row and texts wins, not the newer. A host's share is rounded down to whole
images of each partition, at least one.
"""

from __future__ import annotations

import functools
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress, count
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import BuildSpec
from data_specs.shard import Text
from pipeline.errors import OURS, evidence
from pipeline.filters import Drop, TextFilter, as_shown, text_filters
from pipeline.processes import pulse
from pipeline.rows.decisions import Decision, DropReason, drop
from pipeline.rows.records import (
    FIRST_SNAPSHOT,
    WITH_REMOVED_SCHEMA,
    Candidate,
    RemovedText,
    candidate_rows,
    candidates_of,
)
from pipeline.stages import _sort, _templates
from pipeline.stages._furniture import SHOWN_ON_PAGES, is_about_image
from pipeline.stages._templates import NO_TEMPLATES, HostTemplates
from pipeline.store.build import Build, Pass, PassFile, Stage
from pipeline.store.ranges import KeyRange
from pipeline.store.takedowns import NO_TAKEDOWNS, Takedowns
from pipeline.texts.characters import CHUNK
from pipeline.texts.cleaning import clean
from pipeline.texts.text_order import TextOrder

T = TypeVar("T")


def token(build: Build) -> Any:
    """Caps, text filters, order of kinds, partition size, and the takedowns that the build reads."""
    spec = build.spec
    return {
        "admit": spec.admit.model_dump(mode="json"),
        "filters": [f.identity() for f in text_filters(spec)],
        "filters_of": {s.name: [f.identity() for f in text_filters(spec, s)] for s in spec.sources},
        "text_kinds": list(spec.text_kinds),
        "seed": spec.seed,
        "images_per_partition": spec.fetch.images_per_partition,
        "forgotten": build.forgotten_revision,
    }


MIN_PER_TASK, ENOUGH_TASKS = 250, 64
"""Candidates from which a partition is worth a task of its own; and partitions that keep any usual machine busy."""


def partitions(build: Build) -> list[str]:
    """Ranges of order_key (`KeyRange`), as many as the number of extracted candidates asks for.

    That number and the spec alone decide, never the machine.
    """
    total = sum(record.counts["kept"] for record in build.stage("extract").records())
    return [str(key_range) for key_range in KeyRange.cut(range_count(total, build.spec.fetch.images_per_partition))]


def range_count(candidates: int, most: int) -> int:
    """Number of ranges for so many candidates: each of at most `most` on average, and up to ENOUGH of SMALL."""
    return max(1, -(-candidates // most), min(ENOUGH_TASKS, candidates // MIN_PER_TASK))


def run_partition(build: Build, partition: str) -> None:
    """Admit one range and commit it."""
    with build.stage("admit").attempt(partition) as attempt:
        candidates, first_snapshot = _candidates(build, *KeyRange.of_partition(partition).bounds)
        rewriters = (f for f in text_filters(build.spec) if type(f).rewrite is not TextFilter.rewrite)
        rewritten = Counter({f.plugin_name(): 0 for f in rewriters})
        templates = _templates.read(build)
        kept, decisions = admit(candidates, build.spec, build.store.takedowns(), rewritten, first_snapshot, templates)
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
                "fallbacks": sum(c.text_rank > 0 for c in kept),
                **{f"texts_rewritten_by_{name}": n for name, n in rewritten.items()},
            }
        )


def _candidates(build: Build, low: str, high: str) -> tuple[list[Candidate], dict[str, str]]:
    """Extract's candidates with an order_key in [low, high).

    Beside them, by id, the oldest snapshot that shows a candidate of a new generation.
    """
    tables = list(_sort.rows_between(build, "parquet", low, high))
    first_snapshot: dict[str, str] = {}
    for table in tables:
        if FIRST_SNAPSHOT in table.column_names:
            shown = table.filter(pc.field(FIRST_SNAPSHOT).is_valid())
            first_snapshot.update(zip(*(shown[c].to_pylist() for c in ("candidate_id", FIRST_SNAPSHOT)), strict=True))
    rows = [table.select(WITH_REMOVED_SCHEMA.names) for table in tables]
    return candidates_of(pa.concat_tables(rows) if rows else WITH_REMOVED_SCHEMA.empty_table()), first_snapshot


def admit(
    candidates: Sequence[Candidate],
    spec: BuildSpec,
    takedowns: Takedowns = NO_TAKEDOWNS,
    rewritten: Counter[str] | None = None,
    first_snapshot: Mapping[str, str] = MappingProxyType({}),
    templates: HostTemplates = NO_TEMPLATES,
) -> tuple[list[Candidate], list[Decision]]:
    """Kept candidates and a Decision for each of the others: len(kept) + len(decisions) == len(candidates).

    takedowns: image URLs, pages and domains that are refused. rewritten: counts the texts that each filter changed, and
    as `template` those that lost one. first_snapshot: the oldest snapshot that shows a candidate; the cap per image URL
    takes older ones first, as builds that followed each other did. The result is the same in any order of input.
    """
    rewritten = Counter() if rewritten is None else rewritten
    by_image: dict[str, dict[str, Candidate]] = {}
    decisions: list[Decision] = []
    allowed: list[Candidate] = []
    # by image URL the pages that show it; rows of tables are not pages
    pages = Counter(url for url, _ in {(c.image_url, c.page_url) for c in candidates if c.origin == c.page_url})
    sources = {source.name: source for source in spec.sources}
    filters_of = functools.cache(lambda name: text_filters(spec, sources.get(name)))
    most_removed = spec.admit.max_text_rank
    for candidate in sorted(candidates, key=_sort_key):
        if why := takedowns.takedown_reason(candidate.image_url, candidate.page_url):
            decisions.append(drop(candidate, "admit", DropReason.FORGOTTEN, why))
        elif pages[candidate.image_url] >= SHOWN_ON_PAGES:
            shown = f"repeated on {pages[candidate.image_url]} pages"
            decisions.append(drop(_masked(candidate, filters_of(candidate.source)), "admit", DropReason.SPACER, shown))
        else:
            allowed.append(candidate)
    judged_by_source = _judge_by_source(allowed, TextOrder.of(spec), filters_of, rewritten, templates)
    for candidate, judged in zip(allowed, judged_by_source, strict=True):
        same, own_id = by_image.setdefault(candidate.image_url, {}), candidate.candidate_id
        if own_id in same:
            repeated = _masked(candidate, filters_of(candidate.source))
            decisions.append(drop(repeated, "admit", DropReason.SAME_CANDIDATE, duplicate_of=own_id))
        elif isinstance(judged, Decision):
            decisions.append(judged)
        elif most_removed is not None and judged.text_rank > most_removed:
            why = f"its text is a fallback; better ones removed: {judged.text_rank}; at most {most_removed}"
            decisions.append(drop(judged, "admit", DropReason.FALLBACK_TEXT, why))
        else:
            same[own_id] = judged
    kept: list[Candidate] = []
    for same in by_image.values():
        chosen, rest = _cap_per_image_url(list(same.values()), spec.admit.max_candidates_per_image, first_snapshot)
        kept += chosen
        count = f"{len(same)} candidates for one image URL"
        decisions += [drop(c, "admit", DropReason.CAP_PER_IMAGE_URL, count) for c in rest]
    kept, over_share = _cap_per_image_host(kept, spec.admit.max_share_per_host)
    decisions += over_share
    decisions.sort(key=lambda d: (d.id, d.reason, d.text))
    return sorted(kept, key=lambda c: c.candidate_id), decisions


FiltersOf = Callable[[str], list[TextFilter]]
"""The text filters of a source, by its name."""


def _masked(candidate: Candidate, filters: Sequence[TextFilter]) -> Candidate:
    """A candidate that is dropped before its filters are asked, with the text that its Decision may show."""
    shown = (as_shown(text, filters) for text in candidate.texts[:1])
    return replace(candidate, texts=tuple(text for text in shown if text is not None))


def _judge_by_source(
    candidates: Sequence[Candidate],
    order: TextOrder,
    filters_of: FiltersOf,
    rewritten: Counter[str],
    templates: HostTemplates,
) -> list[Candidate | Decision]:
    positions_of: dict[str, list[int]] = {}
    for at, candidate in enumerate(candidates):
        positions_of.setdefault(candidate.source, []).append(at)
    judged: dict[int, Candidate | Decision] = {}
    for name, positions in positions_of.items():
        verdicts = judge([candidates[at] for at in positions], filters_of(name), order, rewritten, templates)
        judged |= zip(positions, verdicts, strict=True)
    return [judged[at] for at in range(len(candidates))]


def _sort_key(candidate: Candidate) -> tuple[Any, ...]:
    """Order of candidates: depends on what they are, not on where they were read."""
    return candidate.candidate_id, candidate.row, [(t.kind, t.text) for t in candidate.texts]


def judge(
    candidates: Sequence[Candidate],
    filters: Sequence[TextFilter],
    order: TextOrder,
    rewritten: Counter[str],
    templates: HostTemplates = NO_TEMPLATES,
) -> list[Candidate | Decision]:
    """Each candidate with the texts that every filter keeps, primary first; else a Decision with every reason.

    The first reason is the primary text's: the text that the sample would have been known by. Texts are as the
    filters have rewritten them, in a Decision too; two that have become the same are one.
    """
    judged: list[Candidate | Decision] = []
    for at in range(0, len(candidates), CHUNK):
        judged += _judge_chunk(candidates[at : at + CHUNK], filters, order, rewritten, templates)
        pulse.expect(len(candidates), done=len(judged))
    return judged


def _judge_chunk(
    candidates: Sequence[Candidate],
    filters: Sequence[TextFilter],
    order: TextOrder,
    rewritten: Counter[str],
    templates: HostTemplates,
) -> Iterator[Candidate | Decision]:
    texts_of = [_clean_or_fault(candidate, order, templates, rewritten) for candidate in candidates]
    all_texts = [text for cleaned in texts_of if isinstance(cleaned, _CleanTexts) for text in cleaned.texts]
    texts, faults = list[Text](), dict[int, list[Drop]]()  # faults by place among all texts: few have any
    for at in range(0, len(all_texts), CHUNK):
        filtered, chunk_faults = _filter(all_texts[at : at + CHUNK], filters, rewritten)
        texts += filtered
        faults |= {at + place: drops for place, drops in chunk_faults.items()}
    touched = faults.keys() | set(compress(count(), map(operator.is_not, texts, all_texts)))
    at = 0  # where a candidate's texts begin among all of them
    for candidate, cleaned in zip(candidates, texts_of, strict=True):
        if not isinstance(cleaned, _CleanTexts):
            yield drop(_masked(candidate, filters), "admit", *cleaned)
            continue
        end = at + len(cleaned.texts)
        if cleaned.unchanged and touched.isdisjoint(range(at, end)) and not _only_page_texts(candidate, cleaned.texts):
            yield candidate
        else:
            shown = candidate if cleaned.texts else _masked(candidate, filters)
            yield _decide(shown, texts[at:end], [faults.get(i, ()) for i in range(at, end)], cleaned.removed, order)
        at = end


@dataclass(slots=True)
class _CleanTexts:
    """Texts of a candidate before the filters.

    removed: those of which only a template was there, with their place. unchanged: whether the candidate needs no
    change if no filter has anything to say, as mostly.
    """

    texts: tuple[Text, ...]
    removed: list[tuple[int, RemovedText]]
    unchanged: bool


def _clean_or_fault(
    candidate: Candidate, order: TextOrder, templates: HostTemplates, rewritten: Counter[str]
) -> _CleanTexts | tuple[DropReason, str]:
    """Returns the result of `_clean`, or that its texts cannot be read."""
    try:
        return _clean(candidate, order, templates, rewritten)
    except OURS:
        raise
    except Exception as e:
        return DropReason.UNREADABLE, evidence(e, candidate.image_url)


_NO_CONTENT = re.compile(r"头像|頭像|二维码|二維碼|扫码|掃碼|avatar|qr[ _-]?code", re.I)
"""Words of templates around pictures that are furniture of a site, whatever stands between."""


def _clean(
    candidate: Candidate, order: TextOrder, templates: HostTemplates, rewritten: Counter[str]
) -> _CleanTexts | tuple[DropReason, str]:
    """Its texts in normal form, each once, without templates, in their order; why it is dropped, and the evidence, for
    an avatar or a QR code.
    """
    cleaned_texts: dict[str, Text] = {}
    removed: list[tuple[int, RemovedText]] = []
    for text in order.sorted(candidate):
        if text.kind in order.left_out:  # no better one than what stays; no filter has masked it: its words go unsaid
            facts = RemovedText(text.kind, "", DropReason.NO_TEXT.value, "kind not in text_kinds")
            removed.append((len(candidate.texts), facts))
            continue
        cleaned = clean(text.text)
        remaining, template = templates.cut(candidate.page_url, text.kind, cleaned)
        if template is not None:
            rewritten["template"] += 1
            evidence = f"template of its host: {template.text}"
            if text.kind != "title" and _NO_CONTENT.search(template.text):
                return DropReason.SPACER, evidence
            if not remaining:
                only = replace(text, text=template.text)  # no filter has masked the text itself yet
                removed.append((len(cleaned_texts), RemovedText.of(only, DropReason.BOILERPLATE, evidence)))
        if remaining:
            cleaned_texts.setdefault(remaining, text if remaining == text.text else replace(text, text=remaining))
    texts = tuple(cleaned_texts.values())
    unchanged = not (removed or candidate.removed or candidate.text_rank) and texts == candidate.texts != ()
    return _CleanTexts(texts, removed, unchanged)


def _filter(
    texts: list[Text], filters: Sequence[TextFilter], rewritten: Counter[str]
) -> tuple[list[Text], dict[int, list[Drop]]]:
    """The texts of a chunk as filters rewrite them, and by place what filters find wrong with them.

    Filter by filter rather than text by text: what a filter needs stays in the processor's caches, which is a third
    of the time.
    """
    faults: dict[int, list[Drop]] = {}
    for f in filters:
        for at, fault in enumerate(_filter_texts(f, f.check, texts)):
            if fault is not None:
                faults.setdefault(at, []).append(fault)
        if type(f).rewrite is TextFilter.rewrite:
            continue
        before, texts = texts, []
        for at, after in enumerate(_filter_texts(f, f.rewrite, before)):
            if isinstance(after, Drop):  # what should have been masked is written nowhere
                faults.setdefault(at, []).append(after)
                texts.append(replace(before[at], text="", original=""))
            else:
                texts.append(after)
        if changed := sum(map(operator.is_not, texts, before)):
            rewritten[f.plugin_name()] += changed
    return texts, faults


def _filter_texts(f: TextFilter, do: Callable[[Text], T], texts: Sequence[Text]) -> Sequence[T | Drop]:
    """Results of a filter's method for each text; for a text on which it fails, that fault of the text."""
    try:
        return list(map(do, texts))
    except OURS:
        raise
    except Exception:  # of one text, and the others are not to suffer from it
        return [_filter_text(f, do, text) for text in texts]


def _filter_text(f: TextFilter, do: Callable[[Text], T], text: Text) -> T | Drop:
    try:
        return do(text)
    except OURS:
        raise
    except Exception as e:
        return Drop(DropReason.UNREADABLE, f"{f.plugin_name()}: {evidence(e, f'a text of kind {text.kind}')}")


def _decide(
    candidate: Candidate,
    texts: Sequence[Text],
    faults: Sequence[Sequence[Drop]],
    cut: Sequence[tuple[int, RemovedText]],
    order: TextOrder,
) -> Candidate | Decision:
    """Judges a candidate whose texts have these faults.

    cut: texts that were nothing but a template, each with the number of the texts before it.
    """
    good: dict[str, Text] = {}
    failed, first = list[tuple[int, RemovedText]](), len(texts)
    for at, (text, drops) in enumerate(zip(texts, faults, strict=True)):
        if drops:
            failed.append((at, RemovedText.of(text, drops[0].reason, "; ".join(fault.evidence for fault in drops))))
        else:
            first = min(first, at)
            good.setdefault(text.text, text)
    ordered = replace(candidate, texts=tuple(texts) or candidate.texts)
    if good and _only_page_texts(candidate, good.values()):
        remains = f"only the {texts[first].kind} of its page is left (page_texts: drop)"
        for _, lost in failed[:1]:
            return drop(ordered, "admit", DropReason(lost.reason), f"{lost.evidence}; {remains}")
        return drop(ordered, "admit", DropReason.NO_TEXT, remains)
    if good:
        better = sum(at < first for at, _ in failed) + sum(before <= first for before, _ in cut)
        better += sum(order.rank(text.kind) < order.rank(texts[first].kind) for text in candidate.removed)
        facts = tuple(text for _, text in sorted([*cut, *failed], key=lambda entry: entry[0]))
        return replace(candidate, texts=tuple(good.values()), text_rank=better, removed=facts)
    all_faults = [fault for drops in faults for fault in drops]
    if not all_faults:
        why = [text.evidence for _, text in cut] or [text.evidence for text in candidate.removed]
        return drop(ordered, "admit", DropReason.NO_TEXT, "; ".join(why))
    reasons = tuple(dict.fromkeys(fault.reason.value for fault in all_faults))
    return drop(ordered, "admit", all_faults[0].reason, all_faults[0].evidence, reasons=reasons)


def _only_page_texts(candidate: Candidate, texts: Iterable[Text]) -> bool:
    """True if no text is about the image itself, which is one of several of its page."""
    return candidate.shown != "alone" and not is_about_image(texts)


def _cap_per_image_url(
    same: list[Candidate], most: int, first_snapshot: Mapping[str, str]
) -> tuple[list[Candidate], list[Candidate]]:
    """(Up to `most` candidates of one image URL, the rest): by crawl, in one those with a new primary text first."""
    if len(same) <= most:
        return same, []
    seen: set[str] = set()
    ranked: list[tuple[tuple[bool, str, bool], Candidate]] = []

    def snapshot(candidate: Candidate) -> tuple[bool, str]:
        known = first_snapshot.get(candidate.candidate_id)
        return known is None, known or ""  # what no crawl shows comes last

    for candidate in sorted(same, key=lambda c: (snapshot(c), _sort_key(c))):
        text = candidate.texts[0].text
        ranked.append(((*snapshot(candidate), text in seen), candidate))
        seen.add(text)
    ordered = [candidate for _, candidate in sorted(ranked, key=lambda entry: entry[0])]
    return ordered[:most], ordered[most:]


def _cap_per_image_host(candidates: list[Candidate], most: float) -> tuple[list[Candidate], list[Decision]]:
    """Candidates with those images of each host that its share of all images allows; Decisions about the others.

    A partition has images by their hashes, so a host's share in it is about that in the build. The images kept are
    those with the smallest ids: the same ones in a later build of the same images. Files have no host, and no cap.
    """
    if most == 1:
        return candidates, []
    images: dict[str, set[str]] = {}
    for candidate in candidates:
        images.setdefault(urlsplit(candidate.image_url).netloc, set()).add(candidate.fetch_id)
    total = sum(map(len, images.values()))
    allowed = max(1, int(most * total))
    within = set[str]().union(*(sorted(own)[: allowed if host else None] for host, own in images.items()))
    kept, decisions = list[Candidate](), list[Decision]()
    for candidate in candidates:
        if candidate.fetch_id in within:
            kept.append(candidate)
        else:
            host = urlsplit(candidate.image_url).netloc
            why = f"{host} has {len(images[host])} of {total} images; {allowed} are allowed"
            decisions.append(drop(candidate, "admit", DropReason.CAP_PER_IMAGE_HOST, why))
    return kept, decisions


STAGE = Stage(
    name="admit",
    zh="准入",
    folder="admitted",
    passes=(
        _sort.PASS,
        Pass(
            name="admit",
            over=partitions,
            reads=("extract", _sort.NAME),
            run=run_partition,
            token=token,
            version=9,
            files=(PassFile("parquet", WITH_REMOVED_SCHEMA, "candidate_id"),),
        ),
    ),
)
