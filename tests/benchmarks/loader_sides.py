"""Both sides of bench_loader: ours and webdataset's, each in a process of its own that reads on command.

SIDE FOLDER SIZE WORKERS: each line on stdin asks for a pass over all samples. Sides: `ours`; `decode`, ours without the
loader: two bare processes decode and transform; `webdataset`, as open_clip builds it (PIL, square resize, float32,
normalised), which needs no wenlan.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import work_on_command

BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def ours(folder: Path, size: int, workers: int) -> Callable[[], int]:
    from dataclasses import replace

    from training.data.index import open_dataset
    from training.data.loader import Loader, Share
    from training.data.tokenizer import load_tokenizer
    from training.resolve import resolve

    config = replace(resolve("tiny").data, image_size=size, num_workers=workers, color_jitter_p=0.0, grayscale_p=0.0)
    dataset = open_dataset([str(folder / "manifest.json")], "train", cache=folder / "cache")
    loader = Loader(dataset, config, load_tokenizer("gb2312"), Share(BATCH), seed=0, train=True)
    return lambda: sum(len(b) for b in loader.batches(0, len(dataset) // BATCH * BATCH))


def decode(folder: Path, size: int, workers: int) -> Callable[[], int]:
    from training.data.transforms import import_decoders

    import_decoders()

    def run() -> int:
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            return sum(pool.map(_decode_part, [(str(folder), size, w, workers) for w in range(workers)], 1))

    return run


def _decode_part(task: tuple[str, int, int, int]) -> int:
    import torch

    from training.data.index import open_dataset
    from training.data.transforms import decode, resize_square

    torch.set_num_threads(1)
    folder, size, part, parts = task
    dataset = open_dataset([f"{folder}/manifest.json"], "train", cache=Path(folder) / "cache")
    count = 0
    for number in range(part, len(dataset), parts):
        resize_square(decode(dataset.image(dataset.row(number))), size)
        count += 1
    return count


def webdataset(folder: Path, size: int, workers: int) -> Callable[[], int]:
    import torch
    import webdataset as wds
    from torchvision import transforms

    steps = [
        transforms.Resize((size, size), interpolation=transforms.InterpolationMode.BILINEAR, antialias=True),
        lambda image: image.convert("RGB"),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    change = transforms.Compose(steps)
    tars = sorted(str(path) for path in folder.glob("train-*.tar"))
    total = json.loads((folder / "manifest.json").read_text())["samples"]["train"]

    def run() -> int:
        data: Any = wds.WebDataset(tars, shardshuffle=len(tars), nodesplitter=wds.split_by_node, seed=0)
        data = data.shuffle(5000, initial=1000).decode("pilrgb").rename(image="jpg", text="txt")
        data = data.map_dict(image=change, text=lambda text: text[:80]).to_tuple("image", "text")
        data = data.batched(BATCH, partial=False)
        loader = wds.WebLoader(data, batch_size=None, shuffle=False, num_workers=workers, persistent_workers=False)
        return sum(len(batch[0]) for batch in loader)

    torch.set_num_threads(1)
    assert total
    return run


def main() -> None:
    side, folder, size, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    work = {"ours": ours, "decode": decode, "webdataset": webdataset}[side](folder, size, workers)
    work_on_command(lambda: {"samples": work()})


if __name__ == "__main__":
    main()
