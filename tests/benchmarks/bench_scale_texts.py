"""Near texts at scale: a million captions, a fifth of them in one hot cluster, as one process from file to file.

Half of the hot cluster are exact copies, half differ from it in one character. The exponent is that of the process'
CPU time between 100,000 and 1,000,000 captions, start-up included in neither (an empty run is taken off). A second
input is what makes buckets hot without being a cluster: captions from one template that are all different; it has no
bar, its exponent is printed.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from captions import ROOT, captions
from harness import Figure, quick, report

COMMAND = Path(__file__).parent / "dedup_texts.py"
HOT = "这家餐厅的红烧肉味道非常好值得推荐给大家来尝试一下"


def main() -> int:
    small = quick(__doc__ or "")
    low, high = (10_000, 100_000) if small else (100_000, 1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.parquet"
        _, start, _ = _run(path, [])
        _, cpu_low, _ = _run(path, hot_cluster(low))
        seconds, cpu_high, memory = _run(path, hot_cluster(high))
        _, cpu_third, _ = _run(path, template(low // 2))
        _, cpu_templates, _ = _run(path, template(low * 3 // 2))
    exponent = math.log((cpu_high - start) / (cpu_low - start)) / math.log(high / low)
    templates = math.log((cpu_templates - start) / (cpu_third - start)) / math.log(3)
    print(f"one template: exponent {templates:.2f}", file=sys.stderr)
    bar = 10.0 if small else 60.0
    return report(
        {
            "seconds": Figure(round(seconds, 1), "s", bar, seconds <= bar),
            "cpu_seconds": Figure(round(cpu_high, 1), "s", bar, cpu_high <= bar),
            "memory": Figure(round(memory / 1e9, 2), "GB", 2.0, memory <= 2e9),
            "exponent": Figure(round(exponent, 2), "", 1.1, exponent <= 1.1),
        }
    )


def hot_cluster(count: int) -> list[str]:
    rng = random.Random(5)
    texts = captions(count - count // 5, 3)
    letters = sorted({c for text in texts[:3_000] for c in text})
    for _ in range(count // 5):
        at = rng.randrange(len(HOT))
        texts.append(HOT if rng.random() < 0.5 else HOT[:at] + rng.choice(letters) + HOT[at + 1 :])
    rng.shuffle(texts)
    return texts


def template(count: int) -> list[str]:
    """Captions that share half of their characters."""
    return [f"这张照片展示了制作{text}的步骤" for text in captions(8 * count, 7) if 5 <= len(text) <= 12][:count]


def _run(path: Path, texts: list[str]) -> tuple[float, float, int]:
    """(seconds, CPU seconds, peak bytes) of the whole command."""
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path)
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(COMMAND), str(path), str(path.with_suffix(".jsonl"))], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{COMMAND.name} failed with exit code {process.returncode}")
    with path.with_suffix(".jsonl").open() as lines:
        kept = sum(1 for _ in lines)
    cpu, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    print(
        f"{len(texts)} captions: {seconds:.1f} s, CPU {cpu:.1f} s, {memory / 1e9:.2f} GB, {kept} kept", file=sys.stderr
    )
    return seconds, cpu, memory


if __name__ == "__main__":
    raise SystemExit(main())
