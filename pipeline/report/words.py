"""Words of texts for the report: the number of texts that contain each.

Limits: words come from jieba, which segments about 1 MB of text per second, so at most WORD_SAMPLES texts are taken:
the first of each shard, which are in keyed-hash order. Figures say in how many.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pipeline.store.sql import Tables
from pipeline.texts.words import stop_words, words_of

WORD_SAMPLES = 10_000
"""Most texts that are segmented into words."""

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def first_of_shards(tables: Tables, most: int, *columns: str) -> list[dict[str, Any]]:
    """Columns of about `most` samples: as many from each shard, the first ones."""
    [shards] = tables.column("SELECT count(*) FROM samples WHERE position = 0")
    each = max(1, most // max(1, shards))
    return tables.rows(f"SELECT {', '.join(columns)} FROM samples WHERE position < {each} LIMIT {most}")


def word_counts(texts: Iterable[str]) -> tuple[Counter[str], list[int]]:
    """(texts by word, words of each text)."""
    in_texts, lengths = Counter[str](), list[int]()
    for text in texts:
        words = words_of(text)
        lengths.append(len(words))
        in_texts.update({w for w in words if len(w) > 1 and w not in stop_words() and HAN.search(w)})
    return in_texts, lengths


def ranked(counter: Counter[str], count: int) -> list[tuple[str, int]]:
    """The `count` largest entries. Ties are ordered by name, so that two reports of one build are equal."""
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:count]
