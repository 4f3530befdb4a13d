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

from pipeline.filters import text_filters
from pipeline.store.build import Build
from pipeline.store.image_features import known_features
from pipeline.store.sql import Tables
from pipeline.texts.density import density

SHOWN_TEXT = 200
"""Characters of a text that a Decision holds."""

_WHITE = r"[\s\x{0B}\x{1C}-\x{1F}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}]+"
_HAN = r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-"
_NO_SPACE = f"CASE WHEN regexp_matches(text, '{_WHITE}') THEN regexp_replace(text, '{_WHITE}', '', 'g') ELSE text END"


def _length_without(characters: str, text: str = "text") -> str:
    """SQL for the length of a text without some characters."""
    return f"length(regexp_replace({text}, '{characters}', '', 'g'))"


def _share(part: str, whole: str) -> str:
    return f"coalesce({part} / nullif({whole}, 0), 0)"


HAN_SHARE = _share(_length_without(f"[^{_HAN}\\x{{2FFFF}}]+"), f"length({_NO_SPACE})")
"""SQL of the share of Han characters among all characters of `text` but white space."""

HAN_LETTERS = _share(_length_without(f"[^{_HAN}\\x{{323AF}}〇]+"), _length_without(r"[^\pL〇]+"))
"""SQL of the share of Han characters among the letters of `text` (`filters.han_share.scripts`)."""


@dataclass(frozen=True)
class Measure:
    """A number that every text, or every picture, has.

    sql: the number, from the column `text`, or from those of FEATURE_SCHEMA or of the samples. steps: limits that
    a user may want to try. whole: it is a whole number, so that `at most 50` ends before 51. of_words: it needs a
    dictionary, and is taken only where a filter limits it; `sql` then reads the column `words` (`measured`).
    """

    name: str
    title: str
    title_zh: str
    edges: Sequence[float]
    labels: Sequence[str]
    sql: str
    steps: Sequence[float] = ()
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
_TRIED = (32, 64, 100, 128, 150, 160, 180, 200, 224, 256, 320, 384, 512, 1024, 2048, 4096, 8192, 20_000, 30_000, 65_500)
_TWENTIETHS = tuple(i / 20 for i in range(21))

MEASURES = {
    measure.name: measure
    for measure in (
        # as `text_length` counts them; a text that was cut counts as one of SHOWN_TEXT
        Measure(
            "characters", "Characters per primary text", "主文本字数", _CHARS, ranges(_CHARS),
            f"greatest(length({_NO_SPACE}), CASE WHEN length(text) >= {SHOWN_TEXT} THEN {SHOWN_TEXT} ELSE 0 END)",
            (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 40, 50, 60, 70, 80, 100, 120, 150),
        ),
        Measure(
            "han_letters", "Share of Han among the letters of the primary text", "主文本字母中汉字的比例", _TENTHS,
            _PERCENT, HAN_LETTERS, _TWENTIETHS[1:20], whole=False,
        ),
        Measure(
            "nouns", "Nouns of the primary text", "主文本名词数", _NOUNS, ranges(_NOUNS), "words.nouns",
            (0, 1, 2, 3, 4, 5), of_words=True,
        ),
        Measure(
            "content_share", "Share of content words in the primary text", "主文本实词比例", _TENTHS, _PERCENT,
            "words.content_share", _TWENTIETHS[:20], whole=False, of_words=True,
        ),
        Measure(
            "stop_share", "Share of stop words in the primary text", "主文本停用词比例", _TENTHS, _PERCENT,
            "words.stop_share", _TWENTIETHS[1:], whole=False, of_words=True,
        ),
        Measure(
            "word_entropy", "Word entropy of the primary text, nats", "主文本词熵（奈特）", _ENTROPY,
            [f"{edge:g}+" for edge in _ENTROPY], "words.entropy", _ENTROPY, whole=False, of_words=True,
        ),
        Measure(
            "short_side", "Shorter side, pixels", "短边（像素）", _SIDES, ranges(_SIDES), "least(width, height)",
            _TRIED, of="picture",
        ),
        Measure(
            "long_side", "Longer side, pixels", "长边（像素）", _SIDES, ranges(_SIDES), "greatest(width, height)",
            _TRIED, of="picture",
        ),
        Measure(
            "aspect", "Aspect ratio (width / height), from", "宽高比（下限）", _ASPECT, _ASPECT_LABELS,
            "width / height", (1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 10, 20), whole=False, of="picture",
        ),
        Measure(
            "blankness", "Share of the picture in one grey level", "同一灰度所占画面比例", _BLANK,
            (*_PERCENT[:9], "90–95%", "95–98%", "98–100%"), "blankness",
            (0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 1), whole=False, of="picture",
        ),
        Measure(
            "entropy", "Entropy of the grey levels, bits", "灰阶熵（比特）", range(8),
            [f"{i}–{i + 1}" for i in range(8)], "entropy", tuple(i / 2 for i in range(16)), whole=False, of="picture",
        ),
        Measure(
            "sharpness", "Sharpness (variance of the Laplacian)", "清晰度（拉普拉斯方差）", _SHARP, ranges(_SHARP),
            "sharpness", (0, 5, 10, 20, 30, 50, 75, 100, 200, 500), whole=False, of="picture",
        ),
        Measure(
            "frames", "Frames per file", "文件帧数", _FRAMES, ranges(_FRAMES), "frames", (1, 2, 3, 5, 10, 50, 100),
            of="picture",
        ),
        Measure(
            "file_bytes", "Size of the file as fetched, kB", "原始文件大小（kB）", [1_000 * kb for kb in _KB],
            ranges(_KB), "bytes",
            (0, 500, 1_000, 2_000, 3_000, 4_000, 5_000, 10_000, 20_000, 10**7, 2 * 10**7, 5 * 10**7),
            of="picture",
        ),
    )
}  # fmt: skip
"""Measures that a filter may limit, by name, in the order of the page."""

_HAN_SHARE = Measure(
    "han_share", "Share of Han characters in the primary text", "主文本汉字比例", _TENTHS, _PERCENT, HAN_SHARE,
    whole=False,
)  # fmt: skip

SAMPLED = (
    dataclasses.replace(MEASURES["characters"], sql="length(text)"),
    _HAN_SHARE,
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


_OF_FEATURES = ("width", "height", "blankness", "entropy", "sharpness", "frames", "bytes")


def add_bins(build: Build, tables: Tables, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Set `bins` of rows of the report's sheet: measure -> the bar of its histogram in which the row is counted.

    Of a picture that no build has measured, only what its sides tell. Returns the names of the measures.
    """
    limited = {limit.measure for f in text_filters(build.spec) for limit in f.limits()}
    measures = [*(m for m in MEASURES.values() if not m.of_words or m.name in limited), _HAN_SHARE]
    features = known_features(build.store, {row["sha256"] for row in rows if row["sha256"]})
    known = {row["sha256"]: row for row in features.select(["sha256", *_OF_FEATURES]).to_pylist()}
    values = []
    for at, row in enumerate(rows):
        sides = {name: row[name] for name in ("width", "height")} if row["width"] else {}
        values.append({"number": at, "text": row["text"] or None, **known.get(row["sha256"], {}), **sides})
    numbers = [(name, pa.float64()) for name in _OF_FEATURES]
    schema = pa.schema([("number", pa.int32()), ("text", pa.string()), *numbers])
    tables.put("shown_rows", pa.Table.from_pylist(values, schema=schema))
    bins = ", ".join(
        f'CASE WHEN {"text IS NOT NULL" if m.of == "text" else True} THEN {m.bin} END AS "{m.name}"' for m in measures
    )
    for found in tables.rows(f"SELECT number, {bins} FROM ({measured(tables, measures, 'SELECT * FROM shown_rows')})"):
        own = rows[found.pop("number")]
        own["bins"] = {name: at for name, at in found.items() if at is not None}
    return [measure.name for measure in measures]
