"""Every arm differs from its base in one factor, and becomes a valid configuration."""

from __future__ import annotations

import pytest

from tests.benchmarks.study.arms import ARMS, QUICK, Setting, chosen, config_of, differing
from training.moco import BriVL


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.base], ids=lambda arm: arm.name)
def test_an_arm_differs_from_its_base_in_the_factor_that_it_names(arm):
    (base,) = (other for other in ARMS if other.name == arm.base)
    assert differing(arm, base) == [arm.factor]


def test_a_name_that_is_no_arm_is_told_what_there_is():
    assert [arm.name for arm in chosen(QUICK, ARMS)] == [arm.name for arm in ARMS if arm.name in QUICK]
    with pytest.raises(KeyError, match="no arm 'mocco'; there are moco, clip"):
        chosen(["mocco"], ARMS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moco", "clip", "moco-k0", "clip-learned"])
def test_a_configuration_says_what_the_arm_says(name):
    (arm,) = chosen([name], ARMS)
    config = config_of(arm, Setting(temperature=0.05, rate=1e-3), 3, 100)
    assert (config.seed, config.moco.temperature, config.run.batch_size) == (3, 0.05, arm.batch)
    assert (config.optim.lr, config.moco.learn_temperature) == (1e-3, name == "clip-learned")
    assert config.moco.objective == arm.objective
    assert config.moco.in_batch_keys == (name == "moco-k0")
    assert BriVL(config, load_weights=False).moco == config.moco
