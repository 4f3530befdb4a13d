"""Encoders, objectives and tokenizers by name: a file of the package that holds ours, or code of an installed package.

    image.encoder=cnn_regions        training/encoders/cnn_regions.py
    image.encoder=mymodel            the entry point `mymodel` that an installed package declares in the group `wenlan`
    image.encoder=acme.towers        the module `towers` of an installed package `acme`, and there `build`
    moco.objective=acme.losses:hard  its function or class `hard` in place of `build`
    data.tokenizer=acme.words:Words  a class of one (training/data/tokenizer.py)

A new one of ours is a new file, without a registry, and its name wins over an entry point. A file `_*.py` is a helper,
not a plug-in.

A checkpoint names its code, and loading one imports it. So what is imported is declared by an installed distribution,
or belongs to one by its list of files: never a file beside the checkpoint or in the working folder, and no module of
the standard library.

Limits: an editable installation may list no files; then its entry points are found, and its modules are not.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from data_specs.command.ownership import installed_owners
from training.errors import ConfigError

GROUP = "wenlan"


def build_by(family: ModuleType, name: str, key: str, *given: Any, options: Mapping[str, Any] | None = None) -> Any:
    """Returns what the plug-in of a name builds of `given` and `options`, its keyword arguments.

    family: the package of ours. key: of the config, for messages. Raises ConfigError.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(family.__path__) if module.name[0] != "_")
    if name in known:
        found: Any = importlib.import_module(f"{family.__name__}.{name}")
    elif name.isidentifier() and declared_as(name, key) is None:
        kind, others = key.rpartition(".")[2], "a module of another package or an entry point"
        raise ConfigError(key, f"unknown {kind} {name!r}; available: {', '.join(known)}, or {others}")
    else:
        found = import_installed(name, key)
    build: Callable[..., Any] | None = getattr(found, "build", None) if isinstance(found, ModuleType) else found
    if not callable(build):
        raise ConfigError(key, f"{name} has no function build")
    try:
        inspect.signature(build).bind(*given, **(options or {}))
    except TypeError as e:
        raise ConfigError(key, f"{name} does not take its arguments and options: {e}") from None
    return build(*given, **(options or {}))


def declared_as(name: str, key: str) -> str | None:
    """MODULE or MODULE:OBJECT of the entry point of this name in the group `wenlan`, or None. Raises ConfigError."""
    values = sorted({point.value for point in importlib.metadata.entry_points(group=GROUP, name=name)})
    if len(values) > 1:
        raise ConfigError(key, f"several packages declare {name!r} ({', '.join(values)}); name one of these")
    return values[0] if values else None


def import_installed(name: str, key: str) -> Any:
    """The object of an entry point, or MODULE or MODULE:OBJECT of an installed package. Raises ConfigError."""
    value = declared_as(name, key) or name
    root = value.partition(":")[0].partition(".")[0]
    if not importlib.metadata.entry_points(group=GROUP, value=value) and root not in installed_owners([root]):
        raise ConfigError(key, f"{name!r} is in no installed package; install the one that has it")
    try:
        return importlib.metadata.EntryPoint(name, value, GROUP).load()
    except (ImportError, ValueError, AttributeError) as e:
        raise ConfigError(key, f"{name!r} cannot be imported ({e})") from None
