"""Templates in the texts of each host, learnt from all pages of a build before `admit` runs.

What very many texts of a host share says nothing about a picture: it is cut off, and a picture that its template calls
an avatar or a QR code is dropped (`pipeline.texts.templates` says what a template is).

Learnt from a sample of the distinct texts, those with the smallest hashes: PER_HOST of a host and TEXTS of all hosts at
most. Which texts are in it follows from the texts alone, so the templates are the same however pages lie in WARC files
and however many workers read them. Names of pictures (alt, caption) and of pages (title) are two samples.

Tasks of the pass admit.sort clean and hash the names (`names_of`); the driver reads those with small hashes and leaves
the templates as what the pass reduces to (`rows`), for the tasks of `admit` (`read`).

Limits: the driver holds the sample. A host of more than
PER_HOST texts is judged by its sample; beyond TEXTS texts in all, the samples of all hosts become smaller alike.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import TextKind
from pipeline.sources import PageSource, sources_of
from pipeline.store.build import Build
from pipeline.texts.cleaning import clean
from pipeline.texts.templates import MIN_TEXTS, Template, Templates, learn

PASS_NAME = "admit.sort"
"""The pass that learns them."""

PER_HOST, TEXTS = 4_000, 1_000_000

_GROUP: dict[TextKind, str] = {"alt": "own", "caption": "own", "title": "title"}
"""Kinds whose texts are looked at, and the sample that they belong to."""

_WHOLE = float(1 << 64)

Key = tuple[str, str]
"""(host, group)."""

NAMES = "names.parquet"
"""Suffix of the file of names, by hash."""

NAME_SCHEMA = pa.schema([("number", pa.uint64()), ("host", pa.string()), ("group", pa.string()), ("text", pa.string())])
"""A text of a host, and its hash (`number_of`)."""


def number_of(text: str) -> int:
    """The hash of a text: 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def names_of(candidates: pa.Table) -> pa.Table:
    """NAME_SCHEMA rows of candidates' page_url and texts: each text of a host once, cleaned, by number."""
    names = dict[tuple[int, str, str], str]()
    for page_url, texts in zip(candidates["page_url"].to_pylist(), candidates["texts"].to_pylist(), strict=True):
        host = urlsplit(page_url).netloc
        for text in texts:
            if group := _GROUP.get(text["kind"]):
                cleaned = clean(text["text"])
                names[number_of(cleaned), host, group] = cleaned
    rows = [(*key, names[key]) for key in sorted(names)]
    columns = [list(values) for values in zip(*rows, strict=True)] or [[], [], [], []]
    return pa.table([pa.array(col, field.type) for col, field in zip(columns, NAME_SCHEMA, strict=True)], NAME_SCHEMA)


def page_sources(build: Build) -> set[str]:
    """Names of the sources whose texts have templates."""
    return {source.name for source in sources_of(build.spec) if isinstance(source, PageSource)}


class Sample:
    """The distinct texts of each key with the smallest hashes.

    A text is in the sample if its hash is below `limit`, and among the PER_HOST smallest of its key. The limit is
    halved whenever more than TEXTS are in it; since counts below a limit only grow, the last limit does not depend on
    the order in which texts were added.
    """

    def __init__(self, per_host: int = PER_HOST, most: int = TEXTS) -> None:
        self._per_host, self._most = per_host, most
        self._limit, self._count = 1 << 64, 0
        self._by_key: dict[Key, _Smallest] = {}

    @property
    def limit(self) -> int:
        """The hash from which on a text is in the sample of no host."""
        return self._limit

    def add(self, key: Key, text: str, number: int | None = None) -> None:
        """Add a text of a host; number: its hash, where that is known."""
        number = number_of(text) if number is None else number
        if number >= self._limit:
            return
        smallest = self._by_key.get(key)
        if smallest is None:
            smallest = self._by_key[key] = _Smallest({}, [])
        if number in smallest.texts or (len(smallest.heap) == self._per_host and number > -smallest.heap[0]):
            return
        smallest.texts[number] = text
        heapq.heappush(smallest.heap, -number)
        if len(smallest.heap) > self._per_host:
            del smallest.texts[-heapq.heappop(smallest.heap)]
        else:
            self._count += 1
        while self._count > self._most:
            self._halve()

    def _halve(self) -> None:
        self._limit //= 2
        for key, smallest in list(self._by_key.items()):
            texts = {number: text for number, text in smallest.texts.items() if number < self._limit}
            if texts:
                self._by_key[key] = _Smallest(texts, sorted(-number for number in texts))
            else:
                del self._by_key[key]
        self._count = sum(len(smallest.texts) for smallest in self._by_key.values())

    def texts(self) -> Iterator[tuple[Key, list[str], float]]:
        """(key, its texts, the share of its texts that they are), by key."""
        for key, smallest in sorted(self._by_key.items()):
            full = len(smallest.texts) == self._per_host
            yield key, list(smallest.texts.values()), (-smallest.heap[0] if full else self._limit) / _WHOLE


@dataclass(slots=True)
class _Smallest:
    texts: dict[int, str]  # by hash
    heap: list[int]  # their hashes below zero: the largest hash comes first


@dataclass(frozen=True)
class HostTemplates:
    """The templates of all hosts, by key."""

    by_key: dict[Key, Templates]

    def cut(self, page_url: str, kind: TextKind, text: str) -> tuple[str, Template | None]:
        if not self.by_key or (group := _GROUP.get(kind)) is None:
            return text, None
        templates = self.by_key.get((urlsplit(page_url).netloc, group))
        return templates.cut(text) if templates is not None else (text, None)


NO_TEMPLATES = HostTemplates({})


def learn_templates(build: Build) -> list[tuple[Key, Template]]:
    """The templates of a build's pages, by host."""
    sample = Sample()
    for names in _names(build, sample):
        for number, host, group, text in zip(*(names[name].to_pylist() for name in NAME_SCHEMA.names), strict=True):
            sample.add((host, group), text, number)
    return [
        (key, template)
        for key, texts, rate in sample.texts()
        if len(texts) >= MIN_TEXTS
        for template in sorted(learn(texts, rate), key=lambda t: (-t.texts, t.side, t.text))
    ]


def _names(build: Build, sample: Sample) -> Iterator[pa.Table]:
    """NAME_SCHEMA rows that may be in the sample, some at a time."""
    stage = build.stage(PASS_NAME)
    for record in stage.records():
        if NAMES in record.files:
            small = pc.field("number") < pa.scalar(sample.limit, pa.uint64()) if sample.limit < 1 << 64 else None
            yield stage.table(record, NAMES, filters=small)


def rows(build: Build) -> list[dict[str, Any]]:
    """Templates as they are written: host, group and the fields of a Template."""
    return [{"host": host, "group": group, **asdict(template)} for (host, group), template in learn_templates(build)]


def read(build: Build) -> HostTemplates:
    by_key: dict[Key, list[Template]] = {}
    for row in build.stage(PASS_NAME).reduced():
        fields = {name: row[name] for name in ("side", "text", "texts")}
        by_key.setdefault((row["host"], row["group"]), []).append(Template(**fields))
    return HostTemplates({key: Templates(templates) for key, templates in by_key.items()})
