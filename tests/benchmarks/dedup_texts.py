"""The near-text part of dedup as a command: captions in, those that lead out. `python dedup_texts.py IN OUT`.

IN is JSON lines or Parquet with a column "text", OUT JSON lines with the kept captions; "leaders" beside OUT, as
Parquet, holds for each row of IN the row of its leader. wenlan has no command of its own for texts without images: this
drives `TextLeaders` as the stage does, in the order of the rows, at the default threshold, a batch of rows at a time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_specs.build import Dedup
from pipeline.near_texts import TextLeaders, normals

BATCH = 65_536


def main(source: Path, out: Path) -> None:
    leaders = TextLeaders(Dedup().text_similarity)
    row_of: dict[str, int] = {}  # text id of a leader -> its row
    of: list[int] = []
    with out.open("w", encoding="utf-8") as kept:
        for texts in _batches(source):
            for text, name in zip(texts, leaders.prepare(normals(texts)), strict=True):
                leader = leaders.place(name)
                if row_of.setdefault(leader, len(of)) == len(of):
                    kept.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                of.append(row_of[leader])
    pq.write_table(pa.table({"leader": pa.array(of, pa.int32())}), out.with_suffix(".leaders"))


def _batches(source: Path) -> Iterator[list[str]]:
    if source.suffix == ".parquet":
        for batch in pq.ParquetFile(source).iter_batches(BATCH, columns=["text"]):
            yield batch.column(0).to_pylist()
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
