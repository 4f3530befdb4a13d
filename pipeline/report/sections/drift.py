"""Section `drift`: how far distributions have moved since the baseline, if there is one (`pipeline.report.drift`)."""

from __future__ import annotations

from pipeline.report import drift
from pipeline.report.section import Material, Section, Values


def figures(material: Material, inputs: Values) -> Values:
    return {"drift": None if material.baseline is None else drift.compare(inputs, material.baseline)}


HTML = """
{% if drift %}
<section id="drift">
  <h2>{{ t("Changes since the baseline", "与基线相比的变化") }}</h2>
  <p class="muted">{{ t("Baseline", "基线") }} <code>{{ drift.baseline }}</code>, {{ drift.samples[0] | n }} {{
    t("samples; this build has", "个样本；本次有") }} {{ drift.samples[1] | n }}. {{
    t("Population stability index over the bins of each distribution: steady below",
      "按各分布的区间计算的群体稳定性指数：低于此值为稳定") }} {{ drift.steady }}{{
    t(", moved from", "；达到此值为显著变化") }} {{ drift.moved }}{{ t(" up.", "。") }}</p>
  <div class="grid two">
    <div class="card"><h3>{{ t("Distributions", "分布") }}</h3><ul class="bars psi">
    {% set top = ([drift.moved] + (drift.distributions | map(attribute="psi") | list)) | max %}
    {% for d in drift.distributions %}<li class="{{ d.level }}"><span class="name">{{ t(d.title, d.title_zh) }}</span>
      {#--#}<span class="track" aria-hidden="true"><i style="width:{{ (100 * d.psi / top) | round(1) }}%"></i></span>
      {#--#}<span class="num">{{ "%.3f" | format(d.psi) }} {% if d.level == "moved" %}{{ t("moved", "显著") }}
      {%- elif d.level == "shifted" %}{{ t("shifted", "偏移") }}
      {%- else %}{{ t("steady", "稳定") }}{% endif %}</span></li>{% endfor %}
    </ul></div>
    <div class="card"><h3>{{ t("Outcomes, as shares of all candidates", "去向占全部候选的比例") }}</h3>
      <table><thead><tr>{{ th("outcome", "去向") }}{{ th("before", "之前", "num") }}{{ th("now", "现在", "num") -}}
      </tr></thead><tbody>{% for r in drift.reasons[:12] %}<tr><th scope="row">{{ word(r.name) }}</th>
      {{- td("%.1f%%" | format(100 * r.share_before)) }}{{ td("%.1f%%" | format(100 * r.share_now)) }}</tr>
      {%- endfor %}</tbody></table></div>
    <div class="card"><h3>{{ t("New image hosts", "新出现的图像域名") }}</h3>
    {%- if drift.domains.new %}{{ bars(drift.domains.new, "New image hosts") }}
    {%- else %}<p>{{ t("None.", "无。") }}</p>{% endif %}
      <h3>{{ t("Image hosts no longer seen", "消失的图像域名") }}</h3>
    {%- if drift.domains.lost %}{{ bars(drift.domains.lost, "Image hosts no longer seen") }}
    {%- else %}<p>{{ t("None.", "无。") }}</p>{% endif %}</div>
  </div>
</section>
{% endif %}
"""

SECTION = Section(
    "drift", HTML, figures, inputs=("totals", "funnel", "sources", "shapes"), title="Drift", title_zh="漂移"
)
