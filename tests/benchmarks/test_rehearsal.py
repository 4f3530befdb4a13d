"""A step on fake tensors stays on its device and in its types, is read from once, and its bytes are those counted."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.benchmarks.harness import LARGE, MAIN
from training.method.key_queue import KeyQueue, SampleIds
from training.run.footprint import footprint

pytestmark = pytest.mark.slow

EXACT = {
    "training/towers/region_pooling.py bmm",  # bf16 would move the samples of a box
    "training/method/losses.py mm",  # similarities, which are divided by the temperature
    "training/moco.py mm",  # spread of features
    "training/towers/layers.py bmm",  # attention, whose plain formula torch computes in float32 on a CPU
    "training/towers/recompute.py bmm",  # that of transformers' layers
    "training/run/step.py mm",  # the backward of these
    "training/run/step.py bmm",
}
"""Files and products that stay in float32 under bf16."""


@pytest.mark.timeout(900)
@pytest.mark.drill(25)
@pytest.mark.parametrize("recipe", ["tiny", MAIN, LARGE])
def test_a_step_stays_on_its_device_and_in_its_types_and_is_read_from_once(recipe: str) -> None:
    from tests.benchmarks.rehearsal import config_of, ranks, rehearse, without_memory

    config = config_of(recipe, "run.precision=bf16", "run.batch_size=64")
    model, needs = without_memory(config), footprint(config)
    with ranks():
        of_device, of_types = rehearse(config, "meta", model), rehearse(config, "cpu", model)
    assert [line.partition(":")[0] for line in of_device.reads.elements()] == ["training/run/step.py"], (
        "a GPU is waited for at another place than the gradient's norm"
    )
    exact = {re.sub(r":\d+", "", line) for line in of_types.exact}
    assert {"training/towers/region_pooling.py bmm", "training/method/losses.py mm"} <= exact <= EXACT
    lasting = needs.floor_bytes  # gradients stay in the buckets that are exchanged
    assert 0 <= of_types.held - lasting < 0.05 * lasting  # the batch and its keys
    assert of_types.peak > lasting


def test_what_a_gpu_would_refuse_or_wait_for_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.benchmarks.rehearsal import config_of, ranks, rehearse

    config = config_of("tiny", "run.batch_size=16")
    ids = KeyQueue.ids
    with ranks():
        monkeypatch.setattr(KeyQueue, "ids", lambda self: replace(ids(self), valid_B=ids(self).valid_B.cpu()))
        with pytest.raises(RuntimeError, match=r"on the same device"):
            rehearse(config, "meta")
        monkeypatch.setattr(KeyQueue, "ids", lambda self: _waited_for(ids(self)))
        assert rehearse(config, "meta").reads.total() > 1


def _waited_for(ids: SampleIds) -> SampleIds:
    assert ids.valid_B.sum() >= 0
    return ids
