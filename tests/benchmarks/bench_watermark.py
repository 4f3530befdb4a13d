"""Watermarks found by stages `marks` and `watermark`, on photos of dishes with a text drawn on some of them.

The 346 photos of HowToCook's site, cut to 512 x 384 pixels, are one host's. On some of them lies a white text at 30%
opacity: small in a corner (6% of the height), or large across the middle (25%). The mark is estimated from a sample of
20 pictures, all of them marked, or of 100, half of them marked, and the others are judged at the default limit: marked
ones found, and false alarms among those without a mark. And samples with no mark at all, drawn 20 times for each size:
marks found there. Pictures are encoded as JPEG (quality 85) before they are looked at. Milliseconds are of the
processor, one thread: decoding at the reduced size, plane and correlation, per picture; and the estimate, per picture
of its sample. --quick: the small text and samples of 100 only, 4 draws.
"""

from __future__ import annotations

import io
import random
import sys
import time

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from data_specs.build import Watermark
from pipeline.pictures.decode import decode
from pipeline.pictures.marks import Mark, Plane, correlation, estimate, plane, reduced, sides_of
from tests.benchmarks.harness import at_least, at_most, photos, quick, report

SIZE, OPACITY = (512, 384), 0.3
TEXTS = {"small": ("shicai.example", 0.06, False), "large": ("SAMPLE", 0.25, True)}


def pictures() -> list[Image.Image]:
    return [ImageOps.fit(Image.open(path).convert("RGB"), SIZE) for path in photos()]


def stamp(photo: Image.Image, name: str) -> Image.Image:
    text, share, middle = TEXTS[name]
    layer = Image.new("RGBA", SIZE, (255, 255, 255, 0))
    pen, font = ImageDraw.Draw(layer), ImageFont.load_default(size=int(SIZE[1] * share))
    _, _, right, bottom = pen.textbbox((0, 0), text, font=font)
    at = ((SIZE[0] - right) / 2, (SIZE[1] - bottom) / 2) if middle else (SIZE[0] - right - 10, SIZE[1] - bottom - 8)
    pen.text(at, text, font=font, fill=(255, 255, 255, round(255 * OPACITY)))
    return Image.alpha_composite(photo.convert("RGBA"), layer).convert("RGB")


def jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()


def looked_at(data: bytes) -> Plane:
    return plane(decode(data, reduce_to=reduced(*SIZE)).pixels, sides_of(*SIZE))


def shown(files: list[bytes], mark: Mark) -> tuple[list[float], float]:
    """Correlations, and milliseconds per picture."""
    start = time.process_time()
    values = [correlation(looked_at(data), mark) for data in files]
    return values, 1_000 * (time.process_time() - start) / len(files)


def main() -> int:
    few = quick(__doc__)
    own = pictures()
    plain = [jpeg(photo) for photo in own]
    limit, figures = Watermark().max_correlation, {}
    for name in list(TEXTS)[: 1 if few else None]:
        marked = [jpeg(stamp(photo, name)) for photo in own]
        for count in (100,) if few else (20, 100):
            order = list(range(len(own)))
            random.Random(7).shuffle(order)
            sample = [
                looked_at((marked if at % 2 or count == 20 else plain)[number])
                for at, number in enumerate(order[:count])
            ]
            start = time.process_time()
            mark = estimate(np.stack(sample))
            estimate_ms = 1_000 * (time.process_time() - start) / count
            with_it, ms = shown([marked[number] for number in order[count:]], mark)
            without, _ = shown([plain[number] for number in order[count:]], mark)
            key = f"{name}_{count}"
            figures[f"{key}_found"] = at_least(100 * float(np.mean(np.array(with_it) > limit)), 95, "%")
            figures[f"{key}_false_alarms"] = at_most(100 * float(np.mean(np.array(without) > limit)), 0.5, "%")
            figures[f"{key}_highest_without"] = at_most(max(without), limit, "")
            figures[f"{key}_ms_a_picture"] = at_most(ms, 10, "ms")
            figures[f"{key}_estimate_ms_a_picture"] = at_most(estimate_ms, 20, "ms")
    planes = [looked_at(data) for data in plain]
    for count in (20, 100):
        draws = [random.Random(seed).sample(planes, count) for seed in range(4 if few else 20)]
        alarms = sum(estimate(np.stack(draw)).verdict != "none" for draw in draws)
        figures[f"marks_in_{count}_without"] = at_most(alarms, 0, f"of {len(draws)}")
    return report(figures, photos=len(own))


if __name__ == "__main__":
    sys.exit(main())
