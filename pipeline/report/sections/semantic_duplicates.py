"""Section `semantic_duplicates`: what semantic dedup merges, in pictures: each duplicate beside its leader.

The pairs that are nearest to one another, those that were only just dropped, and those that were only just kept: what
another distance would change. The histogram counts the duplicates by their distance, and the kept pairs that lie just
beyond it. Empty for a spec without `semantic_dedup`.

Limits: a leader that an earlier build kept is shown if that build is at hand. Thumbnails stop at a budget of bytes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.matching.semantic import MILLION
from pipeline.report import elsewhere
from pipeline.report.pictures import add_pictures
from pipeline.report.section import Material, Section, Values
from pipeline.store.build import Build
from pipeline.store.frames import Frames
from pipeline.store.pairs import columns_of
from pipeline.store.takedowns import Takedowns

SHOWN = 12
"""Pairs of each group."""

BINS = 15
"""Of the histogram, of which a third lies beyond the distance."""

PICTURES, SIDE = 450_000, 112
"""Bytes of all thumbnails of the section, and pixels of their longer side."""


def figures(material: Material, inputs: Values) -> Values:
    return {"semantic_duplicates": duplicates(material)}


def duplicates(material: Material) -> Values | None:
    """Counts, a histogram of distances, and groups of pairs with their pictures; None where nothing was compared."""
    build = material.build
    own = build.spec.semantic_dedup
    if (
        own is None
        or "curate.semantic_dedup" not in build.fingerprints
        or not build.stage("curate.semantic_dedup").records()
    ):
        return None
    [compared] = build.stage("curate.nearest").records()
    limit = round(own.distance * MILLION)
    closest, just_dropped, just_kept = (_Group(name) for name in ("closest", "just_dropped", "just_kept"))
    dropped, beyond, by_earlier = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64), 0
    step = max(1.0, 1.5 * limit / BINS)
    for table in _near(build):
        apart = table["millionths"].to_numpy()
        is_dropped = table["dropped"].to_numpy(zero_copy_only=False)
        bins = np.minimum(apart / step, BINS - 1).astype(np.int64)
        np.add.at(dropped, bins[is_dropped], 1)
        np.add.at(beyond, bins[~is_dropped], 1)
        by_earlier += pc.sum(pc.and_(table["dropped"], table["earlier"])).as_py() or 0
        gone, stay = table.filter(table["dropped"]), table.filter(pc.invert(table["dropped"]))
        closest.offer(gone, gone["millionths"].to_numpy())
        just_dropped.offer(gone, -gone["millionths"].to_numpy())
        just_kept.offer(stay, stay["millionths"].to_numpy())
    records = build.stage("curate.semantic_dedup").records()
    return {
        "tower": compared.info["tower"],
        "distance": own.distance,
        "keep": own.keep,
        **{name: sum(record.counts[name] for record in records) for name in ("seen", "kept", "dropped")},
        "by_earlier": by_earlier,
        "earlier": compared.counts["earlier"],
        "histogram": _histogram(dropped, beyond, step, own.distance),
        "groups": _shown(material, [closest, just_dropped, just_kept]),
    }


def _near(build: Build) -> Iterator[pa.Table]:
    """The verdicts of each partition."""
    stage = build.stage("dedup")
    for partition in build.stage("curate.semantic_dedup").partitions():
        near = columns_of(build, "curate.semantic_dedup", partition)
        ids = stage.table(stage.record(partition), columns=["candidate_id"])["candidate_id"]
        near = near.append_column("candidate_id", ids)
        near = near.append_column("dropped", pc.greater(pc.list_value_length(near["reasons"]), 0))
        yield near.filter(pc.is_valid(near["leader"])).drop_columns(["reasons", "evidence", "duplicate_of"])


def _histogram(
    dropped: np.typing.NDArray[np.int64], beyond: np.typing.NDArray[np.int64], step: float, distance: float
) -> Values:
    """As the macro `histogram` takes it: kept, and dropped (`own`), by distance from the nearest leader."""
    bins = [
        {"label": f"{at * step / MILLION:.3g}", "count": int(stays), "own": int(gone), "other": 0}
        for at, (gone, stays) in enumerate(zip(dropped, beyond, strict=True))
    ]
    count = int(dropped.sum())
    limit = {
        "filter": "semantic_dedup",
        "option": "distance",
        "value": distance,
        "at": [round(distance * MILLION / step, 3)],
        "dropped": count,
        "alone": count,
        "would": [],
    }
    title = {"title": "Cosine distance from the nearest kept picture", "title_zh": "与最近保留图像的余弦距离"}
    own = {"name": "semantic_distance", **title}
    return {**own, "total": int(beyond.sum()), "bins": bins, "limits": [limit]}


@dataclass
class _Group:
    """The verdicts with the smallest keys of all that are offered; of equal keys those with the smallest ids."""

    name: str
    rows: list[tuple[int, str, Values]] = field(default_factory=list)

    def offer(self, table: pa.Table, keys: np.typing.NDArray[np.int32]) -> None:
        best = np.argsort(keys, kind="stable")[
            : 4 * SHOWN
        ]  # of many equal ones the first: rows are in keyed-hash order
        rows = table.take(pa.array(best)).to_pylist()
        new = [(int(key), row["candidate_id"], row) for key, row in zip(keys[best], rows, strict=True)]
        self.rows = heapq.nsmallest(SHOWN, [*self.rows, *new], key=lambda entry: entry[:2])


def _shown(material: Material, groups: list[_Group]) -> list[Values]:
    """The groups with their pairs as the page has them: the kept one, the other one, and their distance."""
    build, takedowns = material.build, material.build.store.takedowns()
    near = [row for group in groups for _, _, row in group.rows]
    row_of = _rows(build, {row[name] for row in near for name in ("candidate_id", "leader")})
    held = elsewhere.holders(build, {row["leader"] for row in near if row["earlier"]})
    foreign = dict[str, bytes]()
    for row, data in elsewhere.samples(held):
        if not takedowns.names(row) and row["sha256"] not in takedowns.hashes:
            row_of[row["id"]], foreign[row["id"]] = row, data
    hidden = material.shown.opted_out
    rows = [row for row in row_of.values() if row["fetch_id"] not in hidden and not takedowns.names(row)]
    values = {row["id"]: _value(row) for row in rows}
    _add_pictures(build, [values[row["id"]] for row in rows], takedowns, foreign)
    return [
        {
            "name": group.name,
            "pairs": [
                {
                    "leader": values.get(row["leader"]),
                    "other": values[row["candidate_id"]],
                    "apart": round(row["millionths"] / MILLION, 4),
                }
                for _, _, row in group.rows
                if row["candidate_id"] in values
            ],
        }
        for group in groups
    ]


def _add_pictures(build: Build, rows: list[Values], takedowns: Takedowns, foreign: dict[str, bytes]) -> None:
    add_pictures(build, rows if build.spec.report.pictures else [], takedowns, foreign, budget=PICTURES, side=SIDE)
    for row in rows if not build.spec.report.pictures else ():
        row |= {"picture": "", "boxes": {}}


def _rows(build: Build, ids: set[str]) -> dict[str, Values]:
    """The decisions on candidates, by id: where one came twice, that which says what became of it first."""
    found = dict[str, Values]()
    names = pa.array(sorted(ids), pa.string())
    wanted = pc.field("id").isin(names) & (pc.field("subject") == "candidate")
    for part in Frames.of(build).parts("decisions"):
        if not pc.any(pc.is_in(part.table(["id"])["id"], names)).as_py():
            continue  # one column of nearly all files is enough
        for row in part.table(filters=wanted).to_pylist():
            if row["id"] not in found or row["kept"] or row["stage"] == "curate":
                found[row["id"]] = row
    return found


def _value(row: Values) -> Values:
    """A candidate as the page and report.json have it."""
    same = {
        name: row[name] for name in ("id", "fetch_id", "source", "page_url", "url", "kept", "stage", "duplicate_of")
    }
    more = {"sha256": row["sha256"]} if "sha256" in row else {}
    return {**same, "text": row["text"][:200], **more}


HTML = """
{% if semantic_duplicates %}
<section id="semantic_duplicates">
  <h2>{{ t("Pictures that show the same", "内容相同的图像") }}</h2>
  <p>{{ t("Pictures whose features by the tower of the spec lie within the distance of one that was kept before. Of "
    "each such group one is kept.",
    "规格所指定图像塔的特征与先前保留的图像相距不超过限值者视为相同，每组只保留一幅。") }}
    {{ t("Compared", "比较") }}: {{ semantic_duplicates.seen | n }}.
    {{ t("Dropped", "丢弃") }}: <b>{{ semantic_duplicates.dropped | n }}</b>
    ({{ semantic_duplicates.dropped | share(semantic_duplicates.seen) }}){% if semantic_duplicates.by_earlier %},
    {{ t("of which for a picture of an earlier build", "其中因此前构建的图像") }}: {{
    semantic_duplicates.by_earlier | n }}{% endif %}.</p>
  <p class="muted small"><code>{{ semantic_duplicates.tower }}</code> · {{ t("kept first", "优先保留") }}: <code>{{
    semantic_duplicates.keep }}</code></p>
  <p class="legend small" aria-hidden="true"><span><i class="bar"></i> {{
    t("kept, just beyond the distance", "保留，略超出限值") }}</span> <span><i class="own"></i> {{
    t("dropped", "丢弃") }}</span> <span><i class="limit"></i> {{ t("limit", "限值") }}</span></p>
  <div class="grid">{{ histogram(semantic_duplicates.histogram) }}</div>
  {% set words = {
    "closest": ("Nearest to one another", "最接近的"), "just_dropped": ("Only just dropped", "刚好丢弃"),
    "just_kept": ("Only just kept", "刚好保留")} %}
  {% set all_shown = semantic_duplicates.dropped <= semantic_duplicates.groups[0].pairs | length %}
  {% for group in semantic_duplicates.groups if group.pairs and not (group.name == "just_dropped" and all_shown) %}
  <div class="cluster"><h3>{{ t(*words[group.name]) }}</h3>
  <ul class="sheet pairs">{% for pair in group.pairs %}
    <li class="sample {{ "is-dropped" if group.name != "just_kept" else "is-kept" }}"><div class="two">
      <div>{% if pair.leader %}{{ picture(pair.leader) }}{% else %}<p class="muted small">{{
        t("kept by an earlier build that is not at hand", "由此前构建保留（不在此处）") }}</p>{% endif %}</div>
      <div>{{ picture(pair.other) }}</div></div>
    <p class="fate"><span class="{{ "no" if group.name != "just_kept" else "ok" }}">{{
      "✗ " if group.name != "just_kept" }}{{ "%.4f" | format(pair.apart) }}</span></p>
    <p class="text" lang="zh">{{ pair.leader.text if pair.leader else "–" }}</p>
    <p class="text" lang="zh">{{ pair.other.text or "–" }}</p>
    <p class="muted small">{{ pair.other.source }}</p>
    <p class="small links">{{ studio("/#id=" ~ pair.other.id[:32], "studio") }} <code title="{{ pair.other.id }}">{{
      pair.other.id[:8] }}</code></p></li>
  {% endfor %}</ul></div>
  {% endfor %}
</section>
{% endif %}
"""

SECTION = Section("semantic_duplicates", HTML, figures, title="Same content", title_zh="内容重复")
