"""A file of settings is read within bounds, and what it cannot be is one line."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from data_specs.errors import SpecError
from data_specs.spec_file import read


def _write(folder: Path, text: str) -> Path:
    path = folder / "s.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _problems(path: Path) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read(path)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [problem.replace(str(path), "s.yaml") for problem in caught.value.problems]


def test_a_missing_and_a_binary_file_are_named(tmp_path: Path) -> None:
    assert _problems(tmp_path / "s.yaml") == ["s.yaml: cannot be read: No such file or directory"]
    path = tmp_path / "s.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert _problems(path) == ["s.yaml: is not UTF-8 text"]


def test_a_spec_error_comes_whole_out_of_another_process():
    error = pickle.loads(pickle.dumps(SpecError(["a.yaml: one", "a.yaml: two"])))  # noqa: S301 (our own bytes)
    assert (error.problems, str(error)) == (("a.yaml: one", "a.yaml: two"), "a.yaml: one\na.yaml: two")


def _bomb(inside: str) -> str:
    """Nine lines whose last stands for 10^9 values (CWE-776), within a flow mapping."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    return inside % ",\n  ".join(lines)


@pytest.mark.timeout(20)
def test_a_file_that_is_no_spec_by_its_size_costs_no_time(tmp_path: Path) -> None:
    """PyYAML takes four seconds for 2 MB; a video that was named by mistake is not read to its end."""
    for text in ("# a comment\n" * 40_000, "名" * 400_001):
        [problem] = _problems(_write(tmp_path, text))
        assert problem.endswith("s.yaml: is larger than 400,000 characters; name the inputs by a glob or a list file")
    with (tmp_path / "video.yaml").open("wb") as file:
        file.truncate(1 << 40)
    [problem] = _problems(tmp_path / "video.yaml")
    assert problem.endswith("is larger than 400,000 characters; name the inputs by a glob or a list file")


@pytest.mark.parametrize("inside", ["bomb: {%s}\n", "filters: [{name: text_length, bomb: {%s}}]\n"])
def test_aliases_that_stand_for_a_billion_values_cost_nothing(tmp_path: Path, inside: str) -> None:
    """An option of a plug-in may be anything until the plug-in is asked: such a spec took all memory."""
    [problem] = _problems(_write(tmp_path, _bomb(inside)))
    assert problem.endswith("is not YAML: its aliases stand for more than 1,000,000 values")


def test_an_alias_is_what_it_stands_for(tmp_path: Path) -> None:
    path = _write(tmp_path, "one: &s {name: one, path: p}\ntwo: {<<: *s, name: two}\n")
    assert read(path) == {"one": {"name": "one", "path": "p"}, "two": {"name": "two", "path": "p"}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nfilters: [{name: image_nsfw}]\nfilters: [{name: ads}]\n", "s.yaml:3: is not YAML: 'filters'"),
        ("filters:\n- {name: text_length, min_chars: 2, min_chars: 9}\n", "s.yaml:2: is not YAML: 'min_chars'"),
        ("one: &s {a: 1}\ntwo: {<<: *s, a: 2, a: 3}\n", "s.yaml:2: is not YAML: 'a'"),
    ],
)
def test_a_key_that_is_there_twice_is_a_fault_and_not_the_last_one_taken(tmp_path: Path, text: str, said: str) -> None:
    assert _problems(_write(tmp_path, text)) == [f"{said} occurs twice in one mapping"]


def test_what_several_aliases_stand_for_is_merged(tmp_path: Path) -> None:
    text = "one: &a {a: 1}\ntwo: &b {b: 2}\nboth:\n  <<: *a\n  <<: *b\n  c: 3\n"
    assert read(_write(tmp_path, text))["both"] == {"a": 1, "b": 2, "c": 3}


def test_a_file_at_a_url_is_read_and_one_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path, "a: 名\r\nb: 1\r\n")
    assert read(path.as_uri()) == {"a": "名", "b": 1}
    with pytest.raises(SpecError, match=r"^nothing://x/s.yaml: cannot be opened: "):
        read("nothing://x/s.yaml")
