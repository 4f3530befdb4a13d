"""The near-text part of dedup as a command: captions in, those that lead out. `python dedup_texts.py IN OUT`.

IN is JSON lines or Parquet with a column "text", OUT JSON lines with the kept captions; "leaders" beside OUT, as
Parquet, holds for each row of IN the row of its leader. wenlan has no command of its own for texts without images: this
drives the leader pass as the stage does with texts, in the order of the rows, at the default threshold.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_specs.build import Dedup
from data_specs.text.folding import normals
from pipeline.files.digests import rows_of
from pipeline.matching import text_rows
from pipeline.matching.holders import Holders
from pipeline.matching.leader_pass import BLOCK, LeaderPass

BATCH = 32_768
"""Rows read and sketched at once."""


def main(source: Path, out: Path) -> None:
    rules, row_of, of = Dedup(), dict[bytes, int](), list[int]()
    with out.open("w", encoding="utf-8") as kept, Holders(rules, 1) as holders:
        decide = LeaderPass(rules, holders)
        for texts in _batches(source):
            batch = text_rows.made(normals(texts), rules.text_similarity)
            for start in range(0, len(texts), BLOCK):
                block = batch.take(np.arange(start, min(len(texts), start + BLOCK)))
                for leader in leaders_of(decide, block):
                    if row_of.setdefault(leader, len(of)) == len(of):
                        line = {"text": texts[len(of) % BATCH]}
                        kept.write(json.dumps(line, ensure_ascii=False) + "\n")
                    of.append(row_of[leader])
    pq.write_table(pa.table({"leader": pa.array(of, pa.int32())}), out.with_suffix(".leaders"))


def leaders_of(decide: LeaderPass, block: text_rows.TextRows) -> list[bytes]:
    """Leaders of texts that need not be distinct."""
    names = rows_of(block.ids)
    first = {name: at for at, name in reversed(list(enumerate(names)))}
    rows = sorted(first.values())
    leader = dict(zip(rows, decide.place(block.take(rows)), strict=True))
    return [leader[first[name]] for name in names]


def _batches(source: Path) -> Iterator[list[str]]:
    if source.suffix == ".parquet":
        table = pq.ParquetFile(source)
        yield from (batch.column(0).to_pylist() for batch in table.iter_batches(BATCH, columns=["text"]))
        return
    texts: list[str] = []
    with source.open(encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            if len(texts) == BATCH:
                yield texts
                texts = []
    yield texts


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
