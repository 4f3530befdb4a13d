"""Section `drift`: how far distributions have moved (`pipeline.report.drift`), first those of the whole dataset since
the release before, then those of what is new since the baseline."""

from __future__ import annotations

from pipeline.report import drift
from pipeline.report.section import Material, Section, Values


def figures(material: Material, inputs: Values) -> Values:
    return {"drift": None if material.baseline is None else drift.compare(inputs, material.baseline)}


HTML = """
{% set whole = dataset.drift if dataset else none %}
{% if drift or (whole and whole.distributions) %}
<section id="drift">
  <h2>{{ t("Drift", "漂移") }}</h2>
  {% set bounds = drift or whole %}
  <p class="muted">{{ t("Population stability index (PSI) over the bins of each distribution: steady below",
      "按各分布的区间计算的群体稳定性指数：低于此值为稳定") }} {{ bounds.steady }}{{
    t(", moved at", "；达到此值为显著变化") }} {{ bounds.moved }}{{ t(" or more.", "。") }}</p>
  <div class="grid two">
    {% if whole and whole.distributions %}
    <div class="card"><h3>{{ t("The whole dataset", "整个数据集") }}</h3><p class="muted small">{{
      t("with this build", "含本次构建") }}: {{ whole.samples[1] | n }} {{
      t("samples, compared with", "个样本，对比") }} {{ t("release", "版本") }} {{ dataset.release }}: {{
      whole.samples[0] | n }}</p>{{ psi(whole) }}</div>
    {% endif %}
    {% if drift %}
    <div class="card"><h3>{{ t("New data only", "仅新增部分") }}</h3><p class="muted small">{{
      drift.samples[1] | n }} {{ t("samples, compared with the baseline", "个样本，对比基线") }} <code>{{
      drift.baseline }}</code>: {{
      drift.samples[0] | n }}{% if drift.samples | min < drift.few %}. {{
      t("Too few for a reliable index, so no gate checks it.",
        "样本太少：指数多为偶然，门槛不予判断。") }}{% endif %}</p>{{ psi(drift) }}</div>
    <div class="card"><h3>{{ t("Outcomes, as shares of all candidates", "去向占全部候选的比例") }}</h3>
      <table><thead><tr>{{ th("outcome", "去向") }}{{ th("baseline", "基线", "num") }}{{ th("now", "现在", "num") -}}
      </tr></thead><tbody>{% for r in drift.reasons[:12] %}<tr><th scope="row">{{ word(r.name) }}</th>
      {{- td("%.1f%%" | format(100 * r.share_before)) }}{{ td("%.1f%%" | format(100 * r.share_now)) }}</tr>
      {%- endfor %}</tbody></table></div>
    {% endif %}
  </div>
</section>
{% endif %}
"""

SECTION = Section(
    "drift", HTML, figures, inputs=("totals", "funnel", "sources", "shapes"), title="Drift", title_zh="漂移"
)
