"""A build or a dataset in a notebook: counts, and thumbnails of some samples with their texts.

One piece of HTML that loads nothing: pictures are data: URIs, and everything that came from the web is escaped. It is
bounded: SHOWN thumbnails of SIDE pixels, texts of TEXT characters.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from pipeline.pictures.decode import MAX_PIXELS
from pipeline.report.page import environment
from pipeline.report.pictures import thumbnail
from pipeline.store.dataset import samples_by_split
from pipeline.store.frames import Frames
from pipeline.store.samples import Samples, Stored

if TYPE_CHECKING:
    import PIL.Image

SHOWN, SIDE, TEXT = 12, 128, 60

BOX = "#e5482d"
"""Colour of boxes that are drawn into a picture."""


def picture(stored: Stored, boxes: bool = False) -> PIL.Image.Image:
    """The image of a sample, RGB; with its boxes drawn into it, the best one last."""
    from PIL import Image, ImageDraw

    with Image.open(io.BytesIO(stored.image), formats=("JPEG",)) as opened:  # an EPS would start Ghostscript
        image: PIL.Image.Image = opened.convert("RGB")
    if boxes:
        pen, width = ImageDraw.Draw(image), max(1, max(image.size) // 200)
        for x1, y1, x2, y2 in stored.boxes_R4[::-1].tolist():
            pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=BOX, width=width)
    return image


def title(frames: Frames) -> tuple[str, str]:
    """Names a dataset, in a line of English and of Chinese."""
    manifest = frames.dataset.manifest if frames.dataset is not None else None
    if manifest is None:
        build = frames.builds[0].build_id
        return f"build {build}, not published", f"构建 {build}，未发布"
    if manifest.release:
        number, name, builds = manifest.release, manifest.dataset, len(manifest.builds)
        return f"release {number} of dataset {name}, {builds} builds", f"数据集 {name} 的版本 {number}，{builds} 个构建"
    own, revision = manifest.build_id, manifest.revision
    return f"build {own}, revision {revision}", f"构建 {own}，修订 {revision}"


def html(frames: Frames) -> str:
    cards = []
    for stored in Samples(frames, takedowns=frames.takedowns).first(SHOWN):
        small = thumbnail(stored.image, SIDE, MAX_PIXELS, stored.key)
        uri = "data:image/jpeg;base64," + base64.b64encode(small[0]).decode() if small is not None else ""
        text = stored.text if len(stored.text) <= TEXT else stored.text[: TEXT - 1] + "…"
        cards.append({"key": stored.key, "uri": uri, "text": text, "split": stored.row["split"]})
    counts = samples_by_split(shard for _, shard in frames.shards)
    facts = {"title": title(frames)[0], "place": frames.place, "detectors": frames.detectors, "counts": counts}
    return str(environment({}).from_string(_HTML).render(**facts, cards=cards))


_HTML = """<div class="wenlan"><p><b>{{ title }}</b><br><code>{{ place }}</code></p>
<p>{{ counts.values() | sum | n }} samples: {% for split, n in counts.items() %}{{ split }} {{ n | n }}
{{- ", " if not loop.last }}{% endfor %}; regions of {{ detectors | join(", ") or "no detector" }}</p>
<div style="display:flex;flex-wrap:wrap;gap:8px">
{% for card in cards %}<figure style="width:136px;margin:0;font-size:12px" title="{{ card.key }}">
{% if card.uri %}<img src="{{ card.uri }}" alt="{{ card.text }}" style="max-width:128px;max-height:128px">{% endif %}
<figcaption lang="zh">{{ card.text }} <small>{{ card.split }}</small></figcaption></figure>
{% endfor %}</div></div>
"""
