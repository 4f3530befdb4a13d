"""A source, a filter, a judge, an export and a section of the report, each added as one file beside the installed ones.

The filter is the example of CONTRIBUTING.md. Where an order matters, its line is the only other edit: a judge's name in
JUDGES, a section's in ORDER.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SOURCE = '''
"""Pictures that it draws itself."""

import io
from collections.abc import Iterator

from PIL import Image

from data_specs.shard import Text
from pipeline.rows.account import Account
from pipeline.rows.records import Candidate
from pipeline.sources import TableSource


class Squares(TableSource):
    """Squares of noise, each with a sentence."""

    def token(self) -> str:
        return "always the same"

    def parts(self) -> int:
        return 1

    def read(self, part: int, account: Account) -> Iterator[Candidate]:
        for number, end in enumerate("。！？…。！"):
            text = Text(kind="caption", text=f"第{number}张图画的是{'春夏秋冬雨雪'[number] * 3}{end}")
            yield Candidate(self.name, self.source_kind, str(number), "", f"squares:///{number}", (text,), number)

    def read_image(self, image_url: str) -> bytes | None:
        number = int(image_url.rpartition("/")[2])
        png, side = io.BytesIO(), 300 + 20 * number
        Image.effect_noise((side, side), 90).save(png, "PNG")
        return png.getvalue()
'''

JUDGE = '''
"""Drops pairs whose picture is wide."""

from data_specs.build import BuildSpec
from pipeline.curate.judging import KEEP, Judge, Verdicts, Verdict
from pipeline.filters import Drop
from pipeline.rows.decisions import DropReason


def judge_pairs(build, partition, rows):
    wide = Verdict((Drop(DropReason.IMAGE_TOO_LARGE, "wide"),))
    return Verdicts([wide if width > 380 else KEEP for width in rows["width"].to_pylist()])


JUDGE = Judge("width", "宽度", judge_pairs, lambda spec: True, lambda build: None)
'''

EXPORT = '''
"""Export `keys`: the keys alone."""


def write(source, out):
    keys = {split: [stored.key for stored in source.of(split)] for split in source.splits}
    (out / "keys.txt").write_text("".join(f"{key}\\n" for own in keys.values() for key in own))
    return {split: len(own) for split, own in keys.items()}
'''

SECTION = """
from pipeline.report.section import Section

SECTION = Section("widest", '<section id="widest">{{ widest }}</section>', lambda material, inputs: {"widest": 380})
"""

RUN = """
import importlib, sys
from pathlib import Path

added, out, store = sys.argv[1:]
for package in ("sources", "filters", "curate", "exports", "report.sections"):
    importlib.import_module(f"pipeline.{package}").__path__.insert(0, f"{added}/{package}")

from pipeline.store import pairs
pairs.JUDGES += ("width",)
from pipeline.report import sections
sections.SECTIONS += (importlib.import_module("pipeline.report.sections.widest").SECTION,)

from data_specs.build import load
from pipeline import exports, opening, run
from pipeline.publish import release
from pipeline import cli

build = opening.open_build(load(f"{added}/spec.yaml"), out, store=store, snapshot="s")
print([stage.name for stage in run.run(build, here=True)])
release.publish(build)
sys.exit(cli.main(["export", out, "--to", "keys", "--out", f"{out}-keys"]))
"""


def example() -> str:
    """The filter of CONTRIBUTING.md."""
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.S)
    return str(code)


@pytest.mark.slow
def test_one_of_each_is_one_file(tmp_path: Path) -> None:
    files = {
        "sources/squares.py": SOURCE,
        "filters/sentence_marks.py": example(),
        "curate/width.py": JUDGE,
        "exports/keys.py": EXPORT,
        "report.sections/widest.py": SECTION,
        "spec.yaml": "name: t\ncontact: mailto:x@example.org\nlicence: ours\nfilters: [{name: sentence_marks}]\n"
        "sources: [{kind: squares, name: q, source_kind: library}]\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.lstrip(), encoding="utf-8")
    out = tmp_path / "out"
    command = [sys.executable, "-c", RUN, tmp_path, out, tmp_path / "store"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "curate" in done.stdout
    report = json.loads((out / "report/report.json").read_bytes())
    dropped = {row["stage"]: row["dropped"] for row in report["funnel"] if row["dropped"]}
    assert dropped == {"admit": 1, "curate": 1}, "one without a sentence mark, one that is wide"
    assert len((tmp_path / "out-keys/keys.txt").read_text().split()) == 4
    assert report["widest"] == 380
    assert '<section id="widest">380</section>' in (out / "report/index.html").read_text("utf-8")
