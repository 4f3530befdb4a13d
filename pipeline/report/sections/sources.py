"""Section `sources`: how many candidates of each source remained after each stage, and the pages that were crawled."""

from __future__ import annotations

from pipeline.report.funnel import Funnel, accounts
from pipeline.report.section import Material, Section, Values
from pipeline.rows.account import Account
from pipeline.rows.decisions import LOSSES
from pipeline.store.build import Build, in_funnel

SHOWN_FILES = 50


def figures(material: Material, inputs: Values) -> Values:
    return {
        "sources": by_source(material.build, material.candidates),
        "captures": [{"name": name, "count": count} for name, count in material.captures.reasons()],
        "pages": pages(material.build, material.captures),
        "input": [row for name, own in accounts(material.build).items() for row in raw_input(name, own)],
        "lost": lost(material.build),
    }


def by_source(build: Build, candidates: Funnel) -> list[Values]:
    """One row per source, in the order of the spec, with how many candidates remained after each stage."""
    rows = []
    for ref in build.spec.sources:
        funnel = candidates.of_source(ref.name)
        stages = [
            {"stage": s.stage, "kept": s.kept, "dropped": s.dropped, "known": s.known}
            for s in funnel.stages(in_funnel(build, "extract", "shard"))
        ]
        reasons = [{"name": name, "count": count} for name, count in funnel.reasons()]
        row = {"name": ref.name, "kind": ref.kind, "source_kind": ref.source_kind, "candidates": funnel.total}
        rows.append(
            {
                **row,
                "kept": funnel.kept,
                "dropped": funnel.dropped,
                "known": funnel.known,
                "stages": stages,
                "reasons": reasons,
            }
        )
    return rows


def pages(build: Build, captures: Funnel) -> dict[str, int]:
    """Pages that the crawl has seen, kept and dropped, as its gate counts them, and those that it never looked at.

    too_deep: linked from pages at `max_depth`. beyond: above the number of pages that a crawl knows.
    """
    [row] = captures.stages(["crawl"])
    unvisited = {what: build.counted("crawl", what) for what in ("too_deep", "beyond")}
    return {"seen": row.seen, "kept": row.kept, "dropped": row.dropped, **unvisited}


def raw_input(source: str, account: Account) -> list[Values]:
    """The account of a source: one row per unit, its names largest first."""
    rows = ({"source": source, "unit": unit, **own} for unit, own in account.as_json().items())
    return [{**row, "named": [{"name": name, "count": n} for name, n in row["named"].items()]} for row in rows]


def lost(build: Build) -> Values:
    """Losses by damage in the sources' files: totals, and the files, SHOWN_FILES at most."""
    damaged = [record for record in build.records("extract") if any(record.counts.get(name) for name in LOSSES)]
    files = [
        {
            "source": record.partition.rpartition("-")[0],
            "file": record.info.get("file", record.partition),
            **{name: record.counts.get(name, 0) for name in LOSSES},
            "said": record.info["lost"],
        }
        for record in damaged[:SHOWN_FILES]
    ]
    return {**{name: sum(record.counts.get(name, 0) for record in damaged) for name in LOSSES}, "files": files}


HTML = """
<section id="sources">
  <h2>{{ t("Sources", "来源") }}</h2>
  <div class="scroll" tabindex="0"><table>
    <caption class="hide">Candidates remaining per source after each stage</caption>
    <thead><tr>{{ th("source", "来源") }}{{ th("kind", "类型") }}{{ th("candidates", "候选", "num") }}
    {%- for row in funnel[:-1] %}<th scope="col" class="num">{{ word(row.stage) }}</th>{% endfor %}
    {{- th("known", "已有", "num") if totals.known }}{{ th("kept", "保留", "num") -}}
    <th scope="col" class="num">%</th></tr></thead>
    <tbody>
    {% for s in sources %}
      <tr><th scope="row">{{ s.name }}</th><td>{{ s.source_kind }} · {{ s.kind }}</td>{{ td(s.candidates | n) }}
      {%- for row in s.stages[:-1] %}{{ td(row.kept | n) }}{% endfor -%}
      {{- td(s.known | n) if totals.known -}}
      <td class="num"><b>{{ s.kept | n }}</b></td>{{ td(s.kept | share(s.candidates)) }}</tr>
    {% endfor %}
    </tbody>
    <tfoot><tr><th scope="row">{{ t("all", "合计") }}</th><td></td>{{ td(totals.candidates | n) }}
    {%- for row in funnel[:-1] %}{{ td(row.kept | n) }}{% endfor -%}
    {{- td(totals.known | n) if totals.known -}}
    <td class="num"><b>{{ totals.kept | n }}</b></td>{{ td(totals.kept | share(totals.candidates)) }}</tr></tfoot>
  </table></div>
  {% if pages.seen or captures %}<p>{{ t("Pages crawled", "已爬取页面") }}: {{ pages.kept | n }}
  {%- if captures %} · {{ t("pages without candidates", "未产生候选的页面") }}: {% for c in captures -%}
  {{ word(c.name) }} {{ c.count | n }}{{ ", " if not loop.last }}{% endfor %}{% endif %}
  {%- if pages.too_deep %} · {{ t("pages beyond max_depth, not visited", "超出 max_depth 未访问的页面") }}: {{
    pages.too_deep | n }}{% endif %}
  {%- if pages.beyond %} · {{ t("further links, not listed", "未列出的其他链接") }}: {{
    pages.beyond | n }}{% endif %}</p>{% endif %}
  {% if input %}<h3>{{ t("Raw input", "原始输入") }}</h3>
  <p class="muted">{{ t("Each unit of the input became a candidate or a decision, or is something else "
    "that has a name.", "输入的每个单位都成为候选或结论，或者是有名称的其他内容。") }}</p>
  <div class="scroll" tabindex="0"><table>
    <caption class="hide">What became of the raw input of each source</caption>
    <thead><tr>{{ th("source", "来源") }}{{ th("input", "输入", "num") }}{{ th("candidates", "候选", "num") -}}
    {{ th("decisions", "结论", "num") }}{{ th("something else", "其他内容") }}{{ th("unaccounted", "去向不明", "num")
    }}</tr></thead>
    <tbody>
    {% for i in input %}
      <tr><th scope="row">{{ i.source }}</th><td class="num">{{ i.met | n }} {{ word(i.unit) }}</td>
      {{- td(i.candidates | n) }}{{ td(i.decisions | n) }}<td>
      {%- for named in i.named %}{{ word(named.name) }} {{ named.count | n }}{{ ", " if not loop.last }}{% endfor -%}
      </td><td class="num">{% if i.unaccounted %}<b>{{ i.unaccounted | n }}</b>{% else %}0{% endif %}</td></tr>
      {% if i.examples %}<tr><td></td><td colspan="5" class="small">{{ t("unaccounted, for example",
        "去向不明，例如") }}: {% for e in i.examples %}<code>{{
        e }}</code>{{ ", " if not loop.last }}{% endfor %}</td></tr>
      {% endif %}
    {% endfor %}
    </tbody></table></div>{% endif %}
  {% if lost.files %}<p>{{ t("Lost to damage", "因损坏丢失") }}: {{ lost.lost_parts | n }} {{
    t("damaged parts", "处损坏") }}, {{ lost.lost_bytes | size }}{% if lost.lost_rows %}, {{ lost.lost_rows | n }} {{
    t("rows", "行") }}{% endif %} · {{ lost.lost_files | n }} {{ t("broken files", "个损坏文件") }}</p>
  <ul class="small">
    {% for f in lost.files %}<li><code>{{ f.file }}</code> ({{ f.source }}): {{ f.lost_bytes | size }}
      {%- if f.lost_rows %}, {{ f.lost_rows | n }} {{ t("rows", "行") }}{% endif %}: {{ f.said }}</li>
    {% endfor %}
  </ul>{% endif %}
</section>
"""

SECTION = Section("sources", HTML, figures, title="Sources", title_zh="来源")
