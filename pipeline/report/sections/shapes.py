"""Section `shapes`: distributions of kept samples, with words, kinds, formats and hosts.

Measures that a filter limits come first, kept and dropped stacked (`pipeline.report.limits`). A histogram shows the
baseline's share of each bin as a line across its bar.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter

from pipeline.detectors import detector_ids
from pipeline.report import limits, words
from pipeline.report.dataset import DOMAINS
from pipeline.report.measures import SAMPLED, WORDS, histograms, regions_of
from pipeline.report.section import Material, Section, Values
from pipeline.store.sql import Tables, host


def figures(material: Material, inputs: Values) -> Values:
    tables, detectors = material.tables, detector_ids(material.build.spec)
    segmented = words.first_of_shards(tables, words.WORD_SAMPLES, "text")
    in_texts, lengths = words.word_counts(row["text"] for row in segmented)
    drawn = histograms(tables, SAMPLED, "SELECT * FROM samples")
    drawn["words"] = WORDS.histogram(Counter(bisect_right(WORDS.edges, length) - 1 for length in lengths))
    for detector in detectors:
        of_detector = f"SELECT * FROM regions WHERE detector = '{detector}'"
        drawn |= histograms(tables, [regions_of(detector)], of_detector)
    order = ["characters", "words", *(measure.name for measure in SAMPLED[1:])]
    listed = [*(drawn[name] for name in order), *(drawn[regions_of(detector).name] for detector in detectors)]
    before = shares_before(listed, material.baseline)
    return {
        "histograms": listed,
        "kinds": kinds(tables),
        "formats": count_names(tables, "SELECT format AS name FROM samples", 10),
        "image_domains": count_names(tables, f"SELECT {host('image_url')} AS name FROM samples", DOMAINS),
        "page_domains": count_names(
            tables, f"SELECT {host('page_url')} AS name FROM samples WHERE page_url <> ''", DOMAINS
        ),
        "regions": [regions(tables, detector) for detector in detectors],
        "words": [{"name": name, "count": n} for name, n in words.ranked(in_texts, 40)],
        "word_samples": len(lengths),
        "limits": limits.charts(material.build.spec, tables, drawn),
        "before": before,
    }


def count_names(tables: Tables, names: str, most: int) -> list[Values]:
    """Counts each name among the rows of a query, the most frequent first."""
    return tables.rows(
        f"SELECT name, count(*) AS count FROM ({names}) GROUP BY 1 ORDER BY count DESC, name LIMIT {most}"
    )


def kinds(tables: Tables) -> list[Values]:
    """Number of texts of each kind, how many of them come first in their sample, and how many of these because texts
    that would have come before were removed.
    """
    return tables.rows(
        "SELECT name, count(*) AS texts, count(*) FILTER (first) AS primary, "
        "count(*) FILTER (first AND text_rank > 0) AS fallbacks FROM ("
        "SELECT unnest(texts).kind AS name, generate_subscripts(texts, 1) = 1 AS first, text_rank FROM samples"
        ") GROUP BY 1 ORDER BY texts DESC, name LIMIT 10"
    )


def regions(tables: Tables, detector: str) -> Values:
    """Images that a detector looked at, its mean number of regions, and images without any."""
    return {"detector": detector} | tables.row(
        "SELECT count(*) AS images, coalesce(round(avg(len(scores)), 3), 0.0) AS mean, "
        "count(*) FILTER (len(scores) = 0) AS without FROM regions WHERE detector = ?",
        [detector],
    )


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
  <h2 id="limits">{{ t("What the limits of the filters keep and drop", "过滤器限值保留了什么、丢弃了什么") }}</h2>
  <p class="muted">{{ t("The dashed line is the limit in the spec. Counted are texts dropped by admit "
    "and pictures dropped by filter, but not duplicates, which pass every limit.",
    "虚线为规格中的限值。此处统计准入阶段丢弃的文本和过滤阶段丢弃的图像；重复项都通过了限值，不计在内。") }}</p>
  <p class="legend small" aria-hidden="true"><span><i class="bar"></i> {{ t("kept", "保留") }}</span>
    <span><i class="own"></i> {{ t("dropped for this limit", "因此限丢弃") }}</span>
    <span><i class="other"></i> {{ t("dropped for another reason", "因其他原因丢弃") }}</span>
    <span><i class="limit"></i> {{ t("limit", "限值") }}</span></p>
  <div class="grid">{% for h in limits %}{{ histogram(h, before.get(h.name)) }}{% endfor %}</div>
  {% endif %}
  <h2>{{ t("Distributions of the samples kept", "保留样本的分布") }}</h2>
  {% if before %}<p class="muted small"><span class="swatch" aria-hidden="true"></span> {{
    t("The line across each bar shows its share in the baseline.", "横线为基线中的占比。") }} <code>{{
    drift.baseline }}</code></p>{% endif %}
  {% for r in regions %}<p class="small">{{ t("Regions per image", "每幅图像的区域数") }}, <code>{{
    r.detector }}</code>: {{ "%.1f" | format(r.mean) }} · {{
    t("images without regions", "没有区域的图像") }}: {{ r.without | n }}</p>{% endfor %}
  {% set limited = limits | map(attribute="name") | list %}
  <div class="grid">{% for h in histograms if h.name not in limited %}{{
    histogram(h, before.get(h.name)) }}{% endfor %}</div>
  <div class="grid two">
    <div class="card"><h3>{{ t("Words", "高频词") }} <span class="muted small">{{
      t("samples segmented", "分词样本") }}: {{ word_samples | n }}</span></h3>
      {{ word_list(words) }}</div>
    <div class="card"><h3>{{ t("Formats as fetched", "原始格式") }}</h3>{{ bars(formats, "Formats as fetched") }}</div>
    <div class="card"><h3>{{ t("Image hosts", "图像域名") }}</h3>{{ bars(image_domains[:15], "Image hosts") }}
      {% if page_domains %}<h3>{{ t("Page hosts", "页面域名") }}</h3>{{ bars(page_domains[:15], "Page hosts") }}
      {%- endif %}</div>
  </div>
</section>
"""

SECTION = Section("shapes", HTML, figures, title="Distributions", title_zh="分布", folded=True)
