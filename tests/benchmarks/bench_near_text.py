"""Near texts on real Chinese captions with planted copies: recall by kind, precision of whole clusters, and speed.

Quality: 50,000 captions of 1 to 40 characters (see `captions`), 2,000 of each kind of copy among them, in random order.
A copy is found if it has the leader of what it was copied from. Of all pairs inside clusters one is right if both are
copies of one caption (other than by a digit), or equal but for width, punctuation and script, or apart by one
character in ten at most (edit distance); what is equal is decided here, with OpenCC, not by our own code.

Speed: our command (`dedup_texts.py`: wenlan has none of its own for texts alone) against data-juicer's with character
shingles, each as a whole process from file to file, on the same 500,000 captions, in turns.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from tests.benchmarks.captions import captions, copies, sentences
from tests.benchmarks.harness import ROOT, Figure, at_least, interleaved, peer, program, quick, report, told

BARS = {"exact": 0.99, "width": 0.99, "punctuation": 0.99, "traditional": 0.99, "one_changed": 0.95}
LARGEST = 20

RECIPE = """
project_name: near_text
dataset_path: {source}
export_path: {out}
np: 2
use_cache: false
process:
  - document_minhash_deduplicator:
      tokenization: character
      window_size: 2
      jaccard_threshold: 0.7
"""


def main() -> int:
    small = quick(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        figures = quality(Path(folder), 10_000 if small else 50_000)
        figures |= speed(Path(folder), 20_000 if small else 500_000, 1 if small else 3)
    return report(figures)


def quality(folder: Path, count: int) -> dict[str, Figure]:
    rng = random.Random(2)
    each = count // 25
    originals = captions(count - 6 * each, 1)
    items: list[tuple[str, int, str]] = [(text, i, "") for i, text in enumerate(originals)]
    for kind, make in copies(rng).items():
        made = ((make(originals[i]), i) for i in rng.sample(range(len(originals)), len(originals)))
        items += [(text, i, kind) for text, i in itertools.islice(((t, i) for t, i in made if t is not None), each)]
    rng.shuffle(items)
    real = set(sentences())
    share = sum(text in real for text in originals) / len(originals)
    told(f"{len(items)} captions, {share:.0%} of the originals real sentences, the rest real words")
    leaders = _ours(folder, [text for text, _, _ in items])

    leader_of = {i: leader for (_, i, kind), leader in zip(items, leaders, strict=True) if not kind}
    found: defaultdict[str, list[bool]] = defaultdict(list)
    for (_, i, kind), leader in zip(items, leaders, strict=True):
        if kind:
            found[kind].append(leader == leader_of[i])
    figures = {f"recall_{kind}": at_least(sum(found[kind]) / len(found[kind]), bar, "") for kind, bar in BARS.items()}
    together = sum(found["digit"])
    figures["digit_copies_merged"] = Figure(together, f"of {len(found['digit'])}", 0, together == 0)

    clusters: defaultdict[int, list[tuple[str, int, str]]] = defaultdict(list)
    for item, leader in zip(items, leaders, strict=True):
        clusters[leader].append(item)
    right, pairs = _pairs(clusters.values())
    figures["precision_over_all_pairs"] = at_least(right / pairs, 0.99, f"of {pairs}")
    told(f"the {LARGEST} largest clusters:")
    for cluster in sorted(clusters.values(), key=len, reverse=True)[:LARGEST]:
        told(f"  {len(cluster)}: " + " | ".join(text for text, _, _ in cluster[:8]))
    return figures


def _pairs(clusters: object) -> tuple[int, int]:
    """(right pairs, all pairs) inside clusters; prints some of the wrong ones."""
    import opencc

    simplified = opencc.OpenCC("t2s").convert

    def plain(text: str) -> str:
        return re.sub(r"[\W_]", "", simplified(unicodedata.normalize("NFKC", text)).lower())

    right, wrong = 0, []
    for cluster in clusters:  # type: ignore[attr-defined]
        for (one, i, kind), (other, j, other_kind) in itertools.combinations(cluster, 2):
            if i == j and "digit" not in (kind, other_kind):
                right += 1
                continue
            a, b = plain(one), plain(other)
            if a == b or 10 * _edits(a, b) <= max(len(a), len(b)):
                right += 1
            else:
                wrong.append(f"{one} | {other}")
    told("\n  ".join([f"{len(wrong)} wrong pairs, for example:", *wrong[:10]]))
    return right, right + len(wrong)


def _edits(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def speed(folder: Path, count: int, rounds: int) -> dict[str, Figure]:
    if (data_juicer := peer("dj-process")) is None:
        return {}
    texts = captions(count - count // 5, 4)
    texts += random.Random(6).choices(texts, k=count // 5)
    source, recipe = folder / "speed.jsonl", folder / "recipe.yaml"
    _write(source, texts)
    recipe.write_text(RECIPE.format(source=source, out=folder / "theirs/out.jsonl"))
    ours, theirs = interleaved(
        _command(program("dedup_texts", source, folder / "ours.jsonl")),
        _command([str(data_juicer), "--config", str(recipe)]),
        rounds=rounds,
        warm=False,
    )
    for name in ("ours.jsonl", "theirs/out.jsonl"):
        with (folder / name).open() as lines:
            told(f"{name}: {sum(1 for _ in lines)} of {count} kept")
    told(f"ours {ours:.1f} s, data-juicer {theirs:.1f} s for {count} captions")
    return {"speed_against_data_juicer": at_least(theirs / ours, 10)}


def _ours(folder: Path, texts: list[str]) -> list[int]:
    source, out = folder / "captions.jsonl", folder / "kept.jsonl"
    _write(source, texts)
    _command(program("dedup_texts", source, out))()
    found: list[int] = pq.read_table(out.with_suffix(".leaders"))["leader"].to_pylist()
    return found


def _write(path: Path, texts: list[str]) -> None:
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def _command(arguments: list[str]) -> Callable[[], object]:
    def run() -> None:
        done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            raise RuntimeError(f"{arguments[0]} failed: {done.stderr[-2000:]}")

    return run


if __name__ == "__main__":
    sys.exit(main())
