"""Figures of the kept samples for the quality report: histograms, domains, words and regions, as plain JSON values.

The shards' Parquet and the regions beside them are read file by file into counters and histograms with fixed bins, so
memory does not grow with the dataset, and two reports can be compared bin by bin.

Limits: a counter of domains, words or clusters that grows beyond 200,000 entries is cut to its 100,000 largest, so
counts near the end of a very long list may be low. Words come from jieba, which segments about 1 MB of text per second,
so they are counted in at most 50,000 samples, the first of each shard in keyed-hash order; the report says in how many.
"""

from __future__ import annotations

import functools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.folding import code_points
from pipeline.records import DropReason
from pipeline.store.build import Build
from pipeline.store.frames import Frames, Part, decisions_of
from pipeline.store.partitions import Record
from pipeline.texts.words import stop_words, words_of

WORD_SAMPLES = 50_000
"""Most samples whose primary text is segmented into words."""
COUNTER_LIMIT = 200_000
"""Most entries of a counter before it is cut."""
DOMAINS = 200
"""Hosts that report.json lists; the page shows the first of them."""

VOCABULARY = 1_000
"""Words that report.json lists, with the samples in which each occurs."""

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")

COLUMNS = ("texts", "text_rank", "width", "height", "image_size", "format", "image_url", "page_url")
"""Columns of SHARD_SCHEMA that figures are made of."""

Numbers = npt.NDArray[np.float64] | npt.NDArray[np.int32]


@dataclass
class Histogram:
    """Counts in fixed bins.

    edges: lower bounds of the bins. Values below the first edge are counted in the first bin; the last bin is open.
    """

    name: str
    title: str
    title_zh: str
    edges: Sequence[float]
    labels: Sequence[str]
    counts: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        assert len(self.edges) == len(self.labels)
        self.counts = np.zeros(len(self.edges), np.int64)

    def add(self, values: Sequence[float] | Numbers, times: Sequence[int] | None = None) -> None:
        """Count values, each once or as often as `times` says."""
        if len(values):
            # the bin of a value is the last one whose lower bound it reaches; -1, below all of them, becomes bin 0
            bins = np.searchsorted(np.asarray(self.edges, np.float64), np.asarray(values, np.float64), side="right") - 1
            counted = np.bincount(np.maximum(bins, 0), weights=times, minlength=len(self.edges))
            self.counts += counted.astype(np.int64)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def value(self) -> dict[str, Any]:
        """The histogram as report.json has it."""
        bins = [{"label": label, "count": int(n)} for label, n in zip(self.labels, self.counts, strict=True)]
        names = {"name": self.name, "title": self.title, "title_zh": self.title_zh}
        return {**names, "total": self.total, "bins": bins}


def ranges(edges: Sequence[int], unit: str = "") -> list[str]:
    """Labels `1`, `2–3`, ..., `500+` for whole numbers."""
    labels = []
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        labels.append(
            f"{low}{unit}+" if high is None else f"{low}{unit}" if high == low + 1 else f"{low}–{high - 1}{unit}"
        )
    return labels


_CHARS = (0, 2, 4, 6, 8, 10, 15, 20, 30, 50, 100, 200, 500)
_WORDS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100)
_SIDES = (0, 64, 128, 200, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
_KILOBYTES = (0, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_REGIONS = (0, 1, 2, 5, 9, 17, 25, 36, 37)
_ASPECT = (0.0, 1 / 3, 1 / 2, 2 / 3, 0.9, 1.1, 1.5, 2.0, 3.0)
_ASPECT_LABELS = ("<1:3", "1:3", "1:2", "2:3", "1:1", "1.1", "3:2", "2:1", "3:1+")

EDGES: dict[str, Sequence[float]] = {"characters": _CHARS, "short_side": _SIDES, "long_side": _SIDES, "aspect": _ASPECT}
"""Lower bounds of the bins of measures that filters limit (`pipeline.report.limits`)."""


class Figures:
    """The pass over kept samples, shard by shard. words_per_shard: primary texts of a shard that are segmented.

    fallbacks: kinds of primary texts that stand in for better ones that were removed.
    """

    def __init__(self, detectors: Sequence[str], words_per_shard: int) -> None:
        self._words_per_shard = words_per_shard
        self.characters = Histogram("characters", "Characters per primary text", "主文本字数", _CHARS, ranges(_CHARS))
        self.words = Histogram(
            "words", "Words per primary text (jieba)", "主文本词数（结巴分词）", _WORDS, ranges(_WORDS)
        )
        tenths = [i / 10 for i in range(10)]
        labels = [f"{10 * i}–{10 * i + 10}%" for i in range(10)]
        self.han = Histogram(
            "han_share", "Share of Han characters in the primary text", "主文本汉字比例", tenths, labels
        )
        self.texts = Histogram("texts", "Texts per sample", "每个样本的文本数", range(1, 9), ranges(range(1, 9)))
        self.short = Histogram("short_side", "Shorter side, pixels", "短边（像素）", _SIDES, ranges(_SIDES))
        self.long = Histogram("long_side", "Longer side, pixels", "长边（像素）", _SIDES, ranges(_SIDES))
        self.aspect = Histogram(
            "aspect", "Aspect ratio (width / height), from", "宽高比（下限）", _ASPECT, _ASPECT_LABELS
        )
        self.bytes = Histogram(
            "bytes", "Size of the stored JPEG, kB", "JPEG 大小（kB）", _KILOBYTES, ranges(_KILOBYTES)
        )
        self.regions = {
            d: Histogram(
                f"regions/{d}", f"Regions per image, {d}", f"每幅图像的区域数，{d}", _REGIONS, ranges(_REGIONS)
            )
            for d in detectors
        }
        self.boxes: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self.primary_kinds: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.image_domains: Counter[str] = Counter()
        self.page_domains: Counter[str] = Counter()
        self.top_words: Counter[str] = Counter()
        self.word_samples = 0

    def add(self, build: Build, record: Record) -> None:
        if record.stage != "shard" or "tar" not in record.files:
            return
        frames, remaining = Frames.of(build, [record]), self._words_per_shard
        for batch in frames.batches("samples", COLUMNS, rows=5_000):
            self._add(batch, remaining)
            remaining = max(0, remaining - batch.num_rows)
        for detector, histogram in self.regions.items():
            for batch in frames.batches(f"regions/{detector}", ["scores"]):
                counts = pc.list_value_length(batch["scores"]).to_numpy()
                histogram.add(counts)
                self.boxes[detector] += int(counts.sum())

    def _add(self, rows: pa.RecordBatch, segmented: int) -> None:
        """Count rows of SHARD_SCHEMA (COLUMNS); only the first `segmented` primary texts are segmented into words."""
        primary = pc.list_element(rows["texts"], 0)
        texts = pc.struct_field(primary, "text").to_pylist()
        self.characters.add([len(text) for text in texts])
        self.han.add(np.minimum(han_shares(texts), 0.999))  # 100% belongs to the bin 90–100%
        self.texts.add(pc.list_value_length(rows["texts"]).to_numpy())
        width, height = rows["width"].to_numpy(), rows["height"].to_numpy()
        self.short.add(np.minimum(width, height))
        self.long.add(np.maximum(width, height))
        self.aspect.add(width / height)
        self.bytes.add(rows["image_size"].to_numpy() / 1_000)
        kinds = pc.struct_field(primary, "kind")
        self.primary_kinds.update(counted(kinds))
        self.fallbacks.update(counted(kinds.filter(pc.greater(rows["text_rank"], 0))))
        self.kinds.update(counted(pc.struct_field(pc.list_flatten(rows["texts"]), "kind")))
        self.formats.update(counted(rows["format"]))
        self.image_domains.update(domains(rows["image_url"]))
        self.page_domains.update(domains(rows["page_url"].filter(pc.not_equal(rows["page_url"], ""))))
        self._count_words(texts[:segmented])
        self._trim()

    def _trim(self) -> None:
        for counter in (self.image_domains, self.page_domains, self.top_words):
            trim(counter)

    def _count_words(self, texts: Sequence[str]) -> None:
        """Count the words of texts; the list of frequent words takes a word once per text."""
        segmented = [words_of(text) for text in texts]
        self.words.add([len(words) for words in segmented])
        for words in segmented:
            self.top_words.update(telling(words))
        self.word_samples += len(texts)

    @property
    def histograms(self) -> list[Histogram]:
        """All there are, in the order of report.json."""
        shapes = [self.characters, self.words, self.han, self.texts, self.short, self.long, self.aspect, self.bytes]
        return [*shapes, *self.regions.values()]

    def state(self) -> dict[str, Any]:
        counters = {name: dict(getattr(self, name)) for name in _COUNTERS}
        bins = {histogram.name: histogram.counts.tolist() for histogram in self.histograms}
        return {"bins": bins, "counters": counters, "word_samples": self.word_samples}

    def merge(self, state: dict[str, Any]) -> None:
        for histogram in self.histograms:
            histogram.counts += np.array(state["bins"][histogram.name], np.int64)
        for name, counts in state["counters"].items():
            getattr(self, name).update(counts)
        self.word_samples += state["word_samples"]
        self._trim()

    def value(self) -> dict[str, Any]:
        """All figures, as report.json has them."""
        return {
            "histograms": [histogram.value() for histogram in self.histograms],
            "kinds": [
                {"name": kind, "texts": n, "primary": self.primary_kinds[kind]} for kind, n in ranked(self.kinds, 10)
            ],
            "formats": [{"name": name, "count": n} for name, n in ranked(self.formats, 10)],
            "image_domains": [{"name": name, "count": n} for name, n in ranked(self.image_domains, DOMAINS)],
            "page_domains": [{"name": name, "count": n} for name, n in ranked(self.page_domains, DOMAINS)],
            "regions": [
                {
                    "detector": name,
                    "images": histogram.total,
                    "mean": round(self.boxes[name] / max(1, histogram.total), 3),
                    "without": int(histogram.counts[0]),
                }
                for name, histogram in self.regions.items()
            ],
            "words": [{"name": name, "count": n} for name, n in ranked(self.top_words, 40)],
            "vocabulary": dict(ranked(self.top_words, VOCABULARY)),
            "word_samples": self.word_samples,
        }


_COUNTERS = (
    "boxes", "kinds", "fallbacks", "primary_kinds", "formats", "image_domains", "page_domains", "top_words"
)  # fmt: skip


class KnownHosts:
    """The pass over candidates whose image the dataset holds already, by the host of the image."""

    def __init__(self) -> None:
        self.hosts: Counter[str] = Counter()

    def add(self, build: Build, record: Record) -> None:
        decisions = decisions_of(build, record)
        if decisions is not None and _some_known(decisions):
            for batch in decisions.batches(["url", "reason"]):
                self.hosts.update(domains(batch["url"].filter(pc.equal(batch["reason"], DropReason.KNOWN.value))))
            trim(self.hosts)

    def state(self) -> dict[str, Any]:
        return dict(self.hosts)

    def merge(self, state: dict[str, Any]) -> None:
        self.hosts.update(state)
        trim(self.hosts)


def telling(words: Iterable[str]) -> set[str]:
    """Those of a text's words that say what it is about: Chinese, and longer than a character."""
    return {w for w in words if len(w) > 1 and w not in stop_words() and HAN.search(w)}


def known_words(build: Build) -> Counter[str]:
    """Words of the candidates whose image the dataset holds already, of the first WORD_SAMPLES."""
    words, remaining = Counter[str](), WORD_SAMPLES
    for part in Frames.of(build).parts("decisions"):
        if remaining and _some_known(part):
            texts = part.table(["text"], pc.field("reason") == DropReason.KNOWN.value)["text"]
            for text in texts.slice(0, remaining).to_pylist():
                words.update(telling(words_of(text)))
            remaining = max(0, remaining - len(texts))
            trim(words)
    return words


def _some_known(decisions: Part) -> bool:
    return any(fate.reason == DropReason.KNOWN.value for fate in decisions.fates())


def ranked(counter: Counter[str], count: int) -> list[tuple[str, int]]:
    """The `count` largest entries. Ties are ordered by name, so that two reports of one build are equal."""
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:count]


def trim(counter: Counter[str]) -> None:
    """Cut a counter of more than COUNTER_LIMIT entries to its larger half."""
    if len(counter) > COUNTER_LIMIT:
        largest = ranked(counter, COUNTER_LIMIT // 2)
        counter.clear()
        counter.update(dict(largest))


def counted(values: pa.Array) -> dict[str, int]:
    """How often each value occurs, in the order in which they occur first."""
    return {row["values"]: row["counts"] for row in pc.value_counts(values).to_pylist()}


def domains(urls: pa.Array) -> Counter[str]:
    """How often each host occurs, by `domain`, which looks once at URLs that begin alike."""
    hosts: Counter[str] = Counter()
    for start, count in counted(pc.replace_substring_regex(urls, _AFTER_HOST, r"\1")).items():
        hosts[domain(start)] += count
    return hosts


_AFTER_HOST = r"(?s)^([^/?#]*//[^/?#]*).*$"
"""A URL, and in a group what of it stands before the path: scheme and host."""


_PLAIN = re.compile(r"https?://([a-z0-9.-]+)(?![^/?#])")
"""A URL with a host of which nothing has to be decided; in a group that host."""


def domain(url: str) -> str:
    """Host of a URL in lower case; "" if it has none."""
    if plain := _PLAIN.match(url):
        return plain[1]
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def han_share(text: str) -> float:
    """Share of Han characters among all characters but white space, 0 to 1."""
    visible = sum(map(len, text.split()))
    return len(HAN.findall(text)) / visible if visible else 0.0


def han_shares(texts: Sequence[str]) -> Numbers:
    """[N] `han_share` of each text."""
    points = code_points("".join(texts))
    starts = np.concatenate([[0], np.cumsum([len(text) for text in texts], dtype=np.int64)])
    table = _sorts_of_characters()[points]
    # what comes before each text is taken from what comes before its end
    han, white = (np.concatenate([[0], np.cumsum(table == sort)])[starts] for sort in (_IS_HAN, _IS_WHITE))
    visible = np.diff(starts) - np.diff(white)
    shares: Numbers = np.diff(han) / np.maximum(visible, 1)
    return shares


_IS_HAN, _IS_WHITE = 1, 2


@functools.cache
def _sorts_of_characters() -> npt.NDArray[np.uint8]:
    """By code point: whether a character is Han, or white space."""
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    sorts = np.zeros(len(every), np.uint8)
    for found in HAN.finditer(every):
        sorts[found.start()] = _IS_HAN
    for found in re.finditer(r"\s", every):
        sorts[found.start()] = _IS_WHITE
    return sorts
