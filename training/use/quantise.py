"""The text tower in int8, and what that costs: for machines where the float one is too large or too slow.

onnxruntime's dynamic quantisation: weights of matrix products are stored as int8 with a scale per column, activations
are rounded as they come. What it changes is measured and written into the file (`int8_loss`, JSON): cosines of its
features with the float tower's on the same texts, and where a dataset's split is given the recall at 1 of both.

Limits: the image tower stays float: its convolutions are not what this kind of quantisation is for. Without a dataset
the texts are random tokens, which says how far features move and nothing of what that does to a search.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.errors import ConfigError, first_line
from training.evaluation.evaluate import retrieval, split_of_dataset
from training.evaluation.features import Embeddings
from training.outputs.whole import whole_file
from training.weights.load import BATCH, Loaded

if TYPE_CHECKING:
    from training.records import Batch

_RANDOM = 256
"""Random texts by which the loss is measured where no dataset is given."""


def quantise_text(
    loaded: Loaded,
    text_onnx: Path,
    out: Path,
    data: Sequence[str] = (),
    split: str = "val",
    cache: Path | None = None,
) -> dict[str, Any]:
    """Write the int8 form of a text tower's ONNX file; its loss as JSON values.

    texts, mean_cosine, least_cosine: of its features with the float ones. With `data`: r1, for each direction and both
    towers, and `bytes`, of the float and of the int8 file. Raises ConfigError where the tower cannot be quantised.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="wenlan-int8-") as folder:
        plain = Path(folder) / "text.onnx"
        try:
            quantize_dynamic(text_onnx, plain, per_channel=True, weight_type=QuantType.QInt8)
            loss = _measured(loaded, plain, data, split, cache)
        except Exception as e:  # onnx and onnxruntime raise many types on a graph that they do not take
            if isinstance(e, ConfigError) or type(e).__module__.startswith(("training", "data_specs")):
                raise
            raise ConfigError("--int8", f"onnxruntime cannot quantise this text tower ({first_line(e)})") from None
        model = onnx.load(plain)
        loss["bytes"] = {"float": text_onnx.stat().st_size, "int8": plain.stat().st_size}
    about = {entry.key: entry.value for entry in onnx.load(text_onnx, load_external_data=False).metadata_props}
    onnx.helper.set_model_props(model, {**about, "int8_loss": json.dumps(loss)})
    with whole_file(out) as temporary:
        onnx.save(model, temporary)
    return loss


def summary(loss: dict[str, Any]) -> str:
    """One line about a loss, for people."""
    line = (
        f"int8 text tower: cosine with float {loss['mean_cosine']:.4f} on average, {loss['least_cosine']:.4f} at least"
    )
    line += f" ({loss['texts']:,} {loss['of']})"
    if "r1" in loss:
        pairs = (f"{way} {r['float']:.1%} -> {r['int8']:.1%}" for way, r in loss["r1"].items())
        line += f"; R@1 {', '.join(pairs)}"
    return f"{line}; {loss['bytes']['float'] / 1e6:.1f} -> {loss['bytes']['int8'] / 1e6:.1f} MB"


def _measured(loaded: Loaded, file: Path, data: Sequence[str], split: str, cache: Path | None) -> dict[str, Any]:
    """The loss on a split's pairs, or on random texts."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every shape that is left open
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    parts: list[tuple[Any, ...]] = []
    batches = _of_split(loaded, data, split, cache) if data else _random_texts(loaded)
    for batch in batches:
        inputs = {"input_ids": batch.token_ids_BL.numpy(), "n_tokens": batch.n_tokens_B.numpy()}
        [int8_BD] = session.run(["text_features"], inputs)
        moved, valid_B = batch.to(loaded.device), batch.valid_B.numpy()
        with torch.inference_mode():
            text_BD = loaded.model.encode_text(moved).float().cpu().numpy()
            image_BD = loaded.model.encode_image(moved).float().cpu().numpy() if data else text_BD
        ids = batch.image_ids_B.numpy(), batch.text_ids_B.numpy()
        parts.append(tuple(x[valid_B] for x in (image_BD, text_BD, int8_BD, *ids)))
    image_ND, text_ND, int8_ND, image_ids_N, text_ids_N = (np.concatenate(x) for x in zip(*parts, strict=True))
    cosines_N = np.einsum("nd,nd->n", text_ND, int8_ND)
    loss: dict[str, Any] = {"of": f"of {split}" if data else "random texts", "texts": len(cosines_N)}
    loss |= {"mean_cosine": float(cosines_N.mean()), "least_cosine": float(cosines_N.min())}
    if data:
        of_both = {
            name: retrieval(Embeddings(image_ND, texts_ND, image_ids_N, text_ids_N)).to_json()
            for name, texts_ND in (("float", text_ND), ("int8", int8_ND))
        }
        loss["data"] = " ".join(data)
        loss["r1"] = {way: {name: of[way]["r1"] for name, of in of_both.items()} for way in ("i2t", "t2i")}
    return loss


def _of_split(loaded: Loaded, data: Sequence[str], split: str, cache: Path | None) -> Iterator[Batch]:
    return loaded.split_loader(data, split_of_dataset(split), cache).once()


def _random_texts(loaded: Loaded) -> Iterator[Batch]:
    """Batches of random tokens, from the shortest texts to the longest that the tower takes; the same every time."""
    import torch

    from training.records import Batch

    vocabulary, most = loaded.checkpoint.tokenizer.vocabulary, loaded.config.data.max_tokens
    generator = torch.Generator().manual_seed(0)
    for number in range(_RANDOM // BATCH):
        length = most if loaded.config.compat else 3 + number * (most - 3) // max(1, _RANDOM // BATCH - 1)
        ids_BL = torch.randint(0, len(vocabulary), (BATCH, length), generator=generator)
        yield Batch.of(token_ids_BL=ids_BL, n_tokens_B=torch.full((BATCH,), length))
