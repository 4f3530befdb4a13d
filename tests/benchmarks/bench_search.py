"""Search over 1,000,000 vectors of 2,048 dimensions: time, recall of the approximate search, memory, opening.

Vectors lie in clusters of very different sizes within 160 dimensions, with a gap between images and texts as two towers
leave one; a query is near some image. They are written by IndexWriter, as `wenlan-train embed` does it, and searched in
a process of its own, whose memory counts with all files that it has mapped. The peer is the search one would write:
NumPy, chunk by chunk, over the same files. The folder takes 5.5 GB below TMPDIR (--quick: 120 MB) while it runs.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_specs.search.folder import IndexInfo, read_index
from data_specs.search.index import IndexWriter
from data_specs.search.rows import Filters
from data_specs.search.search import Query, SearchIndex
from tests.benchmarks.harness import ROOT, answer_of, at_least, at_most, program, quick, report, told

WIDTH, INNER, CLUSTERS, PART = 2_048, 160, 20_000, 20_000
SIDE = "--search"
WORDS = ("红烧肉", "一只猫", "故宫", "雪景", "清蒸鲈鱼", "窗台", "小船", "相机", "自行车", "荷花", "灯笼", "长城")

Vectors = npt.NDArray[np.float32]


class Clusters:
    """Where vectors come from: [n, WIDTH] unit rows of images, and texts that are near some of them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._rng, self._basis = rng, rng.standard_normal((INNER, WIDTH), np.float32) / np.float32(WIDTH**0.5)
        topics = rng.standard_normal((200, INNER), np.float32)
        own = rng.standard_normal((CLUSTERS, INNER), np.float32)
        self._centres = topics[np.arange(CLUSTERS) % 200] + 0.8 * own
        sizes = rng.pareto(1.2, CLUSTERS) + 0.2
        self._shares = sizes / sizes.sum()
        self._noise = rng.standard_normal((4_096, WIDTH), np.float32) * np.float32(0.35 / WIDTH**0.5)
        self._gaps = [0.4 * _unit(rng.standard_normal((1, WIDTH), np.float32)) for _ in range(2)]

    def images(self, count: int) -> tuple[Vectors, Vectors]:
        """(unit rows, their places within the inner dimensions)."""
        of = self._rng.choice(CLUSTERS, count, p=self._shares)
        inner = _unit(self._centres[of] + 0.6 * self._rng.standard_normal((count, INNER), np.float32))
        return self._outer(inner, 0), inner

    def texts(self, inner: Vectors) -> Vectors:
        near = inner + np.float32(0.5 / INNER**0.5) * self._rng.standard_normal(inner.shape, np.float32)
        return self._outer(_unit(near), 1)

    def _outer(self, inner: Vectors, modality: int) -> Vectors:
        noise = self._noise[self._rng.integers(0, len(self._noise), len(inner))]
        return _unit(_unit(inner @ self._basis) + self._gaps[modality] + noise)


def _unit(rows: Vectors) -> Vectors:
    scaled: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


def write(folder: Path, count: int, queries: int) -> float:
    """Write the index, and queries beside it; returns the CPU seconds of `finish`."""
    clusters = Clusters()
    about = IndexInfo(name="bench", width=WIDTH, images=True, texts=False)
    with IndexWriter.begin(folder / "index", about) as writer:
        rng, inner = np.random.default_rng(1), []
        for low in range(0, count, PART):
            size = min(PART, count - low)
            vectors, places = clusters.images(size)
            inner.append(places[: 1 + queries * size // count])
            source = [f"source-{n}" for n in rng.choice(50, size, p=_zipf(50))]
            caption = [WORDS[a] + WORDS[b] for a, b in rng.integers(0, len(WORDS), (size, 2))]
            leader = [f"{(low + n) // 3:x}" for n in range(size)]
            columns = {"id": [f"{low + n}" for n in range(size)], "source": source, "caption": caption}
            writer.add(pa.table({**columns, "image_leader": leader}), vectors, None)
            told(f"{low + size:,} rows written")
        np.save(folder / "queries.npy", clusters.texts(np.concatenate(inner)[:queries]))
        began = time.process_time()
        writer.finish(approximate=True)
        return time.process_time() - began


def _zipf(count: int) -> npt.NDArray[np.float64]:
    shares = 1 / np.arange(1, count + 1)
    return shares / shares.sum()


def quantiles(search: Callable[[Vectors], object], queries: Vectors) -> dict[str, float]:
    """Seconds of a search: median and 99th percentile on the clock, mean of the CPUs."""
    waits, began = [], time.process_time()
    for query in queries:
        start = time.perf_counter()
        search(query)
        waits.append(time.perf_counter() - start)
    cpu = (time.process_time() - began) / len(queries)
    return {"p50": float(np.quantile(waits, 0.5)), "p99": float(np.quantile(waits, 0.99)), "cpu": cpu}


def searched(folder: Path) -> dict[str, object]:
    """Everything that is measured, in a process that does nothing else."""
    queries = np.load(folder / "queries.npy")
    began = time.perf_counter()
    index = SearchIndex.open(folder / "index")
    opening = time.perf_counter() - began
    index.search(Query(queries[0], exact=True))  # the files come from the disk once
    found: dict[str, object] = {"opening": opening, "rows": index.rows}
    few = queries[: max(20, len(queries) // 5)]
    answers: dict[bool, list[set[str]]] = {True: [], False: []}

    def ask(exact: bool, **more: object) -> Callable[[Vectors], object]:
        def search(query: Vectors) -> None:
            hits = index.search(Query(query, limit=10, exact=exact, **more)).hits  # type: ignore[arg-type]
            answers[exact].append({hit.id for hit in hits})

        return search

    found["exact"] = quantiles(ask(True, copies=True), few)
    truth, answers[True] = answers[True], []
    found["near"] = quantiles(ask(False, copies=True), queries)
    near, answers[False] = answers[False][: len(few)], []
    found["recall"] = float(np.mean([len(a & b) / len(b) for a, b in zip(near, truth, strict=True)]))
    rare, often = (Filters(source=frozenset({f"source-{n}"})) for n in (49, 0))
    found["rare"] = quantiles(lambda query: index.search(Query(query, limit=10, filters=rare)), few)
    found["often"] = quantiles(lambda query: index.search(Query(query, limit=10, filters=often, exact=False)), few)
    found["both"] = quantiles(lambda query: index.search(Query(query, words="红烧肉", exact=False)), few)
    found["words"] = quantiles(lambda query: index.search(Query(words="红烧肉 小船")), few)
    found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return found


def numpy_seconds(folder: Path) -> float:
    """CPU seconds of one query by NumPy over the same files."""
    query = np.load(folder / "queries.npy")[0]
    began = time.process_time()
    best = []
    for part in read_index(folder / "index").parts:
        vectors = np.load(folder / "index" / part.files["img_emb"].path, mmap_mode="r")
        for low in range(0, len(vectors), 4_096):
            best.append(vectors[low : low + 4_096].astype(np.float32) @ query)
    np.argpartition(np.concatenate(best), -10)
    return time.process_time() - began


def main() -> int:
    if SIDE in sys.argv:
        print(json.dumps(searched(Path(sys.argv[-1]))))
        return 0
    small = quick(__doc__)
    count, queries = (20_000, 100) if small else (1_000_000, 1_000)
    folder = Path(tempfile.mkdtemp(prefix="bench-search-"))
    try:
        building = write(folder, count, queries)
        found = answer_of(program("bench_search", SIDE, folder), {**os.environ, "PYTHONPATH": str(ROOT)})
        peer = numpy_seconds(folder)
    finally:
        shutil.rmtree(folder)
    for name in ("exact", "near", "rare", "often", "both", "words"):
        of = found[name]
        line = f"p50 {of['p50'] * 1e3:.1f} ms, p99 {of['p99'] * 1e3:.1f} ms, CPU {of['cpu'] * 1e3:.1f} ms"
        told(f"{name:8} {line}")
    told(f"words and cells made in {building:.0f} CPU s; NumPy {peer:.2f} CPU s a query")
    return report(
        {
            "search_exact_p50": at_most(found["exact"]["p50"], 1, "s"),
            "search_exact_p99": at_most(found["exact"]["p99"], 3, "s"),
            "search_exact_over_numpy": at_least(peer / found["exact"]["cpu"], 3 if small else 5),
            "search_near_p50": at_most(found["near"]["p50"], 0.1, "s"),
            "search_near_p99": at_most(found["near"]["p99"], 0.5, "s"),
            "search_near_recall": at_least(found["recall"], 0.95, "of 10"),
            "search_memory": at_most(found["memory"], 6, "GB"),
            "search_opening": at_most(found["opening"], 1, "s"),
        },
        **found,
    )


if __name__ == "__main__":
    sys.exit(main())
