"""Section `texts`: kinds of primary texts, fallbacks, removed texts and hosts' templates.

A primary text is a fallback if texts that would have come before it were removed (`text_rank` of the shards). Texts
that `admit` removed are counted by kind and reason, with examples as the text filters have rewritten them; of those
that stood on many pages, which `extract` removed, examples are not shown, since nothing was masked in them yet.
"""

from __future__ import annotations

from pipeline.report.section import Material, Section, Values
from pipeline.store.sql import Tables

REASONS, TEMPLATES, EXAMPLES = 12, 20, 3
"""Groups of removed texts, templates that are listed, and examples of a group."""


def figures(material: Material, inputs: Values) -> Values:
    build = material.build
    templates = build.stage("admit.sort").find_reduced() or [] if "admit.sort" in build.fingerprints else []
    listed = sorted(templates, key=lambda row: (-row["texts"], row["host"], row["side"], row["text"]))[:TEMPLATES]
    return {
        "texts": {
            "fallbacks": sum(kind["fallbacks"] for kind in inputs["kinds"]),
            "removed": removed(material.tables),
            "templates": len(templates),
            "listed": listed,
        }
    }


def removed(tables: Tables) -> list[Values]:
    """The most frequent groups of removed texts by stage, kind and reason, with examples of kept candidates."""
    shown = "substr(text, 1, 60)"
    groups = tables.rows(
        "SELECT stage, kind, reason, count(*) AS count, "
        f"min_by(DISTINCT {shown}, md5({shown}), {EXAMPLES}) AS examples "
        f"FROM removed GROUP BY ALL ORDER BY count DESC, stage, kind, reason LIMIT {REASONS}"
    )
    query = f"SELECT min(evidence) FROM removed WHERE stage = ? AND kind = ? AND reason = ? AND {shown} = ?"
    for group in groups:
        keys = [group["stage"], group["kind"], group["reason"]]
        texts = group["examples"] if group["stage"] != "extract" else ()  # in those nothing was masked
        group["examples"] = [{"text": text, "evidence": tables.column(query, [*keys, text])[0]} for text in texts]
    return groups


HTML = """
<section id="texts">
  <h2>{{ t("Texts", "文本") }}</h2>
  <p>{{ t("Primary texts that replace better ones that were removed", "因更好的文本被去除而替补的主文本") }}: {{
    texts.fallbacks | n }} / {{ totals.kept | n }} ({{ texts.fallbacks | share(totals.kept) }})</p>
  {% if kinds %}<div class="scroll" tabindex="0"><table>
    <caption class="hide">Texts by kind</caption>
    <thead><tr>{{ th("kind", "种类") }}{{ th("texts", "文本", "num") }}{{ th("as primary", "作为主文本", "num") -}}
    <th scope="col" class="num">%</th>{{ th("fallbacks", "替补", "num") }}</tr></thead>
    <tbody>{% for k in kinds %}<tr><th scope="row">{{ word(k.name) }}</th>{{ td(k.texts | n) }}{{ td(k.primary | n) }}
    {{- td(k.primary | share(totals.kept)) }}{{ td(k.fallbacks | n) }}</tr>{% endfor %}</tbody>
  </table></div>{% endif %}
  {% if texts.removed %}<h3>{{ t("Removed texts", "去除的文本") }}</h3>
  <div class="scroll" tabindex="0"><table>
    <caption class="hide">Texts removed from remaining candidates</caption>
    <thead><tr>{{ th("stage", "阶段") }}{{ th("kind", "类型") }}{{ th("reason", "原因") -}}
    {{- th("texts", "文本", "num") }}{{ th("examples", "例") }}</tr></thead>
    <tbody>{% for r in texts.removed %}<tr><td>{{ word(r.stage) }}</td><td>{{ word(r.kind) }}</td>
    <td>{{ word(r.reason) }}</td>{{ td(r.count | n) }}<td class="small">{% for e in r.examples %}{{ e.text }} ({{
      said(e.evidence) }}){{ "; " if not loop.last }}{% endfor %}</td></tr>{% endfor %}</tbody>
  </table></div>{% endif %}
  {% if texts.listed %}<h3>{{ t("Templates of hosts, removed from texts", "各网站的固定套语，已截去") }} ({{
    texts.templates | n }})</h3>
  <ul class="small">{% for row in texts.listed %}<li>{{ row.host }}:
    {{ t(row.side, {"begins": "开头", "ends": "结尾"}[row.side]) }} <code>{{ row.text }}</code> ·
    {{ row.texts | n }} {{ t("texts", "条文本") }}</li>{% endfor %}</ul>
  {% endif %}
</section>
"""

SECTION = Section("texts", HTML, figures, inputs=("shapes",), title="Texts", title_zh="文本", folded=True)
