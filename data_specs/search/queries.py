"""Queries without torch: the text tower as an ONNX file, run by onnxruntime.

`INDEX/queries/text.onnx` is the text half of `wenlan-train export --to onnx`. Its metadata say all that is needed to
use it: vocabulary, most tokens, the sha256 of the towers. Texts become ids by the tokenizer that training uses
(`data_specs.tokenizer`), so a query here has the vector that `wenlan-train embed` gives the same text.

Limits: the towers of BriVL-1.0 read texts padded to their full length, and others padded to the longest of a batch,
which changes the last digits of a vector.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_specs.search.folder import IndexFault, Towers
from data_specs.tokenizer import JsonTokenizer, Tokenizer, VocabularyError, from_vocabulary

TEXT = "queries/text.onnx"
"""The text tower of an index, relative to its folder."""

BATCH = 64
"""Texts that are encoded at once."""


class TextQuery:
    """The text tower of an index. Any thread may encode.

    towers: which towers it is of; an index of other towers cannot be searched with it. width: D.
    """

    def __init__(
        self, session: Any, tokenizer: Tokenizer, max_tokens: int, padded: bool, towers: Towers, width: int
    ) -> None:
        self.towers, self.width = towers, width
        self._session, self._tokenizer, self._max_tokens, self._padded = session, tokenizer, max_tokens, padded

    @staticmethod
    def open(folder: Path) -> TextQuery:
        """Open the text tower of an index, by the index's folder, or an ONNX file by its own path.

        Raises IndexFault where there is none, or it is no text tower of wenlan.
        """
        import onnxruntime

        path = folder if folder.suffix == ".onnx" else folder / TEXT
        if not path.is_file():
            raise IndexFault(f"{path}: is missing; wenlan-train export CHECKPOINT --to onnx writes it")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            about: dict[str, str] = session.get_modelmeta().custom_metadata_map
            inputs = {given.name for given in session.get_inputs()}
        except Exception as e:  # onnxruntime raises types of its own, below Exception alone
            raise IndexFault(f"{path}: cannot be read ({(str(e).splitlines() or [''])[0][:200]})") from None
        if inputs != {"input_ids", "n_tokens"} or "vocabulary" not in about:
            raise IndexFault(f"{path}: is no text tower of wenlan-train export --to onnx")
        try:
            tokenizer = _tokenizer(about, str(path))
            towers = Towers(recipe=about["recipe"], sha256=about["towers_sha256"])
            padded = bool(json.loads(about["config"]).get("compat"))
            most, width = int(about["max_tokens"]), int(about["feature_dim"])
            return TextQuery(session, tokenizer, most, padded, towers, width)
        except (KeyError, ValueError, VocabularyError) as e:
            raise IndexFault(f"{path}: its metadata cannot be used ({e})") from None

    def encode(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """float32 [n, D] unit rows of texts, in their order."""
        batches = [self._encoded(texts[low : low + BATCH]) for low in range(0, len(texts), BATCH)]
        return np.concatenate([np.empty((0, self.width), np.float32), *batches])

    def _encoded(self, texts: list[str]) -> npt.NDArray[np.float32]:
        ids = [self._tokenizer.encode(text, self._max_tokens) for text in texts]
        length = self._max_tokens if self._padded else max(map(len, ids))
        ids_BL = np.zeros((len(ids), length), np.int64)
        for row, own in enumerate(ids):
            ids_BL[row, : len(own)] = own
        counts_B = np.array([len(own) for own in ids], np.int64)
        features: npt.NDArray[np.float32] = self._session.run(None, {"input_ids": ids_BL, "n_tokens": counts_B})[0]
        return features


def _tokenizer(about: dict[str, str], subject: str) -> Tokenizer:
    if "tokenizer_json" in about:
        return JsonTokenizer(about["tokenizer_json"], subject)
    lines = about["vocabulary"].split("\n")
    return from_vocabulary(lines[:-1] if lines[-1] == "" else lines, subject)
