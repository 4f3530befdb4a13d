"""Captions written for HowToCook's photos, Tux Paint's stamps and Wesnoth's units, beside the nearest training caption.

    python tests/benchmarks/bench_captioning.py [--sets NAME ...] [--out DIR] [--quick]

Each set is a folder of pictures with a table of captions, and goes the way that users go: `wenlan-data build` makes the
dataset (a fifth of the pictures is val), recipe `demo` trains the towers on its train split, `fit-captioner` a small
decoder on their region features, and `eval --task captioning` judges both captions of every val picture. What is done
already in DIR is not done again.

    howtocook   ../shared/corpus beside the checkout: photo and name of the dish
    stamps      demo/corpus, as `make demo` and `make study` lay it out: stamp and its caption
    wesnoth     Debian's wesnoth-1.18-data: sprite and portrait of a unit and its description of several sentences

It holds if the captioner's CIDEr is above that of the nearest training caption on HowToCook or on stamps. `--quick`
trains for a few epochs on stamps alone, and holds nothing.
"""

from __future__ import annotations

import argparse
import csv
import gettext
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from harness import Figure, report

from training.captions.decoder import CaptionerConfig
from training.captions.evaluate import evaluate_captioning, summary
from training.captions.metrics import Tokens
from training.captions.train import fit_captioner
from training.encoders import cnn_regions
from training.records import Batch
from training.resolve import resolve
from training.run.train import fit

ROOT = Path(__file__).parents[2]
CORPUS, DEMO = ROOT.parent / "shared" / "corpus", ROOT / "demo" / "corpus"

SPEC = """\
name: {name}
description: Pictures with captions.
licence: for trying wenlan out
contact: https://example.org/captions
sources:
  - {{kind: folder, name: pictures, source_kind: library, path: pictures, captions: captions.csv}}
filters: []
admit: {{max_candidates_per_image: 100}}
dedup: {{max_pairs_per_text: 1000}}
regions: {{detectors: [{{name: grid, n: 3}}], max_boxes: 9}}
shards: {{dev_share: 0.15, val_share: 0.2, apart: images}}
report: {{pictures: 0}}
"""

Captions = list[tuple[str, str]]
"""(file name, caption) of each picture."""

CONFIG = CaptionerConfig(
    width=256, heads=4, layers=2, ffn=512, dropout=0.3, lr=5e-4, batch_size=32, epochs=40, eval_epochs=5, patience=0
)
"""Smaller than the default, as the sets are."""

LONGEST = {"howtocook": 24, "stamps": 30, "wesnoth": 120}
"""Characters of a caption that is written."""


def remember_prefix() -> None:
    """Let the frozen prefix of the image tower compute every image once."""
    compute, maps = cnn_regions.Prefix.forward, dict[bytes, torch.Tensor]()

    def forward(self: cnn_regions.Prefix, batch: Batch) -> torch.Tensor:
        if batch.images_B3HW.is_meta:  # the FLOP counter's
            return compute(self, batch)
        names = [image.numpy().tobytes() for image in batch.images_B3HW]
        if any(name not in maps for name in names):
            maps.update(zip(names, compute(self, batch).detach(), strict=True))
        return torch.stack([maps[name] for name in names])

    cnn_regions.Prefix.forward = forward  # type: ignore[method-assign]


def howtocook(pictures: Path) -> Captions:
    """The photos that may be taken, and the name of their dish."""
    captions = []
    for line in (CORPUS / "howtocook-site.truth.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["allowed"]:
            name = Path(row["image"]).name
            shutil.copyfile(CORPUS / "howtocook-site" / row["image"], pictures / name)
            captions.append((name, row["title"].removesuffix("的做法")))
    return captions


def stamps(pictures: Path) -> Captions:
    """All stamps that have a Chinese caption."""
    captions = []
    with (DEMO / "stamps.csv").open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            path = DEMO / "stamps" / row["image_url"].split("/", 3)[3]
            if row["zh_cn"].strip() and path.is_file():
                name = f"{number:04d}{path.suffix}"
                shutil.copyfile(path, pictures / name)
                captions.append((name, row["zh_cn"].strip()))
    return captions


def wesnoth(pictures: Path) -> Captions:
    """Sprite and portrait of each unit type that has a Chinese description; a portrait of several units once."""
    from PIL import Image

    package = pictures.parent / "package"
    command = [sys.executable, "-m", "tests.demo", "unpack", "wesnoth-1.18-data", str(package)]
    subprocess.run(command, check=True, cwd=ROOT)
    game = package / "usr/share/games/wesnoth/1.18"
    with (game / "locale/zh_CN/LC_MESSAGES/wesnoth-units.mo").open("rb") as file:
        chinese = gettext.GNUTranslations(file)
    captions, seen = [], set[Path]()
    for config in sorted((game / "data/core/units").rglob("*.cfg")):
        text = config.read_text(encoding="utf-8")
        # A unit's own keys are indented by four; a description is one translated string, or several joined by +.
        told = re.search(r'^ {4}description\s*=\s*((?:_\s*"(?:[^"]|"")*"|[+\s])+)', text, re.M)
        parts = re.findall(r'_\s*"((?:[^"]|"")*)"', told.group(1)) if told else []
        caption = re.sub(r"\s+", "", "".join(chinese.gettext(part.replace('""', '"')) for part in parts))
        if not re.search("[一-鿿]", caption):
            continue
        for key, scale in (("image", 3), ("profile", 1)):
            found = re.search(rf'^ {{4}}{key}\s*=\s*"([^"~]*)', text, re.M)
            path = game / "data/core/images" / found.group(1) if found else game
            if path.is_file() and path not in seen:
                seen.add(path)
                with Image.open(path) as image:
                    large = image.convert("RGBA").resize((image.width * scale, image.height * scale), 0)
                large.save(pictures / f"{config.stem}-{key}.png")
                captions.append((f"{config.stem}-{key}.png", caption))
    return captions


SETS: dict[str, Callable[[Path], Captions]] = {"howtocook": howtocook, "stamps": stamps, "wesnoth": wesnoth}


def dataset(name: str, out: Path) -> Path:
    """The manifest of a set's dataset below `out`, which is built where it is not there."""
    manifest = out / "build" / "shards" / "manifest.json"
    if not manifest.is_file():
        shutil.rmtree(out, ignore_errors=True)
        (out / "pictures").mkdir(parents=True)
        captions = SETS[name](out / "pictures")
        with (out / "pictures" / "captions.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("file", "caption"), *captions])
        (out / "spec.yaml").write_text(SPEC.format(name=name), encoding="utf-8")
        build = ["build", str(out / "spec.yaml"), "--out", str(out / "build"), "--store", str(out / "store")]
        subprocess.run([sys.executable, "-m", "pipeline", *build, "--replace"], check=True, cwd=ROOT)
    return manifest


def measure(name: str, out: Path, epochs: float, cache: Path) -> dict[str, dict[str, object]]:
    """Results of `eval --task captioning` on a set's val split, by kind of token."""
    data, run = [str(dataset(name, out))], out / "run"
    settings = ["data.num_workers=0", "run.tracker=none", "run.device=cpu", f"run.epochs={max(1, round(0.3 * epochs))}"]
    fit(resolve("starter", settings, None), data, run, cache=cache)
    config = replace(CONFIG, epochs=epochs, eval_epochs=epochs / 4, max_characters=LONGEST[name])
    trained = fit_captioner(run, data, out / "captioner", config, device="cpu", cache=cache)
    kinds: Sequence[Tokens] = ("characters", "jieba")
    return {
        tokens: evaluate_captioning(Path(trained["best"]), data, "val", tokens=tokens, device="cpu", cache=cache)
        for tokens in kinds
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--out", type=Path, default=ROOT / "demo" / "captions")
    parser.add_argument(
        "--epochs", type=float, default=CONFIG.epochs, help="of the captioner; the towers' are 0.3 of it"
    )
    parser.add_argument("--quick", action="store_true", help="stamps alone, a few epochs, no bar")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    remember_prefix()
    chosen, epochs = (["stamps"], 3.0) if asked.quick else (asked.sets, asked.epochs)
    out = asked.out / "quick" if asked.quick else asked.out
    found = {}
    for name in chosen:
        for tokens, result in measure(name, out / name, epochs, out / "cache").items():
            print(f"{name}, {tokens}", *summary(result), sep="\n  ", file=sys.stderr, flush=True)
            found[f"{name}_{tokens}"] = result
    gains = {name: 100 * float(result["difference"]["cider"]) for name, result in found.items()}  # type: ignore[index]
    barred = [gain for name, gain in gains.items() if not name.startswith("wesnoth")]
    figures = {}
    if barred and not asked.quick:
        figures["cider_above_nearest"] = Figure(round(max(barred), 1), "CIDEr", 0.0, max(barred) > 0)
    return report(figures, gains=gains)


if __name__ == "__main__":
    raise SystemExit(main())
