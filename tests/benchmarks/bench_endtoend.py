"""Training on loaded batches, beside what its cores can give.

    of_the_machine_RECIPE   samples/s of steps on loaded batches / 1 / (1/resident + 1/decoding), since steps and
                            decoding share the cores here: the rates of the same steps on one resident batch, and of
                            decoding alone in two processes
    of_resident_RECIPE      the same over steps on the resident batch, without a bar

Recipes are `tiny` and the demo's (192 px, B=32, random weights), on shards of 256 px JPEG. Both kinds of step run in
turns of a few in one process, with the recipe's workers, so that other load hits both alike.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.bench_loader import make_shards, rates
from tests.benchmarks.harness import Figure, at_least, quick, report, shown, told

ROUNDS, STEPS = 7, 12


def main() -> int:
    short = quick(__doc__)
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with tempfile.TemporaryDirectory(prefix="wenlan-endtoend-") as name:
        folder = Path(name)
        make_shards(folder, 1024 if short else 4096)
        figures: dict[str, Figure] = {}
        for recipe, settings in (("tiny", []), ("starter", ["image.weights="])):
            figures |= compare(folder, recipe, settings, 3 if short else ROUNDS)
    return report(figures)


def compare(folder: Path, recipe: str, settings: list[str], rounds: int) -> dict[str, Figure]:
    import torch

    from training.data.index import open_dataset
    from training.data.loader import Loader, Share
    from training.data.tokenizer import load_tokenizer
    from training.device import keep_memory
    from training.moco import BriVL
    from training.records import Batch
    from training.resolve import resolve
    from training.run.optimizer import build_optimizer
    from training.run.step import backward

    keep_memory()
    config = resolve(recipe, settings)
    torch.manual_seed(0)
    model = BriVL(config).train()
    optimizer = build_optimizer(model, config.optim)
    dataset = open_dataset([str(folder / "manifest.json")], "train", cache=folder / "cache")
    share = Share(config.run.batch_size)
    loader = Loader(dataset, config.data, load_tokenizer(config.data.tokenizer), share, seed=0, train=True)
    batches = loader.batches(0)
    resident = next(batches)
    done = 0

    def steps(batch: Callable[[], Batch]) -> float:
        nonlocal done
        start = time.perf_counter()
        for _ in range(STEPS):
            outputs = backward(model, [batch()], config.run.batch_size)
            optimizer.step()
            model.after_step(outputs, done)
            optimizer.zero_grad(set_to_none=True)
            done += 1
        return time.perf_counter() - start

    stills, loads = list[float](), list[float]()
    for turn in range(rounds + 1):
        # Workers read ahead while the resident batch is trained on: what they have made by then is used up first.
        still = steps(lambda: resident)
        for _ in range(2 * max(config.data.num_workers, 1)):
            next(batches)
        loaded = steps(lambda: next(batches))
        told(f"{recipe}, round {turn} of {rounds}: resident {still:.2f} s, loaded {loaded:.2f} s")
        if turn:
            stills.append(still)
            loads.append(loaded)
    samples = STEPS * config.run.batch_size
    resident_rate, rate = samples / statistics.median(stills), samples / statistics.median(loads)
    decoding = rates(folder, {"decode": sys.executable}, 3, config.data.image_size)["decode"]
    return {
        f"of_the_machine_{recipe}": at_least(rate * (1 / resident_rate + 1 / decoding), 0.9),
        f"of_resident_{recipe}": shown(rate / resident_rate),
    }


if __name__ == "__main__":
    sys.exit(main())
