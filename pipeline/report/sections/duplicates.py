"""Section `duplicates`: the largest groups of duplicates, with some of their pictures, and the sizes of all groups."""

from __future__ import annotations

from pipeline.report.measures import Measure, histograms, ranges
from pipeline.report.section import Material, Section, Values

_SIZES = (2, 3, 4, 5, 6, 8, 11, 21, 51, 101)
SIZE = Measure("cluster_size", "Images per group", "每组图像数", _SIZES, ranges(_SIZES), "duplicates + 1")
"""Size of a group of duplicates, its leader included."""


def figures(material: Material, inputs: Values) -> Values:
    """Groups with the rows of their members, each with its `picture` as in `pipeline.report.sections.samples`."""
    clusters = material.shown.clusters
    sizes = histograms(material.tables, [SIZE], "SELECT duplicates FROM groups")
    return {"cluster_sizes": sizes[SIZE.name], "clusters": clusters}


HTML = """
<section id="duplicates">
  <h2>{{ t("Largest groups of duplicates", "最大的重复组") }}</h2>
  {% if cluster_sizes.total %}<div class="grid">{{ histogram(cluster_sizes) }}</div>{% endif %}
  {% if not clusters %}<p>{{ t("None.", "无。") }}</p>{% endif %}
  {% for c in clusters %}
  <div class="cluster"><h3>{{ c.size | n }} {{ t("images that are the same, leader", "幅相同图像，首项") }} <code>{{
    c.leader[:12] }}</code>{% if c.held_by %} <span class="known">{{ t("kept by build", "由此构建保留：") }} <code>{{
    c.held_by }}</code>{% if c.leader not in c.members | map(attribute="id") | list %}{{
    t(", which is not at hand", "（该构建不在此处）") }}{% endif %}</span>{% endif %}</h3>
    <ul class="sheet">{% for row in c.members %}
      <li class="sample {{ fate_class(row) }}">{{ picture(row) }}<p class="fate">
      {%- if row.id == c.leader %}<span class="ok">{{ t("leader", "首项") }}</span>
      {%- elif row.reason == "known" %}<span class="known">= {{ word("known") }}</span>
      {%- else %}<span class="no">{{ word(row.reason) }}</span>{% endif -%}
      </p><p class="text" lang="zh">{{ row.text or "–" }}</p><p class="muted small">{{ row.source }}
      {%- if row.evidence and row.reason != "known" %} · {{ row.evidence }}{% endif %}</p></li>
    {% endfor %}</ul></div>
  {% endfor %}
</section>
"""

SECTION = Section("duplicates", HTML, figures, title="Duplicates", title_zh="重复")
