"""Merges of near copies with truth: families of drawn pictures that differ in what a page shows them for, and copies.

Three kinds: charts whose curve is another one, dialogs with another line of text, and steps of an algorithm, of which
another box is filled. The pictures of a family stand on one page, or on a page each with a caption each. Each picture
has copies as sites make and repost them:

    variant    half the size, on its page, as NAME-WxH.jpg
    bare       smaller, on another page, without words
    same       smaller, on another page, with its words
    lossless   the same pixels as WebP, on another page, with other words
    other      smaller, on another page, with other words: no near copy by the rule, shown without a bar

The dedup stage runs as it is. A merge is wrong if an image and its leader are two pictures of a family, or of two. A
copy is found if its leader shows its picture, or it leads the original. Of variants this is asked where the original
leads: what is dropped leaves no file name, so that later builds decide as one build of everything does.

Merges are of two kinds. Where words, a file or pixels are shared, at most one in twenty may be wrong. Where looks alone
tell, the same bar is not reached by dialogs and steps: a small copy without words on another host looks like all
pictures of its family, as 46 cells to a side do not show a line of text. It is dropped as a copy of the first of them,
whose own page keeps its picture; to keep it would keep every bare copy of a picture that has two captions.
"""

from __future__ import annotations

import hashlib
import io
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import at_least, at_most, quick, report, told

KINDS, SIBLINGS = ("charts", "dialogs", "steps"), 4
COPIES = ("variant", "bare", "same", "lossless", "other")
INK = "#203040"


def main() -> int:

    families = 6 if quick(__doc__) else 24
    tasks = [(kind, number) for kind in KINDS for number in range(families)]
    with ProcessPoolExecutor(2) as pool:
        rows = [row for family in pool.map(_family, tasks) for row in family]
    with tempfile.TemporaryDirectory(prefix="wenlan-merges-") as folder:
        leader_of = _leaders(Path(folder), rows)
    figures: dict[str, Any] = {}
    for kind in KINDS:
        own = {row["candidate_id"]: row for row in rows if row["kind"] == kind}
        merged = [(row, own.get(leader_of[name])) for name, row in own.items() if leader_of[name] != name]
        worded = [(row, leader) for row, leader in merged if leader is not None and _worded(row, leader)]
        wrong, wrong_worded = _wrong(merged), _wrong(worded)
        original = {row["picture"]: row["candidate_id"] for row in own.values() if not row["copy"]}
        found, every = Counter[str](), Counter[str]()
        for name, row in own.items():
            leader, of_original = own.get(leader_of[name], row), leader_of[original[row["picture"]]]
            if row["copy"] != "variant" or of_original == original[row["picture"]]:
                every[row["copy"]] += 1
                found[row["copy"]] += leader["picture"] == row["picture"] and (leader is not row or of_original == name)
        recall = {copy: found[copy] / every[copy] for copy in COPIES}
        said = ", ".join(f"{copy} {share:.3f}" for copy, share in recall.items())
        places = Counter(row["place"] for row in wrong)
        told(f"{kind}: {len(merged)} merges, {len(wrong)} wrong {dict(places)}; found: {said}")
        by_looks = len(merged) - len(worded), len(wrong) - len(wrong_worded)
        figures[f"{kind}_wrong_merges"] = at_most(len(wrong_worded) / max(1, len(worded)), 0.05, "share")
        figures[f"{kind}_wrong_by_looks_alone"] = at_most(by_looks[1] / max(1, by_looks[0]), 0.05, "share")
        figures[f"{kind}_lossless"] = at_least(recall["lossless"], 1.0, "share")
        figures[f"{kind}_variant"] = at_least(recall["variant"], 0.9, "share")
    return report(figures)


def _worded(row: dict[str, Any], leader: dict[str, Any]) -> bool:
    """Whether two images share own words, a file or pixels, and not only looks."""
    from pipeline.matching.contexts import file_stem

    words, others = ({text["text"] for text in of["texts"] if text["kind"] == "caption"} for of in (row, leader))
    of_file = file_stem(row["image_url"]) == file_stem(leader["image_url"])
    return bool(words & others) or of_file or row["pixels"] == leader["pixels"]


def _wrong(merged: Sequence[tuple[dict[str, Any], dict[str, Any] | None]]) -> list[dict[str, Any]]:
    """The images of merges whose leader shows another picture."""
    return [row for row, leader in merged if leader is None or leader["picture"] != row["picture"]]


def _family(task: tuple[str, int]) -> list[dict[str, Any]]:
    """Rows of MEASURED_SCHEMA of a family and its copies, with kind, picture, copy and place beside them."""
    import random

    from PIL import Image

    kind, number = task
    one_page = number % 2 == 0
    draw, rows = {"charts": _chart, "dialogs": _dialog, "steps": _steps}[kind], list[dict[str, Any]]()
    for sibling in range(SIBLINGS):
        image: Image.Image = draw(random.Random(f"{kind} {number}"), random.Random(f"{number} {sibling}"), sibling)
        name = f"{kind}-{number}"
        words = f"{kind}的图{number}之{'甲乙丙丁'[sibling]}"
        page = f"http://a.test/{name}" + ("" if one_page else f"/{sibling}")
        base, elsewhere = f"http://a.test/i/{name}/{sibling + 1}", f"http://b{sibling}.test/{name}"
        variant, bare, same, other = (
            image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.LANCZOS)
            for share in (0.5, 0.6, 0.45, 0.55)
        )
        shown = {
            "": (page, f"{base}.png", "" if one_page and number % 4 else words, _saved(image, "PNG")),
            "variant": (page, f"{base}-{variant.width}x{variant.height}.jpg", "", _saved(variant, "JPEG")),
            "bare": (f"{elsewhere}/bare", f"{elsewhere}/b.jpg", "", _saved(bare, "JPEG")),
            "same": (f"{elsewhere}/same", f"{elsewhere}/s.jpg", words, _saved(same, "JPEG")),
            "lossless": (f"{elsewhere}/l", f"{elsewhere}/l.webp", words + "又", _saved(image, "WEBP", lossless=True)),
            "other": (f"{elsewhere}/o", f"{elsewhere}/o.jpg", words + "另", _saved(other, "JPEG")),
        }
        place = "one page" if one_page else "between pages"
        for copy, (of_page, url, own, data) in shown.items():
            row = _row(of_page, url, own, data) | {"kind": kind, "picture": f"{name}.{sibling}", "copy": copy}
            rows.append(row | {"place": place})
    return rows


def _row(page: str, url: str, words: str, data: bytes) -> dict[str, Any]:
    from pipeline.features._rows import measure_image
    from pipeline.rows.records import order_key, sha256_hex

    name = sha256_hex("table", page, url)
    title = {"kind": "title", "text": f"页面{name[:8]}的标题"}
    return {
        **measure_image(data, 10**8),
        "sha256": hashlib.sha256(data).hexdigest(),
        "order_key": order_key(name, 0),
        "candidate_id": name,
        "fetch_id": sha256_hex(url),
        "source": "table",
        "source_kind": "library",
        "origin": page,
        "page_url": page,
        "image_url": url,
        "texts": [{"kind": "caption", "text": words}, title] if words else [title],
        "row": 0,
        "text_rank": 0,
        "shown": "alone",
        "fetched_at": "2026-01-01T00:00:00Z",
    }


def _leaders(folder: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    """The leader of each candidate, itself if it is kept."""
    import pyarrow as pa

    from tests.benchmarks.bench_increments import filtered
    from tests.filtered import MEASURED_SCHEMA
    from tests.stages import run_stage

    build = filtered(folder, folder / "store", "2026-01-01", [pa.Table.from_pylist(rows, schema=MEASURED_SCHEMA)])
    run_stage(build, "dedup")
    stage, found = build.stage("dedup"), {row["candidate_id"]: row["candidate_id"] for row in rows}
    for record in stage.records():
        for row in stage.table(record, "decisions.parquet").to_pylist():
            found[row["id"]] = row["duplicate_of"] or row["id"]
    return found


def _saved(image: Any, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _chart(family: Any, own: Any, _: int) -> Any:
    """Axes, bars and a legend of the family, and a curve of its own over the same range."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (800, 500), "white")
    pen = ImageDraw.Draw(image)
    pen.line((60, 20, 60, 450, 780, 450), fill=INK, width=2)
    for at in range(6):
        pen.line((60, 70 + 70 * at, 780, 70 + 70 * at), fill="#dddddd")
        pen.rectangle((100 + 110 * at, 450 - family.randint(40, 300), 150 + 110 * at, 450), fill="#b0c8e8")
    level, points = family.randint(150, 250), []
    for at in range(12):
        points.append((80 + 62 * at, level + own.randint(-60, 60)))
    pen.line(points, fill="#c03020", width=3)
    pen.rectangle((600, 20, 770, 60), outline=INK)
    pen.text((610, 30), f"series {family.randint(1, 99)}", fill=INK, font_size=20)
    return image


def _dialog(family: Any, own: Any, _: int) -> Any:
    """A window with fields and buttons of the family, and one line of its own."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (640, 420), "#f0f0f0")
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, 640, 36), fill=f"#{family.randint(32, 96):02x}60a0")
    pen.text((12, 6), f"Window {family.randint(1, 999)}", fill="white", font_size=20)
    for at in range(4):
        pen.text((30, 60 + 60 * at), f"Option {family.randint(1, 99)}", fill=INK, font_size=18)
        pen.rectangle((200, 56 + 60 * at, 600, 86 + 60 * at), fill="white", outline="#808080")
    pen.text((210, 60), f"value {own.randint(10_000, 99_999)} of {own.choice(['days', 'files', 'rows', 'users'])}",
             fill=INK, font_size=18)  # fmt: skip
    for at in range(2):
        pen.rectangle((380 + 115 * at, 360, 480 + 115 * at, 396), fill="#dddddd", outline="#808080")
    return image


def _steps(family: Any, _: Any, sibling: int) -> Any:
    """A row of numbered boxes of the family, of which another one is filled in each step."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (900, 300), "white")
    pen, count = ImageDraw.Draw(image), 8
    for at in range(count):
        left = 40 + 104 * at
        pen.rectangle(
            (left, 90, left + 84, 190), fill="#ffd070" if at == sibling + 2 else "#eef2f8", outline=INK, width=2
        )
        pen.text((left + 22, 118), str(family.randint(10, 99)), fill=INK, font_size=36)
    pen.line((40, 230, 860, 230), fill=INK, width=2)
    return image


if __name__ == "__main__":
    sys.exit(main())
