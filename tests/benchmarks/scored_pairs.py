"""Pairs a second through the pass `curate.score`, with two towers of Chinese-CLIP's shape: a check of `gpu_check`."""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.store.build import Build
from tests import fetched, towered
from tests.benchmarks.captions import captions
from tests.drawn import blobs, encoded
from tests.stages import run_stage


def score_rate(gpus: float, count: int, small: bool) -> float:
    """Pairs a second through the stage, with no feature in the cache; a second time, when sessions are open."""
    with tempfile.TemporaryDirectory() as scratch:
        section = _exported(Path(scratch) / "towers", small) | {"num_gpus": gpus}
        images = _pairs(count)
        for turn in range(2):
            build = _until_dedup(Path(scratch) / str(turn), images, section)
            start = time.perf_counter()
            run_stage(build, "curate.score")
            seconds = time.perf_counter() - start
        scored = sum(record.counts["scored"] for record in build.stage("curate.score").records())
    assert scored, "no pair was scored"
    return scored / seconds


def _pairs(count: int) -> list[fetched.Got]:
    """Different pictures of 512 x 384, each with a text of its own."""
    texts = [f"{text}第{number}" for number, text in enumerate(captions(count, seed=5))]
    pictures = (encoded(Image.fromarray(blobs(number, (512, 384)))) for number in range(count))
    return [fetched.Got(f"http://a.test/{n}.jpg", *own) for n, own in enumerate(zip(pictures, zip(texts), strict=True))]


def _until_dedup(folder: Path, images: list[fetched.Got], section: dict[str, Any]) -> Build:
    """A build with a STORE of its own, whose pairs wait for their scores."""
    build = fetched.make(folder, images, pair_score=section)
    run_stage(build, "measure", "filter", "dedup")
    return build


def _exported(folder: Path, small: bool) -> dict[str, Any]:
    """Two towers of Chinese-CLIP's shape with random weights, as its own exporter writes them."""
    import torch
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    folder.mkdir()
    base = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6} if small else {}
    vocabulary = [*towered.VOCABULARY, *sorted(set("".join(captions(2_000, seed=5))) - set(towered.VOCABULARY))]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary if token.strip()), "utf-8")
    text = {**base, "num_hidden_layers": 12, "vocab_size": 21_128, "pad_token_id": 0}
    vision = {**base, "num_hidden_layers": 12, "image_size": 224, "patch_size": 16}
    model = ChineseCLIPModel(ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=512)).eval()

    class Half(torch.nn.Module):
        def __init__(self, of_images: bool) -> None:
            super().__init__()
            self.model, self.of_images = model, of_images

        def forward(self, given: torch.Tensor) -> Any:
            if self.of_images:
                features = self.model.get_image_features(pixel_values=given)
            else:
                features = self.model.get_text_features(input_ids=given, attention_mask=given.ne(0).long())
            return features if hasattr(features, "norm") else features.pooler_output

    padded = torch.tensor([[2, 5, 3, *[0] * 49]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about this exporter, which is the one that cn_clip has
        for of_images, name, example in ((True, "image", torch.zeros(1, 3, 224, 224)), (False, "text", padded)):
            options: dict[str, Any] = {"input_names": [name], "dynamic_axes": {name: {0: "batch"}}, "dynamo": False}
            torch.onnx.export(Half(of_images).eval(), (example,), folder / f"{name}.onnx", opset_version=17, **options)
    return {name: str(folder / file) for name, file in towered.FILES.items()}
