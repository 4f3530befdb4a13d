"""Export `lance`: one Lance dataset per split, which contains the images; needs wenlan[lance].

    OUT/train.lance dev.lance val.lance     columns as those of the export `parquet`; `image` is the JPEG itself

Lance (https://lancedb.github.io/lance/) is the package pylance, the extra `lance`.

Limits: Lance names its files at random, so two exports of one dataset hold the same rows in other files.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from data_specs.build import SpecError
from data_specs.command.extras import install
from data_specs.shard import Split
from pipeline.exports import ExportData
from pipeline.exports._rows import batches, schema

SCHEMA = schema(pa.large_binary())


def write(data: ExportData, out: Path) -> dict[Split, int]:
    """Raises SpecError if Lance is not installed."""
    try:
        import lance
    except ImportError:
        raise SpecError([f"--to lance: pylance is not installed: {install('lance')}"]) from None
    counts = {}
    for split in data.splits:
        rows = pa.RecordBatchReader.from_batches(SCHEMA, batches(data, split, SCHEMA))
        counts[split] = int(lance.write_dataset(rows, str(out / f"{split}.lance")).count_rows())
    return counts
