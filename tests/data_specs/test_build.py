"""Specs: what is accepted, and the exact line for each fault."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_specs.build import BuildSpec, SpecError, load

GOOD: dict[str, Any] = {
    "name": "trial",
    "contact": "owner@example.org",
    "sources": [{"kind": "folder", "name": "photos", "source_kind": "library", "path": "photos"}],
}


def _write(folder: Path, value: Any) -> Path:
    path = folder / "s.yaml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    return path


def _problems(path: Path) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(path)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [
        re.sub(rf"^{re.escape(str(path))}(:[0-9]+(?=: (?!is not YAML)))?", "s.yaml", p) for p in caught.value.problems
    ]


def test_a_small_spec_gets_the_defaults_and_its_own_folder(tmp_path: Path) -> None:
    spec = load(_write(tmp_path, GOOD))
    assert spec.base == str(tmp_path)
    assert spec.sources[0].options == {"path": "photos"}
    assert [f.name for f in spec.filters][:2] == ["text_length", "han_share"]
    assert (spec.shards.samples_per_shard, spec.publish.approve) == (10_000, "auto")


def test_the_digest_does_not_depend_on_the_folder_but_on_every_option(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = load(_write(tmp_path / "a", GOOD)), load(_write(tmp_path / "b", GOOD))
    assert one.base != two.base
    assert one.digest == two.digest
    changed = load(_write(tmp_path / "a", {**GOOD, "dedup": {"image_distance": 7}}))
    assert changed.digest != one.digest
    option = [{**GOOD["sources"][0], "path": "other"}]
    assert load(_write(tmp_path / "a", {**GOOD, "sources": option})).digest != one.digest


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"fetch": {"thread": 4}}, ["s.yaml: fetch.thread: unknown option; did you mean threads?"]),
        ({"descripton": "x"}, ["s.yaml: descripton: unknown option; did you mean description?"]),
        (
            {"publish": {"zzz": 1}},
            [
                "s.yaml: publish.zzz: unknown option; known: approve, judged_from, max_domain_share, max_drift, "
                "max_drop, max_drop_share, max_fallback_share, max_unaccounted, max_unreadable, min_new, min_regions, "
                "min_samples"
            ],
        ),
        (
            {"name": "Trial"},
            ["s.yaml: name: only lower-case letters, digits, - and _, starting with a letter or digit"],
        ),
        ({"sources": [{"kind": "folder", "name": "a"}]}, ["s.yaml: sources[0].source_kind: is required"]),
        ({"sources": []}, ["s.yaml: sources: needs at least 1 items, has 0"]),
        (
            {"fetch": {"threads": 0}, "shards": {"val_share": 0.7}},
            [
                "s.yaml: fetch.threads: input should be greater than 0",
                "s.yaml: shards.val_share: input should be less than 0.5",
            ],
        ),
        (
            {"sources": [GOOD["sources"][0], GOOD["sources"][0]]},
            ["s.yaml: sources: two sources are named 'photos'"],
        ),
        (
            {"shards": {"dev_share": 0.45, "val_share": 0.45}},
            ["s.yaml: shards: dev_share and val_share leave nothing to train on"],
        ),
        ({"publish": {"approve": "maybe"}}, ["s.yaml: publish.approve: input should be 'auto' or 'manual'"]),
    ],
)
def test_every_fault_is_one_line_with_its_place(tmp_path: Path, change: dict[str, Any], lines: list[str]) -> None:
    assert _problems(_write(tmp_path, {**GOOD, **change})) == lines


def test_every_fault_has_the_line_of_what_it_is_about(tmp_path: Path) -> None:
    text = (
        "name: a\ncontact: a@b.example\ncolour: red\nsources:\n  - {kind: folder, name: f}\n"
        "filters:\n  - text_length\n  - name: ads\nfetch:\n  threads: 0\nreport: 3\n"
    )
    path = _write(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        load(path)
    assert sorted(problem.removeprefix(f"{path}:")[:58] for problem in caught.value.problems) == [
        "10: fetch.threads: input should be greater than 0",
        "11: report: is not a mapping; write {pictures: ...}",
        "3: colour: unknown option; known: admit, balance, base, co",
        "5: sources[0].source_kind: is required",
        "7: filters[0]: write {name: text_length}",
    ]


def test_what_is_required_is_said_at_once(tmp_path: Path) -> None:
    assert _problems(_write(tmp_path, {"name": "x"})) == [
        "s.yaml: contact: is required",
        "s.yaml: sources: is required",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: [", "s.yaml:2: is not YAML: expected the node content, but found '<stream end>'"),
        ("- a\n", "s.yaml: a spec is a mapping with name, contact and sources"),
        ("", "s.yaml: a spec is a mapping with name, contact and sources"),
    ],
)
def test_what_is_no_spec_is_said_in_one_line(tmp_path: Path, text: str, line: str) -> None:
    [problem] = _problems(_write(tmp_path, text))
    assert problem.replace("s.yaml:1:", "s.yaml:2:") == line


def test_a_spec_cannot_be_changed_after_it_was_checked() -> None:
    spec = BuildSpec.model_validate(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "other"  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: 2024-13-45\n", "s.yaml:1: is not YAML: this is not timestamp (month must be in 1..12)"),
        ("name: a\nseed: !!timestamp x\n", "s.yaml:2: is not YAML: this is not timestamp ("),
        ("seed: !!bool x\n", "s.yaml:1: is not YAML: this is not bool ('x')"),
        ("seed: " + "9" * 5000, "s.yaml:1: is not YAML: this is not int (Exceeds the limit (4300"),
        ("[" * 5000, "s.yaml: is nested too deeply"),
        ("{a: " * 5000, "s.yaml: is nested too deeply"),
        ("a: \x00\n", "s.yaml: is not YAML: unacceptable character #x0000"),
        (yaml.safe_dump(GOOD) + 'description: "\\ud800"\n', "s.yaml: a value cannot be written as JSON: "),
        (yaml.safe_dump(GOOD) + "seed: 0x" + "f" * 6000, "s.yaml: a value cannot be written as JSON: "),
        (
            yaml.safe_dump(GOOD) + "filters: [&f {name: x, self: *f}]",
            "s.yaml:8: is not YAML: an alias refers to a value ",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_a_value_that_yaml_or_json_cannot_hold_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    [problem] = _problems(_write(tmp_path, text))
    assert problem.startswith(line)
    assert "\n" not in problem


_FRAGMENTS = [
    *(
        "[",
        "]",
        "{",
        "}",
        "\n",
        ": ",
        "- ",
        "? ",
        "&a ",
        "*a",
        "!!",
        "'",
        '"',
        "\\ud800",
        "\\",
        "#",
        "| ",
        "<<: ",
        "  ",
    ),
    *(
        "name",
        "sources",
        "filters",
        "seed",
        "dedup",
        "base",
        "!!timestamp x",
        "!!set ",
        "!!omap ",
        "!!binary ",
        "!!int ",
    ),
    *("2024-13-45", "0x" + "f" * 4000, "9" * 4400, ".nan", "1:99:99", "~", "null", "\x00", "\ufeff", "\ud83d\ude00"),
    *("name: a", "contact: a@b.cn", "sources: [{kind: k, name: n, source_kind: news}]", "filters: [{name: x, y: "),
]


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from(_FRAGMENTS), max_size=30).map(lambda parts: "".join(parts).encode("utf-8", "replace"))
    | st.lists(st.sampled_from(_FRAGMENTS), max_size=12).map(
        lambda parts: (yaml.safe_dump(GOOD) + "".join(parts)).encode("utf-8", "replace")
    )
)
@example(b"[" * 5000)
@example(b"&a [*a]: 3")
@example(b"? 0x" + b"f" * 6000 + b"\n: 1")
def test_any_bytes_are_a_spec_with_a_digest_or_a_spec_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(data)
    problems: tuple[str, ...] = ()
    try:
        assert len(load(path).digest) == 64
    except SpecError as e:
        problems = e.problems
    assert all(problem.startswith(str(path)) and "\n" not in problem for problem in problems)


def test_filters_of_a_source_are_no_option_of_its_plugin() -> None:
    stated = {**GOOD["sources"][0], "filters": {"text_length": {"min_chars": 1}}}
    spec = BuildSpec.model_validate({**GOOD, "sources": [stated]})
    assert "filters" not in spec.sources[0].options
    assert BuildSpec.model_validate(spec.model_dump()).digest == spec.digest


def test_aliases_may_be_used(tmp_path: Path) -> None:
    two = [GOOD["sources"][0] | {"name": name} for name in ("one", "two")]  # type: ignore[index]
    text = yaml.safe_dump({**GOOD, "sources": []}).replace("sources: []", "")
    text += "".join(["sources:\n", "- &s ", json.dumps(two[0]), "\n- {<<: *s, name: two}\n"])
    assert [source.name for source in load(_write(tmp_path, text)).sources] == ["one", "two"]


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", ".", "", "a\n", "a b", "A", "é", "a\\b", "a%2fb", "-a"])
def test_names_cannot_be_paths(tmp_path: Path, name: str) -> None:
    """Names of datasets and sources become folders of STORE and parts of addresses."""
    sources = [GOOD["sources"][0] | {"name": name}]
    for spec, where in (({**GOOD, "name": name}, "name"), ({**GOOD, "sources": sources}, "sources[0].name")):
        assert any(
            f": {where}: only lower-case letters, digits" in problem for problem in _problems(_write(tmp_path, spec))
        )
