"""Section `balance`: what concept balance kept, by concept: counts of the most frequent entries before and after, and
the share of all matches that the frequent ones had and have. Empty for a spec without `balance`.
"""

from __future__ import annotations

from pipeline.report.section import Material, Section, Values
from pipeline.store import concept_counts
from pipeline.store.build import Build
from pipeline.store.sql import Tables
from pipeline.texts.concepts import concepts

SHOWN = 40
"""Frequent entries that are listed."""


def figures(material: Material, inputs: Values) -> Values:
    return {"balance": balance(material.build, material.tables)}


def balance(build: Build, tables: Tables) -> Values | None:
    """Entries matched, threshold, shares of the frequent ones, and a table of them; None where nothing was balanced."""
    if build.spec.balance is None or not build.records("curate.balance"):
        return None
    probabilities = concept_counts.read(build)
    before, after = concept_counts.summed(build), tables.pairs("SELECT entry, count(*) FROM balanced GROUP BY 1")
    frequent = sorted(probabilities.frequent, key=lambda entry: (-before[entry], entry))
    known = concepts(build.spec.balance, build.spec.base)
    names = known.entries
    return {
        "threshold": probabilities.threshold,
        "entries": len(names),
        "matched_entries": int((before > 0).sum()),
        "tail_entries": int((before > 0).sum()) - len(frequent),
        "pairs": build.counted("curate.concepts", "pairs"),
        "matched": build.counted("curate.concepts", "matched"),
        "kept": build.counted("curate.balance", "kept"),
        "head_share": [
            _share(before[frequent].sum(), before.sum()),
            _share(sum(after.values()), build.counted("curate.balance", "matches")),
        ],
        "frequent": [
            {"entry": names[entry], "before": int(before[entry]), "after": after.get(entry, 0)}
            for entry in frequent[:SHOWN]
        ],
        "more": max(0, len(frequent) - SHOWN),
    }


def _share(part: int, whole: int) -> float:
    return round(int(part) / int(whole), 4) if whole else 0.0


HTML = """
{% if balance %}
<section id="balance">
  <h2>{{ t("Balance of concepts", "概念均衡") }}</h2>
  <p>{{ t("Entries of the word list that occur in the texts", "词表中在文本里出现的词条") }}: {{
    balance.matched_entries | n }} / {{ balance.entries | n }}, {{ t("of which in at most", "其中出现于至多") }} {{
    balance.threshold | n }} {{ t("texts", "条文本的") }}: {{ balance.tail_entries | n }}. {{
    t("Pairs kept", "保留的图文对") }}: <b>{{ balance.kept | n }}</b> / {{ balance.pairs | n }} ({{
    balance.kept | share(balance.pairs) }}). {{
    t("Share of frequent entries among all matches", "高频词条占全部匹配的比例") }}: {{
    (100 * balance.head_share[0]) | round(1) }}% → <b>{{ (100 * balance.head_share[1]) | round(1) }}%</b>.</p>
  {% if balance.frequent %}<div class="scroll" tabindex="0"><table>
    <caption class="hide">The most frequent entries before and after</caption>
    <thead><tr>{{ th("entry", "词条") }}{{ th("texts", "文本", "num") }}{{ th("kept", "保留", "num") -}}
    <th scope="col" class="num">%</th></tr></thead>
    <tbody>{% for e in balance.frequent %}<tr><th scope="row" lang="zh">{{ e.entry }}</th>{{ td(e.before | n) }}
    {{- td(e.after | n) }}{{ td(e.after | share(e.before)) }}</tr>{% endfor %}</tbody></table></div>
  {% if balance.more %}<p class="muted small">{{ t("and more entries", "另有词条") }}: {{ balance.more | n }}</p>
  {%- endif %}{% endif %}
</section>
{% endif %}
"""

SECTION = Section("balance", HTML, figures, title="Balance", title_zh="均衡", folded=True)
