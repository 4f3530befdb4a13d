"""Section `totals`: the key figures as tiles, candidates and kept samples, splits with their shards, duplicates."""

from __future__ import annotations

from data_specs.shard import SPLITS
from pipeline.report.section import Material, Section, Values
from pipeline.store.build import Build


def figures(material: Material, inputs: Values) -> Values:
    funnel = material.candidates
    totals = {"candidates": funnel.total, "kept": funnel.kept, "dropped": funnel.dropped, "known": funnel.known}
    return {
        "totals": totals,
        "splits": splits(material.build),
        "duplicates": material.chosen_rows.duplicates,
    }


def splits(build: Build) -> list[Values]:
    """Samples, shards and bytes of each split."""
    records, rows = build.packed(), []
    for split in SPLITS:
        shards = [record for record in records if record.info["split"] == split]
        samples, size = sum(r.counts["kept"] for r in shards), sum(r.counts["bytes"] for r in shards)
        rows.append({"name": split, "samples": samples, "shards": len(shards), "bytes": size})
    return rows


HTML = """
<section class="tiles" aria-label="Key figures">
  <div class="tile"><b>{{ totals.candidates | n }}</b>{{ t("candidates", "候选") }}</div>
  <div class="tile strong"><b>{{ totals.kept | n }}</b>{% if dataset %}{{ t("new samples", "新增样本") }}{% else %}{{
    t("samples kept", "保留样本") }}{% endif %} · {{
    totals.kept | share(totals.candidates) }}</div>
  {% if totals.known %}<div class="tile known"><b>{{ totals.known | n }}</b>{{
    t("already known", "已在数据集中") }} · {{
    totals.known | share(totals.candidates) }}</div>{% endif %}
  <div class="tile"><b>{{ totals.dropped | n }}</b>{{ t("dropped", "丢弃") }} · {{
    totals.dropped | share(totals.candidates) }}</div>
  {% for s in (() if dataset else splits) %}<div class="tile"><b>{{ s.samples | n }}</b>{{
    s.name }} · {% if s.shards == 1 -%}
    {{ t("1 shard", "1 个分片") }}{% else %}{{ s.shards | n }} {{ t("shards", "个分片") }}{% endif %} · {{
    s.bytes | size }}</div>{% endfor %}
  <div class="tile"><b>{{ duplicates | n }}</b>{{ t("duplicates", "重复项") }} · {{
    duplicates | share(totals.candidates) }}</div>
</section>
"""

SECTION = Section("totals", HTML, figures)
