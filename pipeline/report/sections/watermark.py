"""Section `watermark`: the mark that was found for each host, as a picture, and pictures nearest to the limit.

Shown are the marks of the largest groups, as the lengths of their gradients, with what they dropped; and the pictures
just dropped and just kept, of all that were compared with a mark. Empty for a spec without `watermark`.

Limits: thumbnails stop at a budget of bytes.
"""

from __future__ import annotations

import base64
import heapq
import io

from pipeline.pictures.marks import drawn
from pipeline.report.measures import number
from pipeline.report.section import Material, Section, Values
from pipeline.store.host_marks import mark_of, rows_with_mark

SHOWN, NEAREST = 24, 12
"""Marks that are shown, and pictures on each side of the limit."""

PICTURES, SIDE = 400_000, 144
"""Bytes of all thumbnails of the section, and pixels of their longer side."""


def figures(material: Material, inputs: Values) -> Values:
    return {"watermark": watermark(material)}


def watermark(material: Material) -> Values | None:
    """Counts, marks with their pictures, and the pairs nearest to the limit; None where no mark was looked for."""
    build, tables = material.build, material.tables
    if build.spec.watermark is None or not build.records("curate.watermark"):
        return None
    limit = build.spec.watermark.max_correlation
    order = f"abs(correlation - {number(limit)})"
    nearest = {
        name: material.judged_pairs("marked", where, order, NEAREST, "correlation", "host")
        for name, where in (("just_dropped", "NOT kept"), ("just_kept", "kept"))
    }
    material.add_pictures([row for rows in nearest.values() for row in rows], PICTURES, SIDE)
    largest = heapq.nsmallest(
        SHOWN, rows_with_mark(build), key=lambda row: (-row["pictures"], row["host"], row["width"], row["height"])
    )
    counts = {
        (row["host"], row["width"], row["height"]): row
        for row in tables.rows(
            "SELECT host, width, height, count(*) AS compared, count(*) FILTER (NOT kept) AS dropped "
            "FROM marked WHERE host IN (SELECT unnest(?::VARCHAR[])) GROUP BY ALL",
            [[row["host"] for row in largest]],
        )
    }
    return {
        "limit": limit,
        "min_pictures": build.spec.watermark.min_pictures,
        **{name: build.counted("curate.marks", name) for name in ("groups", "marks", "templates")},
        **{name: build.counted("curate.watermark", name) for name in ("seen", "compared")},
        "dropped": tables.column("SELECT count(*) FROM marked WHERE NOT kept")[0],
        "shown": [
            {
                **{name: row[name] for name in ("host", "width", "height", "pictures", "sampled")},
                "share": round(row["share"], 4),
                **{
                    name: counts.get((row["host"], row["width"], row["height"]), {}).get(name, 0)
                    for name in ("compared", "dropped")
                },
                "mark": _png(row),
            }
            for row in largest
        ],
        "nearest": [{"name": name, "rows": rows} for name, rows in nearest.items()],
    }


def _png(row: Values) -> str:
    """A mark as a data: URI."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(drawn(mark_of(row))).quantize(16).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


HTML = """
{% if watermark %}
<section id="watermark">
  <h2>{{ t("Watermarks of hosts", "站点水印") }}</h2>
  <p>{{ t("The mark is what many equal-sized pictures of one host have in common: the median of their gradients. A "
    "picture that correlates with it more than the limit allows is dropped.",
    "同一站点、同一尺寸的多张图像所共有的部分：其梯度的中位数。与之相关度超过限值的图像被丢弃。") }}
    {{ t("Groups with enough pictures", "图像足够的分组") }}: {{ watermark.groups | n }},
    {{ t("with a mark", "其中有水印") }}: <b>{{ watermark.marks | n }}</b>,
    {{ t("identical in too much of the picture (templates, kept)", "相同部分过大（模板，予以保留）") }}: {{
    watermark.templates | n }}. {{ t("Pictures compared with a mark", "与水印比对的图像") }}: {{
    watermark.compared | n }} / {{ watermark.seen | n }}, {{ t("dropped", "丢弃") }}: <b>{{ watermark.dropped | n }}</b>
    ({{ watermark.dropped | share(watermark.seen) }}); {{ t("limit", "限值") }}: <code>max_correlation: {{
    watermark.limit | number }}</code>.</p>
  {% if watermark.shown %}<ul class="sheet">{% for m in watermark.shown %}
    <li class="sample"><div class="frame"><div class="picture" style="aspect-ratio:{{ m.width }}/{{ m.height
      }};width:min(100%,{{ (150 * m.width / m.height) | round(1) }}px)"><img src="{{ m.mark }}" alt="{{ m.host }}"
      loading="lazy"></div></div>
    <p class="fate">{{ m.host }} <span class="muted">{{ m.width }} × {{ m.height }}</span></p>
    <p class="small">{{ t("pictures", "图像") }}: {{ m.pictures | n }} <span class="muted">({{ t("sampled", "取样")
      }}: {{ m.sampled | n }})</span></p>
    <p class="small">{{ t("dropped", "丢弃") }}: <b>{{ m.dropped | n }}</b> / {{ m.compared | n }}</p>
    </li>
  {% endfor %}</ul>
  {% if watermark.marks > watermark.shown | length %}<p class="muted small">{{ t("and more marks", "另有水印") }}: {{
    (watermark.marks - watermark.shown | length) | n }}</p>{% endif %}{% endif %}
  {% set words = {"just_dropped": ("Just dropped", "刚好丢弃"), "just_kept": ("Just kept", "刚好保留")} %}
  {% for group in watermark.nearest if group.rows %}
  <div class="cluster"><h3>{{ t(*words[group.name]) }}</h3>
  {{ judged(group.rows, "correlation") }}</div>
  {% endfor %}
</section>
{% endif %}
"""

SECTION = Section("watermark", HTML, figures, title="Watermarks", title_zh="水印", folded=True)
