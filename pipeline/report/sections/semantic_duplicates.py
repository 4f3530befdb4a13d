"""Section `semantic_duplicates`: the pictures that semantic dedup merges, each duplicate next to its leader.

The pairs that are nearest to one another, those that were only just dropped, and those that were only just kept: what
another distance would change. The histogram counts the duplicates by their distance, and the kept pairs that lie just
beyond it. Empty for a spec without `semantic_dedup`.

Limits: a leader that an earlier build kept is shown if that build is accessible. Thumbnails stop at a budget of bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.report import earlier_samples
from pipeline.report.section import Material, Section, Values, judges_limit
from pipeline.store.sql import Tables

SHOWN = 12
"""Pairs of each group."""

BINS = 15
"""Bins of the histogram, a third of them beyond the distance."""

PICTURES, SIDE = 450_000, 112
"""Bytes of all thumbnails of the section, and pixels of their longer side."""


def figures(material: Material, inputs: Values) -> Values:
    return {"semantic_duplicates": duplicates(material)}


def duplicates(material: Material) -> Values | None:
    """Counts, a histogram of distances, and groups of pairs with their pictures; None where nothing was compared."""
    build, tables = material.build, material.tables
    own = build.spec.semantic_dedup
    if own is None or not build.records("curate.semantic_dedup"):
        return None
    [compared] = build.records("curate.nearest")
    limit = round(own.distance * 1_000_000)
    step = max(1.0, 1.5 * limit / BINS)
    bins = tables.rows(
        f"SELECT dropped, least(floor(millionths / {step}), {BINS - 1})::INTEGER AS bin, count(*) AS count, "
        "count(*) FILTER (dropped AND earlier) AS by_earlier FROM near GROUP BY 1, 2"
    )
    dropped, beyond = ({row["bin"]: row["count"] for row in bins if row["dropped"] is side} for side in (True, False))
    orders = (("closest", "dropped", ""), ("just_dropped", "dropped", "-"), ("just_kept", "NOT dropped", ""))
    groups = {
        name: tables.rows(f"SELECT * FROM near WHERE {where} ORDER BY {sign}millionths, candidate_id LIMIT {SHOWN}")
        for name, where, sign in orders
    }
    return {
        "tower": compared.info["tower"],
        "distance": own.distance,
        "keep": own.keep,
        **{name: build.counted("curate.semantic_dedup", name) for name in ("seen", "kept", "dropped")},
        "by_earlier": sum(row["by_earlier"] for row in bins),
        "earlier": compared.counts["earlier"],
        "histogram": _histogram(dropped, beyond, step, own.distance),
        "groups": _group_values(material, groups),
    }


def _histogram(dropped: Mapping[int, int], beyond: Mapping[int, int], step: float, distance: float) -> Values:
    """Arguments of the macro `histogram`: kept, and dropped (`own`), by distance from the nearest leader."""
    bins = [
        {"label": f"{at * step / 1_000_000:.3g}", "count": beyond.get(at, 0), "own": dropped.get(at, 0), "other": 0}
        for at in range(BINS)
    ]
    at = round(distance * 1_000_000 / step, 3)
    limit = judges_limit("semantic_dedup", "distance", distance, [at], sum(dropped.values()))
    title = {"title": "Cosine distance from the nearest kept picture", "title_zh": "与最近保留图像的余弦距离"}
    own = {"name": "semantic_distance", **title}
    return {**own, "total": sum(beyond.values()), "bins": bins, "limits": [limit]}


def _group_values(material: Material, groups: Mapping[str, list[Values]]) -> list[Values]:
    """The groups with their pairs as the page has them: the kept one, the other one, and their distance."""
    build = material.build
    near = [row for rows in groups.values() for row in rows]
    row_of = _rows(material.tables, {row[name] for row in near for name in ("candidate_id", "leader")})
    held = earlier_samples.holders(build, {row["leader"] for row in near if row["earlier"]})
    foreign = dict[str, bytes]()
    for row, data in earlier_samples.samples(held):
        row_of[row["id"]], foreign[row["id"]] = row, data
    values = {row["id"]: _value(row) for row in material.without_hidden(row_of.values())}
    material.add_pictures(values.values(), PICTURES, SIDE, foreign)
    return [
        {
            "name": name,
            "pairs": [
                {
                    "leader": values.get(row["leader"]),
                    "other": values[row["candidate_id"]],
                    "apart": round(row["millionths"] / 1_000_000, 4),
                }
                for row in rows
                if row["candidate_id"] in values
            ],
        }
        for name, rows in groups.items()
    ]


def _rows(tables: Tables, ids: set[str]) -> dict[str, Values]:
    """The decisions on candidates, by id: where one came twice, that which says what became of it first."""
    rows = tables.rows(
        "SELECT DISTINCT ON (id) * FROM decisions WHERE subject = 'candidate' AND id IN (SELECT unnest(?::VARCHAR[])) "
        "ORDER BY id, kept DESC, stage = 'curate' DESC",
        [sorted(ids)],
    )
    return {row["id"]: row for row in rows}


def _value(row: Values) -> Values:
    """A candidate as the page and report.json have it."""
    same = {
        name: row[name] for name in ("id", "fetch_id", "source", "page_url", "url", "kept", "stage", "duplicate_of")
    }
    more = {"sha256": row["sha256"]} if "sha256" in row else {}
    return {**same, "text": row["text"][:200], **more}


HTML = """
{% if semantic_duplicates %}
<section id="semantic_duplicates">
  <h2>{{ t("Pictures with the same content", "内容相同的图像") }}</h2>
  <p>{{ t("Pictures whose features, by the spec's tower, are within the distance of a picture kept before. One "
    "picture of each such group is kept.",
    "规格所指定图像塔的特征与先前保留的图像相距不超过限值者视为相同，每组只保留一幅。") }}
    {{ t("Compared", "比较") }}: {{ semantic_duplicates.seen | n }}.
    {{ t("Dropped", "丢弃") }}: <b>{{ semantic_duplicates.dropped | n }}</b>
    ({{ semantic_duplicates.dropped | share(semantic_duplicates.seen) }}){% if semantic_duplicates.by_earlier %},
    {{ t("of which because of a picture of an earlier build", "其中因此前构建的图像") }}: {{
    semantic_duplicates.by_earlier | n }}{% endif %}.</p>
  <p class="muted small"><code>{{ semantic_duplicates.tower }}</code> · {{ t("kept first", "优先保留") }}: <code>{{
    semantic_duplicates.keep }}</code></p>
  <p class="legend small" aria-hidden="true"><span><i class="bar"></i> {{
    t("kept, just beyond the distance", "保留，略超出限值") }}</span> <span><i class="own"></i> {{
    t("dropped", "丢弃") }}</span> <span><i class="limit"></i> {{ t("limit", "限值") }}</span></p>
  <div class="grid">{{ histogram(semantic_duplicates.histogram) }}</div>
  {% set words = {
    "closest": ("Closest to each other", "最接近的"), "just_dropped": ("Just dropped", "刚好丢弃"),
    "just_kept": ("Just kept", "刚好保留")} %}
  {% set all_shown = semantic_duplicates.dropped <= semantic_duplicates.groups[0].pairs | length %}
  {% for group in semantic_duplicates.groups if group.pairs and not (group.name == "just_dropped" and all_shown) %}
  <div class="cluster"><h3>{{ t(*words[group.name]) }}</h3>
  <ul class="sheet pairs">{% for pair in group.pairs %}
    <li class="sample {{ "is-dropped" if group.name != "just_kept" else "is-kept" }}"><div class="two">
      <div>{% if pair.leader %}{{ picture(pair.leader) }}{% else %}<p class="muted small">{{
        t("kept by an earlier build that is not available here", "由此前构建保留（不在此处）") }}</p>{% endif %}</div>
      <div>{{ picture(pair.other) }}</div></div>
    <p class="fate"><span class="{{ "no" if group.name != "just_kept" else "ok" }}">{{
      "✗ " if group.name != "just_kept" }}{{ "%.4f" | format(pair.apart) }}</span></p>
    <p class="text" lang="zh">{{ pair.leader.text if pair.leader else "–" }}</p>
    <p class="text" lang="zh">{{ pair.other.text or "–" }}</p>
    <p class="muted small">{{ pair.other.source }}</p>
    {{ named(pair.other) }}</li>
  {% endfor %}</ul></div>
  {% endfor %}
</section>
{% endif %}
"""

SECTION = Section("semantic_duplicates", HTML, figures, title="Same content", title_zh="内容重复", folded=True)
