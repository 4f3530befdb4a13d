"""ONNX models: sessions for filters and detectors, and paths of models that are files of other packages.

A model is located without importing its package, and identified by the sha256 of its file: what STORE caches of it
stays valid as long as the file is the same, whatever the package's version. Sessions run on one thread of the CPU
unless asked for more, so that workers on one machine do not compete and a score does not change with their number.

Limits: scores may differ in their last digits between kinds of CPU, as with every floating-point model.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

from data_specs.command.extras import install
from data_specs.search.onnx_file import NoCuda, start_session
from data_specs.storage.whole_files import sha256_of
from pipeline.errors import ModelError


@functools.cache
def find(package: str, pattern: str, distribution: str) -> Path:
    """The file of a package that matches the pattern; the last by name if several do. Raises ModelError."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(distribution, f"not installed: {install('models')}")
    matching = sorted(path for place in spec.submodule_search_locations for path in Path(place).glob(pattern))
    if not matching:
        raise ModelError(distribution, f"contains no {pattern}: {install('models')}")
    return matching[-1]


@functools.cache
def digest(path: Path) -> str:
    """sha256 of a model's file, hex."""
    return sha256_of(path)


def session(data: bytes | Path, name: str = "", threads: int = 1, gpu: bool = False) -> Any:
    """An onnxruntime session over a file or its bytes, on `threads` of the CPU.

    gpu: on CUDA. Raises ModelError that names the file (`name`, or the path), or says what CUDA needs.
    """
    try:
        return start_session(data if isinstance(data, bytes) else str(data), threads, gpu)
    except NoCuda as e:
        raise ModelError(name or str(data), str(e)) from None
    except Exception as e:  # onnxruntime's own exceptions lack a common base
        message = " ".join(str(e).split())[:200]
        raise ModelError(name or str(data), f"not an ONNX model ({message})") from None
