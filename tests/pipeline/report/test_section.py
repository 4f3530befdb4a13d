"""How sections are computed: after their inputs, from nothing else, and without a key in common."""

from __future__ import annotations

import graphlib
from typing import Any

import pytest

from pipeline.report.section import Material, Section, compute
from pipeline.store.build import Build


def section(name: str, *inputs: str, keys: tuple[str, ...] = ()) -> Section:
    """A section whose keys hold the inputs that it was given."""

    def figures(material: Material, given: dict[str, Any]) -> dict[str, Any]:
        return {key: sorted(given) for key in keys or (name,)}

    return Section(name, "", figures, inputs)


def test_a_section_is_computed_after_its_inputs_and_sees_no_other(synthetic_build: Build, material: Any) -> None:
    sections = [section("last", "first", "pair"), section("pair", "first", keys=("x", "y")), section("first")]
    assert compute(sections, material(synthetic_build)) == {
        "first": [],
        "x": ["first"],
        "y": ["first"],
        "last": ["first", "x", "y"],
    }


def test_two_sections_with_one_key_are_a_fault_of_ours(synthetic_build: Build, material: Any) -> None:
    with pytest.raises(AssertionError, match=r"more than one section has \{'x'\}"):
        compute([section("a", keys=("x",)), section("b", keys=("x",))], material(synthetic_build))


def test_sections_that_need_each_other_are_refused(synthetic_build: Build, material: Any) -> None:
    with pytest.raises(graphlib.CycleError):
        compute([section("a", "b"), section("b", "a")], material(synthetic_build))


@pytest.mark.slow
def test_what_several_sections_need_is_read_once(synthetic_build: Build, run_stage: Any, material: Any) -> None:
    run_stage(synthetic_build, "shard")
    own = material(synthetic_build)
    assert own.funnels is own.funnels
    assert own.chosen_rows is own.chosen_rows
    assert own.candidates.total == sum(own.candidates.counts.values()) > 0
