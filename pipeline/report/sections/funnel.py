"""Section `funnel`: what happened to every candidate, by stage and reason (`pipeline.report.funnel`)."""

from __future__ import annotations

from pipeline.report.funnel import StageFunnel, accounts
from pipeline.report.section import Material, Section, Values
from pipeline.store.build import in_funnel


def figures(material: Material, inputs: Values) -> Values:
    candidates = material.candidates
    return {
        "funnel": [row_of(stage) for stage in candidates.stages(in_funnel(material.build, "extract", "shard"))],
        "reasons": [{"name": name, "count": count} for name, count in candidates.reasons()],
        "unaccounted": sum(account.unaccounted for account in accounts(material.build).values()),
    }


def row_of(stage: StageFunnel) -> Values:
    reasons = [{"name": name, "count": count} for name, count in stage.reasons]
    counts = {"seen": stage.seen, "kept": stage.kept, "dropped": stage.dropped, "known": stage.known}
    return {"stage": stage.stage, **counts, "reasons": reasons}


HTML = """
<section id="funnel">
  <h2>{{ t("What happened to every candidate", "每个候选的去向") }}</h2>
  <p class="muted">{{
    t("Each candidate is counted once: dropped by one stage, for the first reason that applied, or known because its "
    "image is already in the dataset, or kept.",
    "每个候选只计一次：在某一阶段因首个原因被丢弃，或其图片已在数据集中，或被保留。") }}</p>
  <p class="legend small" aria-hidden="true"><span><i class="kept"></i> {{ t("passed on", "通过") }}</span>
  {%- if totals.known %} <span><i class="known"></i> {{
    t("known: the dataset has already decided on its image", "已知：数据集对其图像已有结论") }}</span>{% endif %}
  {#--#} <span><i class="d0"></i><i class="d1"></i><i class="d2"></i> {{
    t("dropped, by reason", "丢弃，按原因") }}</span></p>
  <ol class="funnel">
  {% if unaccounted %}
    <li><span class="stage">{{ t("unaccounted", "去向不明") }}</span><span class="flow"></span>
      <span class="count"><span class="minus">−{{ unaccounted | n }}</span></span>
      <span class="why"><a href="#sources">{{ t("input that is neither a candidate nor a decision",
        "既非候选也无结论的输入") }}</a></span></li>
  {% endif %}
  {% for row in funnel if row.seen %}
    <li>
      <span class="stage">{{ word(row.stage) }}</span>
      <span class="flow" role="img" aria-label="{{ row.stage }}: {{ row.seen }} entered, {{ row.kept }} kept, {{
        row.dropped }} dropped, {{ row.known }} known">
        <i class="kept" style="width:{{ (100 * row.kept / (totals.candidates or 1)) | round(2) }}%"></i>
        {%- if row.known %}<i class="known" style="width:{{
          (100 * row.known / (totals.candidates or 1)) | round(2) }}%" title="known: {{
          row.known | n }}"></i>{% endif %}
        {%- for r in row.reasons %}<i class="dropped d{{ loop.index0 % 4 }}" style="width:{{
          (100 * r.count / (totals.candidates or 1)) | round(2) }}%" title="{{ r.name | en }}: {{ r.count | n }}"></i>
        {%- endfor %}
      </span>
      <span class="count"><b>{{ row.kept | n }}</b>
      {%- if row.known %} <span class="equal">={{ row.known | n }}</span>{% endif %}
      {%- if row.dropped %} <span class="minus">−{{ row.dropped | n }}</span>{% endif %}</span>
      {% if row.reasons or row.known %}<span class="why">
      {%- if row.known %}<a href="#samples" data-reason="known"><b>{{ word("known") }} {{
        row.known | n }}</b></a>{% endif %}
      {%- for r in row.reasons %}<a href="#samples" data-reason="{{ r.name }}">{{ word(r.name) }} {{
        r.count | n }}</a>{% endfor %}</span>{% endif %}
    </li>
  {% endfor %}
  </ol>
</section>
"""

SECTION = Section("funnel", HTML, figures, title="Funnel", title_zh="漏斗")
