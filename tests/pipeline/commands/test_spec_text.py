"""spec_text: what was found and decided, in a few lines; every commented option of --all is what holds anyway."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_specs.build import BuildSpec, load
from pipeline.plugins import Plugin, configure
from tests import archived
from tests.drafted import CONTACT, init, picture, rows


def uncommented(text: str) -> str:
    return re.sub(r"(?m)^( *)# ( *[a-z_0-9]+:(?: |$))", r"\1\2", text)


@pytest.mark.slow
def test_a_spec_of_any_input_is_read_at_once(photos, web, here, capsys):
    table = [
        row | {"标题": f"{row['说明']}之一", "摘要": row["说明"], "正文": row["说明"], "备注": "同上"}
        for row in rows(web)
    ]
    lines = (",".join(map(str, values)) for values in (table[0], *(row.values() for row in table * 2)))
    (here / "table.csv").write_text("\n".join(lines), encoding="utf-8")
    members = {"1.jpg": picture(1), "1.txt": "a red flower", "2.jpg": picture(2), "2.txt": "a boat on a lake"}
    (here / "1.tar").write_bytes(archived.tar(members))
    (here / "site.warc").write_bytes(archived.page("http://a.cn/", "1.jpg") + archived.jpeg("http://a.cn/1.jpg", b"x"))
    (here / "warc.paths").write_text("a.warc.gz\n")
    for given in ("photos", "table.csv", "1.tar", "site.warc", "warc.paths", web.url("/zh/")):
        answer = init(capsys, "--from", given, "--name", "t", "--force", *CONTACT)
        text = Path("t.yaml").read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 40, given
        assert max(map(len, text.splitlines())) < 300, given
        assert all(f"  # - {why}\n" in text for why in answer["sources"][0]["why"]), given
        assert not re.search(r"(?m)^ *# [a-z_0-9]+:", text), "options that it does not set"
        if given == "1.tar":
            said = "# - {name: han_share}  # Drops texts that are not Chinese: 2 of 2 sampled; hence not used\n"
            assert said in text
            assert "han_share" not in {ref.name for ref in load("t.yaml").filters}


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [["photos"], ["https://news.example.org/"], ["photos", "https://news.example.org/"]])
def test_every_commented_option_is_what_holds_anyway(inputs, photos, capsys):
    """Taking the marks away from all of them changes nothing; and all options of the models are there."""
    init(capsys, "--from", *inputs, "--all", "--name", "t", *CONTACT)
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
