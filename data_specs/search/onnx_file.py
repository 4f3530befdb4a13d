"""ONNX files of encoders: checked, identified and opened by onnxruntime, without torch.

A file is untrusted. It holds a graph and numbers, no code: nothing is unpickled, no library of custom operators
is registered, so a file that names one is refused. Its size is bounded before it is read. Weights may lie in one file
beside it, under the two names that exporters give it (`m.onnx.extra_file` of Chinese-CLIP, `m.onnx.data` of torch). A
graph that points to any other file is refused, since its sha256 would not tell what it computes.

Limits: where weights lie is read from the bytes of the graph, as every protobuf library writes them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_specs.search.folder import IndexFault

MOST_BYTES = 2 << 30
"""Largest size of a graph: protobuf allows no more."""

MOST_BESIDE = 16 << 30
"""Largest size of the weights beside it."""

BESIDE = (".extra_file", ".data")

_LOCATION = re.compile(rb"\x0a\x08location\x12(.)", re.DOTALL)
"""A StringStringEntryProto (onnx.proto): field 1 `location`, then field 2, whose length is the byte that follows; of
127 bytes at most, or what is read is not one of the names that are let through."""


CUDA = "CUDAExecutionProvider"
CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
"""Sizes of batches and pictures change: no search for the fastest convolution of each, no doubling of the arena."""

INSTALL = "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"
"""Both packages hold the same modules, so an extra cannot bring the second beside the first."""


class NoCuda(Exception):
    """A session on a GPU was asked for and cannot be had. The message says what to install."""


class TowerFault(IndexFault):
    """A file is not a usable encoder. The message names it."""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A file that passed `check_onnx_file`. sha256: of its bytes, and of external weights, if any."""

    path: Path
    has_beside: bool
    sha256: str


@dataclass(frozen=True, slots=True)
class OpenTower:
    """A tower's session, its file's metadata, its inputs: name -> (element type, shape with 0 for a free size)."""

    session: Any
    about: dict[str, str]
    inputs: dict[str, tuple[str, tuple[int, ...]]]


def check_onnx_file(path: Path) -> OnnxFile:
    """Check the sizes and references of an ONNX file before a model is read from it. Raises TowerFault."""
    digest = hashlib.sha256()
    try:
        if path.stat().st_size > MOST_BYTES:
            raise TowerFault(f"{path}: is larger than {MOST_BYTES >> 30} GiB, which no ONNX graph is")
        graph = path.read_bytes()
        digest.update(graph)
        places = {graph[at.end() : at.end() + at[1][0]] for at in _LOCATION.finditer(graph)}
        if not places:
            return OnnxFile(path, False, digest.hexdigest())
        names = [path.name + suffix for suffix in BESIDE]
        named = next((name for name in names if places == {name.encode()}), "")
        if not named:
            others = ", ".join(sorted(place.decode(errors="replace") for place in places))
            raise TowerFault(f"{path}: keeps weights in {others[:200]!r}; only {' or '.join(names)} is read")
        beside = path.with_name(named)
        if beside.stat().st_size > MOST_BESIDE:
            raise TowerFault(f"{beside}: is larger than {MOST_BESIDE >> 30} GiB")
        with beside.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError as e:
        raise TowerFault(f"{e.filename or path}: cannot be read ({e.strerror or type(e).__name__})") from None
    return OnnxFile(path, True, digest.hexdigest())


def open_onnx_file(file: OnnxFile, threads: int = 0, gpu: bool = False) -> OpenTower:
    """A session on `threads` of the CPU (0: as onnxruntime takes them), or on CUDA. Raises TowerFault."""
    try:
        # of bytes no path is resolved: what lies elsewhere would not be found
        graph: str | bytes = str(file.path) if file.has_beside else file.path.read_bytes()
        session = start_session(graph, threads, gpu)
        about: dict[str, str] = session.get_modelmeta().custom_metadata_map
        inputs = {given.name: (str(given.type), _shape(given.shape)) for given in session.get_inputs()}
    except NoCuda as e:
        raise TowerFault(f"{file.path}: {e}") from None
    except Exception as e:  # onnxruntime raises types of its own, below Exception alone
        raise TowerFault(f"{file.path}: cannot be read ({(str(e).splitlines() or [''])[0][:200]})") from None
    return OpenTower(session, about, inputs)


def start_session(graph: str | bytes, threads: int = 0, gpu: bool = False, spinning: bool = True) -> Any:
    """An onnxruntime session on `threads` of the CPU (0: as it takes them) or, without falling back, on CUDA.

    spinning: its threads use a core while they wait. Raises NoCuda, and onnxruntime's own.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    on_cpu = "CPUExecutionProvider"
    if not gpu:
        return onnxruntime.InferenceSession(graph, options, providers=[on_cpu])
    if CUDA not in onnxruntime.get_available_providers():
        raise NoCuda(f"num_gpus asks for a GPU, but the onnxruntime here has no CUDA: {INSTALL}, or set num_gpus: 0")
    if hasattr(onnxruntime, "preload_dlls"):  # from 1.21 on: CUDA's libraries out of pip's packages
        onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(graph, options, providers=[(CUDA, CUDA_OPTIONS), on_cpu])
    if CUDA not in session.get_providers():
        missing = "its GPU or one of CUDA's libraries is missing (above, onnxruntime says which)"
        raise NoCuda(f"num_gpus asks for a GPU, but onnxruntime cannot start CUDA: {missing}: {INSTALL}")
    return session


def width_of(encode: Callable[[], npt.NDArray[Any]], subject: str, what: str) -> int:
    """D, from the features of a first input, `what`. Raises TowerFault that names the file if it fails."""
    try:
        features = encode()
    except Exception as e:  # onnxruntime's own exceptions lack a common base
        raise TowerFault(f"{subject}: fails on {what} ({' '.join(str(e).split())[:200]})") from None
    if features.ndim != 2 or features.shape[0] != 1 or not np.isfinite(features).all():
        raise TowerFault(f"{subject}: returns {list(features.shape)}; a tower returns finite features [B, D]")
    return int(features.shape[1])


def _shape(sizes: list[Any]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else 0 for size in sizes)
