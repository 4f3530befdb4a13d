"""to_simplified: the conversion, and the original that is kept beside it."""

from __future__ import annotations

from data_specs.shard import Text
from pipeline.filters.to_simplified import ToSimplified


def test_simplified_keeps_the_original_if_asked_to():
    text = Text("alt", "臺灣的軟體")
    assert ToSimplified().rewrite(text) == Text("alt", "台湾的软体", "臺灣的軟體")
    assert ToSimplified(config="tw2sp").rewrite(text).text == "台湾的软件"
    assert ToSimplified(keep_original=False).rewrite(text) == Text("alt", "台湾的软体")
    once = ToSimplified().rewrite(text)
    assert ToSimplified().rewrite(once) is once
