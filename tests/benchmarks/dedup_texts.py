"""The near-text part of dedup as a command: captions in, those that lead out.

    python -m tests.benchmarks.dedup_texts IN OUT

IN is JSON lines or Parquet with a column "text", OUT JSON lines with the kept captions; "leaders" beside OUT, as
Parquet, holds for each row of IN the row of its leader. wenlan has no command of its own for texts without images: this
finds edges as the stage does and leads in the order of the rows, at the default threshold.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BATCH = 32_768
"""Rows sketched at once."""


def main(source: Path, out: Path) -> None:
    from data_specs.build import Dedup
    from data_specs.text.folding import normals
    from pipeline.matching import text_rows
    from pipeline.matching.text_rows import TextRows
    from tests.sketched import leaders_among

    texts, threshold = _texts(source), Dedup().text_similarity
    number: dict[str, int] = {}
    of = np.array([number.setdefault(text, len(number)) for text in normals(texts)], np.int64)
    distinct = list(number)
    batches = range(0, max(1, len(distinct)), BATCH)  # one batch, an empty one, of no texts
    parts = [text_rows.make_text_rows(distinct[at : at + BATCH], threshold) for at in batches]
    first = np.unique(of, return_index=True)[1]
    leaders = first[np.array(leaders_among(TextRows.concat(parts), threshold), np.int64)][of]
    with out.open("w", encoding="utf-8") as kept:
        for row in np.unique(leaders).tolist():
            kept.write(json.dumps({"text": texts[row]}, ensure_ascii=False) + "\n")
    pq.write_table(pa.table({"leader": pa.array(leaders, pa.int32())}), out.with_suffix(".leaders"))


def _texts(source: Path) -> list[str]:
    if source.suffix == ".parquet":
        texts: list[str] = pq.read_table(source, columns=["text"])["text"].to_pylist()
        return texts
    with source.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
