"""Limits of filters: what was kept and dropped by measure, and the texts nearest to a limit.

A filter says which of its options is a limit on which measure (`pipeline.filters.Limit`). What it dropped is measured
again here: texts from the decisions of `admit`, pictures from their features. What later stages leave out, copies above
all, has passed every limit and is not counted.

Of a limit on texts, the texts nearest to it on either side are shown: those just dropped for it, and those just kept.

A candidate with several texts is judged by its first. `wenlan-data try` says what another limit makes of the dataset.

Limits: decisions hold 200 characters of a text, so a longer one that was dropped counts as one of 200. Where the
LOOKED_AT texts nearest to a limit are mostly the same, fewer than EXAMPLES are shown.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_specs.build import BuildSpec
from pipeline.filters import ImageFilter, Limit, TextFilter, image_filters, text_filters
from pipeline.report.measures import MEASURES, Measure, measured, number
from pipeline.rows.decisions import DropReason
from pipeline.store.sql import Tables

PASSED = (DropReason.SAME_CANDIDATE.value, DropReason.CAP_PER_IMAGE_URL.value, DropReason.FORGOTTEN.value)
"""Reasons of `admit` that do not judge a text."""

EXAMPLES, LOOKED_AT = 20, 200
"""Different texts that are shown on each side of a limit, and texts that are looked at for them."""

_TEXTS = f"""
    SELECT text, source, reasons FROM decisions
    WHERE stage = 'admit' AND subject = 'candidate' AND text <> '' AND NOT list_has_any(reasons, {list(PASSED)})"""

_PICTURES = """
    WITH dropped AS (SELECT fetch_id, source, reasons FROM decisions WHERE stage = 'filter'),
        images AS (SELECT fetch_id, source, sha256, reasons FROM dropped JOIN fetched USING (fetch_id))
    SELECT source, reasons, features.* FROM images JOIN (
        SELECT DISTINCT ON (sha256) * FROM measures WHERE sha256 IN (SELECT sha256 FROM images)
    ) features USING (sha256)"""


@dataclass(frozen=True)
class _Line:
    """One limit of a filter, drawn on the histogram of its measure. at: its number among those of its kind.

    sources: the sources that have it, if others have another one; else empty.
    """

    at: int
    filter: str
    limit: Limit
    sources: tuple[str, ...]
    measure: Measure

    @property
    def is_least(self) -> bool:
        return self.limit.least > -math.inf

    @property
    def bound(self) -> float:
        return self.limit.least if self.is_least else self.limit.most

    @property
    def beyond_sql(self) -> str:
        """SQL condition: a value is beyond the limit."""
        own = self.measure.value
        value = f"greatest({own}, 1 / greatest({own}, 1e-9))" if self.limit.mirrored else own
        return f"{value} {'<' if self.is_least else '>'} {number(self.bound)}"

    @property
    def nearest(self) -> str:
        """SQL of the texts nearest to the limit, those equally near by their code points."""
        return f"min_by(text, row(abs({self.measure.value} - {number(self.bound)}), text), {LOOKED_AT})"

    @property
    def of_sources_sql(self) -> str:
        """SQL condition: the limit holds for a row's source."""
        return f"source IN ({str([*self.sources])[1:-1]})" if self.sources else "true"

    @property
    def dropped_sql(self) -> str:
        """SQL condition: a row was dropped for this limit."""
        return f"({self.beyond_sql} AND {self.of_sources_sql} AND list_contains(reasons, '{self.limit.reason.value}'))"


def charts(spec: BuildSpec, tables: Tables, kept: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The charts of every measure that the filters of a spec limit, as report.json has them.

    kept: histograms of the samples by name; any other measure is taken of the pairs that were packed.
    """
    limits = limits_of(spec)
    named = [(*own, m) for m in MEASURES.values() for own in limits if own[1].measure == m.name]
    lines = [_Line(at, *own) for at, own in enumerate(named)]
    if not lines:
        return []
    counts = dict[str, Any]()
    for kind, dropped in (("text", _TEXTS), ("picture", _PICTURES)):
        counts |= _count_dropped(tables, [line for line in lines if line.measure.of == kind], dropped)
    counts |= _count_kept(tables, lines, kept)
    drawn = []
    for m in _measures(lines):
        histogram = kept.get(m.name) or m.histogram(counts[f"kept {m.name}"] or {})
        own, other = (counts[f"{side} {m.name}"] or {} for side in ("own", "other"))
        bins = [{**b, "own": own.get(n, 0), "other": other.get(n, 0)} for n, b in enumerate(histogram["bins"])]
        values = [_value(line, counts) for line in lines if line.measure == m]
        drawn.append({**histogram, "bins": bins, "limits": values})
    return drawn


def _measures(lines: Sequence[_Line]) -> list[Measure]:
    return list({line.measure.name: line.measure for line in lines}.values())


def _count_dropped(tables: Tables, lines: Sequence[_Line], dropped: str) -> dict[str, Any]:
    """Counts drops: `own NAME` and `other NAME` of a measure by bin; of a line `dropped N`, and `just_dropped N`, the
    nearest texts.
    """
    if not lines:
        return {}
    columns = []
    for m in _measures(lines):
        mine = " OR ".join(f"own{line.at}" for line in lines if line.measure == m)
        columns.append(f'histogram({m.bin}) FILTER ({mine}) AS "own {m.name}"')
        columns.append(f'histogram({m.bin}) FILTER (NOT ({mine})) AS "other {m.name}"')
    for line in lines:
        columns.append(f'count(*) FILTER (own{line.at}) AS "dropped {line.at}"')
        if line.measure.of == "text":
            columns.append(f'{line.nearest} FILTER (own{line.at}) AS "just_dropped {line.at}"')
    rows = measured(tables, _measures(lines), dropped)
    owned = f"SELECT *, {', '.join(f'{line.dropped_sql} AS own{line.at}' for line in lines)} FROM ({rows})"
    return tables.row(f"SELECT {', '.join(columns)} FROM ({owned})")


def _count_kept(tables: Tables, lines: Sequence[_Line], known: Container[str]) -> dict[str, Any]:
    """Counts what was packed: `kept NAME` of a measure by bin, unless known, and `just_kept N` of a line on texts."""
    of_texts = [line for line in lines if line.measure.of == "text"]
    measures = {m.name: m for m in _measures(lines) if m.name not in known}
    columns = [f'histogram({m.bin}) AS "kept {m.name}"' for m in measures.values()]
    columns += [
        f'{line.nearest} FILTER ({line.of_sources_sql} AND NOT {line.beyond_sql}) AS "just_kept {line.at}"'
        for line in of_texts
    ]
    needed = [*measures.values(), *(m for m in _measures(of_texts) if m.name not in measures)]
    rows = measured(tables, needed, "SELECT * FROM pairs")
    return tables.row(f"SELECT {', '.join(columns)} FROM ({rows})") if columns else {}


def _value(line: _Line, counts: Mapping[str, Any]) -> dict[str, Any]:
    """A line as report.json has it. at: where the limit is drawn, in bins from the left."""
    at = [line.bound + 1 if line.measure.whole and not line.is_least else line.bound]
    if line.limit.mirrored:
        at.insert(0, 1 / line.bound)
    return {
        "filter": line.filter,
        "option": line.limit.option,
        "sources": list(line.sources),
        "reason": line.limit.reason.value,
        "value": line.bound,
        "keeps": "from" if line.is_least else "to",
        "at": [round(line.measure.position(value), 3) for value in at],
        "dropped": counts[f"dropped {line.at}"],
        **{side: _distinct(counts.get(f"{side} {line.at}")) for side in ("just_dropped", "just_kept")},
    }


def _distinct(texts: Sequence[str] | None) -> list[str]:
    return list(dict.fromkeys(texts or ()))[:EXAMPLES]


def limits_of(spec: BuildSpec) -> list[tuple[str, Limit, tuple[str, ...]]]:
    """(filter, limit, sources that have it) of the text and image filters; no sources where all have the same."""
    sources = dict[tuple[int, str, Limit], list[str]]()
    for source in spec.sources:
        filters: list[TextFilter | ImageFilter] = [*text_filters(spec, source), *image_filters(spec, source)]
        for at, own in enumerate(filters):
            for limit in own.limits():
                sources.setdefault((at, own.plugin_name(), limit), []).append(source.name)
    ordered = sorted(sources.items(), key=lambda item: item[0][0])
    return [(name, limit, () if len(of) == len(spec.sources) else tuple(of)) for (_, name, limit), of in ordered]
