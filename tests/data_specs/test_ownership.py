from __future__ import annotations

from data_specs.ownership import check_ownership


def test_alone_and_under_another_spelling_of_the_name_it_is_silent() -> None:
    owners = {"pipeline": ["wenlan"], "training": ["Wenlan", "wenlan"], "data_specs": ["wenlan"], "numpy": ["numpy"]}
    assert check_ownership(owners) is None


def test_another_distribution_is_named_with_the_package_it_claims() -> None:
    sentence = check_ownership({"pipeline": ["wenlan"], "training": ["wenlan", "gym-tools"]})
    assert sentence is not None
    assert "'training'" in sentence
    assert "gym-tools" in sentence
    assert "\n" not in sentence


def test_this_environment_is_clean() -> None:
    assert check_ownership() is None
