"""Section `faults`: where the decisions and the stages' own counts differ. It comes first, and only if they do."""

from __future__ import annotations

from pipeline.report import funnel
from pipeline.report.section import Material, Section, Values


def figures(material: Material, inputs: Values) -> Values:
    return {"faults": funnel.faults(material.build, material.candidates, material.captures)}


HTML = """
{% if faults %}
<section class="alert" role="alert"><h2>{{ t("The figures are inconsistent", "数字对不上") }}</h2><ul>
{%- for fault in faults %}<li>{{ fault }}</li>{% endfor %}</ul></section>
{% endif %}
"""

SECTION = Section("faults", HTML, figures)
