"""Section `pair_scores`: how well pictures and texts fit, by source; the pairs that fit best and worst, in pictures.

Histograms hold what stage `score` has counted, and, where a filter judges scores, what of it `choose` kept. The best
and worst pairs are shown as they came to the filter and as it left them, and at each of its limits the pairs that are
nearest to it on either side. Empty for a spec without `pair_score`.

Limits: thumbnails stop at a budget of bytes, so that the page stays below 5 MB. Of many sources those with the most
pairs have a histogram.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import PAIR_SCORE, SPLITS
from pipeline.filters import PairFilter, pair_filters
from pipeline.filters.pair_score import PairScore
from pipeline.report.pictures import add_pictures
from pipeline.report.section import Material, Section, Values
from pipeline.store import pair_scores
from pipeline.store.build import Build
from pipeline.store.pair_scores import UNITS, Cuts, Units, in_units

SHOWN, NEAREST, SOURCES = 12, 20, 12
"""Pairs of a sheet of the best or worst, pairs on each side of a limit, and sources that have a histogram."""

BINS = 24
"""Bins of a histogram at most."""

PICTURES, SIDE = 550_000, 112
"""Bytes of all thumbnails of the section, and pixels of their longer side."""

Mask = npt.NDArray[np.bool_]

COLUMNS = ["candidate_id", "fetch_id", "source", "page_url", "image_url", "texts", PAIR_SCORE.name]


def figures(material: Material, inputs: Values) -> Values:
    return {"pair_scores": scores(material)}


def scores(material: Material) -> Values | None:
    """Counts, a histogram of each source, and groups of pairs with their pictures; None where nothing was scored."""
    build = material.build
    if build.spec.pair_score is None or "score" not in build.fingerprints:
        return None
    records = build.stage("score").records()
    if not records:
        return None
    filters = pair_filters(build.spec) if "choose" in build.fingerprints else []
    cuts: Cuts = (pair_scores.read(build) or [{} for _ in filters]) if filters else []
    before = pair_scores.summed(build, "score")
    after = pair_scores.summed(build, "choose") if filters else before
    groups = _groups(build, filters, cuts)
    hidden = material.shown.opted_out
    takedowns = build.store.takedowns()
    for group in groups:
        group["rows"] = [r for r in group["rows"] if r["fetch_id"] not in hidden and not takedowns.names(r)]
    rows = [row for group in groups for row in group["rows"]]
    add_pictures(build, rows if build.spec.report.pictures else [], takedowns, budget=PICTURES, side=SIDE)
    for row in rows if not build.spec.report.pictures else ():
        row |= {"picture": "", "boxes": {}}
    shown = sorted(before, key=lambda source: (-before[source].total(), source))
    every = Counter[int]()
    for own in before.values():
        every.update(own)
    edges = _edges(every)
    return {
        "models": records[0].info["models"],
        "pairs": sum(record.counts["pairs"] for record in records),
        "scored": every.total(),
        "kept": sum(own.total() for own in after.values()) if filters else None,
        "sources": [
            {
                "name": source,
                "pairs": before[source].total(),
                "kept": after.get(source, Counter()).total(),
                "quartiles": _quartiles(before[source]),
                "cuts": [of_filter[source].score for of_filter in cuts if source in of_filter],
            }
            for source in shown
        ],
        "histograms": [
            _histogram(source, edges, before[source], after.get(source, Counter()), filters, cuts)
            for source in shown[:SOURCES]
        ],
        "groups": groups,
    }


def _edges(counts: Counter[int]) -> list[int]:
    """Lower bounds of the bins in units: round ones, over all scores but the outermost thousandth on each side."""
    ordered = sorted(counts)
    total, seen, inner = counts.total(), 0, list[int]()
    for units in ordered:
        seen += counts[units]
        if total * 0.001 <= seen and seen - counts[units] <= total * 0.999:
            inner.append(units)
    low, high = (inner[0], inner[-1]) if inner else (0, 0)
    steps = (100, 200, 500, 1_000, 2_000)
    step = next((step for step in steps if high // step - low // step < BINS), steps[-1])
    return list(range(low // step * step, high // step * step + 1, step))


def _histogram(
    source: str,
    edges: Sequence[int],
    before: Counter[int],
    after: Counter[int],
    filters: Sequence[PairFilter],
    cuts: Cuts,
) -> Values:
    """As the macro `histogram` takes it: kept, and dropped (`own`), by bin; the filters' limits as lines."""
    kept, all_ = (np.zeros(len(edges), np.int64) for _ in range(2))
    for counts, into in ((after, kept), (before, all_)):
        for units, pairs in counts.items():
            into[max(0, int(np.searchsorted(edges, units, side="right")) - 1)] += pairs
    labels = [f"{edge / UNITS:g}" for edge in edges]
    bins = [
        {"label": label, "count": int(k), "own": int(n - k), "other": 0}
        for label, k, n in zip(labels, kept, all_, strict=True)
    ]
    step = (edges[1] - edges[0]) if len(edges) > 1 else 100
    limits = [
        {
            "filter": f.plugin_name(),
            "option": name,
            "value": value,
            "at": [round((units - edges[0]) / step, 3)] if edges[0] <= units <= edges[-1] + step else [],
            "dropped": dropped,
            "alone": dropped,
            "would": [],
        }
        for f, of_filter in zip(filters, cuts, strict=True)
        for name, value, units, dropped in _limits(f, of_filter, source, before, after)
    ]
    own = {"name": f"pair_score/{source}", "title": source, "title_zh": source}
    return {**own, "total": after.total(), "bins": bins, **({"limits": limits} if filters else {})}


def _limits(
    f: PairFilter, of_filter: Mapping[str, pair_scores.Cut], source: str, before: Counter[int], after: Counter[int]
) -> Iterator[tuple[str, float, int, int]]:
    """(option, value, where it lies in units, pairs beyond it) of what a filter limits."""
    if isinstance(f, PairScore) and f.min_score > -1:
        low = round(f.min_score * UNITS)
        yield "min_score", f.min_score, low, sum(n for u, n in before.items() if u / UNITS < f.min_score)
    if isinstance(f, PairScore) and f.max_score < 1:
        high = round(f.max_score * UNITS)
        yield "max_score", f.max_score, high, sum(n for u, n in before.items() if u / UNITS > f.max_score)
    if source in of_filter:
        cut = of_filter[source].units
        within = {u: n for u, n in before.items() if f.judge(u / UNITS) is None}
        yield "top_share", f.top_share, cut, sum(within.values()) - sum(after[u] for u in within)


def _quartiles(counts: Counter[int]) -> list[float]:
    """The scores below which a quarter, half and three quarters of the pairs lie."""
    ordered = sorted(counts)
    ends = np.cumsum([counts[units] for units in ordered])
    return [ordered[int(np.searchsorted(ends, share * ends[-1]))] / UNITS for share in (0.25, 0.5, 0.75)]


@dataclass
class _Group:
    """The pairs with the smallest keys of all that are offered; of equal keys those with the smallest ids."""

    name: str
    limit: str
    count: int
    _nearest: list[tuple[int, str, Values]] = field(default_factory=list)

    def offer(self, table: pa.Table, keys: Units, which: Mask, kept: Mask) -> None:
        """Look at the rows of a table that `which` picks."""
        rows = np.flatnonzero(which)
        if len(self._nearest) == self.count:
            rows = rows[keys[rows] <= self._nearest[-1][0]]
        if len(rows) > self.count:
            rows = rows[keys[rows] <= np.partition(keys[rows], self.count - 1)[self.count - 1]]
        new = [
            (int(key), row["candidate_id"], _row(row, bool(own)))
            for key, own, row in zip(keys[rows], kept[rows], table.take(pa.array(rows)).to_pylist(), strict=True)
        ]
        self._nearest = heapq.nsmallest(self.count, [*self._nearest, *new], key=lambda entry: entry[:2])

    def value(self) -> Values:
        return {"name": self.name, "limit": self.limit, "rows": [row for _, _, row in self._nearest]}


def _row(row: Values, kept: bool) -> Values:
    """A pair as the page and report.json have it."""
    names = {"id": row["candidate_id"], "url": row["image_url"], "text": row["texts"][0]["text"][:200]}
    same = {name: row[name] for name in ("fetch_id", "source", "page_url")}
    return {
        **names,
        **same,
        "kept": kept,
        "stage": "choose",
        "duplicate_of": "",
        "score": round(row[PAIR_SCORE.name], 4),
    }


def _groups(build: Build, filters: Sequence[PairFilter], cuts: Cuts) -> list[Values]:
    """The best and worst pairs, before and after the filters, and at each limit those nearest to it on either side."""
    best, worst = (_Group(name, "", SHOWN) for name in ("best", "worst"))
    kept_best, kept_worst = (_Group(name, "", SHOWN) for name in ("best_kept", "worst_kept"))
    sides: list[tuple[_Group, _Group, Distance]] = []
    for f, of_filter in zip(filters, cuts, strict=True):
        for option, distance in _distances(f, of_filter):
            sides.append((_Group("just_dropped", option, NEAREST), _Group("just_kept", option, NEAREST), distance))
    for table, kept in _tables(build, bool(filters)):
        units, there = in_units(table[PAIR_SCORE.name])
        best.offer(table, -units, there, kept)
        worst.offer(table, units, there, kept)
        kept_best.offer(table, -units, there & kept, kept)
        kept_worst.offer(table, units, there & kept, kept)
        for dropped_side, kept_side, distance in sides:
            far, beyond, within = distance(units, table["source"].to_pylist())
            dropped_side.offer(table, far, there & beyond & ~kept, kept)
            kept_side.offer(table, far, there & within & kept, kept)
    groups = [best, worst]
    groups += [kept_best, kept_worst] if filters else []
    return [group.value() for group in [*groups, *(group for side in sides for group in side[:2])]]


Distance = Callable[[Units, list[str]], tuple[Units, Mask, Mask]]
"""Of scores and sources: how far from a limit each is, whether it is beyond, and whether it is within."""


def _distances(f: PairFilter, of_filter: Mapping[str, pair_scores.Cut]) -> Iterator[tuple[str, Distance]]:
    """(option, distance from it) of what a filter limits."""
    if isinstance(f, PairScore) and f.min_score > -1:
        low = round(f.min_score * UNITS)
        yield "min_score", lambda units, _: (np.abs(units - low), units < low, units >= low)
    if isinstance(f, PairScore) and f.max_score < 1:
        high = round(f.max_score * UNITS)
        yield "max_score", lambda units, _: (np.abs(units - high), units > high, units <= high)
    if of_filter:

        def of_share(units: Units, sources: list[str]) -> tuple[Units, Mask, Mask]:
            ends = np.array([of_filter[s].units if s in of_filter else 2 * UNITS for s in sources], np.int64)
            passes = np.array([f.judge(u / UNITS) is None for u in units.tolist()], np.bool_)
            # those with exactly the last score are on both sides: which of them are kept, their ids say
            return np.abs(units - ends), passes & (units <= ends), passes & (units >= ends)

        yield "top_share", of_share


def _tables(build: Build, judged: bool) -> Iterator[tuple[pa.Table, Mask]]:
    """(scored pairs, which of them choose kept) of a split of a partition at a time."""
    stage = build.stage("score")
    for record in stage.records():
        for split in SPLITS:
            table = stage.table(record, f"{split}.parquet", COLUMNS)
            kept = np.ones(table.num_rows, np.bool_)
            if judged:
                after = build.stage("choose")
                ids = after.table(after.record(record.partition), f"{split}.parquet", ["candidate_id"])["candidate_id"]
                kept = np.asarray(pc.is_in(table["candidate_id"], ids.combine_chunks()).to_numpy(), np.bool_)
            if table.num_rows:
                yield table, kept


HTML = """
{% if pair_scores %}
<section id="pair_scores">
  <h2>{{ t("How well pictures and texts fit", "图文匹配得分") }}</h2>
  <p>{{ t("The cosine of the features of a picture and its primary text, by the towers that the spec names. What it "
    "means depends on the model; weak correlation is data.",
    "图像与主文本特征的余弦相似度，由规格指定的双塔模型计算。数值含义取决于模型；弱相关也是数据。") }}
    {{ t("Pairs scored", "已打分的图文对") }}: {{ pair_scores.scored | n }} / {{ pair_scores.pairs | n }}
  {%- if pair_scores.kept is not none %}. {{ t("Kept by the filter", "过滤后保留") }}: <b>{{ pair_scores.kept | n }}</b>
    ({{ pair_scores.kept | share(pair_scores.pairs) }}){% endif %}.</p>
  <p class="muted small">{% for model in pair_scores.models %}<code>{{ model }}</code>{{ " · " if not loop.last }}
    {%- endfor %}</p>
  {% if pair_scores.kept is not none %}<p class="legend small" aria-hidden="true"><span><i class="bar"></i> {{
    t("kept", "保留") }}</span> <span><i class="own"></i> {{ t("dropped by its score", "因得分丢弃") }}</span>
    <span><i class="limit"></i> {{ t("limit", "限值") }}</span></p>{% endif %}
  <div class="grid">{% for h in pair_scores.histograms %}{{ histogram(h) }}{% endfor %}</div>
  <div class="scroll" tabindex="0"><table>
    <caption class="hide">Scores by source</caption>
    <thead><tr>{{ th("source", "来源") }}{{ th("pairs", "图文对", "num") }}{{ th("kept", "保留", "num") -}}
    <th scope="col" class="num">25%</th>{{ th("median", "中位数", "num") }}<th scope="col" class="num">75%</th>
    {%- if pair_scores.sources | selectattr("cuts") | list %}{{ th("the share ends at", "所取比例止于", "num") -}}
    {% endif %}</tr></thead>
    <tbody>{% for s in pair_scores.sources %}<tr><th scope="row">{{ s.name }}</th>{{ td(s.pairs | n) }}
    {{- td(s.kept | n) }}{% for q in s.quartiles %}{{ td("%.4f" | format(q)) }}{% endfor %}
    {%- for cut in s.cuts %}{{ td("%.4f" | format(cut)) }}{% endfor %}</tr>{% endfor %}</tbody></table></div>
  {% set words = {
    "best": ("Fit best", "得分最高"), "worst": ("Fit worst", "得分最低"),
    "best_kept": ("Fit best of what the filter kept", "过滤后得分最高"),
    "worst_kept": ("Fit worst of what the filter kept", "过滤后得分最低"),
    "just_dropped": ("Just dropped", "刚好丢弃"), "just_kept": ("Just kept", "刚好保留")} %}
  {% for group in pair_scores.groups if group.rows %}
  {% if loop.index0 < 2 %}<div class="cluster"><h3>{{ t(*words[group.name]) }}</h3>
  {%- else %}<details class="cluster would"><summary>{{ t(*words[group.name]) }}{% if group.limit %} <code>{{
    group.limit }}</code>{% endif %} <span class="muted small">{{ group.rows | length }}</span></summary>{% endif %}
  <ul class="sheet">{% for row in group.rows %}
    <li class="sample {{ "is-kept" if row.kept else "is-dropped" }}">{{ picture(row) }}<p class="fate">
    {%- if row.kept %}<span class="ok">{{ "%.4f" | format(row.score) }}</span>{% else -%}
    <span class="no">✗ {{ "%.4f" | format(row.score) }}</span>{% endif %}</p>
    <p class="text" lang="zh">{{ row.text or "–" }}</p><p class="muted small">{{ row.source }}</p>
    <p class="small links">{{ studio("/#id=" ~ row.id[:32], "studio") }} <code title="{{ row.id }}">{{
      row.id[:8] }}</code></p></li>
  {% endfor %}</ul>
  {% if loop.index0 < 2 %}</div>{% else %}</details>{% endif %}
  {% endfor %}
</section>
{% endif %}
"""

SECTION = Section("pair_scores", HTML, figures, title="Scores", title_zh="得分")
