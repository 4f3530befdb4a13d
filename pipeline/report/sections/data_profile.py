"""Section `data_profile`: the kind of data on one screen: content of texts, origin of pictures, and words
that rose, fell, or stand in no dictionary.

What texts say is counted in at most WORD_SAMPLES primary texts, the first of each shard in keyed-hash order:
characters, words, and the share of content words (`pipeline.texts.density`). Words are compared with the baseline's by
the log-odds of the share of texts that hold them, divided by its standard error, with a prior that is the words of both
together (Monroe, Colaresi and Quinn, "Fightin' Words", Political Analysis 16:4, 2008): a rare word needs more to be
listed. Where the spec asks for scores, similarity of picture and text stands beside.

Limits: words are those of the `vocabulary` of report.json, the VOCABULARY most frequent ones. One that is not among the
baseline's counts as often there as the last of them, so that a word which was merely rare is not taken for a new one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_specs.shard import PAIR_SCORE
from pipeline.report.section import Material, Section, Values
from pipeline.report.words import VOCABULARY, WORD_SAMPLES, first_of_shards
from pipeline.store.sql import Tables
from pipeline.texts.density import density, outside_dictionary

LISTED, HOSTS, LARGEST = 15, 10, 40
"""Words of a list; hosts that are listed; hosts whose share of all samples is said."""

SURE = 3.0
"""Standard errors from which on a word has risen or fallen."""

PRIOR = 500.0
"""Texts that the prior of both together counts for."""

SEVERAL = 3
"""Texts in which a word that the dictionary lacks must stand to be listed."""


def figures(material: Material, inputs: Values) -> Values:
    samples = inputs["totals"]["kept"]
    if not samples:
        return {"data_profile": None}
    baseline = material.baseline
    vocabulary = inputs["vocabulary"]
    strange = outside_dictionary(word for word, count in vocabulary.items() if count >= SEVERAL)
    words = {
        **texts_of(material.tables, material.build.spec.pair_score is not None),
        "new_words": [{"name": word, "count": n} for word, n in vocabulary.items() if word in strange][:LISTED],
        "rose": [],
        "fell": [],
        "baseline": "",
    }
    if baseline is not None and baseline["vocabulary"]:
        moved = compared(inputs["vocabulary"], inputs["word_samples"], baseline["vocabulary"], baseline["word_samples"])
        words |= {"rose": moved[0], "fell": moved[1], "baseline": baseline["build"]["id"]}
    return {"data_profile": {**words, "hosts": hosts(inputs["image_domains"], samples)}}


def texts_of(tables: Tables, scored: bool) -> Values:
    """Deciles of characters, words, content share and score of primary texts, and how many of them have a noun."""
    rows = first_of_shards(tables, WORD_SAMPLES, "text", *([PAIR_SCORE.name] if scored else []))
    densities = [density(row["text"]) for row in rows]
    scores = [score for row in rows if isinstance(score := row.get(PAIR_SCORE.name), float)]
    return {
        "texts": len(rows),
        "with_noun": sum(own.nouns > 0 for own in densities),
        "measures": [
            _deciles("characters", "characters", "字数", [len(row["text"]) for row in rows]),
            _deciles("words", "words", "词数", [own.words for own in densities]),
            _deciles("content", "content words", "实词", [own.content_share for own in densities]),
            *([_deciles("score", "similarity to the picture", "与图像的相似度", scores)] if scores else []),
        ],
    }


def _deciles(name: str, title: str, title_zh: str, values: Sequence[float]) -> Values:
    tenth, half, ninth = (round(float(at), 3) for at in np.quantile(values, (0.1, 0.5, 0.9), method="inverted_cdf"))
    return {"name": name, "title": title, "title_zh": title_zh, "low": tenth, "median": half, "high": ninth}


def hosts(listed: Sequence[Mapping[str, Any]], samples: int) -> Values:
    """The largest image hosts, and the share of all samples that the LARGEST together have."""
    largest = sum(row["count"] for row in listed[:LARGEST])
    return {"largest": list(listed[:HOSTS]), "of": min(LARGEST, len(listed)), "share": round(largest / samples, 4)}


def compared(
    now: Mapping[str, int], texts: int, before: Mapping[str, int], texts_before: int
) -> tuple[list[Values], list[Values]]:
    """Words that rose and fell, the surest first: name, count now, shares now and before, z.

    now, before: texts that hold each of the most frequent words, of so many texts.
    """
    if not texts or not texts_before:
        return [], []
    least_now, least_before = (min(of.values()) if len(of) >= VOCABULARY else 0 for of in (now, before))
    rows: list[Values] = []
    for word in now.keys() | before.keys():
        a, b = now.get(word, least_now), before.get(word, least_before)
        share = (a + b) / (texts + texts_before)
        prior = PRIOR * share
        error = math.sqrt(1 / (a + prior) + 1 / (b + prior))
        z = (_odds(a, texts, share) - _odds(b, texts_before, share)) / error
        rows.append(
            {"name": word, "count": a, "now": round(a / texts, 5), "before": round(b / texts_before, 5), "z": z}
        )
    rose = sorted((row for row in rows if row["z"] >= SURE), key=lambda row: (-row["z"], row["name"]))[:LISTED]
    fell = sorted((row for row in rows if row["z"] <= -SURE), key=lambda row: (row["z"], row["name"]))[:LISTED]
    return [{**row, "z": round(row["z"], 2)} for row in rose], [{**row, "z": round(row["z"], 2)} for row in fell]


def _odds(count: int, texts: int, share: float) -> float:
    """Log-odds of a word with the prior: PRIOR texts more, of which the share of both together holds it."""
    held = count + PRIOR * share
    return math.log(held / max(texts + PRIOR - held, 0.5))


HTML = """
{% if data_profile %}
{% set profile = data_profile %}
<section id="data_profile">
  <h2>{{ t("What kind of data is it?", "这是什么样的数据？") }}</h2>
  <div class="grid two">
    <div class="card"><h3>{{ t("Texts", "文本") }} <span class="muted small">{{ profile.texts | n }}</span></h3>
      <table><thead><tr><td></td><th scope="col" class="num">10%</th>{{ th("median", "中位数", "num") -}}
      <th scope="col" class="num">90%</th></tr></thead><tbody>
      {%- for m in profile.measures %}<tr><th scope="row">{{ t(m.title, m.title_zh) }}</th>
      {%- for value in (m.low, m.median, m.high) %}{% if m.name == "content" %}{{
        td("%.0f%%" | format(100 * value)) }}{% else %}{{ td(value | number) }}{% endif %}{% endfor %}</tr>
      {%- endfor %}</tbody></table>
      <p class="small">{{ t("Texts with a noun", "含名词的文本") }}: {{ profile.with_noun | share(profile.texts) }}</p>
      <h3>{{ t("Words not in the dictionary", "词典未收录的词") }}</h3>
      {%- if profile.new_words %}{{ word_list(profile.new_words) }}{% else %}<p class="muted">{{
        t("None that occur in more than one text.", "没有在多条文本中出现的。") }}</p>{% endif %}</div>
    {% if profile.baseline %}<div class="card"><h3>{{ t("Words that rose", "上升的词") }}</h3>
      <p class="muted small">{{ t("against", "对比") }} <code>{{ profile.baseline }}</code></p>
      {% for rows, title, title_zh in ((profile.rose, "", ""), (profile.fell, "Words that fell", "下降的词")) %}
      {%- if title %}<h3>{{ t(title, title_zh) }}</h3>{% endif %}
      {%- if rows %}<table><thead><tr>{{ th("word", "词") }}{{ th("before", "之前", "num") }}
      {{- th("now", "现在", "num") }}{{ th("standard errors", "标准误", "num") }}</tr></thead>
      <tbody>{% for w in rows[:8] %}<tr>
      <th scope="row" lang="zh">{{ w.name }}</th>{{ td("%.2f%%" | format(100 * w.before)) }}{{
        td("%.2f%%" | format(100 * w.now)) }}{{ td("%+.1f" | format(w.z)) }}</tr>{% endfor %}</tbody></table>
      {%- else %}<p class="muted">{{ t("None beyond chance.", "均在偶然范围内。") }}</p>{% endif %}
      {%- endfor %}</div>{% endif %}
    <div class="card"><h3>{{ t("Where pictures come from", "图像来自哪里") }}</h3>
      {{- bars(profile.hosts.largest, "Image hosts") }}
      <p class="small">{{ t("Share of the largest hosts", "最大域名所占比例") }} ({{ profile.hosts.of }}): {{
        "%.1f%%" | format(100 * profile.hosts.share) }}</p></div>
  </div>
</section>
{% endif %}
"""

SECTION = Section(
    "data_profile", HTML, figures, inputs=("totals", "shapes"), title="Profile", title_zh="概况", folded=True
)
