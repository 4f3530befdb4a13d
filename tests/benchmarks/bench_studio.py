"""The studio over a build of 1,000,000 candidates: first screen, any facet, search, deep scrolling, and its memory.

The build is made through the store's own writers, in the formats of the stages: candidates, decisions of every stage,
fetched and measured pictures, shards. Then `wenlan-data studio` is started as its own process and asked over HTTP.
First screen: from asking for the page to the last of the answers that it needs, of a studio that was just started and
has prepared nothing. Facets: the slowest of all, once each is chosen. Memory: the peak of the studio's process.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from builds import begun, noise
from harness import Figure, at_most, quick, report

ROOT = Path(__file__).parents[2]
PER_PARTITION = 10_000
FATES = (("extract", "no_text", 0.15), ("admit", "text_too_short", 0.15), ("admit", "boilerplate", 0.10),
         ("fetch", "http_status", 0.05), ("filter", "image_too_small", 0.10), ("dedup", "near_image", 0.15),
         ("shard", "", 0.30))  # fmt: skip
"""(stage, reason, share) of the candidates; those of `shard` are kept."""
WORDS = re.findall("..", "故宫雪景高清图片北京城市夜景小猫睡觉草原骏马番茄炒蛋做法清晨阳光古镇江南水乡火车")
SIDES = (40, 120, 200, 320, 480, 640, 800, 1024)


def main() -> int:
    if "--make" in sys.argv:
        made(Path(sys.argv[sys.argv.index("--make") + 1]), int(sys.argv[-1]))
        return 0
    count = 50_000 if quick(__doc__ or "") else 1_000_000
    with tempfile.TemporaryDirectory(prefix="wenlan-studio-") as folder:
        start = time.perf_counter()
        subprocess.run([sys.executable, __file__, "--make", folder, str(count)], check=True, cwd=ROOT)
        print(f"{count:,} candidates made in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        return report(measured(Path(folder) / "build", count))


# the studio


class Asker:
    """A studio as its own process, asked over HTTP; `peak`: bytes of memory that it has had at most."""

    def __init__(self, build: Path) -> None:
        began = time.perf_counter()
        words = [sys.executable, "-m", "pipeline", "studio", str(build), "--no-browser", "--port", "0"]
        self.process = subprocess.Popen(
            words, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"(http://127\.0\.0\.1:\d+)/\?token=(\S+)", line):
                self.base, self.token = found[1], found[2]
                break
        else:
            raise SystemExit("the studio has not started")
        while True:
            try:
                self.get("/")
                break
            except OSError:
                time.sleep(0.005)
        self.started = time.perf_counter() - began

    def get(self, path: str) -> bytes:
        asked = urllib.request.Request(self.base + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(asked, timeout=120) as answer:
            return bytes(answer.read())

    def json(self, path: str, **query: Any) -> Any:
        return json.loads(self.get(f"/api/{path}?{urllib.parse.urlencode(query, doseq=True)}"))

    @property
    def cpu(self) -> float:
        """Seconds of the processor that it has had: what a busy machine does not change."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def peak(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def first_screen(studio: Asker) -> float:
    """Seconds until a browser has all that it shows first: page, scripts, counts, rows, the thumbnails in sight."""
    began = time.perf_counter()
    html = studio.get("/").decode()
    names = re.findall(r"/static/[\w.]+", html)
    names += [f"/static/{name}.js" for name in ("api", "detail", "dialogs", "dom", "facets", "list", "state", "words")]
    with ThreadPoolExecutor(6) as browser:
        list(browser.map(studio.get, names))
        g = studio.json("about")["g"]
        counts = studio.json("facets")
        rows = studio.json("rows", g=g, offset=0, limit=60)["rows"]
        list(browser.map(lambda row: studio.get(f"/api/thumb?pos={row['pos']}&g={g}&side=320"), rows[:16]))
    if counts["total"] < 1_000 or len(rows) != 60:
        raise SystemExit(f"the studio does not work: {counts['total']} decisions, {len(rows)} rows")
    return time.perf_counter() - began


def measured(build: Path, count: int) -> dict[str, Figure]:
    screens, starts = [], []
    for turn in range(3):
        studio = Asker(build)
        starts.append(studio.started)
        screens.append(first_screen(studio))
        used = f"{studio.cpu:.1f} s of the processor, with what is prepared meanwhile"
        print(f"first screen {screens[-1]:.2f} s, {starts[-1]:.1f} s after the command; {used}", file=sys.stderr)
        if turn < 2:
            studio.stop()
            for path in (build / "studio").glob("*"):
                path.unlink()
    began = time.perf_counter()
    while studio.json("facets")["prepared"]["state"] != "ready":
        time.sleep(0.2)
    prepared = time.perf_counter() - began
    before = studio.cpu
    facets = sorted(_facets(studio), reverse=True)
    each = (studio.cpu - before) / len(facets)
    print(f"slowest facets: {facets[:3]}; {each:.2f} s of the processor on average", file=sys.stderr)
    before = studio.cpu
    searches = [_timed(studio, q=words) for words in ("小猫睡觉 番茄", "第777幅", "host7.example/")]
    print(f"searches: {searches}; {(studio.cpu - before) / 3:.2f} s of the processor on average", file=sys.stderr)
    deep = [_timed(studio, only_rows=True, offset=int(count * share), **more) for share in (0.5, 0.99)
            for more in ({}, {"sort": "random"}, {"sort": "large"})]  # fmt: skip
    peak = studio.peak
    studio.stop()
    again = Asker(build)
    reopened = first_screen(again)
    peak = max(peak, again.peak)
    again.stop()
    return {
        "studio_first_screen": at_most(statistics.median(screens), 1.0, "s"),
        "studio_first_screen_again": at_most(reopened, 1.0, "s"),
        "studio_facet_slowest": at_most(facets[0][0], 1.0, "s"),
        "studio_search_slowest": at_most(max(searches), 3.0, "s"),
        "studio_deep_page_slowest": at_most(max(deep), 1.0, "s"),
        "studio_memory": at_most(peak / 1e9, 1.0, "GB"),
        "studio_prepared_after": at_most(prepared, 60.0, "s"),
    }


def _timed(studio: Asker, only_rows: bool = False, **query: Any) -> float:
    """Seconds until counts and rows of a choice are there."""
    began = time.perf_counter()
    if not only_rows:
        studio.json("facets", **query)
    studio.json("rows", **{"offset": 0, "limit": 60, **query})
    return time.perf_counter() - began


def _facets(studio: Asker) -> Iterator[tuple[float, str]]:
    """(seconds, facet) of the most and the least frequent value of every facet, each chosen alone."""
    for name, values in studio.json("facets")["facets"].items():
        for value in {values[0]["value"], values[-1]["value"]} if values else ():
            yield _timed(studio, **{name: value}), f"{name}={value}"


# the build


def made(folder: Path, count: int) -> None:
    """Write a build of `count` candidates, with everything up to the shards."""
    from pipeline.store import build_json
    from pipeline.store.build_json import Cost, Result

    build = begun(folder)
    pictures = noise(8, 80, 70)
    parts = -(-count // PER_PARTITION)
    ends = np.cumsum([round(share * PER_PARTITION) for *_, share in FATES])
    for part in range(parts):
        rows = _candidates(part, min(PER_PARTITION, count - part * PER_PARTITION), parts)
        fate = np.searchsorted(ends, np.arange(rows.num_rows) * PER_PARTITION // rows.num_rows, side="right")
        _write(build, f"{part:05d}-of-{parts:05d}", rows, np.random.default_rng(part).permutation(fate), pictures)
    build_json.note(build)
    for name in build.stages:
        build.stage(name).finish(build.stage(name).partitions(), build.passes[name].version)
        build_json.note(build, Result(name, False, parts, parts, 0.0, {}, Cost()))


def _hexes(names: list[str]) -> list[str]:
    return [hashlib.sha256(name.encode()).hexdigest() for name in names]


def _candidates(part: int, count: int, parts: int) -> pa.Table:
    """Rows of WITH_REMOVED_SCHEMA whose order keys lie in the range of a partition."""
    from pipeline.records import WITH_REMOVED_SCHEMA, order_range

    dice = np.random.default_rng(part)
    numbers = [part * PER_PARTITION + i for i in range(count)]
    urls = [f"https://img{i % 37}.host{i % 101}.example/{i}.jpg" for i in numbers]
    low = int(order_range(part, parts)[0], 16)
    keys = [f"{low + i:016x}" for i in range(count)]
    words = dice.integers(0, len(WORDS), (count, 6))
    texts = [[{"kind": ("alt", "caption", "title")[i % 3], "text": "".join(WORDS[w] for w in row) + f"第{i}幅",
               "original": ""}, {"kind": "surrounding", "text": "上下文" + "".join(WORDS[w] for w in row[::-1]),
               "original": ""}] for i, row in zip(numbers, words.tolist(), strict=True)]  # fmt: skip
    columns = {
        "order_key": keys,
        "candidate_id": _hexes([f"c{url}" for url in urls]),
        "fetch_id": _hexes(urls),
        "source": [f"s{i % 3}" for i in numbers],
        "source_kind": ["library"] * count,
        "origin": [str(i) for i in numbers],
        "page_url": [f"https://page.host{i % 101}.example/{i // 5}.html" for i in numbers],
        "image_url": urls,
        "texts": texts,
        "row": numbers,
        "text_rank": [0] * count,
        "removed": [[]] * count,
    }
    return pa.table({f.name: pa.array(columns[f.name], f.type) for f in WITH_REMOVED_SCHEMA})


def _decisions(rows: pa.Table, stage: str, reason: str, leaders: list[str]) -> pa.Table:
    from pipeline.decisions import DECISION_SCHEMA

    count = rows.num_rows
    texts = [entry[0]["text"] for entry in rows["texts"].to_pylist()]
    columns = {
        "subject": ["candidate"] * count,
        "id": rows["candidate_id"],
        "fetch_id": rows["fetch_id"],
        "source": rows["source"],
        "page_url": rows["page_url"],
        "url": rows["image_url"],
        "stage": [stage] * count,
        "kept": [not reason] * count,
        "reason": [reason] * count,
        "reasons": [[reason] if reason else []] * count,
        "evidence": ["3 characters; needs 5" if reason else ""] * count,
        "duplicate_of": leaders or [""] * count,
        "text": texts,
    }
    arrays = {f.name: columns[f.name] for f in DECISION_SCHEMA}
    return pa.table({f.name: pa.chunked_array([pa.array(arrays[f.name], f.type)]) if isinstance(arrays[f.name], list)
                     else arrays[f.name] for f in DECISION_SCHEMA})  # fmt: skip


def _write(build: Any, name: str, rows: pa.Table, fate: Any, jpegs: list[bytes]) -> None:
    """Commit one partition of every stage."""
    from pipeline.files.tars import TarWriter
    from pipeline.records import FEATURE_SCHEMA, FETCH_SCHEMA

    dropped = {i: rows.filter(pa.array(fate == i)) for i in range(len(FATES))}
    kept = dropped[len(FATES) - 1]
    leaders = kept["candidate_id"].to_pylist()
    order = ["extract", "admit", "fetch", "measure", "filter", "dedup"]
    for stage in order:
        here = [i for i, (own, *_) in enumerate(FATES) if own == stage]
        gone = [i for i, (own, *_) in enumerate(FATES) if own in order and order.index(own) <= order.index(stage)]
        entered = rows.filter(pa.array(~np.isin(fate, [i for i in gone if i not in here])))
        left = rows.filter(pa.array(~np.isin(fate, gone)))
        with build.stage(stage).attempt(f"{name[:5]}-{name}" if stage == "dedup" else name) as attempt:
            for i in here:
                of = dropped[i]
                copies = [leaders[n % 97 % len(leaders)] for n in range(of.num_rows)] if stage == "dedup" else []
                attempt.decide(_decisions(of, *FATES[i][:2], copies))
            if stage in ("extract", "admit"):
                attempt.write_table("parquet", left)
            if stage == "fetch":
                ok = [row != "http_status" for row in [FATES[f][1] for f in fate[~np.isin(fate, [0, 1, 2])]]]
                with attempt.path("tar").open("wb") as file:
                    tar = TarWriter(file)
                    places = [(tar.add(str(n), jpeg), len(jpeg)) for n, jpeg in enumerate(jpegs)]
                    tar.close()
                urls = entered["image_url"].to_pylist()
                at = [places[n % len(places)] if good else (-1, 0) for n, good in enumerate(ok)]
                columns = {
                    "fetch_id": entered["fetch_id"].to_pylist(), "image_url": urls, "ok": ok,
                    "reason": ["" if good else "http_status" for good in ok], "evidence": [""] * len(ok),
                    "sha256": [f"{'5' * 24}{row[:40]}" if good else "" for row, good in
                               zip(entered["fetch_id"].to_pylist(), ok, strict=True)],
                    "offset": [offset for offset, _ in at], "size": [size for _, size in at],
                    "fetched_at": ["2026-01-01T00:00:00Z"] * len(ok), "etag": [""] * len(ok),
                    "retry_after": [""] * len(ok),
                }  # fmt: skip
                columns["sha256"] = [_hexes([s])[0] if s else "" for s in columns["sha256"]]
                fetched = pa.table({f.name: pa.array(columns[f.name], f.type) for f in FETCH_SCHEMA})
                attempt.write_table("parquet", fetched)
                _write.sha256 = dict(zip(columns["fetch_id"], columns["sha256"], strict=True))  # type: ignore[attr-defined]
            if stage == "measure":
                attempt.write_table("parquet", _features(left, FEATURE_SCHEMA))
            counts = {"seen": entered.num_rows, "kept": left.num_rows, "dropped": entered.num_rows - left.num_rows}
            attempt.commit(counts)
    _pack(build, int(name[:5]), kept, jpegs)


def _features(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    count = rows.num_rows
    sides = np.array(SIDES)[np.arange(count) % len(SIDES)]
    columns: dict[str, Any] = {
        "sha256": [_write.sha256[i] for i in rows["fetch_id"].to_pylist()],  # type: ignore[attr-defined]
        "format": ["jpeg"] * count, "width": sides, "height": sides[::-1].copy(), "bytes": sides * 100,
        "frames": [1] * count, "alpha": [False] * count, "orientation": [1] * count,
        "blankness": np.full(count, 0.1), "phash": [[1]] * count, "signature": [b"\0"] * count,
        "entropy": np.linspace(0, 8, count), "sharpness": np.linspace(1, 900, count),
    }  # fmt: skip
    return pa.table({f.name: pa.array(columns[f.name], f.type) for f in schema})


def _pack(build: Any, number: int, kept: pa.Table, jpegs: list[bytes]) -> None:
    """One shard, whose samples share a few members of the tar."""
    from data_specs.shard import REGION_SCHEMA, SHARD_SCHEMA
    from pipeline.detectors import detector_ids
    from pipeline.files.tars import TarWriter

    name, count = f"train-{number:06d}", kept.num_rows
    ids = kept["candidate_id"].to_pylist()
    with build.stage("shard").attempt(name) as attempt:
        file = io.BytesIO()
        tar = TarWriter(file)
        places = [(tar.add(f"{n:032d}.jpg", jpeg), len(jpeg)) for n, jpeg in enumerate(jpegs)]
        tar.close()
        attempt.path("tar", final=f"{name}.tar").write_bytes(file.getvalue())
        shas = [_write.sha256[i] for i in kept["fetch_id"].to_pylist()]  # type: ignore[attr-defined]
        texts = [[{**{k: t[k] for k in ("kind", "text")}, "text_leader": "0" * 64} for t in row]
                 for row in kept["texts"].to_pylist()]  # fmt: skip
        columns: dict[str, Any] = {
            "key": [i[:32] for i in ids], "candidate_id": ids, "source": kept["source"].to_pylist(),
            "source_kind": ["library"] * count, "page_url": kept["page_url"].to_pylist(),
            "image_url": kept["image_url"].to_pylist(), "sha256": shas, "width": [80] * count, "height": [80] * count,
            "texts": texts, "image_leader": shas, "split": ["train"] * count, "format": ["jpeg"] * count,
            "fetched_at": ["2026-01-01T00:00:00Z"] * count, "text_rank": [0] * count,
            "image_offset": [places[n % len(places)][0] for n in range(count)],
            "image_size": [places[n % len(places)][1] for n in range(count)],
            **{f"{kind}_{what}": [0] * count for kind in ("text", "json") for what in ("offset", "size")},
        }  # fmt: skip
        import pyarrow.parquet as pq

        table = pa.table({f.name: pa.array(columns[f.name], f.type) for f in SHARD_SCHEMA})
        pq.write_table(
            table, attempt.path("parquet", final=f"{name}.parquet"), compression="zstd", row_group_size=1_000
        )
        path = attempt.path("decisions.parquet", final=f"_decisions/{name}.parquet")
        pq.write_table(_decisions(kept, "shard", "", []), path, compression="zstd")
        flat = [0.0, 0.0, 40.0, 40.0, 20.0, 20.0, 80.0, 80.0]
        boxes = {"key": columns["key"], "sha256": shas, "boxes": [flat] * count,
                 "scores": [[0.9, 0.5]] * count, "labels": [[0, 0]] * count}  # fmt: skip
        for detector in detector_ids(build.spec):
            final = f"regions/{detector}/{name}.parquet"
            table = pa.table({f.name: pa.array(boxes[f.name], f.type) for f in REGION_SCHEMA})
            pq.write_table(table, attempt.path(f"regions/{detector}", final=final), compression="zstd")
        attempt.commit({"seen": count, "kept": count, "dropped": 0, "bytes": 0}, {"split": "train"})


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
