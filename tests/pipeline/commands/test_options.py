"""options: docstrings and models read as they were written."""

from __future__ import annotations

import pytest
import yaml

from pipeline.commands.options import about, as_yaml
from pipeline.commands.plugins import describe
from pipeline.plugins import find


def test_paragraphs_of_a_docstring_are_told_apart():
    paragraphs = about(find("filters", "image_nsfw"))
    assert paragraphs.summary.endswith("(Mahadeokar and Pesavento, 2016; BSD-2-Clause).")
    assert paragraphs.needs.startswith("the extra models")
    assert paragraphs.limits.startswith("knows nudity")
    assert "Limits:" not in paragraphs.text
    assert describe("sources", "site")["summary"].startswith("A web site")


@pytest.mark.parametrize(
    "value", ["", "a: b", "yes", None, True, 1, 0.5, [], {}, ["x", 1], {"a": {"b": "c # d"}}, "山"]
)
def test_a_value_on_one_line_of_yaml_is_read_as_it_was(value):
    assert yaml.safe_load(f"key: {as_yaml(value)}  # why") == {"key": value}
    assert "\n" not in as_yaml(value)
