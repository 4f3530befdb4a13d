"""Plug-ins: sources, filters and detectors. One file each; the file's name is the name in a spec.

A plug-in is a frozen pydantic model: **file name = the name in the spec, its fields = its options**. There is no
registry: `pipeline/filters/text_length.py` holds exactly one class derived from the family's face (declared in the
family's `__init__`), and a spec's `{name: text_length, min_chars: 2}` becomes an instance of it. Being a frozen model
of plain values, it can be sent to any Ray worker, and its VERSION and options go into the stage's fingerprint.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from data_specs import build
from data_specs.build import BuildSpec, PluginRef, SourceRef, SpecError
from data_specs.spec_file import OptionLines, describe, read
from pipeline.urls import loopback_pairs

Family = Literal["sources", "filters", "detectors"]
T = TypeVar("T", bound="Plugin")


class Plugin(BaseModel):
    """Base of all plug-ins. Raise VERSION when results change under the same options."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    VERSION: ClassVar[int] = 1

    NEEDS_SECTION: ClassVar[str] = ""
    """Section of a spec without which it has nothing to judge."""

    PER_SOURCE: ClassVar[bool] = False
    """True if a source may state options of its own for it (`sources[i].filters`)."""

    @classmethod
    def plugin_name(cls) -> str:
        """The file's name, which is the name in a spec."""
        return cls.__module__.rpartition(".")[2]

    def identity(self) -> dict[str, Any]:
        """The plug-in's part of a fingerprint: name, version, options."""
        return {"name": self.plugin_name(), "version": self.VERSION, "options": self.model_dump(mode="json")}


def names(family: Family) -> list[str]:
    """Names of the plug-ins of a family, sorted. A file `_*.py` is a helper of theirs and no plug-in."""
    package = importlib.import_module(f"pipeline.{family}")
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in names if not name.startswith("_"))


def find(family: Family, name: str) -> type[Plugin]:
    """The class of a plug-in. Raises SpecError with the nearest known name."""
    path = f"pipeline.{family}.{name}"
    known = [] if path in sys.modules and name[:1] != "_" else names(family)  # loaded: the folder need not be listed
    if known and name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise SpecError([f"{name!r} is not one of the {family}; {hint}"])
    return _class_in(importlib.import_module(path))


@functools.cache
def _class_in(module: ModuleType) -> type[Plugin]:
    classes = [
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, Plugin) and c.__module__ == module.__name__ and not c.__name__.startswith("_")
    ]
    assert len(classes) == 1, f"{module.__name__} must hold exactly one plug-in class"
    return classes[0]


def configure(family: Family, name: str, options: dict[str, Any], face: type[T], where: str = "", base: str = "") -> T:
    """An instance of a plug-in. `where` is its place in the spec. Raises SpecError, one line a fault.

    `base`, the folder that the spec's relative paths start from, goes to a plug-in that has a field for it.
    """
    try:
        plugin = find(family, name)
    except SpecError as e:
        raise SpecError([f"{where}: {line}" if where else line for line in e.problems]) from None
    try:
        needs_base = base and "base" in plugin.model_fields
        instance = plugin.model_validate({"base": base, **options} if needs_base else options)
    except ValidationError as e:
        raise SpecError(describe(e, plugin, where)) from None
    assert isinstance(instance, face), f"{plugin.__module__} is not a {face.__name__}"
    return instance


def load(path: str | Path) -> BuildSpec:
    """Read and check a spec with its plug-ins. Raises a SpecError that names every faulty option with its line."""
    try:
        spec = build.load(path)
    except SpecError as e:
        raise SpecError([*e.problems, *_faults_beside(path)]) from None
    check(spec, path)
    return spec


def _faults_beside(path: str | Path) -> list[str]:
    """Faults of the plug-ins of a spec that has other faults."""
    try:
        values = read(str(path) if "://" in str(path) else Path(path))
    except SpecError:
        return []
    base = "" if "://" in str(path) else str(Path(path).resolve().parent)
    return (
        OptionLines(path).with_locations(_plugin_faults({"base": base, **values})[0])
        if isinstance(values, dict)
        else []
    )


def check(spec: BuildSpec, path: str | Path = "") -> None:
    """Check a spec beyond its schema: the options of every plug-in that it names, and the addresses it lets through.

    Raises SpecError that lists all faults. path: of the spec file, if there is one.
    """
    problems, faulty = _plugin_faults(spec.model_dump())
    problems += _source_faults(spec, {name for family, name in faulty if family == "filters"})
    try:
        loopback_pairs(spec.egress.allow)
    except SpecError as e:
        problems += e.problems
    if problems:
        raise SpecError(OptionLines(path).with_locations(problems) if path else problems)


def _plugin_faults(values: Mapping[str, Any]) -> tuple[list[str], set[tuple[Family, str]]]:
    """(faults of the plug-ins that a spec names, which those are). values: of the spec, as they are written; what is
    not a plug-in at all is a fault of its schema.
    """
    problems, faulty, egress = list[str](), set[tuple[Family, str]](), values.get("egress")
    offline = isinstance(egress, dict) and egress.get("network") == "never"
    for family, plugin, options, where in _named_plugins(values):
        try:
            made = configure(family, plugin, options, Plugin, where, values["base"])
        except SpecError as e:
            problems += e.problems
            faulty.add((family, plugin))
        else:
            if made.NEEDS_SECTION and values.get(made.NEEDS_SECTION) is None:
                problems.append(f"{where}: {plugin} needs the section {made.NEEDS_SECTION} of the spec")
            if family == "sources" and plugin == "site" and offline:
                problems.append(f"{where}: egress.network: never forbids crawling a site; use a WARC of it")
    return problems, faulty


def _named_plugins(values: Mapping[str, Any]) -> Iterator[tuple[Family, str, dict[str, Any], str]]:
    """Family, name, options and place of each plug-in of a spec."""
    regions = values.get("regions")
    detectors = regions.get("detectors") if isinstance(regions, dict) else None
    lists: tuple[tuple[Family, str, str, Any], ...] = (
        ("sources", "sources", "kind", values.get("sources")),
        ("filters", "filters", "name", values.get("filters")),
        ("detectors", "regions.detectors", "name", detectors),
    )
    of_source: dict[str, Any] = {"name": "checked-elsewhere", "source_kind": "web"}
    for family, place, key, entries in lists:
        for i, entry in enumerate(entries if isinstance(entries, (list, tuple)) else ()):
            if isinstance(entry, dict) and isinstance(entry.get(key), str):
                schema = SourceRef.model_fields if family == "sources" else PluginRef.model_fields
                options = {name: value for name, value in entry.items() if name not in schema}
                yield family, entry[key], of_source | options if family == "sources" else options, f"{place}[{i}]"


def _source_faults(spec: BuildSpec, faulty: set[str]) -> list[str]:
    """Faults of what sources state for the build's filters, but for filters that are `faulty` themselves."""
    problems: list[str] = []
    of_build = {ref.name: ref.options for ref in spec.filters}
    for i, source in enumerate(spec.sources):
        for name, options in source.filters.items():
            where = f"sources[{i}].filters.{name}"
            if name not in of_build:
                problems.append(f"{where}: not in the filters of the spec; add it there first, without options")
            elif name in faulty:
                continue
            elif not find("filters", name).PER_SOURCE:
                judged = "pairs" if find("filters", name).NEEDS_SECTION else "pixels"
                problems.append(f"{where}: judges {judged} and is the same for all sources")
            else:
                try:
                    configure("filters", name, {**of_build[name], **options}, Plugin, where, spec.base)
                except SpecError as e:
                    problems += e.problems
    return problems
