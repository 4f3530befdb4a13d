"""`wenlan-data plugins`: the sources, filters and detectors that a spec may name, and their options.

Everything shown is read from the plug-ins themselves (`pipeline.commands.options`). Works in a base install too.
"""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from data_specs.command.command_line import completed_by, plugin_files
from data_specs.command.extras import install
from data_specs.errors import SpecError
from pipeline.commands.terminal import Commands, command, console, say

if TYPE_CHECKING:
    from pipeline.plugins import Family

FAMILIES: tuple[Family, ...] = ("sources", "filters", "detectors")


def add_plugins(commands: Commands) -> None:
    plugins = command(
        commands,
        "plugins",
        _plugins,
        "list the sources, filters and detectors that a spec may name",
        "wenlan-data plugins",
        "wenlan-data plugins text_length",
        "wenlan-data plugins filters --json",
    )
    name = plugins.add_argument(
        "name", nargs="?", default="", metavar="NAME", help="plug-in to show with an example, or family of plug-ins"
    )
    completed_by(name, lambda **_: [*FAMILIES, *(name for _, name in _known())])


def _known() -> list[tuple[Family, str]]:
    return [(family, name) for family in FAMILIES for name in plugin_files(Path(__file__).parents[1] / family)]


def _plugins(args: argparse.Namespace) -> dict[str, Any]:
    wanted = _known()
    if args.name:
        wanted = [own for own in _known() if args.name in own]
        if not wanted:
            words = [*FAMILIES, *(name for _, name in _known())]
            near = [word for word in words if args.name in word] or difflib.get_close_matches(args.name, words, n=1)
            hint = f"did you mean {' or '.join(near)}?" if near else "see wenlan-data plugins"
            raise SpecError([f"{args.name}: no such plug-in; {hint}"])
    answers = [describe(family, name) for family, name in wanted]
    if len(answers) == 1:
        _show_one(answers[0])
    else:
        _show_all(answers)
    return {"plugins": answers}


def describe(family: Family, name: str) -> dict[str, Any]:
    """Returns the description of a plug-in, as a JSON value."""
    from pipeline.commands.options import about, options_of
    from pipeline.plugins import find

    plugin = find(family, name)
    told, options = about(plugin), options_of(plugin)
    return {
        "family": family,
        "name": name,
        "version": plugin.VERSION,
        "summary": told.summary,
        "text": told.text,
        "needs": told.needs,
        "missing_extra": told.missing_extra,
        "thresholds": told.thresholds,
        "limits": told.limits,
        "options": [option.to_json() for option in options],
        "example": example(family, name),
    }


def example(family: Family, name: str) -> str:
    """A piece of a spec that names the plug-in."""
    import yaml

    from pipeline.commands.options import example_of

    options = example_of(family, name)
    if family == "sources":
        value: Any = {
            family: [{"kind": name, "name": f"my-{name.replace('_', '-')}", "source_kind": "news", **options}]
        }
    elif family == "filters":
        value = {family: [{"name": name, **options}]}
    else:
        value = {"regions": {family: [{"name": name, **options}]}}
    value = {**_section_of(family, name), **value}
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    return text


def _section_of(family: Family, name: str) -> dict[str, Any]:
    """The section of a spec that a plug-in needs, by its name, with the example of the section's model; {} for none."""
    from data_specs.build import BuildSpec
    from pipeline.plugins import find

    section = find(family, name).NEEDS_SECTION
    if not section:
        return {}
    models = get_args(BuildSpec.model_fields[section].annotation)
    examples = next(model for model in models if hasattr(model, "model_config")).model_config["json_schema_extra"]
    return {section: examples["examples"][0]}


def _show_all(plugins: list[dict[str, Any]]) -> None:
    """One line per plug-in: what it does, and the extra that is missing."""
    family = ""
    for own in plugins:
        if own["family"] != family:
            family = own["family"]
            _heading(family)
        missing = f" Not installed: needs the extra {own['missing_extra']}." if own["missing_extra"] else ""
        say(f"  {own['name']:16} {own['summary']}{missing}")
    say("for options, thresholds, limits and an example: wenlan-data plugins NAME")


def _show_one(own: dict[str, Any]) -> None:
    _heading(f"{own['name']} ({own['family']}, version {own['version']})")
    for line in own["text"].splitlines():
        say(line)
    for label, line in (("needs", _needs(own)), ("thresholds", own["thresholds"]), ("limits", own["limits"])):
        if line:
            say(f"{label}: {line}")
    if own["options"]:
        say("")
        _heading("options")
        _show_options(own["options"], "  ")
    if own["example"]:
        say("")
        _heading("example")
        for line in own["example"].rstrip().splitlines():
            say(line)


def _show_options(options: list[dict[str, Any]], indent: str) -> None:
    from pipeline.commands.options import as_yaml

    for option in options:
        nested = option.get("options", [])
        shown = "not set by default" if option["default"] is None else f"default {as_yaml(option['default'])}"
        default = "required" if option["required"] else "" if nested else shown
        say(f"{indent}{option['name']}: {'; '.join(part for part in (option['type'], default) if part)}")
        if option["description"]:
            say(f"{indent}    {option['description']}")
        _show_options(nested, indent + "    ")


def _needs(own: dict[str, Any]) -> str:
    missing = own["missing_extra"]
    return f"{own['needs']} Not installed: {install(missing)}" if missing else own["needs"]


def _heading(text: str) -> None:
    console.print(text, style="bold", markup=False)
