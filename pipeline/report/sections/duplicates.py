"""Section `duplicates`: the largest groups of duplicates, the sizes of all groups, and merges that are in doubt.

A merge joins an image with its leader. Where both have words of their own, alt text or caption, and none of
them in common, they may be two pictures: these merges are counted, and near copies among them are shown side by
side. Then follow near copies of which one is without words, so that they are merged by looks only.

Limits: leaders of earlier builds are without words here, and are left out.
"""

from __future__ import annotations

import pyarrow as pa

from data_specs.text.folding import normals
from pipeline.report.measures import Measure, histograms, ranges
from pipeline.report.section import Material, Section, Values

_SIZES = (2, 3, 4, 5, 6, 8, 11, 21, 51, 101)
MERGES = 12
"""Merges in doubt that are shown."""

PICTURES, SIDE = 400_000, 144
"""Bytes of all thumbnails of merges, and pixels of their longer side."""

SIZE = Measure("cluster_size", "Images per group", "每组图像数", _SIZES, ranges(_SIZES), "duplicates + 1")
"""Size of a group of duplicates, its leader included."""


def figures(material: Material, inputs: Values) -> Values:
    """Groups with the rows of their members, each with its `picture` as in `pipeline.report.sections.samples`."""
    clusters = material.chosen_rows.clusters
    sizes = histograms(material.tables, [SIZE], "SELECT duplicates FROM groups")
    return {"cluster_sizes": sizes[SIZE.name], "clusters": clusters, "merges": merges(material)}


_MERGED = """
WITH led AS (
  SELECT id, duplicate_of AS leader, reason FROM decisions
  WHERE subject = 'candidate' AND stage = 'dedup' AND reason IN ('near_image', 'same_image')
), named AS (
  SELECT id FROM led UNION SELECT leader FROM led
), taken_off AS (
  SELECT candidate_id, list(kind) AS kinds FROM removed WHERE candidate_id IN (FROM named) GROUP BY candidate_id
), shown AS (
  SELECT candidate_id AS id, fetch_id, source, page_url, image_url AS url, texts[1].text AS text, [
    t.text FOR t IN texts IF t.kind IN ('alt', 'caption') AND NOT list_contains(coalesce(kinds, []), t.kind)
  ] AS words
  FROM candidates LEFT JOIN taken_off USING (candidate_id) WHERE candidate_id IN (FROM named)
  QUALIFY row_number() OVER (PARTITION BY candidate_id ORDER BY words) = 1
), worded AS (
  SELECT id, list(normal_of(word)) AS words FROM (SELECT id, unnest(words) AS word FROM shown) GROUP BY id
), merged AS (
  SELECT led.*, one.words IS NOT NULL AND other.words IS NOT NULL AS worded,
    coalesce(list_has_any(one.words, other.words), false) AS shared
  FROM led SEMI JOIN shown ON shown.id = led.leader
  LEFT JOIN worded AS one ON one.id = led.id LEFT JOIN worded AS other ON other.id = led.leader
)
"""


def merges(material: Material) -> Values:
    """Counts of merges by reason, those of two different own words among them; pairs in doubt, each with its leader."""
    tables = material.tables
    tables.define("normal_of", lambda words: pa.array(normals(words.to_pylist())), ["VARCHAR"], "VARCHAR")
    counts = tables.rows(
        f"{_MERGED} SELECT reason, count(*) AS count, count(*) FILTER (worded AND NOT shared) AS other_words "
        "FROM merged GROUP BY reason ORDER BY reason"
    )
    doubtful = tables.rows(
        f"{_MERGED} SELECT id, leader, worded FROM merged WHERE reason = 'near_image' AND NOT shared "
        f"ORDER BY NOT worded, id LIMIT {MERGES}"
    )
    named = sorted({row[name] for row in doubtful for name in ("id", "leader")})
    rows = tables.rows(
        f"{_MERGED} SELECT id, fetch_id, source, page_url, url, substr(text, 1, 200) AS text, words, 'dedup' AS stage, "
        "'' AS duplicate_of FROM shown WHERE id IN (SELECT unnest(?::VARCHAR[])) ORDER BY id",
        [named],
    )
    of = {row["id"]: {**row, "words": [word[:200] for word in row["words"]]} for row in material.without_hidden(rows)}
    pairs = [
        {"worded": row["worded"], "leader": dict(of[row["leader"]]), "dropped": dict(of[row["id"]])}
        for row in doubtful
        if row["id"] in of and row["leader"] in of
    ]
    material.add_pictures([pair[name] for pair in pairs for name in ("leader", "dropped")], PICTURES, SIDE)
    return {"counts": counts, "pairs": pairs}


HTML = """
<section id="duplicates">
  <h2>{{ t("Largest groups of duplicates", "最大的重复组") }}</h2>
  {% if cluster_sizes.total %}<div class="grid">{{ histogram(cluster_sizes) }}</div>{% endif %}
  {% if not clusters %}<p>{{ t("None.", "无。") }}</p>{% endif %}
  {% for c in clusters %}
  <div class="cluster"><h3>{{ c.size | n }} {{ t("duplicate images, leader", "幅相同图像，首项") }} <code>{{
    c.leader[:12] }}</code>{% if c.held_by %} <span class="known">{{ t("kept by build", "由此构建保留：") }} <code>{{
    c.held_by }}</code>{% if c.leader not in c.members | map(attribute="id") | list %}{{
    t(", which is not available here", "（该构建不在此处）") }}{% endif %}</span>{% endif %}</h3>
    <ul class="sheet">{% for row in c.members %}
      <li class="sample {{ fate_class(row) }}">{{ picture(row) }}<p class="fate">
      {%- if row.id == c.leader %}<span class="ok">{{ t("leader", "首项") }}</span>
      {%- elif row.reason == "known" %}<span class="known">= {{ word("known") }}</span>
      {%- else %}<span class="no">{{ word(row.reason) }}</span>{% endif -%}
      </p><p class="text" lang="zh">{{ row.text or "–" }}</p><p class="muted small">{{ row.source }}
      {%- if row.evidence and row.reason != "known" %} · {{ row.evidence }}{% endif %}</p></li>
    {% endfor %}</ul></div>
  {% endfor %}
  {% if merges.counts %}
  <h3>{{ t("Doubtful merges", "存疑的合并") }}</h3>
  <p>{% for c in merges.counts %}{{ word(c.reason) }}: {{ c.count | n }}, {{
    t("of which with different captions or alt texts", "其中两边的说明或替代文字不同") }}: <b>{{
    c.other_words | n }}</b>{{ "; " if not loop.last }}{% endfor %}</p>
  {% for pair in merges.pairs %}
  <div class="cluster"><ul class="sheet">{% for row in (pair.leader, pair.dropped) %}
    <li class="sample {{ "is-kept" if loop.first else "is-dropped" }}">{{ picture(row) }}<p class="fate">{#--#}
      {%- if loop.first %}<span class="ok">{{ t("leader", "首项") }}</span>
      {%- else %}<span class="no">{{ word("near_image") }}</span>{% endif -%}
      </p><p class="text" lang="zh">{{ row.words | join(" · ") or "–" }}</p>
      <p class="muted small">{{ row.source }} · {{ row.page_url or row.url }}</p></li>
  {% endfor %}</ul></div>
  {% endfor %}
  {% endif %}
</section>
"""

SECTION = Section("duplicates", HTML, figures, title="Duplicates", title_zh="重复", folded=True)
