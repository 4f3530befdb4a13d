"""Numbers that every text or picture has, as SQL, with the bins of their histograms.

SAMPLED are the histograms of the samples kept; MEASURES those that filters limit (`pipeline.report.limits`). A
histogram is one expression of a query, so that one pass over the rows counts all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.store.sql import Tables
from pipeline.texts.density import density

SHOWN_TEXT = 200
"""Characters of a text that a Decision holds."""

_WHITE = r"[\s\x{0B}\x{1C}-\x{1F}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}]+"
_HAN = r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-"
_NO_SPACE = f"CASE WHEN regexp_matches(text, '{_WHITE}') THEN regexp_replace(text, '{_WHITE}', '', 'g') ELSE text END"


def _length_without(characters: str) -> str:
    """SQL for the length of `text` without some characters."""
    return f"length(regexp_replace(text, '{characters}', '', 'g'))"


_HAN_LETTERS, _LETTERS = _length_without(f"[^{_HAN}\\x{{323AF}}〇]+"), _length_without(r"[^\pL〇]+")
HAN_LETTERS = f"coalesce({_HAN_LETTERS} / nullif({_LETTERS}, 0), 0)"
"""SQL of the share of Han characters among the letters of `text` (`filters.han_share.scripts`)."""


@dataclass(frozen=True)
class Measure:
    """A number that every text, or every picture, has.

    sql: the number, from the column `text`, or from those of FEATURE_SCHEMA or of the samples. whole: it is a whole
    number, so that `at most 50` ends before 51. of_words: it needs a dictionary, and is taken only where a filter
    limits it; `sql` then reads the column `words` (`measured`).
    """

    name: str
    title: str
    title_zh: str
    edges: Sequence[float]
    labels: Sequence[str]
    sql: str
    whole: bool = True
    of: Literal["text", "picture"] = "text"
    of_words: bool = False

    @property
    def value(self) -> str:
        """The column of `measured` that has the number."""
        return f'"measured {self.name}"'

    @property
    def bin(self) -> str:
        """SQL of the bin over `measured`."""
        return bin_of(self.value, self.edges)

    def position(self, value: float) -> float:
        """Position of a value on the axis, in bins from the left."""
        at = max(0, int(np.searchsorted(self.edges, value, side="right")) - 1)
        if at + 1 == len(self.edges):
            return at + (0.9 if value > self.edges[at] else 0.0)  # the last bin is open
        return at + max(0.0, (value - self.edges[at]) / (self.edges[at + 1] - self.edges[at]))

    def histogram(self, counts: Mapping[int, int]) -> dict[str, Any]:
        """The histogram as report.json has it. counts: by bin."""
        bins = [{"label": label, "count": counts.get(at, 0)} for at, label in enumerate(self.labels)]
        names = {"name": self.name, "title": self.title, "title_zh": self.title_zh}
        return {**names, "total": sum(counts.values()), "bins": bins}


def bin_of(value: str, edges: Sequence[float]) -> str:
    """SQL of the bin of a value: the last one whose edge it reaches, 0 below all; NULL for no value."""
    whens = " ".join(f"WHEN {value} >= {number(edge)} THEN {at}" for at, edge in reversed([*enumerate(edges)][1:]))
    return f"CASE WHEN {value} IS NULL THEN NULL {whens} ELSE 0 END"


def number(value: float) -> str:
    """A number as SQL reads it back without rounding."""
    return f"{value:.17e}"


def measured(tables: Tables, measures: Sequence[Measure], rows: str) -> str:
    """SQL of some rows with the number of each measure, for `Measure.value` and `Measure.bin`.

    What words of the texts say (`pipeline.texts.density`) is asked once for each row, where a measure reads it.
    """
    if any(measure.of_words for measure in measures):
        tables.define("density", _densities, ["VARCHAR"], f"STRUCT({', '.join(f'{name} DOUBLE' for name in _DENSITY)})")
        rows = f"SELECT *, density(text) AS words FROM ({rows})"
    return f"SELECT *{''.join(f', ({m.sql})::DOUBLE AS {m.value}' for m in measures)} FROM ({rows})"


_DENSITY = ("nouns", "content_share", "stop_share", "entropy")


def _densities(texts: pa.Array) -> pa.Array:
    densities = [density(text or "") for text in texts.to_pylist()]
    columns = [pa.array([float(getattr(value, name)) for value in densities], pa.float64()) for name in _DENSITY]
    return pa.StructArray.from_arrays(columns, _DENSITY)


def histograms(tables: Tables, measures: Sequence[Measure], rows: str) -> dict[str, dict[str, Any]]:
    """The histogram of each measure over the rows of a query, as report.json has it, by name."""
    if not measures:
        return {}
    bins = ", ".join(f'histogram({measure.bin}) AS "{measure.name}"' for measure in measures)
    counts = tables.row(f"SELECT {bins} FROM ({measured(tables, measures, rows)})")
    return {measure.name: measure.histogram(counts[measure.name] or {}) for measure in measures}


def ranges(edges: Sequence[float], unit: str = "") -> list[str]:
    """Labels `1`, `2–3`, ..., `500+` for whole numbers."""
    whole = [int(edge) for edge in edges]
    labels = []
    for low, high in zip(whole, [*whole[1:], None], strict=True):
        labels.append(
            f"{low}{unit}+" if high is None else f"{low}{unit}" if high == low + 1 else f"{low}–{high - 1}{unit}"
        )
    return labels


_CHARS = (0, 2, 4, 6, 8, 10, 15, 20, 30, 50, 100, 200, 500)
_WORDS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100)
_SIDES = (0, 64, 128, 200, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
_KB = (0, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_TEXTS = range(1, 9)
_REGIONS = (0, 1, 2, 5, 9, 17, 25, 36, 37)
_ASPECT = (0.0, 1 / 3, 1 / 2, 2 / 3, 0.9, 1.1, 1.5, 2.0, 3.0)
_ASPECT_LABELS = ("<1:3", "1:3", "1:2", "2:3", "1:1", "1.1", "3:2", "2:1", "3:1+")
_TENTHS = tuple(i / 10 for i in range(10))
_PERCENT = tuple(f"{10 * i}–{10 * i + 10}%" for i in range(10))
_BLANK = (*_TENTHS, 0.95, 0.98)
_SHARP = (0, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)
_FRAMES = (1, 2, 3, 6, 11, 51)
_NOUNS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 15)
_ENTROPY = (0, 1e-4, 6e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1)

MEASURES = {
    measure.name: measure
    for measure in (
        # as `text_length` counts them; a text that was cut counts as one of SHOWN_TEXT
        Measure(
            "characters", "Characters per primary text", "主文本字数", _CHARS, ranges(_CHARS),
            f"greatest(length({_NO_SPACE}), CASE WHEN length(text) >= {SHOWN_TEXT} THEN {SHOWN_TEXT} ELSE 0 END)",
        ),
        Measure(
            "han_letters", "Share of Han among the letters of the primary text", "主文本字母中汉字的比例", _TENTHS,
            _PERCENT, HAN_LETTERS, whole=False,
        ),
        Measure(
            "nouns", "Nouns of the primary text", "主文本名词数", _NOUNS, ranges(_NOUNS), "words.nouns",
            of_words=True,
        ),
        Measure(
            "content_share", "Share of content words in the primary text", "主文本实词比例", _TENTHS, _PERCENT,
            "words.content_share", whole=False, of_words=True,
        ),
        Measure(
            "stop_share", "Share of stop words in the primary text", "主文本停用词比例", _TENTHS, _PERCENT,
            "words.stop_share", whole=False, of_words=True,
        ),
        Measure(
            "word_entropy", "Word entropy of the primary text, nats", "主文本词熵（奈特）", _ENTROPY,
            [f"{edge:g}+" for edge in _ENTROPY], "words.entropy", whole=False, of_words=True,
        ),
        Measure(
            "short_side", "Shorter side, pixels", "短边（像素）", _SIDES, ranges(_SIDES), "least(width, height)",
            of="picture",
        ),
        Measure(
            "long_side", "Longer side, pixels", "长边（像素）", _SIDES, ranges(_SIDES), "greatest(width, height)",
            of="picture",
        ),
        Measure(
            "aspect", "Aspect ratio (width / height), from", "宽高比（下限）", _ASPECT, _ASPECT_LABELS,
            "width / height", whole=False, of="picture",
        ),
        Measure(
            "blankness", "Share of the picture in one grey level", "同一灰度所占画面比例", _BLANK,
            (*_PERCENT[:9], "90–95%", "95–98%", "98–100%"), "blankness",
            whole=False, of="picture",
        ),
        Measure(
            "entropy", "Entropy of the grey levels, bits", "灰阶熵（比特）", range(8),
            [f"{i}–{i + 1}" for i in range(8)], "entropy", whole=False, of="picture",
        ),
        Measure(
            "sharpness", "Sharpness (variance of the Laplacian)", "清晰度（拉普拉斯方差）", _SHARP, ranges(_SHARP),
            "sharpness", whole=False, of="picture",
        ),
        Measure(
            "frames", "Frames per file", "文件帧数", _FRAMES, ranges(_FRAMES), "frames",
            of="picture",
        ),
        Measure(
            "file_bytes", "Size of the file as fetched, kB", "原始文件大小（kB）", [1_000 * kb for kb in _KB],
            ranges(_KB), "bytes", of="picture",
        ),
    )
}  # fmt: skip
"""Measures that a filter may limit, by name, in the order of the page."""

SAMPLED = (
    dataclasses.replace(MEASURES["characters"], sql="length(text)"),
    MEASURES["han_letters"],
    Measure("texts", "Texts per sample", "每个样本的文本数", _TEXTS, ranges(_TEXTS), "len(texts)"),
    MEASURES["short_side"],
    MEASURES["long_side"],
    MEASURES["aspect"],
    Measure("bytes", "Size of the stored JPEG, kB", "JPEG 大小（kB）", _KB, ranges(_KB), "image_size / 1000"),
)
"""Measures of every sample; those with a name of MEASURES have its bins."""

WORDS = Measure("words", "Words per primary text (jieba)", "主文本词数（结巴分词）", _WORDS, ranges(_WORDS), "count")


def regions_of(detector: str) -> Measure:
    """Number of regions that a detector found in a sample."""
    titles = f"Regions per image, {detector}", f"每幅图像的区域数，{detector}"
    return Measure(f"regions/{detector}", *titles, _REGIONS, ranges(_REGIONS), "len(scores)")
