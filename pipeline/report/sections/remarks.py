"""Section `remarks`: in a few sentences, what a data owner must know before the figures: what the texts are, which host
has most of the pictures, why most candidates were dropped, which copies are in doubt.

Limits: shares are those of the samples of this build; what is usual for a dataset, the reader must know.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.report.section import Material, Section, Values
from pipeline.report.translations import en, zh

HOST_SHARE = 0.3
"""Share of the samples from which on one host is worth a sentence."""

LEAST = 0.01
"""Share of the samples from which on a kind of text is named."""

FALLBACK_SHARE = 0.05
"""Share of the samples from which on texts that took the place of better ones are."""


def figures(material: Material, inputs: Values) -> Values:
    remarks = _remarks(material, inputs) if inputs["totals"]["kept"] else ()
    return {"remarks": [{"en": english, "zh": chinese} for english, chinese in remarks]}


def _remarks(material: Material, inputs: Values) -> Iterator[tuple[str, str]]:
    totals, kept = inputs["totals"], inputs["totals"]["kept"]
    first = sorted((kind for kind in inputs["kinds"] if kind["primary"] >= LEAST * kept), key=lambda k: -k["primary"])
    shares = {kind["name"]: f"{kind['primary'] / kept:.0%}" for kind in first}
    yield (
        f"Primary texts: {', '.join(f'{en(name)} {share}' for name, share in shares.items())}.",
        f"图像的主文本：{'，'.join(f'{zh(name, material.build.stages)} {share}' for name, share in shares.items())}。",
    )
    fallbacks = sum(kind["fallbacks"] for kind in inputs["kinds"])
    if fallbacks >= FALLBACK_SHARE * kept:
        share = f"{fallbacks / kept:.0%}"
        yield (
            f"In {share} of the samples it replaces a better text that was removed.",
            f"其中 {share} 因更好的文本被去除而替补。",
        )
    host = next(iter(inputs["image_domains"]), None)
    if host and host["name"] and host["count"] >= HOST_SHARE * kept:
        share = f"{host['count'] / kept:.0%}"
        yield f"{share} of the pictures come from {host['name']}.", f"{share} 的图像来自 {host['name']}。"
    reasons = material.candidates.reasons()[:2]
    if totals["dropped"] and reasons:
        words = ", ".join(f"{en(reason)} ({count:,})" for reason, count in reasons)
        chinese = "，".join(f"{zh(reason, material.build.stages)}（{count:,}）" for reason, count in reasons)
        yield f"Most frequent drop reasons: {words}.", f"候选最常见的丢弃原因：{chinese}。"
    merged = {row["reason"]: row["other_words"] for row in inputs["merges"]["counts"]}
    if doubtful := merged.get("near_image", 0):
        yield (
            f"{doubtful:,} near-copies have a caption or alt text unlike that of the image they were merged with.",
            f"{doubtful:,} 个近似图像的说明与其归并对象不同，请核对。",
        )


HTML = """
{% if remarks %}<ul class="remarks">{% for r in remarks %}<li>{{ t(r.en, r.zh) }}</li>{% endfor %}</ul>{% endif %}
"""

SECTION = Section("remarks", HTML, figures, inputs=("totals", "shapes", "duplicates"))
