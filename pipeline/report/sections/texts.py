"""Section `texts`: what samples are known by: kinds of primary texts, fallbacks, removed texts and hosts' templates.

A primary text is a fallback if texts that would have come before it were removed (`text_rank` of the shards). Texts
that `admit` removed are counted by kind and reason, with examples as the text filters have rewritten them; of those
that stood on many pages, which `extract` removed, there are no examples, since nothing was masked in them yet.
"""

from __future__ import annotations

from pipeline.report.removed import RemovedTexts
from pipeline.report.section import Material, Section, Values

REASONS, TEMPLATES = 12, 20
"""Groups of removed texts, and templates that are listed."""


def figures(material: Material, inputs: Values) -> Values:
    build = material.build
    kinds, fallbacks = material.tally.kept.primary_kinds, material.tally.kept.fallbacks
    found = build.stage("admit.sort").find_reduced() or [] if "admit.sort" in build.fingerprints else []
    listed = sorted(found, key=lambda row: (-row["texts"], row["host"], row["side"], row["text"]))[:TEMPLATES]
    return {
        "texts": {
            "samples": kinds.total(),
            "fallbacks": fallbacks.total(),
            "kinds": [{"name": k, "count": n, "fallbacks": fallbacks[k]} for k, n in kinds.most_common()],
            "removed": removed(material.tally.removed),
            "templates": len(found),
            "listed": listed,
        }
    }


def removed(texts: RemovedTexts) -> list[Values]:
    """The most frequent groups of removed texts by stage, kind and reason, with examples of kept candidates."""
    ranked = sorted(texts.counts.items(), key=lambda entry: (-entry[1], entry[0]))[:REASONS]
    return [
        {
            "stage": group[0],
            "kind": group[1],
            "reason": group[2],
            "count": count,
            "examples": [{"text": text, "evidence": why} for text, why in texts.examples[group].items()],
        }
        for group, count in ranked
    ]


HTML = """
<section id="texts">
  <h2>{{ t("Texts", "文本") }}</h2>
  <p>{{ t("Primary texts that stand in for better ones that were removed", "因更好的文本被去除而替补的主文本") }}: {{
    texts.fallbacks | n }} / {{ texts.samples | n }} ({{ texts.fallbacks | share(texts.samples) }})</p>
  {% if texts.kinds %}<div class="scroll" tabindex="0"><table>
    <caption class="hide">Kinds of primary texts</caption>
    <thead><tr>{{ th("primary text", "主文本") }}{{ th("samples", "样本", "num") -}}
    <th scope="col" class="num">%</th>{{ th("fallbacks", "替补", "num") }}</tr></thead>
    <tbody>{% for k in texts.kinds %}<tr><th scope="row">{{ k.name }}</th>{{ td(k.count | n) }}
    {{- td(k.count | share(texts.samples)) }}{{ td(k.fallbacks | n) }}</tr>{% endfor %}</tbody>
  </table></div>{% endif %}
  {% if texts.removed %}<h3>{{ t("Removed texts", "去除的文本") }}</h3>
  <div class="scroll" tabindex="0"><table>
    <caption class="hide">Texts that were removed from candidates that stayed</caption>
    <thead><tr>{{ th("stage", "阶段") }}{{ th("kind", "类型") }}{{ th("reason", "原因") -}}
    {{- th("texts", "文本", "num") }}{{ th("examples", "例") }}</tr></thead>
    <tbody>{% for r in texts.removed %}<tr><td>{{ word(r.stage) }}</td><td>{{ r.kind }}</td>
    <td>{{ word(r.reason) }}</td>{{ td(r.count | n) }}<td class="small">{% for e in r.examples %}{{ e.text }} ({{
      e.evidence }}){{ "; " if not loop.last }}{% endfor %}</td></tr>{% endfor %}</tbody>
  </table></div>{% endif %}
  {% if texts.listed %}<h3>{{ t("Templates of hosts, cut off", "各网站的固定套语，已截去") }} ({{
    texts.templates | n }})</h3>
  <ul class="small">{% for row in texts.listed %}<li>{{ row.host }}: {{ row.side }} <code>{{ row.text }}</code> ·
    {{ row.texts | n }} {{ t("texts", "条文本") }}{{ " · " ~ row.example if row.example }}</li>{% endfor %}</ul>
  {% endif %}
</section>
"""

SECTION = Section("texts", HTML, figures, title="Texts", title_zh="文本")
