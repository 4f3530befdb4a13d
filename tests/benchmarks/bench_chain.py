"""A whole build against the chain of tools that a user would run today, from a table of URLs to shards on disk.

Both read one CSV of 20,000 pictures and captions (a twentieth of them copies: the same picture at 0.7 of its size, the
caption again) from one nginx, and run on two workers:

    ours    one `wenlan-data build`: filters by text length, repetition, sides and aspect; dedup of pictures and texts;
            tars, Parquet and manifest; the report; published. Without a detector of regions
    chain   img2dataset with the original bytes; data-juicer with filters by text length, repetition, shape and aspect,
            phash and MinHash of characters; webdataset tars (`chain_side.py`)

Each side is timed as whole commands, starts and imports included, in turns. CPU seconds are those of all processes that
a command leads to, also of those that it leaves behind: the machine may be shared. Pictures are cut from the photos of
the corpus by a seed, 400 pixels wide. The chain does less: it asks no robots.txt, keeps no reason of what it drops,
finds equal hashes only, and cannot go on where it was killed. `busy_share` is the CPU time of our passes from the first
fetch to the last filter by the time of both cores meanwhile.

Starts and ends, in CPU seconds of whole commands (user and system), in turns with a bare import of the terminal's
packages: --help, an error of usage, `plan` and a published `build` of 20 pictures, of which what its stages used.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

from tests.benchmarks.captions import captions
from tests.benchmarks.harness import (
    PEERS,
    ROOT,
    Figure,
    at_least,
    at_most,
    below,
    peer,
    photos,
    quick,
    report,
    shown,
    told,
)
from tests.benchmarks.loopback import nginx

WORKERS, THREADS, SMALL = 2, 32, 20
SIDE, QUALITY = 400, 82
COPIES = 20  # one in so many is a copy of an earlier one
LEFT_BEHIND_S = 30
PR_SET_CHILD_SUBREAPER = 36

RECIPE = """
project_name: chain
dataset_path: {source}
export_path: {out}
np: 2
use_cache: false
text_keys: text
process:
  - text_length_filter: {{min_len: 2, max_len: 50}}
  - character_repetition_filter: {{rep_len: 3, max_ratio: 0.5}}
  - image_shape_filter: {{min_width: 200, min_height: 200}}
  - image_aspect_ratio_filter: {{min_ratio: 0.333, max_ratio: 3.0}}
  - image_deduplicator: {{method: phash}}
  - document_minhash_deduplicator: {{tokenization: character, window_size: 2, jaccard_threshold: 0.7}}
"""


def main() -> int:
    small = quick(__doc__)
    count, rounds = (2_000, 1) if small else (20_000, 3)
    has_peers = peer("img2dataset") is not None and peer("dj-process") is not None
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what Ray leaves behind becomes ours to wait for
    with tempfile.TemporaryDirectory(prefix="wenlan-chain-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # for nginx, which may run as somebody else
        made = pictures(folder / "web", count)
        mine, theirs = list[tuple[tuple[float, float], float]](), list[tuple[float, float]]()
        with nginx(folder / "web") as port:
            table(folder / "table.csv", port, made, count)
            for _ in range(rounds):
                mine.append(ours(folder, port, count))
                theirs += [chain(folder, count)] if has_peers else []
        short = starts(folder, made[:SMALL], 1 if small else 5)
    wall = median(spent[0] for spent, _ in mine)
    figures = {
        "busy_share": at_least(median(busy for _, busy in mine), 0.9),
        "pairs_per_second": shown(count / wall, "1/s"),
        **short,
    }
    if theirs:
        figures["chain_to_ours"] = at_least(median(wall for wall, _ in theirs) / wall, 5.0)
        cpu = median(cpu for _, cpu in theirs) / median(spent[1] for spent, _ in mine)
        figures["chain_to_ours_cpu"] = at_least(cpu, 5.0)
    return report(figures)


def ours(folder: Path, port: int, count: int) -> tuple[tuple[float, float], float]:
    """(wall, CPU) seconds of a build, and its busy share."""
    spec, mine = folder / "chain.json", folder / "ours"
    spec.write_text(json.dumps(spec_of(port)), encoding="utf-8")
    place = ["--out", str(mine / "build"), "--store", str(mine / "store"), "--snapshot", "2026-01-01"]
    build = [sys.executable, "-m", "pipeline", "build", str(spec), *place, "--workers", str(WORKERS), "--json"]
    spent, said = timed(build, folder)
    answer = json.loads(said.splitlines()[-1])
    stages = {stage["name"]: stage for stage in answer["stages"]}
    assert answer["published"], answer
    fetched = stages["fetch"]["funnel"]
    assert fetched["kept"] == fetched["seen"] > 0.99 * count, fetched  # a few captions are dropped before
    by_stage = {name: (s["seconds"], s["cost"]["cpu_seconds"]) for name, s in stages.items() if s["partitions"]}
    told(f"ours: {spent[0]:.1f} s, CPU {spent[1]:.1f} s, {sum(answer['samples'].values()):,} samples")
    together = [by_stage[name] for name in ("fetch", "measure", "filter")]  # their passes run in one task
    busy = sum(cpu for _, cpu in together) / (WORKERS * sum(seconds for seconds, _ in together))
    told("    seconds, CPU: " + ", ".join(f"{n} {w:.1f}, {c:.1f}" for n, (w, c) in by_stage.items()))
    shutil.rmtree(mine)
    return spent, busy


def chain(folder: Path, count: int) -> tuple[float, float]:
    """(wall, CPU) seconds of the peers' tools, one after the other."""
    theirs, peers = folder / "chain", PEERS / "bin"
    theirs.mkdir()
    recipe, rows, kept = theirs / "recipe.yaml", theirs / "rows.jsonl", theirs / "kept/rows.jsonl"
    recipe.write_text(RECIPE.format(source=rows, out=kept), encoding="utf-8")
    fetch = {
        "input_format": "csv", "url_col": "url", "caption_col": "caption", "output_folder": theirs / "fetched",
        "output_format": "files", "processes_count": WORKERS, "thread_count": THREADS,
        "disable_all_reencoding": True, "resize_mode": "no", "number_sample_per_shard": 2_500, "enable_wandb": False,
    }  # fmt: skip
    side = str(Path(__file__).with_name("chain_side.py"))
    steps = [
        [
            str(peers / "img2dataset"),
            str(folder / "table.csv"),
            *(f"--{name}={value}" for name, value in fetch.items()),
        ],
        [str(peers / "python"), side, "list", str(theirs / "fetched"), str(rows)],
        [str(peers / "dj-process"), "--config", str(recipe)],
        [str(peers / "python"), side, "pack", str(kept), str(theirs / "tars")],
    ]
    costs = [timed(step, folder)[0] for step in steps]
    with rows.open("rb") as fetched, kept.open("rb") as left:
        numbers = sum(1 for _ in fetched), sum(1 for _ in left)
    assert numbers[0] == count, f"the chain fetched {numbers[0]} of {count}"
    each = ", ".join(f"{Path(s[0]).name} {w:.1f}, {c:.1f}" for s, (w, c) in zip(steps, costs, strict=True))
    told(f"chain: {numbers[1]:,} samples; seconds, CPU: {each}")
    shutil.rmtree(theirs)
    return sum(wall for wall, _ in costs), sum(cpu for _, cpu in costs)


def starts(folder: Path, names: Sequence[str], rounds: int) -> dict[str, Figure]:
    """What commands cost beside work."""
    pairs, out = folder / "small", folder / "started"
    pairs.mkdir()
    for name, text in zip(names, captions(len(names), 5), strict=True):
        copy = shutil.copy(folder / "web" / name, pairs / name.replace("/", "-"))
        Path(copy).with_suffix(".txt").write_text(text, encoding="utf-8")
    source = {"kind": "folder", "name": "small", "source_kind": "library", "path": str(pairs)}
    spec = folder / "small.json"
    said = {"name": "small", "contact": "https://example.org/bench", "sources": [source], "regions": {"detectors": []}}
    spec.write_text(json.dumps(said), encoding="utf-8")
    ours = [sys.executable, "-m", "pipeline"]
    commands = {
        "bare": [sys.executable, "-c", "import rich.console, rich.progress, rich_argparse"],
        "help": [*ours, "--help"],
        "usage": [*ours, "build"],
        "train_help": [sys.executable, "-m", "training", "--help"],
        "plan_20": [*ours, "plan", str(spec), "--json"],
        "build_20": [*ours, "build", str(spec), "--out", f"{out}/build", "--store", f"{out}/store", "--json"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in [*commands, "work_20"]}
    for _ in range(rounds):
        for name, command in commands.items():
            used, stdout = alone(command, folder)
            seconds[name].append(used)
        stages = json.loads(stdout.splitlines()[-1])["stages"]
        seconds["work_20"].append(sum(stage["cost"]["cpu_seconds"] for stage in stages))
        shutil.rmtree(out)
    used_by = {name: median(own) for name, own in seconds.items()}
    print("CPU:", ", ".join(f"{name} {own:.2f} s" for name, own in used_by.items()), file=sys.stderr)
    return {
        "help_cpu": at_most(max(used_by["help"], used_by["usage"], used_by["train_help"]), 0.25, "s"),
        "help_to_bare_cpu": shown(used_by["help"] / used_by["bare"]),
        "plan_20_cpu": at_most(used_by["plan_20"], 0.6, "s"),
        "build_20_beside_work_cpu": at_most(used_by["build_20"] - used_by["work_20"], 1.5, "s"),
    }


def alone(command: Sequence[str], folder: Path) -> tuple[float, str]:
    """(CPU seconds, stdout) of a command that starts no process which outlives it."""
    before = os.times()
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    own.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages are compiled
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=own, check=False)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system, done.stdout


def spec_of(port: int) -> dict[str, object]:
    """The spec of our side."""
    columns = {"image_url": "url", "texts": {"caption": "caption"}}
    return {
        "name": "chain",
        "contact": "https://example.org/bench",
        "sources": [
            {"kind": "url_table", "name": "table", "source_kind": "library", "path": "table.csv", "columns": columns}
        ],
        "egress": {"allow": [f"127.0.0.1:{port}"], "delay_s": 0.0002, "connections_per_host": THREADS},
        "fetch": {"threads": THREADS, "max_wait_s": 0, "images_per_partition": 2_500},
        "filters": [{"name": n} for n in ("text_length", "repetition", "image_sides", "image_aspect")],
        "regions": {"detectors": []},
    }


def timed(command: Sequence[str], folder: Path) -> tuple[tuple[float, float], str]:
    """((seconds, CPU seconds of all processes), stdout) of a command. Raises RuntimeError if it fails."""
    own = {**os.environ, "PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1"}
    own.pop("PYTHONDONTWRITEBYTECODE", None)
    if command[0] != sys.executable:  # the peers see nothing of ours
        del own["PYTHONPATH"]
    before = below()
    with _Used() as used:
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=own, check=False)
        wall = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stdout[-1000:]} {done.stderr[-3000:]}")
        until = time.monotonic() + LEFT_BEHIND_S
        while time.monotonic() < until and below().keys() - before.keys():
            for process in below().keys() - before.keys():
                with contextlib.suppress(ChildProcessError):  # it is nobody's yet that waits for it
                    os.waitpid(process, os.WNOHANG)
            time.sleep(0.05)
    return (wall, used.seconds()), done.stdout


class _Used(threading.Thread):
    """CPU seconds of all processes that begin below this one within the block, as they were seen last.

    Looked at ten times a second: what a process that ends had used is known to nobody else, since Ray's node does not
    wait for its workers.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._before, self._seen, self._ended = below(), dict[int, float](), threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.1):
            self._seen.update(below())

    def __enter__(self) -> _Used:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def seconds(self) -> float:
        return sum(seconds for process, seconds in self._seen.items() if process not in self._before)


def pictures(root: Path, count: int) -> list[str]:
    """Make `count` pictures below a folder; their paths. One in COPIES is a smaller one of the one before."""
    files = photos()
    root.mkdir()
    (root / "robots.txt").write_text("User-agent: *\nAllow: /\n", encoding="utf-8")
    each = -(-count // len(files))
    jobs = [(str(photo), str(root / f"{n}"), each, n) for n, photo in enumerate(files)]
    with ProcessPoolExecutor(WORKERS) as pool:
        made = [name for names in pool.map(_crops, jobs, chunksize=8) for name in names]
    return [str(Path(name).relative_to(root)) for name in made[:count]]


def _crops(job: tuple[str, str, int, int]) -> list[str]:
    """Crops of one photo by a seed: a quarter to half of each side, SIDE pixels wide."""
    from PIL import Image

    photo, folder, count, seed = job
    rng, out = random.Random(seed), Path(folder)
    out.mkdir()
    with Image.open(photo) as opened:
        opened.draft("RGB", (1600, 1600))
        image = opened.convert("RGB")
    names, last = [], image
    for number in range(count):
        name = str(out / f"{number}.jpg")
        if number % COPIES == COPIES - 1:
            last.resize((last.width * 7 // 10, last.height * 7 // 10)).save(name, quality=QUALITY)
        else:
            width, height = (round(side * rng.uniform(0.25, 0.5)) for side in image.size)
            left, top = rng.randrange(image.width - width), rng.randrange(image.height - height)
            cut = image.crop((left, top, left + width, top + height))
            last = cut.resize((SIDE, max(300, round(SIDE * height / width))))
            last.save(name, quality=QUALITY)
        names.append(name)
    return names


def table(path: Path, port: int, paths: list[str], count: int) -> None:
    """The table of both sides: a URL and a caption each, one caption in COPIES twice."""
    texts = captions(count, 3)
    for n in range(COPIES, count, COPIES):
        texts[n] = texts[n - 1]
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["url", "caption"])
        rows.writerows((f"http://127.0.0.1:{port}/{name}", text) for name, text in zip(paths, texts, strict=True))


if __name__ == "__main__":
    sys.exit(main())
