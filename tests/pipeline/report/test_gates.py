"""Gates: expected drop shares by stage and source, judged from the funnel, with what was dropped."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data_specs.build import BuildSpec, DropShares, SourceDropShares, SpecError
from pipeline.errors import GateError
from pipeline.report import gates
from pipeline.report.funnel import Funnel, read_funnels, top_reasons
from pipeline.report.translations import evidence_zh
from pipeline.report.unreadable import Damage
from pipeline.rows.account import Account, Units
from pipeline.stages import STAGES

NONE = Funnel({})


def spec(publish: dict[str, Any] | None = None, **of_sources: dict[str, float]) -> BuildSpec:
    names = list(of_sources) or ["a"]
    sources = [
        {
            "kind": "url_table",
            "name": name,
            "source_kind": "news",
            "path": "t.csv",
            "columns": {"image_url": "u", "texts": {"alt": "t"}},
            "max_drop": of_sources.get(name, {}),
        }
        for name in names
    ]
    return BuildSpec.model_validate(
        {"name": "t", "contact": "https://example.org", "sources": sources, "publish": publish or {}}
    )


def named(judged: list[gates.Gate]) -> dict[str, gates.Gate]:
    return {gate.name: gate for gate in judged}


def test_a_stage_that_drops_nearly_everything_fails_by_default() -> None:
    """50,000 captions that become one row are never a success."""
    funnel = Funnel({("a", "dedup", "near_image"): 49_999, ("a", "shard", ""): 1})
    gate = named(gates.judge(spec(), STAGES, funnel, NONE))["max_drop.dedup"]
    assert gate.faults == ("dedup dropped 49,999 of 50,000 candidates of a (100.0%), expected at most 80.0%",)
    assert gate.found == "a 100.0%"


def test_a_source_is_judged_by_its_own_share_before_the_builds() -> None:
    counts = {
        ("a", "fetch", "timeout"): 70,
        ("a", "shard", ""): 30,
        ("b", "fetch", "timeout"): 70,
        ("b", "shard", ""): 30,
    }
    judged = gates.judge(spec(a={"fetch": 0.75}, b={}), STAGES, Funnel(counts), NONE)
    gate = named(judged)["max_drop.fetch"]
    assert list(gate.shares) == ["b"]
    assert len(gate.faults) == 1
    assert " of b " in gate.faults[0]
    assert named(gates.judge(spec({"max_drop": {"fetch": 0.7}}, a={}, b={}), STAGES, Funnel(counts), NONE))[
        "max_drop.fetch"
    ].holds, "as much as expected is not above it"


def test_few_entries_are_not_judged_and_have_no_gate() -> None:
    funnel = Funnel({("a", "filter", "image_blank"): 99})
    assert "max_drop.filter" not in named(gates.judge(spec(), STAGES, funnel, NONE))
    assert not named(gates.judge(spec({"judged_from": 99}), STAGES, funnel, NONE))["max_drop.filter"].holds


def test_pages_are_judged_at_the_crawl() -> None:
    captures = Funnel({("a", "crawl", "http_status"): 950, ("a", "extract", ""): 50})
    gate = named(gates.judge(spec(), STAGES, NONE, captures))["max_drop.crawl"]
    assert "950 of 1,000 pages of a" in gate.faults[0]


@pytest.mark.slow
@given(
    counts=st.dictionaries(
        st.tuples(st.sampled_from("ab"), st.sampled_from([*DropShares.model_fields][1:]), st.just("x")),
        st.integers(0, 500),
    ),
    kept=st.integers(0, 500),
    limit=st.floats(0, 1),
)
def test_a_gate_fails_exactly_where_a_share_is_above_its_limit(
    counts: dict[tuple[str, str, str], int], kept: int, limit: float
) -> None:
    everything = {**counts, ("a", "shard", ""): kept, ("b", "shard", ""): kept}
    judged = named(
        gates.judge(
            spec({"max_drop": dict.fromkeys(DropShares.model_fields, limit), "judged_from": 1}, a={}, b={}),
            STAGES,
            Funnel(everything),
            NONE,
        )
    )
    stages = [*DropShares.model_fields][1:]
    for number, stage in enumerate(stages):
        over = set()
        for source in "ab":
            entered = kept + sum(n for (s, at, _), n in counts.items() if s == source and stages.index(at) >= number)
            dropped = sum(n for (s, at, _), n in counts.items() if s == source and at == stage)
            if entered and dropped / entered > limit:
                over.add(source)
        gate = judged.get(f"max_drop.{stage}")
        assert set(gate.shares if gate else ()) == over


def test_the_default_for_a_source_is_not_to_differ() -> None:
    assert list(SourceDropShares.model_fields) == list(DropShares.model_fields)
    assert set(SourceDropShares().model_dump().values()) == {None}


@pytest.mark.slow
def test_a_failed_stage_stops_publish_with_its_reasons_and_examples_and_can_be_accepted(
    tmp_path: Path, synthetic: Any, run_stage: Any
) -> None:
    build, _ = synthetic.make(tmp_path, publish={"max_drop": {"dedup": 0.1}, "judged_from": 10})
    run_stage(build, "shard")
    candidates, captures = read_funnels(build)
    with pytest.raises(GateError, match=r"gate max_drop\.dedup: dedup dropped") as caught:
        gates.check(build, candidates, captures)
    text = str(caught.value)
    assert "near_image" in text
    assert "same_image" in text
    assert text.count(", for example http") == len(top_reasons(build, "dedup"))
    assert "  to allow this: publish: {max_drop: {dedup: 0." in text
    assert "to fix this: change the spec and run wenlan-data build again" in text
    assert f"wenlan-data publish {build.out} --accept max_drop.dedup --because TEXT" in text
    gates.check(build, candidates, captures, accept=["max_drop.dedup"])


@pytest.mark.slow
def test_who_opted_out_is_counted_but_not_named(
    tmp_path: Path, synthetic: Any, run_stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "SHOWN_REASONS", 100)
    build, _ = synthetic.make(tmp_path, publish={"min_samples": 1_000_000})
    run_stage(build, "shard")
    with pytest.raises(GateError) as caught:
        gates.check(build, *read_funnels(build))
    text = str(caught.value)
    assert "x opt_out" in text
    assert "x forgotten" in text
    named = {line.split()[2].rstrip(",") for line in text.splitlines() if ", for example " in line}
    assert named
    assert not {"opt_out", "forgotten"} & named


@pytest.mark.slow
def test_a_gate_names_the_key_of_the_spec_that_decides(tmp_path: Path, synthetic: Any, run_stage: Any) -> None:
    filters = [{"name": "text_length", "min_chars": 2}, {"name": "image_sides", "min_side": 400}]
    build, _ = synthetic.make(tmp_path, filters=filters, publish={"max_drop": {"filter": 0.0}, "judged_from": 1})
    run_stage(build, "shard")
    with pytest.raises(GateError) as caught:
        gates.check(build, *read_funnels(build))
    lines = str(caught.value).splitlines()
    at = next(i for i, line in enumerate(lines) if "x image_too_small, for example http" in line)
    assert lines[at + 1] == "    filters: {name: image_sides, min_side: 400} sets the limit"
    dropped = DropShares.model_validate(yaml.safe_load(lines[at + 2].partition("publish: ")[2])["max_drop"])
    build = replace(
        build,
        spec=build.spec.model_copy(update={"publish": build.spec.publish.model_copy(update={"max_drop": dropped})}),
    )
    gates.check(build, *read_funnels(build))


def test_every_sentence_is_there_in_chinese() -> None:
    """Of what a gate says in English no word is left but names and numbers."""
    funnel = Funnel({("a", "dedup", "near_image"): 60, ("a", "fetch", "unreadable"): 40, ("a", "shard", ""): 100})
    pages = Funnel({("a", "crawl", "http_status"): 60, ("a", "extract", ""): 40})
    figures = {
        "totals": {"kept": 100},
        "image_domains": [{"name": "1.2", "count": 90}],
        "kinds": [{"name": "title", "fallbacks": 70}],
        "regions": [{"detector": "3", "mean": 1.5}],
        "drift": {"samples": [1_000, 1_000], "baseline": "4", "distributions": [{"name": "5", "psi": 0.5}]},
    }
    wanted = {
        "judged_from": 1,
        "min_new": 7,
        "max_domain_share": 0.5,
        "max_fallback_share": 0.5,
        "min_regions": 2.5,
        "max_drift": 0.2,
    }
    of_files = Account({"files": Units(100, 90, examples=["9.7"])})
    damage = Damage(3, 9, lost_bytes=8, lost_files=1)
    of_input = (3, 100), {"a": of_files}, {"a": damage}
    judged = gates.judge(spec(wanted, a={}), STAGES, funnel, pages, figures, 12, *of_input)
    assert {gate.name for gate in judged} == set(gates.names(STAGES)) - {"approve"}
    for sentence in (sentence for gate in judged for sentence in (gate.says, *gate.faults)):
        said = evidence_zh(sentence)
        known = "|".join([*STAGES, "a", "all sources"])
        assert not re.sub(rf"\b({known})\b", "", said).isascii()
        assert re.findall("[A-Za-z]{2,}", re.sub(rf"({known})(?= )", "", said)) == [], said


def test_input_that_nothing_accounts_for_is_held_by_a_gate_with_its_place() -> None:
    lines = Units(4_000, 3_000, 900, Counter({"blank lines": 95}), ["t.csv, row 17: 5 lines in one cell"])
    accounts = {"a": Account({"lines": lines, "files": Units(10, 9)}), "b": Account({"lines": Units(5_000, 4_999)})}
    gate = named(gates.judge(spec(), STAGES, NONE, NONE, of_sources=accounts))["max_unaccounted"]
    said = "5 of 4,000 lines of a are unaccounted for (0.12%), the spec allows 4 (0.10%)"
    assert gate.faults == (f"{said}; for example t.csv, row 17: 5 lines in one cell",)
    allowed = spec({"max_unaccounted": 0.002})
    assert named(gates.judge(allowed, STAGES, NONE, NONE, of_sources=accounts))["max_unaccounted"].holds
    assert "max_unaccounted" not in named(gates.judge(spec(), STAGES, NONE, NONE, of_sources={"a": Account()}))


@pytest.mark.parametrize(
    ("met", "lost", "limit", "holds"),
    [(90, 40, 0.001, False), (20, 1, 0.001, True), (20, 2, 0.001, False), (99, 2, 0.001, False), (999, 1, 0.001, True),
     (20, 1, 0.0, False), (100, 7, 0.07, True), (100, 8, 0.07, False), (10**7, 10**4, 0.001, True),
     (10**7, 10**4 + 1, 0.001, False)],
)  # fmt: skip
def test_what_is_unaccounted_for_is_judged_in_inputs_of_any_size_by_whole_units(met, lost, limit, holds):
    accounts = {"a": Account({"files": Units(met, met - lost)})}
    gate = named(gates.judge(spec({"max_unaccounted": limit}), STAGES, NONE, NONE, of_sources=accounts))
    assert gate["max_unaccounted"].holds == holds


def test_an_unknown_gate_is_refused() -> None:
    with pytest.raises(SpecError, match=r"--accept max_drop\.dedupe: no such gate; expected one of .*max_drop\.dedup"):
        gates.check_acceptance(STAGES, ["max_drop.dedupe"], "why")


@pytest.mark.parametrize(
    ("damage", "read", "found"),
    [
        (Damage(1, 4_000, lost_parts=1, lost_bytes=2_810), 120, "a 70.2%"),  # one bad header of a tar
        (Damage(1, 4_000, lost_parts=1, lost_bytes=3_900), 11, "a 97.5%"),  # few are left, but there were many
        (Damage(1, 4_000, lost_parts=1, lost_bytes=400), 11, ""),  # of a dozen, a share says little
        (Damage(1, 0, lost_parts=2, lost_rows=1_000), 1_002, "a 50.0%"),  # of a damaged Parquet file
        (Damage(30, 9_000, lost_bytes=80, lost_files=1), 999, "a 3.3%"),
        (Damage(3, 0, lost_files=1), 2, "a 33.3%"),  # an empty one
        (Damage(3, 9_000), 999, ""),
    ],
)
def test_damage_weighs_what_it_swallowed(damage: Damage, read: int, found: str) -> None:
    holes = {("a", "extract", "unreadable"): damage.lost_parts, ("a", "extract", "broken_file"): damage.lost_files}
    funnel = Funnel({("a", "shard", ""): read - damage.lost_parts, **{key: n for key, n in holes.items() if n}})
    gate = named(gates.judge(spec(), STAGES, funnel, NONE, damage={"a": damage})).get("max_unreadable")
    assert (gate.found if gate and not gate.holds else "") == found


def test_unreadable_pages_are_a_share_of_all_pages() -> None:
    captures = Funnel(
        {("a", "crawl", "robots_disallowed"): 200, ("a", "extract", "unreadable"): 3, ("a", "extract", ""): 797}
    )
    gate = named(gates.judge(spec(), STAGES, NONE, captures))["max_unreadable"]
    assert (gate.found, gate.holds) == ("a 0.3%", True)
