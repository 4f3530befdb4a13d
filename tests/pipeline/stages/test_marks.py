"""marks: partitions are of hosts, a sample follows from ids, and a takedown of a domain removes its marks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.records import sha256_hex
from pipeline.store.build import Build
from pipeline.store.host_marks import MARK_SCHEMA
from pipeline.store.rewrite import BorrowedTexts, Removal, Rewrite, scratch
from pipeline.store.takedowns import Takedowns
from tests.fetched import Got
from tests.marked import images
from tests.stages import DEDUP


def test_a_host_is_in_one_partition_and_goes_with_a_takedown_of_its_domain(
    fetched_build: Callable[..., Build], run_stage: Any
) -> None:
    got = [Got(url, data, (text,)) for url, data, text in images()]
    build = fetched_build(got, watermark={}, filters=[])
    run_stage(build, "measure", "filter", *DEDUP, "screen", "marks")
    stage = build.stage("marks")
    [record] = stage.records()
    assert (record.counts["groups"], record.counts["marks"]) == (2, 1)
    table = stage.table(record)
    assert table.schema == MARK_SCHEMA
    removal = Removal(set(), Takedowns(frozenset({sha256_hex("img.test")})))
    with scratch(stage) as path:
        rewrite = Rewrite(stage, record, removal, BorrowedTexts({}, set()), path)
        build.stages["marks"].without(rewrite)
        after = rewrite.commit()
    assert after is not None
    assert stage.table(after)["host"].to_pylist() == ["plain.test"]


def test_a_spec_that_does_not_ask_has_no_partitions(fetched_build: Callable[..., Build], got: Any) -> None:
    build = fetched_build([got("a", b"")])
    assert build.stages["marks"].partitions(build) == build.stages["watermark"].partitions(build) == []
