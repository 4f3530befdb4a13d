"""Section `dataset`: the dataset before and after this build: totals, and hosts that are new or that it lacked.

Nothing is ever missing from the dataset because a crawl did not find it again. So `vanished` is what the release has
and this build came across nowhere, neither in what it kept nor in what was known.
"""

from __future__ import annotations

from collections import Counter

from pipeline.report import dataset, drift
from pipeline.report.dataset import EarlierRelease
from pipeline.report.section import Material, Section, Values
from pipeline.report.words import ranked
from pipeline.rows.decisions import DropReason
from pipeline.store.build import shard_files
from pipeline.store.sql import Tables, host
from pipeline.store.takedowns import Takedowns

LISTED = 20
"""Most hosts of each list."""


def figures(material: Material, inputs: Values) -> Values:
    """`dataset`: None for the first build of a dataset."""
    before = material.before
    return {"dataset": None if before is None else compared(material, before, inputs)}


def compared(material: Material, before: EarlierRelease, inputs: Values) -> Values:
    """The dataset before and after. inputs: figures of the sections totals, shapes and sources."""
    build = material.build
    staying = before.remaining_builds(build)
    own = [shard_files(record) for record in build.packed()]
    now = {**inputs, "build": {"id": build.build_id, "snapshot": build.snapshot}}
    earlier = [part.report for part in before.parts if part.report is not None]
    base = [part.report for part in staying if part.report is not None]
    old, new = dataset.total_of(earlier, f"{build.spec.name}@{before.release}"), dataset.total_of([*base, now], "")
    hosts = known_hosts(material.tables, old["image_domains"])
    hosts.update({row["name"]: row["count"] for row in inputs["image_domains"]})
    takedowns = build.store.takedowns()
    return {
        "name": build.spec.name,
        "generation": build.generation,
        "release": before.release,
        "released_at": before.created_at,
        "builds": [part.build_id for part in before.parts],
        "leaves_out": [part.build_id for part in before.parts if part not in staying],
        "missing": before.missing,
        "before": dataset.totals([shard for part in before.parts for shard in part.shards]),
        "own": dataset.totals(own),
        "after": dataset.totals([*(shard for part in staying for shard in part.shards), *own]),
        "drift": drift.sample_drift(new, old),
        "hosts": {
            "new": new_of(_counts(inputs["image_domains"]), _counts(old["image_domains"]), takedowns),
            "vanished": new_of(_counts(old["image_domains"]), hosts, takedowns, old["totals"]["kept"]),
        },
    }


def known_hosts(tables: Tables, listed: list[Values]) -> Counter[str]:
    """Candidates whose image the dataset holds already, by those of their hosts that are listed."""
    known = f"SELECT {host('url')} AS name FROM decisions WHERE reason = '{DropReason.KNOWN.value}'"
    sql = f"SELECT name, count(*) FROM ({known}) WHERE name IN (SELECT unnest(?::VARCHAR[])) GROUP BY 1"
    return Counter(tables.pairs(sql, [[row["name"] for row in listed]]))


def _counts(rows: list[Values]) -> Counter[str]:
    return Counter({row["name"]: row["count"] for row in rows})


def new_of(counted: Counter[str], others: Counter[str], takedowns: Takedowns, total: int = 0) -> list[Values]:
    """Hosts of `counted` that `others` lacks, the largest first, with at least DOMAIN_SHARE of `total` samples."""
    missing = Counter({name: n for name, n in counted.items() if name and n and not others[name]})
    rows = [{"name": name, "count": n} for name, n in ranked(missing, LISTED) if n >= drift.DOMAIN_SHARE * total]
    return [row for row in rows if not takedowns.host(f"http://{row['name']}/")]


HTML = """
{% if dataset %}
<section id="dataset">
  <h2>{{ t("The dataset before and after", "数据集：之前与之后") }}</h2>
  <p class="muted">{{ t("Compared with release", "对比版本") }} {{ dataset.release }} {{
    t("of", "，数据集") }} <b>{{ dataset.name }}</b>
  {%- if dataset.released_at %} ({{ dataset.released_at[:10] }}){% endif %}, {{
  dataset.builds | length | n }} {{ t("builds", "次构建") if dataset.builds | length != 1 else
    t("build", "次构建") }}. {% if dataset.leaves_out %}{{
    t("This build replaces", "本次构建取代") }} {% for name in dataset.leaves_out[:3] -%}
  <code>{{ name }}</code>
  {%- endfor %}{% if dataset.leaves_out | length > 3 %} …{% endif %}.{% endif %}</p>
  {% if not dataset.builds %}<p class="note">{{ t("The manifest of that release is no longer kept, so nothing can "
    "be compared.", "该版本的清单已不再保留，无法对比。") }}</p>
  {% else %}
  {% if dataset.missing %}<p class="note">{{
    t("The reports of these builds are missing, so hosts and drift do not include them:",
      "以下构建的报告已缺失，未计入域名与漂移：") }} {% for name in dataset.missing -%}
    <code>{{ name }}</code> {% endfor %}</p>{% endif %}
  <div class="scroll" tabindex="0"><table class="growth">
    <caption class="hide">Samples by split, shards and size of the dataset before and after this build</caption>
    <thead><tr><td></td>{{ th("samples", "样本", "num") }}{% for split in dataset.after.samples -%}
      <th scope="col" class="num">{{ split }}</th>{% endfor %}{{ th("shards", "分片", "num") -}}
      {{ th("size", "大小", "num") }}</tr></thead>
    <tbody>
    {% for name, sign in (("before", ""), ("own", "+"), ("after", "")) %}
    {% set row = dataset[name] %}
      <tr class="{{ name }}"><th scope="row">{% if name == "before" %}{{
        t("before", "之前") }} · {{ t("release", "版本") }} {{ dataset.release }}{% elif name == "own" %}{{
        t("new in this build", "本次新增") }}{% else %}{{ t("with this build", "含本次构建") }}{% endif %}</th>
      {%- set mark = sign if row.all else "" -%}
      <td class="num"><b>{{ mark }}{{ row.all | n }}</b></td>{% for split, count in row.samples.items() -%}
      {{ td((sign if count else "") ~ (count | n)) }}{% endfor %}{{ td(mark ~ (row.shards | n)) -}}
      {{ td(mark ~ (row.bytes | size)) }}</tr>
    {% endfor %}
    </tbody></table></div>
  <div class="grid two">
    {% for name, title, title_zh in (("new", "New image hosts", "新出现的图像域名"),
      ("vanished", "Not seen this time: image hosts of the release", "本次未见的图像域名")) %}
    <div class="card"><h3>{{ t(title, title_zh) }}</h3>
    {%- if dataset.hosts[name] %}{{ bars(dataset.hosts[name], title) }}
    {%- else %}<p class="muted">{{ t("None.", "无。") }}</p>{% endif %}</div>
    {% endfor %}
  </div>
  {% endif %}
</section>
{% endif %}
"""

SECTION = Section(
    "dataset", HTML, figures, inputs=("totals", "funnel", "sources", "shapes"), title="Dataset", title_zh="数据集"
)
