"""Section `pair_scores`: how well pictures and texts fit, by source; the pairs that fit best and worst, in pictures.

Histograms hold all scores, and, where a filter judges them, those of the pairs that it kept. The best
and worst pairs are shown as they came to the filter, and at each of its limits the pairs that are nearest to it on
either side. Empty for a spec without `pair_score`.

Limits: thumbnails stop at a budget of bytes, so that the page stays below 5 MB. Of many sources those with the most
pairs have a histogram.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipeline.filters import PairFilter, pair_filters
from pipeline.filters.pair_score import PairScore
from pipeline.report.section import Material, Section, Values, judges_limit
from pipeline.store import pair_scores
from pipeline.store.pair_scores import UNITS, Cuts
from pipeline.store.sql import quoted

SOURCES = 12
"""Sources that have a histogram."""

BINS = 24
"""Bins of a histogram at most."""

SHOWN, NEAREST = 12, 20
"""Pairs of a sheet of the best or worst, and pairs on each side of a limit."""

PICTURES, SIDE = 550_000, 112
"""Bytes of all thumbnails of the section, and pixels of their longer side."""

Counts = dict[str, Counter[int]]
"""Source -> score in ten-thousandths -> pairs."""


def figures(material: Material, inputs: Values) -> Values:
    return {"pair_scores": scores(material)}


def scores(material: Material) -> Values | None:
    """Counts, a histogram of each source, and groups of pairs with their pictures; None where nothing was scored."""
    build, tables = material.build, material.tables
    if build.spec.pair_score is None or not (records := build.records("curate.score")):
        return None
    filters = pair_filters(build.spec) if build.records("curate.pair_score") else []
    cuts = pair_scores.read(build) if filters else []
    before, after = Counts(), Counts()
    for row in tables.rows(
        "SELECT source, units, count(*) AS pairs, count(*) FILTER (kept) AS kept FROM scored GROUP BY ALL ORDER BY ALL"
    ):
        before.setdefault(row["source"], Counter())[row["units"]] = row["pairs"]
        after.setdefault(row["source"], Counter())[row["units"]] = row["kept"]
    groups: list[Values] = [
        {"name": name, "limit": limit, "rows": material.judged_pairs("scored", where, order, count, "score")}
        for name, limit, where, order, count in _groups(filters, cuts)
    ]
    material.add_pictures([row for group in groups for row in group["rows"]], PICTURES, SIDE)
    shown = sorted(before, key=lambda source: (-before[source].total(), source))
    every = Counter[int]()
    for own in before.values():
        every.update(own)
    edges = _edges(every)
    return {
        "models": records[0].info["models"],
        "by_words": build.spec.pair_score.by_words,
        "pairs": build.counted("curate.score", "pairs"),
        "scored": every.total(),
        "kept": sum(own.total() for own in after.values()) if filters else None,
        "histograms": [
            _histogram(source, edges, before[source], after[source], filters, cuts) for source in shown[:SOURCES]
        ],
        "groups": groups,
    }


def _groups(filters: Sequence[PairFilter], cuts: Cuts) -> Iterator[tuple[str, str, str, str, int]]:
    """(name, limit, which pairs, the order of which the first are shown, how many) of each group, as SQL."""
    yield "best", "", "true", "-units", SHOWN
    yield "worst", "", "true", "units", SHOWN
    for f, of_filter in zip(filters, cuts, strict=True):
        passes = "true"
        if isinstance(f, PairScore):
            passes = f"units >= {round(f.min_score * UNITS)} AND units <= {round(f.max_score * UNITS)}"
            for option, limit, beyond in (("min_score", f.min_score, "<"), ("max_score", f.max_score, ">")):
                if abs(limit) < 1:
                    at = round(limit * UNITS)
                    yield "just_dropped", option, f"NOT kept AND units {beyond} {at}", f"abs(units - {at})", NEAREST
                    yield "just_kept", option, f"kept AND NOT units {beyond} {at}", f"abs(units - {at})", NEAREST
        if of_filter:
            ends = " ".join(f"WHEN '{quoted(source)}' THEN {cut.units}" for source, cut in of_filter.items())
            end = f"(CASE source {ends} ELSE {2 * UNITS} END)"
            # those with exactly the last score are on both sides: which of them are kept, their ids say
            for name, own, side in (("just_dropped", "NOT kept", "<="), ("just_kept", "kept", ">=")):
                yield name, "top_share", f"{own} AND {passes} AND units {side} {end}", f"abs(units - {end})", NEAREST


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
    """Arguments of the macro `histogram`: kept, and dropped (`own`), by bin; the filters' limits as lines."""
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
        judges_limit(
            f.plugin_name(),
            name,
            value,
            [round((units - edges[0]) / step, 3)] if edges[0] <= units <= edges[-1] + step else [],
            dropped,
        )
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


HTML = """
{% if pair_scores %}
<section id="pair_scores">
  <h2>{{ t("How well pictures and texts match", "图文匹配得分") }}</h2>
  <p>{% if pair_scores.by_words %}{{ t("The chance that the primary text says what its picture shows, estimated from "
    "the texts of the pair alone: of 100 pairs with a score of 0.8, about 80 were right when read by eye. The picture "
    "itself was not looked at; weakly correlated pairs are useful data too.",
    "主文本说出图中内容的可能性，仅由图文对的文字估计：得分 0.8 的 100 对，人工判读约有 80 对相符。"
    "未查看图像；弱相关也是数据。") }}
    {%- else %}{{ t("The cosine of the features of a picture and its primary text, by the towers that the spec names. "
    "Its meaning depends on the model; weakly correlated pairs are useful data too.",
    "图像与主文本特征的余弦相似度，由规格指定的双塔模型计算。数值含义取决于模型；弱相关也是数据。") }}{% endif %}
    {{ t("Pairs scored", "已打分的图文对") }}: {{ pair_scores.scored | n }} / {{ pair_scores.pairs | n }}
  {%- if pair_scores.kept is not none %}. {{ t("Kept by the filter", "过滤后保留") }}: <b>{{ pair_scores.kept | n }}</b>
    ({{ pair_scores.kept | share(pair_scores.pairs) }}){% endif %}.</p>
  <p class="muted small">{% for model in pair_scores.models %}<code>{{ model }}</code>{{ " · " if not loop.last }}
    {%- endfor %}</p>
  {% if pair_scores.kept is not none %}<p class="legend small" aria-hidden="true"><span><i class="bar"></i> {{
    t("kept", "保留") }}</span> <span><i class="own"></i> {{ t("dropped by its score", "因得分丢弃") }}</span>
    <span><i class="limit"></i> {{ t("limit", "限值") }}</span></p>{% endif %}
  <div class="grid">{% for h in pair_scores.histograms %}{{ histogram(h) }}{% endfor %}</div>
  {% set words = {
    "best": ("Best match", "得分最高"), "worst": ("Worst match", "得分最低"),
    "just_dropped": ("Just dropped", "刚好丢弃"), "just_kept": ("Just kept", "刚好保留")} %}
  {% for group in pair_scores.groups if group.rows %}
  {% if loop.index0 < 2 %}<div class="cluster"><h3>{{ t(*words[group.name]) }}</h3>
  {%- else %}<details class="cluster would"><summary>{{ t(*words[group.name]) }}{% if group.limit %} <code>{{
    group.limit }}</code>{% endif %} <span class="muted small">{{ group.rows | length }}</span></summary>{% endif %}
  {{ judged(group.rows, "score") }}
  {% if loop.index0 < 2 %}</div>{% else %}</details>{% endif %}
  {% endfor %}
</section>
{% endif %}
"""

SECTION = Section("pair_scores", HTML, figures, title="Scores", title_zh="得分", folded=True)
