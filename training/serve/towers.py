"""The towers behind the server and their inputs, prepared by many threads and computed by one.

Two engines compute the same features to about 1e-6:

    onnx     onnxruntime on the CPU, on the files that `export --to onnx` writes; exported once per checkpoint into the
             cache, so that the next start takes seconds. Needs the extra `onnx`.
    torch    as everywhere else, on any device

`auto` is torch on a GPU, onnxruntime on a CPU where it is installed, else torch (DECISIONS.md has the figures).

Limits: a tokenizer of `tokenizers` is not safe in several threads, hence a lock around it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from data_specs.command.extras import install
from data_specs.search.onnx_file import start_session
from training.config import to_dict
from training.data.index import default_cache
from training.data.transforms import decode, grid_boxes, import_decoders, input_boxes, resize_square, sides
from training.errors import ConfigError, RunError
from training.outputs.checkpoint import Checkpoint
from training.serve.refusals import overloaded
from training.use.detector import ProcessLocalDetector
from training.weights.load import Boxes, Loaded, load, open_image

if TYPE_CHECKING:
    from training.config import Config
    from training.records import Batch
    from training.towers.tower import Modality

LOG = logging.getLogger(__name__)

Engine = Literal["auto", "onnx", "torch"]
Features = npt.NDArray[np.float32]
"""[N, D] unit rows."""

_EXPORT_VERSION = 1
"""Raised when the export of the same towers writes other files."""


@dataclass(frozen=True, slots=True)
class PreparedPicture:
    """A prepared picture: uint8 [3, S, S], and boxes [R, 4] in its pixels, the whole image last."""

    pixels_3SS: npt.NDArray[np.uint8]
    boxes_R4: npt.NDArray[np.float32]


Tokens = Sequence[int]
"""Ids of a text with its marks."""


class Towers(Protocol):
    """Both query towers on prepared inputs. One thread calls them."""

    def encode_images(self, pictures: Sequence[PreparedPicture]) -> Features:
        """Unit rows [N, D]."""
        ...

    def encode_texts(self, texts: Sequence[Tokens]) -> Features:
        """Unit rows [N, D]."""
        ...


class InputReader:
    """Prepares inputs as the checkpoint's training read them. Any number of threads may call it."""

    def __init__(
        self, checkpoint: Checkpoint, max_pixels: int, boxes_of: Callable[[bytes], Boxes] | None = None
    ) -> None:
        """boxes_of: makes the boxes of a picture that comes without, from its file's content; None for the grid."""
        import_decoders()
        config = checkpoint.config
        self.config: Config = config
        self._max_pixels = min(max_pixels, config.data.max_pixels)
        self._boxes_of = boxes_of
        self._tokenizer, self._alone = checkpoint.tokenizer, threading.Lock()

    def picture(self, content: bytes) -> PreparedPicture:
        """A picture from its file's content, with the boxes of `boxes_of`, or the grid. Raises UnreadableImage."""
        boxes = None
        if self._boxes_of is not None:
            sides(content, self._max_pixels)  # before it is decoded
            boxes = self._boxes_of(content)
        config = replace(self.config, data=replace(self.config.data, max_pixels=self._max_pixels))
        opened = open_image(config, content, boxes)
        return PreparedPicture(opened.image_3SS.contiguous().numpy(), opened.boxes_R4)

    def boxes(self, content: bytes) -> tuple[int, int, list[list[float]]]:
        """Width, height, and the regions that the tower looks at, in pixels. Raises UnreadableImage."""
        width, height = sides(content, self._max_pixels)
        most = self.config.data.max_boxes
        if self._boxes_of is not None:
            return width, height, [list(map(float, box)) for box in self._boxes_of(content)[:most]]
        boxes_R4 = grid_boxes(width, height, most)
        return width, height, boxes_R4.tolist() if len(boxes_R4) > 1 else []

    def region(self, content: bytes, box: Sequence[float]) -> list[PreparedPicture]:
        """Pictures to embed for one box (x1 y1 x2 y2) of a picture; its feature is that of their mean.

        The crop as a picture of its own, and for a tower with regions also the whole picture with this box as its only
        one, as `eval --task regions` measures both (`crop`, `alone`). DECISIONS.md says why. Raises UnreadableImage.
        """
        size, most = self.config.data.image_size, self.config.data.max_boxes
        image = decode(content, self._max_pixels)
        height, width = image.shape[1:]
        x1, y1, x2, y2 = (float(side) for side in box)
        left, top = max(0, min(int(x1), width - 1)), max(0, min(int(y1), height - 1))
        right, bottom = max(left + 1, min(round(x2), width)), max(top + 1, min(round(y2), height))
        cut = resize_square(image[:, top:bottom, left:right], size).contiguous().numpy()
        crop = PreparedPicture(cut, input_boxes(None if most else [], size, size, size, most))
        if most == 0:
            return [crop]
        boxes_R4 = input_boxes([left, top, right, bottom], width, height, size, 1)
        return [PreparedPicture(resize_square(image, size).contiguous().numpy(), boxes_R4[:1]), crop]

    def tokens(self, text: str) -> Tokens:
        """Ids of a text; what is longer than the towers read is cut."""
        with self._alone:
            return self._tokenizer.encode(text, self.config.data.max_tokens)


def boxes_by(detector: ProcessLocalDetector) -> Callable[[bytes], Boxes]:
    """Boxes of a picture by a detector, best first; none of what cannot be read. Any thread may ask; raises Refused.

    The detector keeps the boxes of the last pictures: a page asks for a picture's results, then for those of its boxes.
    """
    lock = threading.Lock()

    def boxes_of(content: bytes) -> Boxes:
        with lock:
            try:
                [boxes] = detector.detect([content])
            except RunError as e:
                raise overloaded("detector_down", str(e), 60) from None
        return boxes

    return boxes_of


class TorchTowers:
    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    def encode_images(self, pictures: Sequence[PreparedPicture]) -> Features:
        import torch

        images = [torch.from_numpy(picture.pixels_3SS) for picture in pictures]
        return self._encode("image", self._loaded.image_batch(images, [picture.boxes_R4 for picture in pictures]))

    def encode_texts(self, texts: Sequence[Tokens]) -> Features:
        return self._encode("text", self._loaded.token_batch(texts))

    def _encode(self, modality: Modality, batch: Batch) -> Features:
        features: Features = self._loaded.encode(modality, batch).cpu().numpy()
        return features


class OnnxTowers:
    def __init__(self, files: dict[str, Path], config: Config, threads: int | None = None) -> None:
        # Threads that spin while they wait take a core from the threads that read requests and pictures.
        self._image, self._text = (
            start_session(str(files[n]), threads or 0, spinning=False) for n in ("image", "text")
        )
        about: dict[str, str] = self._image.get_modelmeta().custom_metadata_map
        mean, std = (np.asarray(json.loads(about[f"pixel_{name}"]), np.float32) for name in ("mean", "std"))
        self._scale, self._shift = (1 / (255 * std))[:, None, None], (mean / std)[:, None, None]
        self._tokens = config.data.max_tokens if config.compat else 0

    def encode_images(self, pictures: Sequence[PreparedPicture]) -> Features:
        images = np.stack([picture.pixels_3SS for picture in pictures]).astype(np.float32)
        images *= self._scale
        images -= self._shift
        counts = np.asarray([len(picture.boxes_R4) for picture in pictures], np.int64)
        boxes = np.zeros((len(pictures), counts.max(), 4), np.float32)
        for row, picture in enumerate(pictures):
            boxes[row, : counts[row]] = picture.boxes_R4
        return _single_output(self._image.run(None, {"images": images, "boxes": boxes, "n_boxes": counts}))

    def encode_texts(self, texts: Sequence[Tokens]) -> Features:
        counts = np.asarray([len(ids) for ids in texts], np.int64)
        ids_BL = np.zeros((len(texts), max(self._tokens, counts.max())), np.int64)
        for row, ids in enumerate(texts):
            ids_BL[row, : counts[row]] = ids
        return _single_output(self._text.run(None, {"input_ids": ids_BL, "n_tokens": counts}))


def _single_output(outputs: Any) -> Features:
    [features] = outputs
    return np.asarray(features, np.float32)


def open_towers(checkpoint: Checkpoint, engine: Engine, device: str, threads: int | None = None) -> Towers:
    """The query towers of a checkpoint.

    threads: of onnxruntime; None for as many as there are cores. Raises CheckpointError, ConfigError.
    """
    if engine == "auto":
        engine = _fastest_engine(device)
    if engine == "onnx":
        return OnnxTowers(_export_onnx(checkpoint), checkpoint.config, threads)
    return TorchTowers(load(checkpoint.folder, device))


def _fastest_engine(device: str) -> Engine:
    from training.device import device_of

    if device_of(device).type != "cpu":
        return "torch"
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        LOG.info("the towers run on torch; they are faster on a CPU with %s", install("onnx"))
        return "torch"
    return "onnx"


def _export_onnx(checkpoint: Checkpoint) -> dict[str, Path]:
    """ONNX files of a checkpoint's towers in the cache, written if they are not there. Raises ConfigError, OSError."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(name) is None:
            raise ConfigError("--engine", f"onnx needs {name}: {install('onnx')}")
    towers = checkpoint.towers
    described = json.dumps([_EXPORT_VERSION, towers, to_dict(checkpoint.config)], sort_keys=True)
    folder = default_cache().parent / "onnx"
    stem = folder / hashlib.sha256(described.encode()).hexdigest()[:32]
    files = {name: stem.with_name(f"{stem.name}.{name}.onnx") for name in ("image", "text")}
    if not all(file.is_file() for file in files.values()):
        folder.mkdir(parents=True, exist_ok=True)
        LOG.info("writing the towers for onnxruntime into %s; once per checkpoint", folder)
        made = stem.with_name(f"{stem.name}-{os.getpid()}.onnx")  # another server may write the same ones
        # In a process of its own, since the model that is traced would stay in this one's memory.
        words = [sys.executable, "-m", "training", "export", str(checkpoint.folder), "--to", "onnx", "--out", str(made)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError("--engine", f"the towers cannot be exported: {(done.stderr.splitlines() or ['?'])[-1]}")
        for name, file in files.items():
            made.with_name(f"{made.stem}.{name}.onnx").replace(file)
    return files
