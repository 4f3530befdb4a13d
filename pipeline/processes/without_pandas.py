"""Keeps pyarrow from importing pandas where a process of ours begins."""

from __future__ import annotations

import functools
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pyarrow as pa


class _Pandas:
    """An import hook: pandas is not installed while it is `hidden`; pyarrow is told when it is imported after all."""

    hidden = True

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Implements `importlib.abc.MetaPathFinder`."""
        if name != "pandas":
            return None
        if self.hidden:
            raise ModuleNotFoundError(name, name=name)
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_tell(module: ModuleType) -> None:
                run(module)
                _ = pa.lib._pandas_api.pd  # it looks again

            spec.loader.exec_module = run_and_tell  # type: ignore[method-assign]
        return spec


@functools.cache
def arrow_without_pandas() -> None:
    """Keeps pyarrow from importing pandas in this process, unless other code has imported it.

    It tries once, at its first scalar, filter or group, in case it is handed a Series: half a second and 50 MB of
    every command and worker, none of which has one. Code that asks for a DataFrame, or imports pandas, makes it try
    again. Called where a process of ours begins.
    """
    if "pandas" not in sys.modules:
        hook = _Pandas()
        sys.meta_path.insert(0, hook)
        try:
            pa.scalar(None)
        finally:
            hook.hidden = False
