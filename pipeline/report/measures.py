"""Numbers that every text or picture has, with the bins of their histograms: what limits of filters are drawn on.

`figures` counts some of them of the samples kept, in the same bins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.features import feature_id
from pipeline.filters import text_filters
from pipeline.filters.han_share import han_of_letters
from pipeline.report.figures import EDGES, Numbers, han_share, ranges
from pipeline.store.build import Build
from pipeline.texts.density import density

SHOWN_TEXT = 200
"""Characters of a text that a Decision holds."""

Columns = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Measure:
    """A number that every text or every picture has.

    steps: limits that somebody may want to try. whole: it is a whole number, so that `at most 50` ends before 51.
    of_words: needs a dictionary, and is taken only where a filter limits it.
    of_text, of_pictures: the measure of a text, and that of pictures by their columns of FEATURE_SCHEMA.
    """

    name: str
    title: str
    title_zh: str
    edges: Sequence[float]
    labels: Sequence[str]
    steps: Sequence[float]
    whole: bool = True
    of_text: Callable[[str], float] | None = None
    of_pictures: Callable[[Columns], Numbers] | None = None
    columns: tuple[str, ...] = ("width", "height")
    of_words: bool = False

    def place(self, value: float) -> float:
        """Where a value lies on the axis, in bins from the left."""
        at = max(0, int(np.searchsorted(self.edges, value, side="right")) - 1)
        if at + 1 == len(self.edges):
            return at + (0.9 if value > self.edges[at] else 0.0)  # the last bin is open
        return at + max(0.0, (value - self.edges[at]) / (self.edges[at + 1] - self.edges[at]))

    def bins(self, values: Sequence[float] | Numbers) -> npt.NDArray[np.int64]:
        """The bin of each value; the first takes what is below its edge."""
        edges = np.asarray(self.edges, np.float64)
        return np.maximum(np.searchsorted(edges, np.asarray(values, np.float64), side="right") - 1, 0)


def _characters(text: str) -> float:
    """As `text_length` counts them; a text that was cut counts as one of SHOWN_TEXT."""
    return max(sum(map(len, text.split())), SHOWN_TEXT if len(text) >= SHOWN_TEXT else 0)


_TENTHS = tuple(i / 10 for i in range(10))
_PERCENT = tuple(f"{10 * i}–{10 * i + 10}%" for i in range(10))
_BLANK = (*_TENTHS, 0.95, 0.98)
_SHARP = (0, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)
_FRAMES = (1, 2, 3, 6, 11, 51)
_KB = (0, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_NOUNS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 15)
_ENTROPY = (0, 1e-4, 6e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1)
_PERPLEXITY = (0, 100, 1e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7)
_SIDES = (32, 64, 100, 128, 150, 160, 180, 200, 224, 256, 320, 384, 512, 1024, 2048, 4096, 8192, 20_000, 30_000, 65_500)


def _whole(name: str) -> list[str]:
    """Labels of the bins of whole numbers."""
    return ranges([int(edge) for edge in EDGES[name]])


def _sides(columns: Columns) -> tuple[Numbers, Numbers]:
    return columns["width"].astype(np.float64), columns["height"].astype(np.float64)


def _column(name: str) -> dict[str, Any]:
    return {"of_pictures": lambda columns: columns[name].astype(np.float64), "columns": (name,)}


MEASURES = {
    measure.name: measure
    for measure in (
        Measure(
            "characters", "Characters per primary text", "主文本字数", EDGES["characters"], _whole("characters"),
            (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 40, 50, 60, 70, 80, 100, 120, 150), of_text=_characters,
        ),
        Measure(
            "han_letters", "Share of Han among the letters of the primary text", "主文本字母中汉字的比例", _TENTHS,
            _PERCENT, tuple(i / 20 for i in range(1, 20)), whole=False, of_text=han_of_letters,
        ),
        Measure(
            "nouns", "Nouns of the primary text", "主文本名词数", _NOUNS, ranges(_NOUNS), (0, 1, 2, 3, 4, 5),
            of_text=lambda text: density(text).nouns, of_words=True,
        ),
        Measure(
            "content_share", "Share of content words in the primary text", "主文本实词比例", _TENTHS, _PERCENT,
            tuple(i / 20 for i in range(20)), whole=False, of_words=True,
            of_text=lambda text: density(text).content_share,
        ),
        Measure(
            "stop_share", "Share of stop words in the primary text", "主文本停用词比例", _TENTHS, _PERCENT,
            tuple(i / 20 for i in range(1, 21)), whole=False, of_words=True,
            of_text=lambda text: density(text).stop_share,
        ),
        Measure(
            "word_entropy", "Entropy of the words of the primary text, nats", "主文本词熵（奈特）", _ENTROPY,
            [f"{edge:g}+" for edge in _ENTROPY], _ENTROPY, whole=False, of_words=True,
            of_text=lambda text: density(text).entropy,
        ),
        Measure(
            "perplexity", "Perplexity of the primary text by word frequencies", "主文本困惑度（按词频）", _PERPLEXITY,
            [f"{edge:g}+" for edge in _PERPLEXITY], _PERPLEXITY[1:], whole=False,
            of_text=lambda text: density(text).perplexity, of_words=True,
        ),
        Measure(
            "short_side", "Shorter side, pixels", "短边（像素）", EDGES["short_side"], _whole("short_side"),
            _SIDES, of_pictures=lambda columns: np.minimum(*_sides(columns)),
        ),
        Measure(
            "long_side", "Longer side, pixels", "长边（像素）", EDGES["long_side"], _whole("long_side"),
            _SIDES, of_pictures=lambda columns: np.maximum(*_sides(columns)),
        ),
        Measure(
            "aspect", "Aspect ratio (width / height), from", "宽高比（下限）", EDGES["aspect"],
            ("<1:3", "1:3", "1:2", "2:3", "1:1", "1.1", "3:2", "2:1", "3:1+"),
            (1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 10, 20), whole=False,
            of_pictures=lambda columns: np.divide(*_sides(columns)),
        ),
        Measure(
            "blankness", "Share of the picture in one grey level", "同一灰度所占画面比例", _BLANK,
            (*_PERCENT[:9], "90–95%", "95–98%", "98–100%"), (0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 1), False,
            **_column("blankness"),
        ),
        Measure(
            "entropy", "Entropy of the grey levels, bits", "灰阶熵（比特）", tuple(range(8)),
            [f"{i}–{i + 1}" for i in range(8)], tuple(i / 2 for i in range(16)), False, **_column("entropy"),
        ),
        Measure(
            "sharpness", "Sharpness (variance of the Laplacian)", "清晰度（拉普拉斯方差）", _SHARP, ranges(_SHARP),
            (0, 5, 10, 20, 30, 50, 75, 100, 200, 500), False, **_column("sharpness"),
        ),
        Measure(
            "frames", "Frames of a file", "文件帧数", _FRAMES, ranges(_FRAMES), (1, 2, 3, 5, 10, 50, 100),
            **_column("frames"),
        ),
        Measure(
            "file_bytes", "Size of the file as fetched, kB", "原始文件大小（kB）", [1_000 * kb for kb in _KB],
            ranges(_KB), (0, 500, 1_000, 2_000, 3_000, 4_000, 5_000, 10_000, 20_000, 10**7, 2 * 10**7, 5 * 10**7),
            **_column("bytes"),
        ),
    )
}  # fmt: skip
"""By name, in the order of the page. Those of which `figures` has a histogram too have its bins."""


def add_bins(build: Build, rows: Iterable[dict[str, Any]]) -> None:
    """Set `bins` of rows of the report's sheet: measure -> the bar of its histogram in which the row is counted.

    Of a picture that no build has measured, only what its sides tell.
    """
    rows = list(rows)
    cached = build.store.features(feature_id()).get({row["sha256"] for row in rows if row["sha256"]})
    features = {} if cached is None else {row["sha256"]: row for row in cached.to_pylist()}
    texts = [m for m in MEASURES.values() if m.of_text and m.name in names(build)] + [_HAN_SHARE]
    for row in rows:
        bins = {m.name: int(m.bins([m.of_text(row["text"])])[0]) for m in texts if m.of_text and row["text"]}
        known = {
            **features.get(row["sha256"], {}),
            **({k: row[k] for k in ("width", "height")} if row["width"] else {}),
        }
        for measure in MEASURES.values():
            if measure.of_pictures and all(column in known for column in measure.columns):
                columns = {column: np.array([known[column]]) for column in measure.columns}
                bins[measure.name] = int(measure.bins(measure.of_pictures(columns))[0])
        row["bins"] = bins


_HAN_SHARE = dataclasses.replace(MEASURES["han_letters"], name="han_share", of_text=han_share)


def names(build: Build) -> list[str]:
    """Measures that `add_bins` may know of a row."""
    limited = {limit.measure for f in text_filters(build.spec) for limit in f.limits()}
    return [*(m.name for m in MEASURES.values() if not m.of_words or m.name in limited), _HAN_SHARE.name]
