"""What the queues cost in a training step of brivl_b5_base (B=4, fp32, 2 cores, random weights, full queues).

Counted is what a step does because of them: the objective on ready features, forward and backward (masks, the products
with the K keys, softmax), keys entering, the average moving. The key towers' forward is not in it: it makes the keys of
the batch. Each part is timed inside of the steps themselves, so that other load hits part and whole alike. One process
exchanges nothing, so the exchange of keys and ids is timed between two gloo processes and set against the same steps.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from harness import Figure, quick, report

from training.device import keep_memory
from training.method import distributed
from training.method.key_queue import SampleIds
from training.method.key_towers import update_average
from training.moco import BriVL, Features
from training.records import Batch
from training.resolve import resolve
from training.run.optimizer import build_optimizer

BATCH, SIDE, REGIONS, TOKENS = 4, 380, 37, 80
BAR = 0.05

Result = TypeVar("Result")


def main() -> int:
    steps = 1 if quick(__doc__ or "") else 5
    torch.set_num_threads(2)
    keep_memory()
    config = resolve("brivl_b5_base", ["image.weights=", "text.weights=", "run.precision=fp32"])
    torch.manual_seed(0)
    model = BriVL(config).train()
    for queue in (model.image_queue, model.text_queue):
        queue.keys_KD.copy_(torch.nn.functional.normalize(torch.randn_like(queue.keys_KD), dim=1))
        queue.filled_K.fill_(True)
    optimizer = build_optimizer(model, config.optim)
    gather = exchange_seconds(config.moco.feature_dim)
    shares: dict[str, list[float]] = {}
    for step in range(steps + 1):
        whole, parts = one_step(model, optimizer, step)
        parts["gather"] = gather
        parts["queues"] = sum(parts.values())
        told = ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in parts.items())
        print(f"step {step} of {steps}: {1000 * whole:.0f} ms, of which {told}", file=sys.stderr)
        if step:  # the first one also makes the optimiser's state
            for name, seconds in parts.items():
                shares.setdefault(name, []).append(seconds / whole)
    return report({f"share_{name}": at_most(statistics.median(found), BAR) for name, found in shares.items()})


def one_step(model: BriVL, optimizer: torch.optim.Optimizer, step: int) -> tuple[float, dict[str, float]]:
    """Seconds of the step and of its parts. The objective's graph ends at the features, to be timed by itself."""
    start = time.perf_counter()
    found = model.features(random_batch(step))
    leaves = [x.detach().requires_grad_() for x in (found.image_BD, found.text_BD)]
    parts = {}

    def objective() -> None:
        model.loss(Features(*leaves, found.image_keys_BD, found.text_keys_BD, found.ids)).loss.backward()

    def average() -> None:
        update_average(model.image_key, model.image_query.trunk, model.moco.momentum)
        update_average(model.text_key, model.text_query.trunk, model.moco.momentum)

    _, parts["objective"] = timed(objective)
    torch.autograd.backward([found.image_BD, found.text_BD], [leaf.grad for leaf in leaves])
    optimizer.step()
    _, parts["average"] = timed(average)
    enter = (found.image_keys_BD, found.text_keys_BD, found.ids, step)
    _, parts["enqueue"] = timed(lambda: model._enqueue(*enter))
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - start, parts


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def exchange_seconds(width: int) -> float:
    """Median seconds in which two gloo processes exchange a batch's keys and ids."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        other = torch.multiprocessing.get_context("spawn").Process(target=exchange, args=(store, 1, width))
        other.start()
        seconds = exchange(store, 0, width)
        other.join()
    return seconds


def exchange(store: str, rank: int, width: int) -> float:
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    keys_BD, ids_B = torch.randn(BATCH, width), torch.arange(BATCH)
    ids = SampleIds(ids_B, ids_B, ids_B, ids_B >= 0)
    found = []
    for _ in range(50):
        dist.barrier()
        _, seconds = timed(lambda: (ids.gather(), distributed.gather(keys_BD), distributed.gather(keys_BD)))
        found.append(seconds)
    dist.destroy_process_group()
    return statistics.median(found)


def at_most(value: float, bar: float) -> Figure:
    return Figure(round(value, 5), "of step", bar, value <= bar)


def random_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    corners = (torch.rand(BATCH, REGIONS, 2, 2, generator=generator) * SIDE).sort(dim=2).values
    sample_ids, image_ids, text_ids = torch.randint(-(2**62), 2**62, (3, BATCH), generator=generator)
    return Batch(
        images_B3HW=torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator),
        boxes_BR4=corners.flatten(2),
        n_boxes_B=torch.full((BATCH,), REGIONS),
        token_ids_BL=torch.randint(1, 21128, (BATCH, TOKENS), generator=generator),
        n_tokens_B=torch.full((BATCH,), TOKENS),
        sample_ids_B=sample_ids,
        image_ids_B=image_ids,
        text_ids_B=text_ids,
        valid_B=torch.ones(BATCH, dtype=torch.bool),
    )


if __name__ == "__main__":
    raise SystemExit(main())
