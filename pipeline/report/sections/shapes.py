"""Section `shapes`: distributions of kept samples, with words, kinds, formats and hosts (`pipeline.report.figures`).

Measures that a filter limits come first, kept and dropped stacked (`pipeline.report.limits`). A histogram shows the
baseline's share of each bin as a line across its bar.
"""

from __future__ import annotations

from pipeline.detectors import detector_ids
from pipeline.report.section import Material, Section, Values
from pipeline.store.build import Build


def figures(material: Material, inputs: Values) -> Values:
    kept = material.tally.kept.value()
    before = shares_before(kept["histograms"], material.baseline)
    charts = material.tally.limits.value(kept["histograms"])
    return {**kept, "limits": charts, "cached_regions": cached_regions(material.build), "before": before}


def cached_regions(build: Build) -> dict[str, int]:
    """Images whose regions came from STORE's cache, and all that needed some; both summed over the detectors."""
    records = build.stage("detect").records() if "detect" in build.fingerprints else []
    images = sum(record.counts.get("images", 0) for record in records)
    cached = sum(record.counts.get("cached", 0) for record in records)
    return {"cached": cached, "asked": images * len(detector_ids(build.spec))}


def shares_before(histograms: list[Values], baseline: Values | None) -> dict[str, list[float]]:
    """The baseline's share of each bin, by histogram, where the bins are the same: drawn as lines across the bars."""
    shares = {}
    for old in baseline["histograms"] if baseline else ():
        same = next((h for h in histograms if h["name"] == old["name"]), None)
        if same and old["total"] and [b["label"] for b in same["bins"]] == [b["label"] for b in old["bins"]]:
            shares[old["name"]] = [round(b["count"] / old["total"], 5) for b in old["bins"]]
    return shares


HTML = """
<section id="shapes">
  {% if limits %}
  <h2 id="limits">{{ t("What the filters' limits keep, and what they drop", "过滤器限值保留了什么、丢弃了什么") }}</h2>
  <p class="muted">{{ t("The dashed line is the limit in the spec. Counted are texts that admit dropped, and pictures "
    "that filter dropped; copies, which pass every limit, are not.",
    "虚线为规格中的限值。此处统计准入阶段丢弃的文本和过滤阶段丢弃的图像；重复项都通过了限值，不计在内。") }}
  <span class="scripted">{{ t("Click on a bar to see its samples.", "点击柱子查看其样本。") }}</span></p>
  <p class="legend small" aria-hidden="true"><span><i class="bar"></i> {{ t("kept", "保留") }}</span>
    <span><i class="own"></i> {{ t("dropped for this limit", "因此限丢弃") }}</span>
    <span><i class="other"></i> {{ t("dropped for another reason", "因其他原因丢弃") }}</span>
    <span><i class="limit"></i> {{ t("limit", "限值") }}</span></p>
  <div class="grid">{% for h in limits %}{{ histogram(h, before.get(h.name), true) }}{% endfor %}</div>
  {% endif %}
  <h2>{{ t("Distributions of the samples kept", "保留样本的分布") }}</h2>
  {% if before %}<p class="muted small"><span class="swatch" aria-hidden="true"></span> {{
    t("The line across each bar is its share in the baseline.", "横线为基线中的占比。") }} <code>{{
    drift.baseline }}</code></p>{% endif %}
  {% for r in regions %}<p class="small">{{ t("Regions per image", "每幅图像的区域数") }}, <code>{{
    r.detector }}</code>: {{ "%.1f" | format(r.mean) }} · {{
    t("images without regions", "没有区域的图像") }}: {{ r.without | n }}
  {%- if loop.first and cached_regions.asked %} · {{ t("from the cache", "来自缓存") }}: {{
    cached_regions.cached | share(cached_regions.asked) }}{% endif %}</p>{% endfor %}
  {% set limited = limits | map(attribute="name") | list %}
  <div class="grid">{% for h in histograms if h.name not in limited %}{{
    histogram(h, before.get(h.name), h.name in measured) }}{% endfor %}</div>
  <div class="grid two">
    <div class="card"><h3>{{ t("Words", "高频词") }} <span class="muted small">{{
      t("samples segmented", "分词样本") }}: {{ word_samples | n }}</span></h3>
      {{ word_list(words) }}</div>
    <div class="card"><h3>{{ t("Texts by kind", "按种类的文本") }}</h3>
      <table><thead><tr>{{ th("kind", "种类") }}{{ th("texts", "文本", "num") -}}
      {{ th("as primary", "作为主文本", "num") }}</tr></thead><tbody>
      {%- for k in kinds %}<tr><th scope="row">{{ k.name }}</th>{{ td(k.texts | n) }}{{ td(k.primary | n) }}</tr>
      {%- endfor %}</tbody></table>
      <h3>{{ t("Formats as fetched", "原始格式") }}</h3>{{ bars(formats, "Formats as fetched") }}</div>
    <div class="card"><h3>{{ t("Image hosts", "图像域名") }}</h3>{{ bars(image_domains[:15], "Image hosts") }}
      {% if page_domains %}<h3>{{ t("Page hosts", "页面域名") }}</h3>{{ bars(page_domains[:15], "Page hosts") }}
      {%- endif %}</div>
  </div>
</section>
"""

SECTION = Section("shapes", HTML, figures, title="Distributions", title_zh="分布")
