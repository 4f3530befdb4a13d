"""concepts: counts of entries are those of a search for each in every text, however the build is cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.errors import SourceError
from pipeline.run import _fingerprinted
from pipeline.store.build import Build
from pipeline.store.concept_counts import summed
from pipeline.texts.concepts import concepts
from tests.drawn import blobs, encoded
from tests.stages import DEDUP

TEXTS = [
    f"{place}的{what}，第{number}幅"
    for number in range(4)
    for place in ("故宫", "长城")
    for what in ("雪景", "日落", "人")
]
STAGES = ("measure", "filter", *DEDUP, "screen", "concepts")


@pytest.fixture
def built(fetched_build: Callable[..., Build], got: Any, run_stage: Any, tmp_path: Path) -> Callable[..., Build]:
    (tmp_path / "words.txt").write_text("故宫\n雪景\n日落\n宫的雪\n黄山\n", encoding="utf-8")

    def make(parts: int = 3, balance: dict[str, Any] | None = None) -> Build:
        images = [got(f"i{i}", encoded(Image.fromarray(blobs(i, (320, 240)))), text) for i, text in enumerate(TEXTS)]
        balance = balance or {"entries": "words.txt"}
        build = fetched_build(images, parts=parts, balance=balance, base=str(tmp_path), name=f"of-{parts}")
        run_stage(build, *STAGES)
        return build

    return make


@pytest.mark.parametrize("parts", [1, 3])
def test_counts_add_up_to_those_of_all_texts(built: Callable[..., Build], parts: int) -> None:
    build = built(parts)
    assert build.spec.balance is not None
    known = concepts(build.spec.balance, build.spec.base)
    records = build.stage("concepts").records()
    assert len(records) == parts
    pairs = sum(record.counts["pairs"] for record in records)
    kept = [text for text in TEXTS for _ in range(pairs // len(TEXTS))]
    assert pairs == len(TEXTS), "no picture looks like another"
    counts = dict(zip(known.entries, summed(build, "concepts", "parquet").tolist(), strict=False))
    assert {word: n for word, n in counts.items() if n} == {
        word: n for word in known.entries if (n := sum(word in text for text in kept))
    }
    assert sum(record.counts["matched"] for record in records) == sum(
        any(word in text for word in known.entries) for text in kept
    )


def test_a_word_list_that_is_edited_meanwhile_and_put_back_is_not_counted_by(
    built: Callable[..., Build], run_stage: Any, tmp_path: Path
) -> None:
    """The fingerprint says by which list: what another one counted would stay under it for good."""
    (tmp_path / "never-read.csv").write_bytes(b"")
    made = built()
    fresh = _fingerprinted(made)
    build = replace(fresh, fingerprints={**made.fingerprints, "concepts": fresh.fingerprints["concepts"]})
    assert build.spec.balance is not None
    words = tmp_path / "words.txt"
    before = words.read_bytes()
    words.write_text("黄山\n故宫\n", encoding="utf-8")
    partition = made.stage("fetch").partitions()[0]
    with pytest.raises(SourceError, match=r"words.txt: has changed since the build began; run the same command again"):
        build.stages["concepts"].run(build, partition)
    assert build.stage("concepts").partitions() == []
    words.write_bytes(before)
    build.stages["concepts"].run(build, partition)
    assert build.stage("concepts").partitions() == [partition]


def test_a_spec_without_balance_counts_nothing(fetched_build: Callable[..., Build], got: Any, run_stage: Any) -> None:
    build = fetched_build([got("a", encoded(Image.fromarray(blobs(1, (320, 240)))), "故宫的雪景")])
    run_stage(build, *STAGES)
    assert build.stage("concepts").records() == []
