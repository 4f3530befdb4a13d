"""What the primary texts of pictures say: a blind comparison of two versions of the pipeline, read by a person.

    python tests/benchmarks/primary_texts.py collect FOLDER OUT.jsonl [--entry index.html]
    python tests/benchmarks/primary_texts.py sheet BEFORE.jsonl AFTER.jsonl SHEET.txt [--count 100] [--seed 0]
    python tests/benchmarks/primary_texts.py score SHEET.txt JUDGEMENTS.txt

`collect` serves a folder of HTML as a local site, as `make demo` does, crawls it with the default spec up to stage
`filter`, and writes a line per pair. Run it once with each version's code on PYTHONPATH. `sheet` draws pictures that
both have and shows for each its page and its two texts in an order that a seed decides; SHEET.txt.key tells which is
which. A person writes one line per picture into JUDGEMENTS.txt: the number, and of A and B those that describe the
picture (`17 A`, `18 AB`, `19 -`). `score` reads both.

Limits: a picture that only one version has is counted and not judged.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

Row = dict[str, Any]
PORT = 18471


def collect(folder: Path, entry: str) -> list[Row]:
    """Pairs of a folder's pages, by page and picture."""
    from data_specs.build import BuildSpec
    from pipeline.opening import open_build
    from pipeline.run import run
    from tests.demo.web import Site, serve

    site = Site(folder.name, PORT)
    source = {"kind": "site", "name": "site", "source_kind": "news", "start": [site.base_url + entry]}
    value = {"name": "texts", "contact": "https://example.org/contact", "sources": [source]}
    value["egress"] = {"allow": [f"127.0.0.1:{PORT}"], "delay_s": 0}
    spec = BuildSpec.model_validate(value)
    with tempfile.TemporaryDirectory() as out, serve(folder.parent, (site,)):
        build = open_build(spec, f"{out}/build", f"{out}/store")
        for result in run(build, until="filter", here=True):
            print(result.name, result.funnel, file=sys.stderr)
        stage = build.stage("filter")
        return [row for record in stage.records() for row in stage.table(record).to_pylist()]


def write(rows: list[Row], out: Path) -> None:
    names = ("page_url", "image_url", "sha256", "texts")
    lines = [json.dumps({name: row[name] for name in names}, ensure_ascii=False) for row in rows]
    out.write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")


def read(path: Path) -> dict[tuple[str, str], Row]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(row["page_url"], row["image_url"]): row for row in rows}


def sheet(before: Path, after: Path, out: Path, count: int, seed: int) -> None:
    """Write the sheet and its key."""
    old, new = read(before), read(after)
    both = sorted(old.keys() & new.keys())
    print(f"{len(both)} pictures in both, {len(old) - len(both)} in {before}, {len(new) - len(both)} in {after} only")
    changed = [key for key in both if old[key]["texts"][0]["text"] != new[key]["texts"][0]["text"]]
    print(f"{len(changed)} of them have another primary text")
    dice = random.Random(seed)
    lines, key = [], []
    for number, chosen in enumerate(sorted(dice.sample(both, min(count, len(both)))), 1):
        texts = [old[chosen]["texts"][0]["text"], new[chosen]["texts"][0]["text"]]
        swapped = dice.random() < 0.5
        key.append({"number": number, "A": "after" if swapped else "before", "same": texts[0] == texts[1]})
        page, image = chosen
        lines.append(f"{number} {page.removeprefix(f'http://127.0.0.1:{PORT}')} {image.rpartition('/')[2]}")
        context = {t["kind"]: t["text"][:60] for t in reversed(new[chosen]["texts"]) if t["kind"] != "tag"}
        lines.append(f"   context: {context}")
        a, b = reversed(texts) if swapped else texts
        lines += [f"   A=B: {a}"] if a == b else [f"   A: {a}", f"   B: {b}"]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    Path(f"{out}.key").write_text(json.dumps(key), encoding="utf-8")


def score(sheet: Path, judgements: Path) -> dict[str, float]:
    """Share of pictures whose primary text describes them, before and after."""
    key = {entry["number"]: entry for entry in json.loads(Path(f"{sheet}.key").read_text(encoding="utf-8"))}
    good = {"before": 0, "after": 0}
    lines = [line.split() for line in judgements.read_text(encoding="utf-8").splitlines() if line.strip()]
    judged = {int(number): said for number, said in lines}
    if judged.keys() != key.keys():
        sys.exit(f"{judgements}: not judged, or not on the sheet: {sorted(judged.keys() ^ key.keys())}")
    for number, said in judged.items():
        a = key[number]["A"]
        b = "before" if a == "after" else "after"
        good[a] += "A" in said
        good[b] += "B" in said or (key[number]["same"] and "A" in said)
    return {name: count / len(judged) for name, count in good.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("collect")
    one.add_argument("folder", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--entry", default="index.html")
    two = commands.add_parser("sheet")
    for name in ("before", "after", "out"):
        two.add_argument(name, type=Path)
    two.add_argument("--count", type=int, default=100)
    two.add_argument("--seed", type=int, default=0)
    three = commands.add_parser("score")
    three.add_argument("sheet", type=Path)
    three.add_argument("judgements", type=Path)
    given = parser.parse_args()
    if given.command == "collect":
        write(collect(given.folder, given.entry), given.out)
    elif given.command == "sheet":
        sheet(given.before, given.after, given.out, given.count, given.seed)
    else:
        print(json.dumps(score(given.sheet, given.judgements)))


if __name__ == "__main__":
    main()
