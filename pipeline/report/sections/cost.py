"""Section `cost`: seconds, CPU and GPU seconds, and bytes written by each stage, and per pair that was kept."""

from __future__ import annotations

import dataclasses

from pipeline.report.section import Material, Section, Values
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.build_json import Cost


def figures(material: Material, inputs: Values) -> Values:
    return {"cost": stage_costs(material.build)}


def stage_costs(build: Build) -> list[Values]:
    """The `Cost` of each stage, all its passes together, with partitions, cached items, and wall seconds where known.

    From the records; of working passes, whose records are deleted, from build.json. How long a pass took is known only
    to the run, which noted it there.
    """
    of_run = build_json.read(build.folder).get("passes", {})
    of_run = {own: noted for own, noted in of_run.items() if noted["fingerprint"] == build.fingerprints.get(own)}
    rows = []
    for name, stage in build.stages.items():
        passes = {own.name: build.records(own.name) for own in stage.passes if own.name in build.fingerprints}
        if not passes.get(name):
            continue
        noted = {
            own: of_run[own] for own in passes if of_run.get(own, {}).get("fingerprint") == build.fingerprints[own]
        }
        deleted = [noted[own] for own, records in passes.items() if not records and own in noted]
        records = [record for of_pass in passes.values() for record in of_pass]
        cost = sum((Cost(**own["cost"]) for own in deleted), Cost.of(records))
        total = {key: round(value, 2) for key, value in dataclasses.asdict(cost).items()}
        wall = round(sum(own["seconds"] for own in noted.values()), 2) if name in noted else None
        partitions = len(records) + sum(own["partitions"] for own in deleted)
        cached = sum(record.counts.get("cached", 0) for record in records)
        rows.append({"stage": name, "partitions": partitions, **total, "wall_seconds": wall, "cached": cached})
    return rows


HTML = """
<section id="cost">
  <h2>{{ t("Cost by stage", "各阶段成本") }}</h2>
  <div class="scroll" tabindex="0"><table>
    <caption class="hide">Cost by stage</caption>
    <thead><tr>{{ th("stage", "阶段") }}{{ th("partitions", "分区", "num") }}{{ th("seconds", "秒", "num") -}}
      {{ th("CPU seconds", "CPU 秒", "num") }}{{ th("GPU seconds", "GPU 秒", "num") -}}
      {{ th("wall seconds", "墙钟秒", "num") }}{{ th("from cache", "来自缓存", "num") -}}
      {{ th("written", "写出", "num") }}</tr></thead>
    <tbody>{% for c in cost %}<tr><th scope="row">{{ word(c.stage) }}</th>{{ td(c.partitions | n) -}}
      {{ td("%.1f" | format(c.seconds)) }}{{ td("%.1f" | format(c.cpu_seconds)) -}}
      {{ td("%.1f" | format(c.gpu_seconds) if c.gpu_seconds else "–") -}}
      {{ td("%.1f" | format(c.wall_seconds) if c.wall_seconds is not none else "–") -}}
      {{ td(c.cached | n) }}{{ td(c.bytes | size) }}</tr>{% endfor %}</tbody>
    {% set cpu, bytes = cost | sum(attribute="cpu_seconds"), cost | sum(attribute="bytes") %}
    <tfoot><tr><th scope="row">{{ t("all", "合计") }}</th>{{ td(cost | sum(attribute="partitions") | n) -}}
      {{ td("%.1f" | format(cost | sum(attribute="seconds"))) }}{{ td("%.1f" | format(cpu)) -}}
      <td></td><td></td><td></td>{{ td(bytes | size) }}</tr></tfoot>
  </table></div>
  <p class="muted small">{% if totals.kept %}{{ t("Per pair kept:", "每个保留的图文对：") }} {{
    "%.3f" | format(cpu / totals.kept) }} {{ t("CPU seconds,", "CPU 秒，") }} {{
    (bytes / totals.kept) | round | int | size }} {{ t("written.", "写出。") }} {% endif %}
  {{- t("Seconds and CPU seconds are summed over partitions; wall seconds are of the run that executed the stage.",
    "秒与 CPU 秒为各分区之和；墙钟秒为执行该阶段的那次运行。") }}</p>
</section>
"""

SECTION = Section("cost", HTML, figures, title="Cost", title_zh="成本", folded=True)
