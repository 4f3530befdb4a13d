"""Queries without torch: a text tower as an ONNX file, run by onnxruntime.

`INDEX/queries/text.onnx` is the text half of `wenlan-train export --to onnx`. Its metadata say all that is needed to
use it: vocabulary, most tokens, the sha256 of the towers. Texts become ids by the tokenizer that training uses
(`data_specs.text.tokenizer`), so a query here has the vector that `wenlan-train embed` gives the same text.

Text towers of others say nothing of themselves: `TextQuery.foreign` takes the vocabulary and the number of tokens.
Chinese-CLIP's (cn_clip/deploy/pytorch_to_onnx.py) take `text`, int64 [1, 52], padded with [PAD].

Texts are encoded with others of the same number of tokens, so that no vector depends on what it was encoded with.

Limits: the towers of BriVL-1.0, and those of others, read texts padded to their full length. A foreign vocabulary
without [PAD] is padded with 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_specs.search.folder import IndexFault, Towers
from data_specs.search.onnx_file import TowerFault, check_onnx_file, open_onnx_file, width_of
from data_specs.text.tokenizer import JsonTokenizer, Tokenizer, VocabularyError, from_vocabulary

TEXT = "queries/text.onnx"
"""The text tower of an index, relative to its folder."""

BATCH = 64
"""Texts that are encoded at once."""

MOST_TOKENS = 1 << 16
"""Largest number for a text that a file of our format may state: it is untrusted."""

MOST_VOCABULARY = 64 << 20
"""Bytes of a foreign vocabulary."""

Vectors = npt.NDArray[np.float32]
"""[n, D] unit rows."""


@dataclass(frozen=True, slots=True)
class TextInputs:
    """Input of a text tower: token ids [B, L] as `ids`, of an integer type.

    counts, mask: names of the inputs for the number of tokens [B], and for a mask [B, L] of ones; "" if absent.
    at_once: B, where the file fixes it; 0 for any. padding: the id after the last token.
    """

    ids: str = "input_ids"
    counts: str = "n_tokens"
    mask: str = ""
    kind: type[np.int64] | type[np.int32] = np.int64
    at_once: int = 0
    padding: int = 0


@dataclass(eq=False)
class TextQuery:
    """A text tower. Any thread may encode.

    towers: which towers it is of; an index of other towers cannot be searched with it. width: D.
    """

    session: Any
    tokenizer: Tokenizer
    max_tokens: int
    padded: bool
    towers: Towers
    width: int
    inputs: TextInputs = TextInputs()

    @staticmethod
    def open(folder: Path, threads: int = 0, gpu: bool = False) -> TextQuery:
        """Open the text tower of an index, by the index's folder, or an ONNX file by its own path.

        threads: of the CPU, 0 for as many as onnxruntime takes. Raises IndexFault if it is missing or not a
        text tower of wenlan.
        """
        path = folder if folder.suffix == ".onnx" else folder / TEXT
        if not path.is_file():
            todo = "give the checkpoint with --checkpoint, or embed again with --onnx to write it"
            if path == folder:
                todo = "wenlan-train export CHECKPOINT --to onnx writes it"
            raise IndexFault(f"{path}: is missing; {todo}")
        model = open_onnx_file(check_onnx_file(path), threads, gpu)
        about = model.about
        if ":" in about.get("tokenizer", "") and "vocabulary" not in about:
            todo = "give the checkpoint with --checkpoint"
            raise IndexFault(f"{path}: its tokenizer is {about['tokenizer']}, code of another package; {todo}")
        if set(model.inputs) != {"input_ids", "n_tokens"} or "vocabulary" not in about:
            raise IndexFault(f"{path}: is not a text tower made by wenlan-train export --to onnx")
        try:
            tokenizer = _tokenizer(about, str(path))
            towers = Towers(recipe=about["recipe"], sha256=about["towers_sha256"])
            padded = bool(json.loads(about["config"]).get("compat"))
            most, width = int(about["max_tokens"]), int(about["feature_dim"])
            if not 3 <= most <= MOST_TOKENS:
                raise ValueError(f"max_tokens {most}")
        except (
            AttributeError,
            KeyError,
            RecursionError,
            TypeError,
            ValueError,
        ) as e:  # VocabularyError is a ValueError
            raise IndexFault(f"{path}: its metadata cannot be used ({e})") from None
        query = TextQuery(model.session, tokenizer, most, padded, towers, width)
        if (made := query.probed(str(path))) != width:
            raise TowerFault(f"{path}: its metadata cannot be used (feature_dim {width}, it returns {made})")
        return query

    @staticmethod
    def foreign(path: Path, vocabulary: Path, max_tokens: int, threads: int = 0, gpu: bool = False) -> TextQuery:
        """Open a text tower from elsewhere: one input of token ids [B, L], maybe `attention_mask` and `token_type_ids`.

        vocabulary: a vocab.txt of BERT, or a tokenizer.json. Raises TowerFault for any other file.
        """
        file = check_onnx_file(path)
        model, tokenizer = open_onnx_file(file, threads, gpu), read_tokenizer(vocabulary)
        rest = {name: own for name, own in model.inputs.items() if name not in ("attention_mask", "token_type_ids")}
        kind, shape = next(iter(rest.values()), ("", ()))
        if len(rest) != 1 or kind not in _INTEGERS or len(shape) != 2:
            taken = ", ".join(f"{name} {kind} {list(shape)}" for name, (kind, shape) in model.inputs.items())
            raise TowerFault(f"{path}: takes {taken[:200]}; a text tower takes token ids [B, L]")
        if "token_type_ids" in model.inputs:
            raise TowerFault(f"{path}: takes token_type_ids; export it without them, since texts come one at a time")
        if shape[1] not in (0, max_tokens):
            raise TowerFault(f"{path}: takes {shape[1]} tokens, pair_score.max_tokens is {max_tokens}")
        tokens = list(tokenizer.vocabulary)
        inputs = TextInputs(
            ids=next(iter(rest)),
            counts="",
            mask="attention_mask" if "attention_mask" in model.inputs else "",
            kind=_INTEGERS[kind],
            at_once=shape[0],
            padding=tokens.index("[PAD]") if "[PAD]" in tokens else 0,
        )
        towers = Towers(recipe="", sha256=file.sha256)
        query = TextQuery(model.session, tokenizer, max_tokens, True, towers, 0, inputs)
        query.width = query.probed(str(path))
        return query

    def probed(self, subject: str) -> int:
        """D, from a first text. Raises TowerFault that names the file if the tower cannot encode it."""
        first = [self.tokenizer.encode("一", self.max_tokens)]
        return width_of(lambda: self._features(first), subject, "a text")

    def encode(self, texts: list[str]) -> Vectors:
        """float32 [n, D] unit rows of texts, in their order. Raises ValueError for a row that is not finite."""
        ids = [self.tokenizer.encode(text, self.max_tokens) for text in texts]
        features = np.empty((len(texts), self.width), np.float32)
        for rows in self._batches([len(own) for own in ids]):
            features[rows] = self._features([ids[row] for row in rows])
        return unit_rows(features) if not self.inputs.counts else features

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Numbers of texts that are encoded together."""
        size = self.inputs.at_once or BATCH
        by_length: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            by_length.setdefault(self.max_tokens if self.padded else length, []).append(row)
        for _, rows in sorted(by_length.items()):
            yield from (rows[low : low + size] for low in range(0, len(rows), size))

    def _features(self, ids: list[list[int]]) -> Vectors:
        """Raw features [n, D] of the token ids of n texts, which have one length unless they are padded."""
        own, count = self.inputs, len(ids)
        length = self.max_tokens if self.padded else max(map(len, ids))
        ids_BL = np.full((max(count, own.at_once), length), own.padding, own.kind)
        for row, tokens in enumerate(ids):
            ids_BL[row, : len(tokens)] = tokens
        given: dict[str, npt.NDArray[Any]] = {own.ids: ids_BL}
        if own.counts:
            given[own.counts] = np.array([len(tokens) for tokens in ids], np.int64)
        if own.mask:
            given[own.mask] = (ids_BL != own.padding).astype(own.kind)
        features: npt.NDArray[Any] = self.session.run(None, given)[0]
        rows: Vectors = np.asarray(features, np.float32)[:count]
        return rows


_INTEGERS: dict[str, type[np.int64] | type[np.int32]] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


def unit_rows(features: Vectors) -> Vectors:
    """The rows at length one. Raises ValueError for one that is zero, or not finite."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise ValueError("the tower returns features that are zero, or not finite")
    unit: Vectors = features / lengths
    return unit


def read_tokenizer(vocabulary: Path) -> Tokenizer:
    """The tokenizer of a vocab.txt or a tokenizer.json. Raises TowerFault."""
    try:
        if vocabulary.stat().st_size > MOST_VOCABULARY:
            raise TowerFault(f"{vocabulary}: is larger than {MOST_VOCABULARY >> 20} MiB, which no vocabulary is")
        content = vocabulary.read_text("utf-8")
        if content.lstrip().startswith("{"):
            return JsonTokenizer(content, str(vocabulary))
        return from_vocabulary(content.removesuffix("\n").split("\n"), str(vocabulary))
    except UnicodeDecodeError:
        raise TowerFault(f"{vocabulary}: is not UTF-8 text") from None
    except OSError as e:
        raise TowerFault(f"{vocabulary}: cannot be read ({e.strerror or type(e).__name__})") from None
    except VocabularyError as e:
        raise TowerFault(str(e)) from None


def _tokenizer(about: dict[str, str], subject: str) -> Tokenizer:
    if "tokenizer_json" in about:
        return JsonTokenizer(about["tokenizer_json"], subject)
    lines = about["vocabulary"].split("\n")
    return from_vocabulary(lines[:-1] if lines[-1] == "" else lines, subject)
