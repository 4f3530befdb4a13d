"""Section `published`: the funnel of a build beside one that a paper published (`report.published` of the spec).

Of each step of the paper: the share of what entered it that went, there and here. Empty without `report.published`.
"""

from __future__ import annotations

from collections import Counter

from pipeline.report.funnel import Funnel
from pipeline.report.published import PublishedFunnel, read
from pipeline.report.section import Material, Section, Values


def figures(material: Material, inputs: Values) -> Values:
    spec = material.build.spec
    if not spec.report.published:
        return {"published": None}
    return {"published": beside(read(spec.report.published, spec.base), material.candidates)}


def beside(paper: PublishedFunnel, own: Funnel) -> Values:
    """Rows of steps, each with what was left and the share dropped on both sides; own is None where no reason is ours.

    others: what this build dropped for reasons that the paper has not, by reason, largest first.
    """
    counts = Counter[str]()
    for (_, _, reason), count in own.counts.items():
        counts[reason] += count
    counts.pop("", None)
    rows, theirs, ours = [], paper.start, own.total
    for step in paper.steps:
        dropped = sum(counts.pop(reason.value, 0) for reason in step.reasons)
        rows.append(
            {
                "name": step.name,
                "name_zh": step.name_zh or step.name,
                "reasons": [reason.value for reason in step.reasons],
                "left": step.left,
                "share": _share(theirs - step.left, theirs),
                "own_left": ours - dropped,
                "own_share": _share(dropped, ours) if step.reasons else None,
            }
        )
        theirs, ours = step.left, ours - dropped
    others = sorted(((name, count) for name, count in counts.items() if count), key=lambda row: (-row[1], row[0]))
    return {
        "name": paper.name,
        "source": paper.source,
        "start": paper.start,
        "own_start": own.total,
        "steps": rows,
        "others": [{"name": name, "count": count} for name, count in others],
        "own_kept": ours - sum(count for _, count in others),
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 5) if whole else 0.0


HTML = """
{% if published %}
{% set p = published %}
<section id="published">
  <h2>{{ t("Beside a published funnel", "与已发表的漏斗对照") }}: {{ p.name }}</h2>
  <p class="muted">{{ p.source }}. {{ t("Shares are of what entered the step. Steps stand in the paper's order; a "
    "candidate with two faults may count for another step here.",
    "比例以进入该步骤的数量为准。步骤按论文顺序排列；有两处缺陷的候选在此可能计入另一步骤。") }}</p>
  <div class="scroll" tabindex="0"><table>
    <caption class="hide">Steps of the published funnel and of this build</caption>
    <thead><tr>{{ th("step", "步骤") }}{{ th("dropped there", "其丢弃", "num") }}
    {{- th("dropped here", "本构建丢弃", "num") }}{{ th("left there", "其剩余", "num") }}
    {{- th("left here", "本构建剩余", "num") }}
    {{- th("our reasons", "对应原因") }}</tr></thead>
    <tbody><tr><th scope="row">{{ t("collected", "收集") }}</th><td></td><td></td>{{ td(p.start | n) }}
    {{- td(p.own_start | n) }}<td></td></tr>
    {% for s in p.steps %}<tr><th scope="row">{{ t(s.name, s.name_zh) }}</th>
    {{- td("%.1f%%" | format(100 * s.share)) }}
    {%- if s.own_share is none %}<td class="num muted">–</td>{{ td(s.left | n) }}
    <td class="num muted">{{ s.own_left | n }}</td>
    {%- else %}<td class="num"><b>{{ "%.1f%%" | format(100 * s.own_share) }}</b></td>{{ td(s.left | n) }}
    {{- td(s.own_left | n) }}{% endif %}
    <td class="small">{% for r in s.reasons[:2] %}{{ word(r) }}{{ ", " if not loop.last }}{% else %}{{
      t("not done here", "此处未做") }}{% endfor %}{{ " …" if s.reasons | length > 2 }}</td></tr>
    {% endfor %}</tbody>
    <tfoot><tr><th scope="row">{{ t("in all", "总计") }}</th>
    {{- td((p.start - p.steps[-1].left) | share(p.start)) }}{{ td((p.own_start - p.own_kept) | share(p.own_start)) }}
    {{- td(p.steps[-1].left | n) }}<td class="num"><b>{{ p.own_kept | n }}</b></td><td></td></tr></tfoot>
  </table></div>
  {% if p.others %}<p>{{ t("Dropped here for other reasons", "本构建因其他原因丢弃") }}: {% for o in p.others %}{{
    word(o.name) }} {{ o.count | n }}{{ ", " if not loop.last }}{% endfor %}</p>{% endif %}
</section>
{% endif %}
"""

SECTION = Section("published", HTML, figures, title="Published funnel", title_zh="对照漏斗")
