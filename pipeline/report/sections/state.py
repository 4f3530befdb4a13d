"""Section `state`: the state of the build in words, at the top of the page (`pipeline.report.state`)."""

from __future__ import annotations

from pipeline.report import state
from pipeline.report.section import Material, Section, Values

START, END = "<!--state-->", "<!--/state-->"
"""Between these the page is rewritten when the state changes. Nothing that came from the web can hold them: it is
escaped."""


def figures(material: Material, inputs: Values) -> Values:
    return {"state": state.present_state(material.build, inputs).model_dump(mode="json")}


HTML = (
    START
    + """
<section class="state {{ state.verdict }}" role="status">
{% set failing = state.failing | map("code") | join(", ") | safe %}
{% if state.verdict == "published" %}
  <h2><span aria-hidden="true">✓</span> {% if state.release %}{{ t("Published as release", "已发布：版本") }} {{
    state.release }} {{ t("of dataset", "· 数据集") }}{% else %}{{ t("Published in dataset", "已发布：数据集") -}}
    {% endif %} <b>{{ state.dataset }}</b></h2>
  <p>{{ state.since | moment }} · <b>{{ state.new | n }}</b> {% if state.held %}{{ t("new samples,", "个新样本，") }} {{
    state.total | n }} {{ t("in the dataset including these", "个在含本次的数据集中") }}{% else %}{{
    t("samples, in the first build of the dataset", "个样本：数据集的第一次构建") }}{% endif %}</p>
  {% for gate, why in state.accepted.items() %}<p><b>{{ t("Accepted", "已人工接受") }}</b> {{
    t("although this gate failed:", "：此门槛未通过") }} <code>{{ gate }}</code>, {{
    t("because", "原因：") }} <q>{{ why }}</q></p>{% endfor %}
  {% if dataset and state.total < dataset.after.all %}<p>{{ (dataset.after.all - state.total) | n }} {{
    t("samples of earlier builds were removed at the same time: they vanished from their source or opted out.",
      "个早先构建的样本同时被移除：来源已消失，或已声明退出。") }}</p>{% endif %}
  {% if state.removed %}<p>{{ t("Samples were removed since; this is revision", "此后有样本被移除；当前为修订") }} {{
    state.revision }}{% if state.renewed %}{{ t(", which release", "，见版本") }} {{ state.renewed }}{{
    t(" has", "") }}{% endif %}{{ t(".", "。") }}</p>{% endif %}
{% elif state.verdict == "refused" %}
  <h2><span aria-hidden="true">✗</span> {{ t("Refused by", "未通过门槛：") }} {{ failing }}</h2>
  <ul>{% for g in gates if not g.holds %}{% for fault in g.faults -%}
  <li>{{ said(fault) }} <code class="muted">{{ g.name }}</code></li>{% endfor %}{% endfor %}</ul>
  <p>{{ state.since | moment }} · {{
    t("Not part of any release. To publish it anyway:", "不在任何版本中。若仍要发布：") }}
  <code class="command">wenlan-data publish {{ state.place | quoted }}{% for g in state.failing %} --accept {{
    g }}{% endfor %} --because "…"</code></p>
{% elif state.verdict == "waiting" and state.word %}
  <h2><span aria-hidden="true">✗</span> {{
    t("Publication refused by", "发布被拒绝，操作人：") }} {{ state.word.name }}</h2>
  <p>{{ state.word.at | moment }} · <q>{{ state.word.because }}</q>. {{
    t("It will not be published until a person approves it:", "在有人批准之前不会发布：") }}
  <code class="command">wenlan-data studio {{ state.place | quoted }}</code></p>
{% elif state.verdict == "waiting" %}
  <h2><span aria-hidden="true">◔</span> {{ t("Waiting for approval since", "等待批准，自") }} {{
    state.since | moment }}</h2>
  <p>{{ t("All gates passed; the spec requires approval by a person", "所有门槛均通过；规格要求人工批准") }} (<code
    >publish.approve: manual</code>). {{ t("If the report is correct:", "若报告无误：") }}
  <code class="command">wenlan-data publish {{ state.place | quoted }}</code></p>
{% elif state.verdict == "nothing_new" %}
  <h2><span aria-hidden="true">=</span> {{ t("Nothing new", "没有新内容") }}</h2>
  <p>{{ t("All remaining images are already in the dataset", "通过的图像均已在数据集中") }}: <b>{{
    state.dataset }}</b>, {% if dataset %}{{
    t("release", "版本") }} {{ dataset.release }}, {% endif %}{{
    state.held | n }} {{ t("samples. No release was created.", "个样本。未生成新版本。") }}</p>
{% else %}
  {% if state.word %}<p>{{ t("Approved by", "批准人：") }} <b>{{ state.word.name }}</b>, {{ state.word.at | moment }}:
  <q>{{ state.word.because }}</q></p>{% endif %}
  <h2><span aria-hidden="true">○</span> {{
    t("Ready to be published: all gates passed", "可以发布：所有门槛均通过") }}</h2>
  <p><code class="command">wenlan-data publish {{ state.place | quoted }}</code></p>
{% endif %}
</section>
"""
    + END
    + "\n"
)

SECTION = Section("state", HTML, figures, inputs=("totals", "gates", "dataset"))
