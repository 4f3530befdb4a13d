"""Drawn pairs in WebDataset tars, for benchmarks of whole builds: as many as asked for, at 0.4 ms each."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

PER_TAR = 10_000
_HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 3_000)]
WORDS = ["".join(random.Random(number).choices(_HAN, k=2)) for number in range(20_000)]


def drawn_spec(folder: Path, pairs: int, seed: int) -> Path:
    """A spec over so many drawn pairs, which are written into the folder."""
    draw(folder / "tars", pairs, seed)
    spec = folder / "spec.yaml"
    source = {"kind": "webdataset", "name": "drawn", "source_kind": "library", "path": f"{folder}/tars/*.tar"}
    spec.write_text(json.dumps({"name": "drawn", "contact": "bench@example.org", "sources": [source]}), "utf-8")
    return spec


def draw(folder: Path, pairs: int, seed: int) -> None:
    """Tars of so many pairs: JPEGs of some 220 pixels, a twentieth of them copies in another quality, with captions, a
    fifth of them one of 300."""
    folder.mkdir(parents=True)
    for first in range(0, pairs, PER_TAR):
        dice, pixels = random.Random(f"{seed}-{first}"), np.random.default_rng([seed, first])
        earlier: list[Image.Image] = []
        with tarfile.open(folder / f"{first // PER_TAR:05d}.tar", "w") as tar:
            for number in range(first, min(pairs, first + PER_TAR)):
                if earlier and dice.random() < 0.05:
                    picture, quality = dice.choice(earlier), 70
                else:
                    coarse = Image.fromarray(pixels.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                    picture, quality = coarse.resize((dice.randint(210, 260), 210), Image.Resampling.BICUBIC), 90
                    earlier = [*earlier[-200:], picture]
                body = io.BytesIO()
                picture.save(body, "JPEG", quality=quality)
                words = random.Random(dice.randrange(300)) if dice.random() < 0.2 else dice
                text = "".join(words.choices(WORDS, k=words.randint(4, 10)))
                for suffix, data in (("jpg", body.getvalue()), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
