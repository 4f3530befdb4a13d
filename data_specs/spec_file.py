"""Settings files: bounded reading of YAML, and one line per validation error.

It is untrusted text, so it is limited in characters and in what its aliases stand for, and nothing in it
makes an object but numbers, texts, dates, lists and mappings.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import fsspec
import yaml
from pydantic import BaseModel, ValidationError

from data_specs.errors import SpecError
from data_specs.storage import object_store
from data_specs.storage.credentials import credentials_in

_SAID = {
    # data_specs.names.NAME is the only pattern
    "string_pattern_mismatch": "only lower-case letters, digits, - and _, starting with a letter or digit",
    "too_short": "needs at least {min_length} items, has {actual_length}",
}
"""Faults that pydantic says in terms of its own, by their type: a regular expression, a tuple after its validation."""


def read(path: Path | str) -> Any:
    """The value of a YAML file at a path or URL. Raises SpecError, also if the file contains a store's credentials.

    A key would go into build.json, and from there into whatever shows it.
    """
    try:
        text = _text_of(path)
        if len(text) > MAX_CHARACTERS:
            raise SpecError(
                [f"{path}: is larger than {MAX_CHARACTERS:,} characters; name the inputs by a glob or a list file"]
            )
        if why := credentials_in(text):
            raise SpecError([f"{path}: {why}"])
        return yaml.load(text, _Loader)  # derives from SafeLoader
    except OSError as e:
        raise SpecError([f"{path}: cannot be read: {e.strerror or 'no such file'}"]) from None
    except UnicodeDecodeError:
        raise SpecError([f"{path}: is not UTF-8 text"]) from None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise SpecError([f"{path}{line}: is not YAML: {one_line(getattr(e, 'problem', None) or e)}"]) from None
    except RecursionError:
        raise SpecError([f"{path}: is nested too deeply"]) from None


MAX_CHARACTERS = 400_000
"""Characters of a spec at most: PyYAML takes a second for them. The longest ready spec has 4,000."""

MAX_VALUES = 1_000_000
"""Values of a spec at most, each alias counted as all that it stands for: nine lines can stand for 10^9 of them."""


class OptionLines:
    """Line numbers of a spec's options, for messages. Reads the file again."""

    def __init__(self, path: Path | str) -> None:
        self._path = path
        try:
            self._root = yaml.compose(_text_of(path if "://" in str(path) else Path(path)), Loader=_Loader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, SpecError):
            self._root = None

    def location_of(self, option: str) -> str:
        """Returns `demo.yaml:31` for `filters[0].min_char`, or for the innermost part that is written; else the path.

        option: may have a message behind it, after a colon.
        """
        node, line = self._root, 0
        for part in re.findall(r"[^.\[\]]+|\[[0-9]+\]", option.partition(": ")[0]):
            found = _part_of(node, part)
            if found is None:
                break
            mark, node = found
            line = mark.start_mark.line + 1
        return f"{self._path}:{line}" if line else str(self._path)

    def with_locations(self, problems: Sequence[str]) -> list[str]:
        """Messages that begin with an option, each behind the file and line of the option."""
        return [f"{self.location_of(problem)}: {problem}" for problem in problems]


def _part_of(node: yaml.Node | None, part: str) -> tuple[yaml.Node, yaml.Node] | None:
    """(node with the place, value) of a key or an item `[2]`; None if it is not written."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and part[0] == "[" and int(part[1:-1]) < len(node.value):
        item = node.value[int(part[1:-1])]
        return item, item
    return None


def _text_of(path: Path | str) -> str:
    """path: a URL where it is a string."""
    try:
        with (
            object_store.storage_errors(str(path)),
            path.open("rb") if isinstance(path, Path) else fsspec.open(path, "rb") as file,
        ):
            return _decoded(file)
    except UnicodeDecodeError:
        raise
    except (ValueError, ImportError) as e:  # an unknown protocol, or one whose package is not installed
        raise SpecError([f"{path}: cannot be opened: {one_line(e)}"]) from None


def _decoded(file: IO[bytes]) -> str:
    """The text of a file, of one that is too large only enough to detect that. Raises UnicodeDecodeError."""
    data = file.read(4 * MAX_CHARACTERS + 1)
    if len(data) > 4 * MAX_CHARACTERS:  # more characters than allowed, whatever they are; the last may be cut
        return data.decode("utf-8", "replace")
    return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, in which a scalar that its type refuses is a YAMLError with its line.

    PyYAML raises whatever the type's constructor does: ValueError for the date 2024-13-45 and for an integer of more
    than 4,300 digits, AttributeError for `!!timestamp x`, KeyError for `!!bool x`. An alias costs PyYAML nothing; the
    models, which copy what it stands for, it can cost all memory (CWE-776).
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
            kind = str(node.tag).rpartition(":")[2]
            problem = f"this is not {kind} ({one_line(e)})"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Values that a node stands for, aliases as often as they occur.

    Raises YAMLError for too many, for a circle, and for a key that is there twice.

    counts: of the nodes counted so far, by id; 0 for one that is being counted.
    """
    known = counts.get(id(node))
    if known == 0:
        raise yaml.composer.ComposerError(None, None, "an alias refers to a value that contains it", node.start_mark)
    if known is None:
        counts[id(node)] = 0
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        inner = [part for pair in pairs for part in pair] if pairs else node.value
        known = 1 + sum(_count(part, counts) for part in inner) if isinstance(inner, list) else 1
        counts[id(node)] = known
    if known > MAX_VALUES:
        problem = f"its aliases stand for more than {MAX_VALUES:,} values"
        raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
    return known


_MERGE = "tag:yaml.org,2002:merge"


def _check_keys(node: yaml.MappingNode) -> None:
    """PyYAML takes the last value of a key that is there twice, so the first of two sections would be lost.

    Of several `<<` it merges all.
    """
    own = set[str]()
    keys = (key for key, _ in node.value if isinstance(key, yaml.ScalarNode))
    for key in (key for key in keys if key.tag != _MERGE):
        if key.value in own:
            problem = f"{key.value!r} occurs twice in one mapping"
            raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
        own.add(key.value)


def one_line(e: object) -> str:
    return " ".join(str(e).split())[:200]


def describe(error: ValidationError, model: type[BaseModel], where: str = "") -> list[str]:
    """One line per fault of a validation error: the field's path, and for an unknown option the nearest known one.

    where: prefix of the paths, e.g. `filters[0]`.
    """
    lines = []
    faults = error.errors()
    for fault in faults:
        depth = len(fault["loc"])
        if fault["type"] == "too_short" and any(f["loc"][:depth] == fault["loc"] != f["loc"] for f in faults):
            continue  # pydantic counts only the valid items of a list; the invalid ones have their own lines
        path = where
        for part in fault["loc"]:
            if str(part).startswith("<") or part == "[key]":  # the tag of a union's member: not written in a spec
                continue
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        if fault["type"] == "extra_forbidden":
            known = list(_model_at(model, fault["loc"][:-1]).model_fields)
            near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(known))}"
            lines.append(f"{path}: unknown option{hint}")
        elif fault["type"] == "missing":
            lines.append(f"{path}: is required")
        elif fault["type"] == "model_type":
            lines.append(f"{path}: {_as_mapping(fault['input'], _model_at(model, fault['loc']))}")
        else:
            said = _SAID.get(fault["type"], "").format(**fault.get("ctx", {}))
            message = said or fault["msg"].removeprefix("Value error, ")
            lines.append(f"{path}: {message[0].lower()}{message[1:]}" if path else message)
    return lines


def _as_mapping(value: Any, model: type[BaseModel]) -> str:
    """Advice for a value that is not a mapping, but has to be one."""
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    if len(required) == 1 and isinstance(value, str):
        return f"write {{{required[0]}: {one_line(value)}}}"
    example = ", ".join(f"{name}: ..." for name in required or list(model.model_fields)[:1])
    return f"is not a mapping; write {{{example}}}"


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            inner = [annotation, *getattr(annotation, "__args__", ())]
            model = next((t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)), model)
    return model
