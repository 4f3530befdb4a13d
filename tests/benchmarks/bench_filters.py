"""Text filters: captions a second with all of them on, beside data-juicer's text ops and a search by pyahocorasick.

Captions are clauses of real pages, two put together where one is not enough, all different, 5 to 40 characters; one
in twenty is made into what filters look for (numbers, ads, Traditional script, repetition, file names). Both sides get
two processes, each warmed by captions that do not count; what is timed is judging alone, no reading and no writing.
data-juicer has no list of ads, no check digits and no lexicon of its own: its ops are those that come nearest, called
batch by batch without its executor, which would cost it more than they do.

Needs ../shared/corpus (pages, word lists) and, for the ratios, the peers' environment (`make bench-venv`).
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_specs.shard import Text
from pipeline.filters import TextFilter
from pipeline.plugins import configure
from pipeline.rows.decisions import Decision
from pipeline.rows.records import Candidate
from pipeline.stages.admit import judge
from pipeline.texts.characters import CHUNK
from pipeline.texts.text_order import TextOrder
from tests.benchmarks.harness import CORPUS, SITE, at_least, interleaved, needed, peer, quick, report, told

PROCESSES = 2
DOUBTFUL = "国立西洋美術館常設展示作品一覧"
"""A text for which `language` loads its model, once per process: 80 ms that are no part of a caption's cost."""
FILTERS: list[tuple[str, dict[str, Any]]] = [
    ("text_length", {"min_words": 2, "max_words": 30}),
    ("han_share", {}),
    ("language", {}),
    ("boilerplate", {}),
    ("repetition", {}),
    ("ads", {}),
    ("lexicon", {"lists": {p.stem: str(p) for p in sorted((CORPUS / "lexicon").glob("*.txt"))}}),
    ("personal_data", {}),
    ("to_simplified", {}),
]

DATA_JUICER = """
import json, multiprocessing, sys, time
from data_juicer.ops import load_ops
from data_juicer.utils.constant import Fields

OPS = [
    {"text_length_filter": {"min_len": 5, "max_len": 50}},
    {"alphanumeric_filter": {"tokenization": False}},
    {"special_characters_filter": {}},
    {"character_repetition_filter": {"rep_len": 3, "max_ratio": 0.5}},
    {"clean_links_mapper": {}},
    {"clean_email_mapper": {}},
    {"pii_redaction_mapper": {}},
    {"chinese_convert_mapper": {"mode": "t2s"}},
]

def work(texts):
    for at in range(0, len(texts), 1000):
        batch = {"text": texts[at : at + 1000]}
        batch[Fields.stats] = [{} for _ in batch["text"]]
        for op in ops:
            if hasattr(op, "compute_stats_batched"):
                batch = op.compute_stats_batched(batch)
                list(op.process_batched(batch))  # all go on, as all of ours see every filter
            else:
                batch = op.process_batched(batch)

ops = load_ops(OPS)
captions = json.load(sys.stdin)
half = len(captions) // 2
with multiprocessing.get_context("fork").Pool(2) as pool:
    pool.map(work, [captions[:500], captions[half : half + 500]], chunksize=1)
    start = time.perf_counter()
    pool.map(work, [captions[:half], captions[half:]], chunksize=1)
    print(time.perf_counter() - start)
"""

SEARCH = """
import json, sys, time
import ahocorasick, ahocorasick_rs

words, texts = json.load(sys.stdin)
theirs = ahocorasick.Automaton()
for word in words:
    theirs.add_word(word, word)
theirs.make_automaton()
ours = ahocorasick_rs.AhoCorasick(words)
seconds = [[], []]
for turn in range(6):
    start = time.perf_counter()
    found = [ours.find_matches_as_indexes(text, overlapping=True) for text in texts]
    middle = time.perf_counter()
    same = [list(theirs.iter(text)) for text in texts]
    seconds[0].append(middle - start)
    seconds[1].append(time.perf_counter() - middle)
assert [len(f) for f in found] == [len(s) for s in same]
print(json.dumps([sorted(s[1:])[2] for s in seconds]))
"""


def captions(count: int) -> list[str]:
    """Different captions made of real clauses, in an order made by a seed."""
    from pipeline.pages.page import parse
    from pipeline.texts.charset import decode

    clauses: dict[str, None] = {}
    for page in sorted(needed(SITE).rglob("*.html")):
        decoded = decode(page.read_bytes(), "text/html")
        for image in parse(decoded[0]).images if decoded else ():
            for text in image.texts:
                clauses.update(dict.fromkeys(re.split(r"[，。！？；：\s]+", text.text)))
    real = [clause for clause in clauses if 3 <= len(clause) <= 20 and not re.search("[^\\w（）、-]", clause)]
    dice = random.Random(7)
    made = dict.fromkeys(clause for clause in real if len(clause) >= 5)
    while len(made) < count:
        made[f"{dice.choice(real)}{dice.choice(['，', ' ', '', '的'])}{dice.choice(real)}"] = None
    found = list(made)[:count]
    dice.shuffle(found)
    return [_spoilt(text, dice) if dice.random() < 0.05 else text for text in found]


def _spoilt(text: str, dice: random.Random) -> str:
    """A caption made into something that a filter drops or rewrites."""
    number = "".join(str(dice.randrange(10)) for _ in range(8))
    makers = [
        f"{text} 138{number}",
        f"{text} 加V信 a{number}",
        f"{text} www.site{number}.com",
        f"{text} 身份证 110105{number}1234",
        _traditional().convert(text),
        text[:3] * 6,
        f"IMG_{number}.jpg",
        f"{text} 特价9.9元包邮",
    ]
    return dice.choice(makers)


@functools.cache
def _traditional() -> Any:
    import opencc

    return opencc.OpenCC("s2t")


def filters() -> list[TextFilter]:
    return [configure("filters", name, options, TextFilter) for name, options in FILTERS]


def candidates(texts: Sequence[str]) -> list[Candidate]:
    return [Candidate("s", "news", str(i), "", f"http://a.test/{i}", (Text("alt", t),)) for i, t in enumerate(texts)]


def judge_all(texts: Sequence[str]) -> tuple[float, Counter[str]]:
    """Seconds that judging takes, and what became of the captions."""
    configured, made, counts = filters(), candidates(texts), Counter[str]()
    judge([*made[:500], *candidates([DOUBTFUL])], configured, TextOrder(), Counter())
    start = time.perf_counter()
    judged = judge(made, configured, TextOrder(), counts)
    seconds = time.perf_counter() - start
    counts.update(j.reason if isinstance(j, Decision) else "kept" for j in judged)
    return seconds, counts


def ours(texts: Sequence[str]) -> tuple[float, Counter[str]]:
    """Wall seconds of two processes that judge half of the captions each: those of the slower one."""
    half = len(texts) // PROCESSES
    with multiprocessing.get_context("fork").Pool(PROCESSES) as pool:
        found = pool.map(judge_all, [texts[i * half : (i + 1) * half] for i in range(PROCESSES)], chunksize=1)
    return max(seconds for seconds, _ in found), sum((counts for _, counts in found), Counter())


def printed(python: Path, script: str, given: Any) -> Any:
    """The value that a script prints last, run in the peers' environment."""
    done = subprocess.run([str(python), "-c", script], input=json.dumps(given), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"a peer of the filters ended with {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def by_filter(texts: Sequence[str]) -> None:
    """Microseconds of CPU that each filter takes in the order and the chunks of `admit`, for people.

    What several filters ask of a text (`pipeline.texts.forms`) is on the account of the first.
    """
    seconds = Counter[str]()
    configured = filters()
    for at in (0, *range(0, len(texts), CHUNK)):
        if at <= CHUNK:
            seconds.clear()  # what is loaded once does not count
        given = [Text("alt", text) for text in texts[at : at + CHUNK]]
        for f in configured:
            start = time.process_time()
            for text in given:
                f.check(text)
                f.rewrite(text)
            seconds[f.plugin_name()] += time.process_time() - start
    for name, spent in seconds.items():
        told(f"{name:15} {spent / len(texts) * 1e6:6.2f} us")


def main() -> int:
    count, rounds = (20_000, 1) if quick(__doc__) else (100_000, 3)
    texts, python, decided = captions(count), peer("python"), Counter[str]()
    told(f"{len(texts):,} captions of {sum(map(len, texts)) / len(texts):.1f} characters")
    by_filter(texts[:20_000])

    def mine() -> float:
        seconds, counts = ours(texts)
        decided.update(counts)
        return seconds

    sides: list[Callable[[], float]] = [mine]
    if python:
        sides.append(lambda: float(printed(python, DATA_JUICER, texts)))
    seconds, *theirs = interleaved(*sides, rounds=rounds, warm=False)
    told(f"{seconds:.2f} s, data-juicer {theirs}; decided: {dict(decided.most_common())}")
    figures = {"captions_per_second": at_least(count / seconds, 100_000, "/s")}
    if python:
        figures["of_data_juicer"] = at_least(theirs[0] / seconds, 1.0)
        words = sorted({w for p in (CORPUS / "lexicon").glob("*.txt") for w in p.read_text("utf-8").lower().split()})
        fast, slow = printed(python, SEARCH, [words, texts[:50_000]])
        figures["search_of_pyahocorasick"] = at_least(slow / fast, 1.0)
    return report(figures)


if __name__ == "__main__":
    sys.exit(main())
