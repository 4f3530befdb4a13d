"""Every arm differs from its base in one factor, and becomes a valid configuration."""

from __future__ import annotations

from dataclasses import replace

import pytest

from training.moco import BriVL
from training.study.arms import ARMS, BASE, QUICK, chosen, config_of, differing, full


@pytest.mark.parametrize("arm", [arm for arm in full() if arm.base not in ("", "grid")], ids=lambda arm: arm.name)
def test_an_arm_differs_from_its_base_in_the_factor_that_it_names(arm):
    (base,) = (other for other in ARMS if other.name == arm.base)
    assert differing(arm, base) == [arm.factor]


def test_a_second_difference_would_be_seen():
    arm = replace(chosen(["moco-b8"], ARMS)[0], momentum=0.9)
    assert differing(arm, BASE) == ["batch", "momentum"]


def test_the_arms_are_those_that_the_issue_asks_for():
    assert {arm.batch for arm in ARMS if arm.objective == "moco"} == {8, 16, 32, 64}
    assert {arm.batch for arm in ARMS if arm.objective == "clip"} == {8, 16, 32, 64}
    assert {arm.queue for arm in ARMS if arm.has_keys} == {0, 256, 1024, 4096}
    assert {arm.momentum for arm in ARMS if arm.has_keys} == {0.0, 0.9, 0.99, 0.999}
    assert {arm.objective for arm in ARMS} == {"moco", "clip", "siglip", "albef", "matching"}
    assert len({arm.name for arm in full()}) == len(full())


def test_the_full_grid_holds_every_combination_once():
    moco = [
        (a.batch, a.queue, a.momentum)
        for a in full()
        if a.objective == "moco" and a.see == "regions" and not a.shuffled
    ]
    assert len(moco) == len(set(moco)) == 4 * 4 * 4


def test_a_name_that_is_no_arm_is_told_what_there_is():
    assert [arm.name for arm in chosen(QUICK, ARMS)] == [arm.name for arm in ARMS if arm.name in QUICK]
    with pytest.raises(KeyError, match="no arm 'mocco'; there are moco, clip"):
        chosen(["mocco"], ARMS)


@pytest.mark.parametrize("name", ["moco", "clip", "moco-k0", "moco-whole", "moco-cnn"])
def test_a_configuration_says_what_the_arm_says(name):
    (arm,) = chosen([name], full())
    config = config_of(arm, 0.05, 3, 100)
    assert (config.seed, config.moco.temperature, config.run.batch_size) == (3, 0.05, arm.batch)
    assert config.moco.objective == arm.objective
    assert config.moco.in_batch_keys == (name == "moco-k0")
    assert BriVL(config, load_weights=False).moco == config.moco
