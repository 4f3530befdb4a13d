"""Drafts a new spec from the content of its sources: filters, and options that differ from the defaults.

Every spec gets the default filters, whose thresholds depend on the kind of its sources: a spec that a user writes by
hand keeps the same pictures. Only the lengths of a web source's texts are moved, to those of the texts looked at.

`spec_text` writes the options that a draft sets beside their reasons; with `every`, all others too, as comments with
their default and meaning. A commented option begins with `# NAME:`; without its `# ` it says what holds anyway.
Meanings are the descriptions of the models (`pipeline.commands.options`).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_specs.build import DEFAULT_FILTERS, BuildSpec, SourceRef
from data_specs.command.printable import printable_line
from data_specs.shard import FEWEST_MEASURED, Text
from pipeline.commands.guesses import LOOKED_AT, Source
from pipeline.commands.options import Option, about, as_yaml, example_of, options_of
from pipeline.filters import RUNNING_KINDS, TextFilter, is_collection
from pipeline.filters.han_share import HanShare
from pipeline.filters.text_length import TextLength
from pipeline.plugins import find, names

WARC_FILTERS = ("language", "image_bytes")
"""Filters of pages of an open crawl besides the default ones, as in data_specs/common_crawl.yaml."""

_ORDER = (
    *("text_length", "han_share", "language", "boilerplate", "repetition", "ads", "lexicon", "personal_data"),
    *("to_simplified", "image_sides", "image_aspect", "image_bytes", "image_blank", "image_entropy"),
    *("image_sharpness", "image_frames", "image_text", "image_nsfw"),
)
"""The order of filters in a spec: what searches stands before what masks and rewrites. Those not named here follow."""

MIN_CHARS, MAX_CHARS, MAX_RUNNING = 5, 50, 1_000
"""Bounds that are only widened: Chinese-CLIP's, and ours for running text."""

FEW = 0.05
"""Share of the texts of a web source that a threshold may drop before it is moved."""

LEAST_APART, MOST_APART = 0.1, 0.2
"""Shares of the splits dev and val of a small dataset."""

_PATHS = ("path", "path_list", "images")
"""Options of sources that are paths relative to the spec."""


@dataclass(frozen=True)
class Filter:
    """A filter of the draft. `why` is its comment; one that is not `used` is written as a comment.

    doubtful: whether it drops most of the texts looked at.
    """

    name: str
    options: dict[str, Any]
    why: str
    used: bool = True
    doubtful: bool = False


@dataclass(frozen=True)
class Draft:
    """A spec to be written. `sections`: part of a spec -> (the options that it sets, why)."""

    name: str
    description: str
    licence: str
    contact: str
    sources: tuple[Source, ...]
    filters: tuple[Filter, ...]
    sections: dict[str, tuple[dict[str, Any], str]]


def draft(
    sources: Sequence[Source], folder: Path, *, name: str, contact: str, licence: str = "", description: str = ""
) -> Draft:
    """Returns a drafted spec of these sources, for `folder`: paths are made relative to it."""
    placed = tuple(dataclasses.replace(source, options=_placed(source.options, folder)) for source in sources)
    return Draft(name, description, licence, contact, placed, _filters(sources), _sections(sources))


def _placed(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    def moved(path: str) -> str:
        if "://" in path or Path(path).is_absolute():
            return path
        return os.path.relpath(path, folder.resolve())  # as a spec's own folder is, behind whatever link

    return {
        key: ([moved(path) for path in value] if isinstance(value, list) else moved(value)) if key in _PATHS else value
        for key, value in options.items()
    }


def _filters(sources: Sequence[Source]) -> tuple[Filter, ...]:
    wanted = [ref.name for ref in DEFAULT_FILTERS]
    if any(source.kind in ("warc", "common_crawl") for source in sources):
        wanted += WARC_FILTERS
    chosen = {name: _plain(name) for name in wanted}
    if any(source.texts for source in sources):
        chosen["text_length"] = _lengths(sources)
        chosen["han_share"] = _han(sources)
    known = [*_ORDER, *(name for name in names("filters") if name not in _ORDER)]
    return tuple(chosen[name] if name in chosen else _plain(name, used=False) for name in known)


def _plain(name: str, used: bool = True) -> Filter:
    """A filter with its defaults; its comment says what it does, up to the details."""
    return Filter(name, {}, about(find("filters", name)).summary.partition(": ")[0].removesuffix("."), used)


def _lengths(sources: Sequence[Source]) -> Filter:
    """text_length as it is where its defaults drop at most FEW of the texts, and for collections; else with bounds that
    do."""
    texts = [text for source in sources for text in source.texts]
    every = sorted(map(_chars, texts))
    dropped = _dropped(TextLength(), sources)
    found = f"{len(every):,} sampled, of {every[0]:,} to {every[-1]:,} characters"
    why = f"Drops texts that are too short or too long: by default {dropped:,} of {found}"
    if dropped <= FEW * len(every) or all(is_collection(_ref(source)) for source in sources):
        return Filter("text_length", {}, why)
    naming = sorted(_chars(text) for text in texts if text.kind not in RUNNING_KINDS)
    running = sorted(_chars(text) for text in texts if text.kind in RUNNING_KINDS)
    options = {"min_chars": max(1, min(MIN_CHARS, every[int(FEW * len(every))]))}
    for key, usual, lengths in (("max_chars", MAX_CHARS, naming), ("max_chars_running", MAX_RUNNING, running)):
        if lengths:
            options[key] = max(usual, lengths[-1 - int(FEW * len(lengths))])
    return Filter("text_length", options, why)


def _dropped(own: TextFilter, sources: Sequence[Source]) -> int:
    """Number of texts looked at that a filter drops, by its defaults for their sources."""
    return sum(own.for_source(_ref(source)).check(text) is not None for source in sources for text in source.texts)


def _ref(source: Source) -> SourceRef:
    return SourceRef(kind=source.kind, name=source.name, source_kind=source.source_kind)


def _chars(text: Text) -> int:
    return sum(map(len, text.text.split()))


def _han(sources: Sequence[Source]) -> Filter:
    """han_share, unless many texts of a user's own pictures are not Chinese, as their owner knows."""
    foreign, count = _dropped(HanShare(), sources), sum(len(source.texts) for source in sources)
    used = any(source.asks for source in sources) or foreign <= FEW * count
    why = f"Drops texts that are not Chinese: {foreign:,} of {count:,} sampled{'' if used else '; hence not used'}"
    return Filter("han_share", {}, why, used, doubtful=used and 2 * foreign > count)


def _sections(sources: Sequence[Source]) -> dict[str, tuple[dict[str, Any], str]]:
    """Options that differ from the defaults, by part of the spec, with their reason."""
    sections: dict[str, tuple[dict[str, Any], str]] = {}
    if allow := [host for source in sources for host in source.allow]:
        why = "servers of this machine are refused unless listed here; they need no delay"
        sections["egress"] = {"allow": allow, "delay_s": 0}, why
    if any(source.archived for source in sources) and all(source.archived or not source.asks for source in sources):
        why = "sends no request, since the archive holds the pictures; allowed: downloads missing ones"
        sections["egress"] = {"network": "never"}, why
    if all(source.entries < LOOKED_AT and "path_list" not in source.options for source in sources):
        known = sum(source.entries for source in sources)
        count = f"{known:,} pictures are few" if known else "an unknown number of pictures"
        why = f"{count}: below {LOOKED_AT:,}, a split of 0.01, the default, is too small to measure by"
        half_more = math.ceil(150 * FEWEST_MEASURED / known) / 100 if known else 0.0  # since shares are of hashes
        share = min(MOST_APART, max(LEAST_APART, half_more))
        sections["shards"] = {"dev_share": share, "val_share": share}, why
    counted = Counter(text.text for source in sources for text in source.texts)
    text, times = max(counted.items(), key=lambda pair: pair[1], default=("", 0))
    if times > 10 and not any(source.asks for source in sources):
        why = f"{times:,} pictures share one text ({text[:20]}); the default, Wukong's 10, would drop most of them"
        sections["dedup"] = {"max_pairs_per_text": 1_000_000}, why
    return sections


_HEAD = """\
# Spec of a dataset, written by wenlan-data init from what it found. Options that are not here have their defaults:
# see wenlan-data plugins NAME (a source or filter), wenlan-data init --all (all), wenlan-data schema (for editors).
"""
_HEAD_OF_ALL = """\
# Spec of a dataset, written by wenlan-data init from what it found.
# Commented-out options show their defaults; remove the `# ` to change one.
"""


def spec_text(draft: Draft, every: bool = False) -> str:
    """Returns the draft as a spec. every: with all options that it does not set, as comments."""
    spec = {option.name: option for option in options_of(BuildSpec)}
    lines = [_HEAD_OF_ALL if every else _HEAD]
    for name in ("name", "contact", "licence", "description"):
        lines.append(f"{name}: {as_yaml(getattr(draft, name))}{_comment(spec.pop(name).description)}")
    lines += ["", "sources:"]
    for source in draft.sources:
        lines += _source(source, every)
    for name, (values, why) in draft.sections.items():
        lines += ["", f"{name}:{_comment(why)}", *_lines(spec.pop(name).options, values, "  ", every)]
    lines += ["", "filters:"]
    for own in draft.filters:
        lines += _filter(own, every)
    if every:
        for option in (own for name, own in spec.items() if name not in ("sources", "filters", "base")):
            lines += [*([""] if option.options else []), *_lines([option], {}, "", every)]
    return "\n".join(lines) + "\n"


def _source(source: Source, every: bool) -> Iterator[str]:
    for why in source.why:
        yield f"  # - {_on_one_line(why)}"
    yield f"  - kind: {source.kind}"
    yield f"    name: {as_yaml(source.name)}"
    shared = [option for option in options_of(SourceRef) if option.name not in ("kind", "name")]
    collection = "a collection: small pictures and short texts are kept" if is_collection(_ref(source)) else ""
    yield f"    source_kind: {source.source_kind}{_comment(collection or shared.pop(0).type)}"
    own = [*options_of(find("sources", source.kind)), *(o for o in shared if o.name != "source_kind")]
    yield from _lines(own, source.options, "    ", every)


def _filter(own: Filter, every: bool) -> Iterator[str]:
    """A filter with its options; one that is not used is a comment."""
    options = options_of(find("filters", own.name))
    if own.used:
        yield f"  - name: {own.name}{_comment(own.why)}"
        yield from _lines(options, own.options, "    ", every)
    elif every or own.name == "han_share":
        given = example_of("filters", own.name) if any(option.required for option in options) else {}
        yield f"  # - {as_yaml({'name': own.name, **given})}{_comment(own.why)}"


def _lines(options: Sequence[Option], values: Mapping[str, Any], indent: str, every: bool) -> Iterator[str]:
    """One line per option that `values` has; with `every` also its meaning, and the others commented."""
    for option in options:
        comment = _comment(option.description) if every else ""
        if option.name in values:
            yield f"{indent}{option.name}: {as_yaml(values[option.name])}{comment}"
        elif every and option.options and not all(inner.default is None for inner in option.options):
            yield f"{indent}# {option.name}:{comment}"
            for line in _lines(option.options, {}, "  ", every):
                yield f"{indent}# {line.replace('# ', '', 1)}"
        elif every:
            default = {} if option.options else option.default
            yield f"{indent}# {option.name}: {as_yaml(default)}{comment}"


def _comment(text: str) -> str:
    return f"  # {_on_one_line(text)}" if text else ""


def _on_one_line(text: str) -> str:
    """Returns text for a comment, on one line: names of columns are untrusted, and YAML knows several line breaks."""
    return printable_line(" ".join(text.split()))
