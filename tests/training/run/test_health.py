"""What is watched while a run trains, and what stops it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from data_specs.shard import SOURCE_KINDS
from training.errors import RunError
from training.method.key_queue import KeyQueue, SampleIds
from training.moco import BriVL
from training.records import Batch
from training.resolve import resolve
from training.run.health import Health

pytestmark = pytest.mark.usefixtures("one_thread")

MakeBatch = Callable[..., Batch]


def test_losses_are_told_by_the_source_kind_of_the_samples(
    make_batch: MakeBatch, make_model: Callable[..., BriVL]
) -> None:
    model = make_model("moco.queue_size=16")
    model.prefill(make_batch(8, 9), 0)
    health = Health(model, resolve("tiny"), 0)
    batch = replace(make_batch(8, 1, invalid=(2,)), sources_B=torch.tensor([0, 0, 0, 1, 1, 5, 5, 5]))
    output = model(batch)
    health.record_step(1, [batch], [output])
    found = health.metrics(1, 8, [output], {})
    parts = {kind: found[f"loss.{kind}"] for kind in (SOURCE_KINDS[0], SOURCE_KINDS[1], SOURCE_KINDS[5])}
    assert parts[SOURCE_KINDS[0]] == pytest.approx(float(output.losses_B[:2].mean()))
    whole = sum(share * count for share, count in zip(parts.values(), (2, 2, 3), strict=True)) / 7
    assert whole == pytest.approx(float(output.loss.detach()), rel=1e-5)
    assert not any(name.startswith("loss.") for name in health.metrics(2, 16, [output], {}))


def test_stored_keys_are_held_against_what_the_query_tower_says_of_them_later(
    make_batch: MakeBatch, make_model: Callable[..., BriVL]
) -> None:
    model = make_model("moco.queue_size=16", "moco.momentum=0", "image.dropout=0", "text.dropout=0")
    config = resolve("tiny", ["moco.queue_size=16", "run.batch_size=8"])
    health, batch = Health(model, config, 0), make_batch(8, 1)
    model.eval()
    output = model(batch)
    found: list[dict[str, float]] = []
    for step in range(1, 3):
        health.record_step(step, [batch], [output])
        found.append(health.metrics(step, 8 * step, [output], {}))
    assert "text_stale" not in found[0]
    assert found[1]["text_stale"] == pytest.approx(0, abs=1e-6)  # nothing has moved
    health.record_step(3, [batch], [output])
    with torch.no_grad():
        model.text_query.trunk.tokens.weight.add_(torch.randn_like(model.text_query.trunk.tokens.weight))
    health.record_step(4, [batch], [output])
    moved = health.metrics(4, 32, [output], {})
    assert moved["text_stale"] > 0.01
    assert moved["image_stale"] == pytest.approx(0, abs=1e-6)


def test_false_negatives_are_counted_by_cluster_ids_among_filled_slots() -> None:
    queue = KeyQueue(6, 2)
    ids = torch.tensor([1, 2, 3, 4])
    queue.enqueue(torch.zeros(4, 2), SampleIds(ids, ids, ids + 10, torch.tensor([True, True, True, False])), 0)
    asked = torch.tensor([1, 9, 4])
    rows = SampleIds(asked, asked, torch.tensor([50, 12, 14]), torch.tensor([True, True, True]))
    # the first has the image of slot 0, the second the text of slot 1, the third only what is in an empty slot
    assert queue.false_negatives(rows, 1) == pytest.approx(2 / 9)
    queue.enqueue(torch.zeros(2, 2), rows.rows(0, 2), 1)  # their own keys are no negatives of theirs
    assert queue.false_negatives(rows, 1) == pytest.approx(2 / 9)
    assert queue.false_negatives(rows, 2) == pytest.approx(4 / 15)


@pytest.mark.parametrize(("setting", "said"), [
    ("optim.warmup_samples=2400", r"warm-up .2400 samples: .*, or a higher moco.momentum \(0.9"),
    ("moco.objective=clip", r"optim.warmup_share\); or continue with run.stop_on_collapse=false"),
])  # fmt: skip
def test_a_lasting_collapse_between_the_first_and_the_last_tenth_stops_the_run_and_says_what_to_change(
    make_model: Callable[..., BriVL], setting: str, said: str
) -> None:
    config = resolve("tiny", ["moco.queue_size=16", setting])
    model = make_model("moco.queue_size=16", *([setting] if setting.startswith("moco") else []))
    output = model(_batch(model))

    def run(first: int, last: int, spread: float, settings: str = "true") -> None:
        health = Health(model, replace(config, run=replace(config.run, stop_on_collapse=settings == "true")), 24_000)
        for step in range(first, last):
            health.metrics(step, 8 * step, [output], {"image_spread": spread, "text_spread": 0.9})

    run(1, 299, 0.001)  # not in the warm-up, whatever the spread
    run(300, 304, 0.001)  # nor for a moment
    run(300, 400, 0.03)
    with pytest.raises(
        RunError, match=rf"step 304: image_spread is 0.0010, below 0.02, .* all images have .*optim.lr .*{said}"
    ):
        run(300, 305, 0.001)
    run(2700, 2800, 0.001)  # nor at the end
    run(300, 320, 0.001, "false")


def _batch(model: BriVL) -> Batch:
    one = torch.zeros(2, dtype=torch.int64)
    return Batch.of(
        images_B3HW=torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        boxes_BR4=torch.tensor([[[0.0, 0, 64, 64]]] * 2).double(),
        token_ids_BL=one[:, None] + 4,
    )
