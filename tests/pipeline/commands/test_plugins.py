"""`wenlan-data plugins`: every plug-in with its options, what it needs, where its thresholds come from, an example."""

from __future__ import annotations

import json

import pytest
import yaml

from data_specs.build import BuildSpec
from pipeline import cli, plugins
from pipeline.commands.options import about, options_of
from pipeline.commands.plugins import FAMILIES, example
from pipeline.plugins import find, names

ALL = [(family, name) for family in FAMILIES for name in names(family)]


def test_json_has_every_plug_in_with_its_options_as_the_models_have_them(capsys):
    assert cli.main(["plugins", "--json"]) == 0
    plug_ins = {(own["family"], own["name"]): own for own in json.loads(capsys.readouterr().out)["plugins"]}
    assert list(plug_ins) == ALL
    for family, name in ALL:
        fields = find(family, name).model_fields
        listed = {option["name"]: option for option in plug_ins[family, name]["options"]}
        assert set(listed) == set(fields) - {"base", "name", "source_kind"}
        for option in listed.values():
            field = fields[option["name"]]
            assert option["description"] == field.description
            assert option["required"] == field.is_required()
            if not field.is_required() and isinstance(field.default, (int, float, str)):
                assert option["default"] == field.default


@pytest.mark.parametrize(("family", "name"), [own for own in ALL if own[0] in ("filters", "detectors")])
def test_a_plug_in_with_a_number_for_an_option_says_where_its_threshold_comes_from(family, name):
    numbers = [o for o in options_of(find(family, name)) if o.type.startswith(("number", "whole number"))]
    assert about(find(family, name)).thresholds or not [o for o in numbers if o.name != "threads"]


@pytest.mark.parametrize(("family", "name"), ALL)
def test_the_example_of_a_plug_in_is_a_piece_of_a_spec_that_is_accepted(family, name, tmp_path):
    (tmp_path / "unwanted.txt").write_text("赌博\n", encoding="utf-8")
    sources = [{"kind": "folder", "name": "x", "source_kind": "news", "path": "x"}]
    values = {"name": "t", "contact": "a@b.example", "base": str(tmp_path), "sources": sources}
    plugins.check(BuildSpec.model_validate({**values, **yaml.safe_load(example(family, name))}))


def test_one_plug_in_is_shown_with_types_bounds_and_defaults(capsys):
    assert cli.main(["plugins", "text_length"]) == 0
    shown = capsys.readouterr().err
    assert "max_chars_running: whole number, at least 1; default 1000" in shown
    assert "minimum characters (white space not counted)" in shown
    assert "Chinese-CLIP" in shown
    assert "filters:\n- name: text_length\n" in shown


def test_an_unknown_name_is_bad_usage_with_what_may_be_meant(capsys):
    assert cli.main(["plugins", "textlength"]) == 2
    assert capsys.readouterr().err == "wenlan-data: textlength: no such plug-in; did you mean text_length?\n"
    assert cli.main(["plugins", "nsfw"]) == 2
    assert "did you mean image_nsfw?" in capsys.readouterr().err
