"""Encoders and objectives by name: a file of the package that holds ours, or a module of any other installed package.

    image.encoder=cnn_regions        training/encoders/cnn_regions.py
    image.encoder=acme.towers        the module `towers` of an installed package `acme`
    data.tokenizer=acme.words:Words  a class of one (training/data/tokenizer.py)

A new one of ours is a new file, without a registry. A file `_*.py` is a helper, not a plug-in.

A checkpoint names its modules, and loading one imports them. So what is imported belongs to an installed distribution:
never a file beside the checkpoint or in the working folder, and no module of the standard library.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from types import ModuleType

from training.errors import ConfigError


def module_of(family: ModuleType, name: str, key: str) -> ModuleType:
    """The module of a plug-in. family: the package of ours. key: of the config, for messages. Raises ConfigError."""
    if name.isidentifier() and not name.startswith("_"):
        known = sorted(module.name for module in pkgutil.iter_modules(family.__path__) if module.name[0] != "_")
        if name not in known:
            kind = key.rpartition(".")[2]
            problem = f"unknown {kind} {name!r}; available: {', '.join(known)}, or a module of another package"
            raise ConfigError(key, problem)
        return importlib.import_module(f"{family.__name__}.{name}")
    module = import_installed(name, key)
    if not hasattr(module, "build"):
        raise ConfigError(key, f"{name} has no function build")
    return module


def import_installed(name: str, key: str) -> ModuleType:
    """A module of an installed package other than this one. Raises ConfigError."""
    if name.partition(".")[0] not in importlib.metadata.packages_distributions():
        raise ConfigError(key, f"{name!r} is in no installed package; install the one that has it")
    try:
        return importlib.import_module(name)
    except (ImportError, ValueError) as e:
        raise ConfigError(key, f"{name!r} cannot be imported ({e})") from None
