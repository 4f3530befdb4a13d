"""Text of a drafted spec: the options it sets, and every other option as a comment with its default and meaning.

A commented option begins with `# NAME:`; without its `# ` it says what holds anyway. Meanings are the descriptions of
the models (`pipeline.commands.options`), so the text of a new option needs no change here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_specs.build import BuildSpec, SourceRef
from data_specs.command.printable import printable_line
from pipeline.commands.drafts import Draft, Filter
from pipeline.commands.guesses import Source
from pipeline.commands.options import Option, as_yaml, example_of, options_of
from pipeline.plugins import find

_WRITTEN = ("name", "description", "licence", "contact", "sources", "filters", "base")
"""Options of a spec that `spec_text` writes itself; `base` is the spec's own folder."""

_HEAD = """\
# Spec of a dataset for wenlan-data; written by wenlan-data init.
# Commented-out options show their defaults; remove the `# ` to change one.
# To list the options of sources, filters and detectors: wenlan-data plugins. For editors: wenlan-data schema.
"""


def spec_text(draft: Draft) -> str:
    """The spec as YAML with comments."""
    lines = [_HEAD]
    head = {"name": draft.name, "description": draft.description, "licence": draft.licence, "contact": draft.contact}
    spec = {option.name: option for option in options_of(BuildSpec)}
    lines += [f"{name}: {as_yaml(value)}{_comment(spec[name].description)}" for name, value in head.items()]
    rest = [option for option in spec.values() if option.name not in _WRITTEN]
    lines += _lines([option for option in rest if not option.options], {}, "")
    lines += ["", "sources:"]
    for source in draft.sources:
        lines += _source(source)
    lines += ["", "filters:"]
    for own in draft.filters:
        lines += _filter(own)
    for option in rest:
        if option.options:
            lines += ["", *_lines([option], {option.name: draft.sections.get(option.name, {})}, "")]
    return "\n".join(lines) + "\n"


def _source(source: Source) -> Iterator[str]:
    for why in source.why:
        yield f"  # - {_on_one_line(why)}"
    yield f"  - kind: {source.kind}"
    yield f"    name: {as_yaml(source.name)}"
    kinds = next(option for option in options_of(SourceRef) if option.name == "source_kind")
    yield f"    source_kind: {source.source_kind}{_comment(kinds.type)}"
    own = options_of(find("sources", source.kind))
    shared = [option for option in options_of(SourceRef) if option.name not in ("kind", "name", "source_kind")]
    values = {name: (value, "") for name, value in source.options.items()}
    yield from _lines([*own, *shared], values, "    ")


def _filter(own: Filter) -> Iterator[str]:
    """A filter with its options; one that is not used is one line."""
    options = options_of(find("filters", own.name))
    if own.used:
        yield f"  - name: {own.name}{_comment(own.why)}"
        yield from _lines(options, {name: (value, "") for name, value in own.options.items()}, "    ")
    else:
        given = example_of("filters", own.name) if any(option.required for option in options) else {}
        yield f"  # - {as_yaml({'name': own.name, **given})}{_comment(own.why)}"


def _lines(options: Sequence[Option], values: Mapping[str, Any], indent: str) -> Iterator[str]:
    """One line per option: set, as `values` has it with its comment, or commented with its default."""
    for option in options:
        given = values.get(option.name)
        if isinstance(given, tuple):
            value, why = given
            meaning = f"{option.description} ({why})" if why else option.description
            yield f"{indent}{option.name}: {as_yaml(value)}{_comment(meaning)}"
        elif option.options and given:
            yield f"{indent}{option.name}:{_comment(option.description)}"
            yield from _lines(option.options, given, f"{indent}  ")
        elif option.options and not _is_empty(option):
            yield f"{indent}# {option.name}:{_comment(option.description)}"
            for line in _lines(option.options, {}, "  "):
                yield f"{indent}# {line.replace('# ', '', 1)}"
        else:
            default = {} if option.options else option.default
            yield f"{indent}# {option.name}: {as_yaml(default)}{_comment(option.description)}"


def _is_empty(option: Option) -> bool:
    """True if nothing of a mapping is set by default."""
    return all(inner.default is None for inner in option.options)


def _comment(text: str) -> str:
    return f"  # {_on_one_line(text)}" if text else ""


def _on_one_line(text: str) -> str:
    """Returns text for a comment, on one line: names of columns are untrusted, and YAML knows several line breaks."""
    return printable_line(" ".join(text.split()))
