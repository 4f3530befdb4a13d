"""Section `samples`: a sheet of kept and dropped samples with filters (chosen by `pipeline.report.pictures`)."""

from __future__ import annotations

from pipeline.report.section import Material, Section, Values


def figures(material: Material, inputs: Values) -> Values:
    """The rows of the sheet, each with its `picture`, a data: URI that index.html shows and report.json leaves out."""
    return {"sheet": material.chosen_rows.sheet, "not_shown": material.chosen_rows.hidden}


HTML = """
<section id="samples">
  <h2>{% if dataset %}{{ t("New samples, and dropped candidates", "新增样本与未收入的候选") }}{% else %}{{
    t("Samples, kept and dropped", "保留与丢弃的样本") }}{% endif %}</h2>
  <p class="muted">{{ t("A random sample; the same every time.", "随机抽取，每次相同。") }}
  {%- if not_shown %} {{ not_shown | n }} {{ t("items are never shown, because they opted out, were refused by "
    "robots.txt or the address guard, or were taken down.",
    "项从不展示：已声明退出、被 robots.txt 或地址检查拒绝，或已下架。") }}{% endif %}
  {{ t("Every candidate, with its reason and evidence:", "查看每个候选及其原因与依据：") }} {{
  studio("/", t("in the studio", "打开工作台")) }} <code class="command">wenlan-data studio {{
    state.place | quoted }}</code></p>
  <form class="filters" aria-label="Filter the samples">
    <label>{{ t("Source", "来源") }} <select id="by-source"><option value="">{{ t("all", "全部") }}</option>
    {%- for s in sources %}<option>{{ s.name }}</option>{% endfor %}</select></label>
    <label>{{ t("Outcome", "去向") }} <select id="by-reason"><option value="">{{ t("all", "全部") }}</option>
    {#--#}<option value="kept" data-zh="保留">kept</option><option value="dropped" data-zh="丢弃">dropped</option>
    {%- if totals.known %}<option value="known" data-zh="{{ "known" | zh }}">{{ "known" | en }}</option>{% endif %}
    {%- for r in reasons %}<option value="{{ r.name }}" data-zh="{{ r.name | zh }}">{{ r.name | en }}</option>
    {%- endfor -%}
    </select></label>
    <label>{{ t("Text", "文本") }} <input id="by-text" type="search" autocomplete="off"></label>
    <label class="check"><input id="show-boxes" type="checkbox"> {{ t("Regions", "区域框") }}</label>
    {% set detectors = histograms | map(attribute="name") | select("starts", "regions/") | list %}
    {% if detectors | length > 1 %}<label>{{ t("Detector", "检测器") }} <select id="by-detector">
    {%- for d in detectors %}<option>{{ d[8:] }}</option>{% endfor %}</select></label>{% endif %}
    <output id="shown" aria-live="polite"></output>
  </form>
  <div id="sheet">
  {% set kept = sheet | selectattr("kept") | list %}
  {% set gone = sheet | rejectattr("kept") | list %}
  {% for rows in (kept, gone) if rows %}
  <h3>{% if rows[0].kept %}{% if dataset %}{{ t("New in this build", "本次新增") }}{% else %}{{
    t("Kept", "保留") }}{% endif %} <span class="muted small">{{ rows | length | n }} / {{ totals.kept | n }}</span>
  {%- else %}{% if totals.known %}{{ t("Dropped, or known", "丢弃或已有") }}{% else %}{{
    t("Dropped", "丢弃") }}{% endif %} <span class="muted small">{{ rows | length | n }} / {{
    (totals.dropped + totals.known) | n }}</span>{% endif %}</h3>
  <ul class="sheet">
  {% for row in rows %}
    <li class="sample {{ fate_class(row) }}" data-source="{{ row.source }}" data-reason="{{
      row.reason or "kept" }}">
      {{ picture(row) }}
      <p class="fate">{% if row.kept %}<span class="ok">✓ {{
        t("new", "新增") if dataset else t("kept", "保留") }}</span>
      {%- elif row.reason == "known" %}<span class="known">= {{ word("known") }}</span>
      {%- else %}<span class="no">✗ {{ word(row.reason) }}</span> <span class="muted">{{ word(row.stage) }}</span>
      {%- endif %}</p>
      <details class="more"><summary><span class="text" lang="zh">{{ row.text or "–" }}</span>
        <span class="muted small evidence">{% if row.evidence and row.reason != "known" %}{{ said(row.evidence) -}}
        {% elif row.width %}{{ row.width }} × {{ row.height }}{% else %}{{ row.source }}{% endif %}</span></summary>
        <dl>
          <dt>{{ t("source", "来源") }}</dt><dd>{{ row.source }}</dd>
          {% if row.width %}<dt>{{ t("pixels", "像素") }}</dt><dd>{{ row.width }} × {{ row.height }}</dd>{% endif %}
          {% if row.reasons | length > 1 %}<dt>{{ t("all reasons", "全部原因") }}</dt><dd>
          {%- for reason in row.reasons %}{{ word(reason) }}{{ ", " if not loop.last }}{% endfor %}</dd>{% endif %}
          {% if row.url | place %}<dt>{{ t("file", "文件") }}</dt><dd>{{ row.url | place }}</dd>{% endif %}
          <dt>ID</dt><dd><code>{{ row.id[:32] }}</code></dd>
        </dl>
      </details>
      <p class="small links">{{ link(row.page_url, t("page", "网页")) }} {{ link(row.url, t("image", "图像")) }} {{
        studio("/#id=" ~ row.id[:32], "studio") }} <code title="{{ row.id }}">{{
        row.id[:8] }}</code></p>
    </li>
  {% endfor %}
  </ul>
  {% endfor %}
  </div>
  {% if not sheet %}<p>{{ t("Nothing to show.", "没有可展示的内容。") }}</p>{% endif %}
</section>
"""

SECTION = Section("samples", HTML, figures, title="Samples", title_zh="样本")
