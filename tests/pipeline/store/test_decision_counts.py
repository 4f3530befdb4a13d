"""decided: what a record says of its decisions is what stands in them, also after a takedown has changed them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.files.folder import Folder
from pipeline.rows.decisions import DECISION_SCHEMA
from pipeline.store.commits import DECISIONS, Fate, Record
from pipeline.store.partitions import StageDir

FATES = [("candidate", "s1", True, ""), ("candidate", "s2", False, "near_image"), ("capture", "s1", False, "opt_out")]


def decisions(*numbers: int) -> pa.Table:
    rows = []
    for n in numbers:
        subject, source, kept, reason = FATES[n]
        named = {"subject": subject, "source": source, "stage": "dedup", "kept": kept, "reason": reason}
        rows.append({**{f.name: [] if pa.types.is_list(f.type) else "" for f in DECISION_SCHEMA}, **named})
    return pa.Table.from_pylist(rows, DECISION_SCHEMA)


@pytest.fixture
def stage(tmp_path: Path) -> StageDir:
    return StageDir(Folder(str(tmp_path / "pairs")), "dedup", "f" * 64)


def committed(stage: StageDir, *numbers: int) -> Record:
    with stage.attempt("00000-of-00001") as attempt:
        if numbers:
            attempt.decide(decisions(*numbers))
        return attempt.commit({})


def expected(*numbers: int) -> Counter[Any]:
    return Counter(Fate(FATES[n][0], FATES[n][1], "dedup", *FATES[n][2:]) for n in numbers)


def test_a_record_counts_its_decisions_by_what_became_of_them(stage: StageDir) -> None:
    committed(stage, 0, 1, 1, 2, 0, 1)
    [record] = stage.records()
    assert record.fates is not None
    assert record.fates.counts == expected(0, 0, 1, 1, 1, 2)


def test_a_partition_that_decided_nothing_has_no_counts(stage: StageDir) -> None:
    assert committed(stage).fates is None


def test_a_takedown_counts_again_and_what_another_put_there_is_not_counted(stage: StageDir, tmp_path: Path) -> None:
    record = committed(stage, 0, 1)
    pq.write_table(decisions(0, 2, 2), tmp_path / "new.parquet")
    amended = stage.amend(record, {DECISIONS: tmp_path / "new.parquet"})
    assert list(stage.records()) == [amended]
    assert amended.fates is not None
    assert amended.fates.counts == expected(0, 2, 2)
    assert amended.model_copy(update={"files": record.files}).fates is None
