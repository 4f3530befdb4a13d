"""spec_text: every commented option is what holds anyway."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_specs.build import BuildSpec, load
from pipeline.plugins import Plugin, configure
from tests.drafted import CONTACT, init


def uncommented(text: str) -> str:
    return re.sub(r"(?m)^( *)# ( *[a-z_0-9]+:(?: |$))", r"\1\2", text)


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [["photos"], ["https://news.example.org/"], ["photos", "https://news.example.org/"]])
def test_every_commented_option_is_what_holds_anyway(inputs, photos, capsys):
    """Taking the marks away from all of them changes nothing; and all options of the models are there."""
    init(capsys, "--from", *inputs, "--name", "t", *CONTACT)
    text = Path("t.yaml").read_text(encoding="utf-8")
    assert uncommented(text).count("\n# ") < text.count("\n# ")
    Path("whole.yaml").write_text(uncommented(text), encoding="utf-8")
    assert load("whole.yaml").model_dump() | {"filters": ()} == resolved(load("t.yaml")) | {"filters": ()}
    assert identities(load("whole.yaml")) == identities(load("t.yaml"))
    whole = yaml.safe_load(Path("whole.yaml").read_text(encoding="utf-8"))
    assert set(BuildSpec.model_fields) - {"base"} == set(whole)
    for part in ("egress", "fetch", "dedup", "regions", "shards", "report", "publish"):
        assert set(whole[part]) == set(BuildSpec.model_fields[part].annotation.model_fields)


def identities(spec: BuildSpec) -> list[dict[str, Any]]:
    """The filters of a spec, with all their options; the same, whether a default is written or not."""
    return [configure("filters", ref.name, ref.options, Plugin).identity() for ref in spec.filters]


def resolved(spec: BuildSpec) -> dict[str, Any]:
    """A spec with the options of its sources' plug-ins at their defaults."""
    from pipeline.sources import sources_of

    values = spec.model_dump()
    for source, plugin in zip(values["sources"], sources_of(spec), strict=True):
        source |= {k: v for k, v in plugin.model_dump(mode="json").items() if k != "base"}
    return values
