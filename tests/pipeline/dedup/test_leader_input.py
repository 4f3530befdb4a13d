"""Dedup decides what its definition says (tests/dedup_oracle.py), in any runs and parts, over earlier builds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dedup import copies, earlier, edges, signatures
from pipeline.matching import crowds, image_edges, text_edges
from tests.dedup_oracle import Oracle, decisions_of, expected, rows_of
from tests.deduped import after, publish
from tests.stages import run_stage

CAPTION = "今天天气很好我们一家人去公园散步吧"
WORDS = [CAPTION, CAPTION + "啦", CAPTION[:-1], "红烧肉", "红烧鱼", "故宫雪景", "第一次看见的说明", ""]

Pairs = list[tuple[int, bool, int, list[str], int, tuple[str, int, int, int]]]


@st.composite
def builds(draw: st.DrawFn) -> tuple[list[Pairs], dict[str, Any], dict[str, Any]]:
    """Builds of (picture, same bytes, site, texts, number of its details, context); rules of dedup, and of shards.

    A context: kind of the texts, page, file that a picture is a variant of, pixels; 0 for its own one.
    """
    own = st.one_of(st.just([WORDS[-2]]), st.lists(st.sampled_from(WORDS), min_size=1, max_size=3))
    fine = st.sampled_from([0, 0, 1, 2])
    context = st.tuples(
        st.sampled_from(["title", "alt", "caption"]), *(st.sampled_from([0, 0, 0, 1, 2]) for _ in range(3))
    )
    picture = st.integers(0, 6) | st.integers(7, 60)
    pair = st.tuples(picture, st.booleans(), st.integers(0, 2), own, fine, context)
    rules = {
        "max_pairs_per_text": draw(st.integers(1, 3)),
        "placeholder_texts": draw(st.sampled_from([0, 1])),
        "max_texts": draw(st.sampled_from([1, 2, 32])),
        "merge_texts": draw(st.booleans()),
        "image_distance": draw(st.sampled_from([0, 4, 10])),
        "image_turned": draw(st.booleans()),
    }
    shards = {"apart": draw(st.sampled_from(["images", "texts"])), "dev_share": 0.3, "val_share": 0.3}
    steps = draw(st.lists(st.lists(pair, max_size=16), min_size=1, max_size=3))
    return steps, rules, shards


def cut_small(patch: pytest.MonkeyPatch, chance: random.Random) -> None:
    """Runs, parts, pieces and crowds of a few items."""
    patch.setattr(signatures, "RUN", chance.choice([3, 8, 100]))
    patch.setattr(signatures, "LEAST", 1)
    patch.setattr(copies, "AT_ONCE", chance.choice([7, 1_000]))
    patch.setattr(edges, "ENTRIES", chance.choice([60, 1_000, 100_000]))
    patch.setattr(earlier, "PIECE", chance.choice([3, 1_000]))
    patch.setattr(image_edges, "DENSE", chance.choice([0, 2, 256]))
    patch.setattr(text_edges, "LONG", chance.choice([1, 2, 64]))
    patch.setattr(crowds, "AT_ONCE", chance.choice([1, 2, 64]))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("examples", [2, pytest.param(60, marks=pytest.mark.drill(120))])
def test_builds_decide_what_the_definition_says(tmp_path_factory: Any, filtered: Any, examples: int) -> None:
    """Builds of two datasets that read each other; what STORE has cached of them may be lost at any time."""

    @settings(max_examples=examples)
    @given(builds(), st.integers(0, 2**20))
    def check(drawn: tuple[list[Pairs], dict[str, Any], dict[str, Any]], seed: int) -> None:
        decide(tmp_path_factory.mktemp("builds"), filtered, drawn, seed)

    check()


def decide(folder: Path, filtered: Any, drawn: tuple[list[Pairs], dict[str, Any], dict[str, Any]], seed: int) -> None:
    """Builds one after the other, each of which decides as the oracle does."""
    steps, rules, shards = drawn
    oracle, chance = Oracle(), random.Random(seed)
    for step, shown in enumerate(steps):
        pictures = [
            filtered.Shown(
                f"file{file}-{100 + step}x{100 + i}.jpg" if file else f"{step}-{i}",
                picture,
                tuple(f"{text}{i}" if text.startswith("第") else text for text in texts),  # some texts match nothing
                900 - i // 2,
                "b" if same else "",
                f"http://s{site}.cn/{f'page{page}' if page else f'{step}-{i}'}",
                kind,
                (0, 0, 1, 2)[picture % 4] if same else fine,  # what has the same bytes looks the same
                picture if same else pixels,
            )
            for i, (picture, same, site, texts, fine, (kind, page, file, pixels)) in enumerate(shown)
        ]
        dataset = chance.choice(["test", "test", "other"])
        own: dict[str, Any] = {"name": dataset, "dedup": {**rules, "across": "all"}, "shards": shards}
        build = filtered.make(folder, pictures, 4, snapshot=f"2026-0{step + 1}-01", **own)
        with pytest.MonkeyPatch.context() as patch:
            cut_small(patch, chance)
            run_stage(build, "dedup.signatures", "dedup.copies")
            lose(build, chance)
            decided = decisions_of(*after(build))
        assert decided == expected(oracle.decide(build.spec, rows_of(build)), dataset)
        publish(build)
        oracle.publish(dataset)


def lose(build: Any, chance: random.Random) -> None:
    """Delete one or the other file of STORE/dealt, which may be made again."""
    for path in sorted(Path(build.store.url).glob("dealt/*/*.bin")):
        if chance.random() < 0.3:
            path.unlink()
