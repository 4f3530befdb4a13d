"""Section `gates`: the gates of the spec with their figures, the same that `publish` asks (`pipeline.report.gates`)."""

from __future__ import annotations

from pipeline.report import gates
from pipeline.report.section import Material, Section, Values


def figures(material: Material, inputs: Values) -> Values:
    build = material.build
    of_build = (build.spec, build.stages, material.candidates, material.captures)
    judged = gates.judge(*of_build, inputs, build.held, gates.read_undetected(build))
    rows = [{"name": gate.name, "found": gate.found, "wanted": gate.wanted, "holds": gate.holds} for gate in judged]
    return {"gates": rows}


HTML = """\
<p class="gates">{{ t("Gates:", "发布门槛：") }}
{% for g in gates %}<span class="gate {{ "holds" if g.holds else "fails" }}">
{%- set mark = "✓" if g.holds else "✗" -%}
<span aria-hidden="true">{{ mark }}</span> <code>{{ g.name }}</code> {{ g.found }} ({{ g.wanted }}) {{
  t("passes", "通过") if g.holds else t("fails", "未通过") }}</span> {% endfor %}</p>
"""

SECTION = Section("gates", HTML, figures, inputs=("totals", "shapes", "drift"))
