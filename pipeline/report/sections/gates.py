"""Section `gates`: the gates of the spec in sentences, the same that `publish` asks (`pipeline.report.gates`)."""

from __future__ import annotations

from pipeline.report import gates
from pipeline.report.section import Material, Section, Values
from pipeline.report.translations import evidence_zh


def figures(material: Material, inputs: Values) -> Values:
    build, before = material.build, material.before
    held = before.remaining_samples(build) if before is not None and before.parts else build.earlier_samples
    judged = gates.judge_build(build, material.candidates, material.captures, inputs, held)
    return {"gates": [row_of(gate) for gate in judged]}


def row_of(gate: gates.Gate) -> Values:
    figure = {"name": gate.name, "found": gate.found, "wanted": gate.wanted}
    says = {"en": gate.says, "zh": evidence_zh(gate.says)}
    return {**figure, "holds": gate.holds, "says": says, "faults": list(gate.faults)}


HTML = """\
{% set failing = gates | rejectattr("holds") | list %}
<details class="gates"{{ " open" if failing }}><summary>{% if failing %}<span class="fails"
  aria-hidden="true">✗</span> {{ t("Failed gates:", "未通过的门槛：") }} {{ failing | length }} / {{
  gates | length }}{% else %}<span class="holds" aria-hidden="true">✓</span> {{
  t("All gates passed:", "门槛全部通过：") }} {{ gates | length }}{% endif %}</summary>
<ul>{% for g in gates %}<li class="{{ "holds" if g.holds else "fails" }}"><span aria-hidden="true">{{
  "✓" if g.holds else "✗" }}</span> {{ said(g.says.en) }} <code class="muted">{{ g.name }}</code></li>{% endfor %}</ul>
</details>
"""

SECTION = Section("gates", HTML, figures, inputs=("totals", "shapes", "drift"))
