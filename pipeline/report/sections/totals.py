"""Section `totals`: the key figures as tiles, candidates and kept samples, splits with their shards, duplicates."""

from __future__ import annotations

from data_specs.shard import SPLITS
from pipeline.report.section import Material, Section, Values
from pipeline.store.build import Build


def figures(material: Material, inputs: Values) -> Values:
    funnel = material.candidates
    totals = {"candidates": funnel.total, "kept": funnel.kept, "dropped": funnel.dropped, "known": funnel.known}
    apart = held_apart(material)
    return {
        "totals": totals,
        "splits": splits(material.build),
        "duplicates": material.chosen_rows.duplicates,
        **({"held_apart": apart} if apart else {}),
    }


def held_apart(material: Material) -> Values:
    """Cost of texts that straddle no splits (`shards.apart: texts`); empty where they may, or gc has deleted it.

    moved: pairs by their split's name without it and with it. texts: left out of pairs. dropped: pairs.
    """
    records = material.build.records("dedup.leaders")
    if material.build.spec.shards.apart != "texts" or not records:
        return {}
    [record] = records
    pairs = ((a, b, record.counts.get(f"moved_{a}_to_{b}", 0)) for a in SPLITS for b in SPLITS if a != b)
    moved = [{"from": a, "to": b, "pairs": count} for a, b, count in pairs if count]
    return {"moved": moved, "texts": record.counts["texts_left_out"], "dropped": record.counts["other_split"]}


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
{% if held_apart is defined %}
<p class="muted" id="held-apart">{{ t("No text is in two splits.", "同一文本不跨划分。") }} {{
  t("Pairs moved to another split because of their text:", "因文本改变划分的样本：") }} {% for m in held_apart.moved -%}
  {{ m.from }} → {{ m.to }} {{ m.pairs | n }}{{ "" if loop.last else ", " }}{% else %}0{% endfor %}. {{
  t("Texts removed:", "略去的文本：") }} {{ held_apart.texts | n }}. {{
  t("Pairs dropped:", "丢弃的样本：") }} {{ held_apart.dropped | n }}.</p>
{% endif %}
"""

SECTION = Section("totals", HTML, figures)
