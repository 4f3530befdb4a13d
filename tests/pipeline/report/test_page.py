"""The report: figures that add up, a page that loads nothing, escapes everything and shows no forbidden picture."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import page
from pipeline.stages import STAGES
from pipeline.store.build import Build

pytestmark = pytest.mark.slow

Run = Callable[[Build, str], None]


class _Page(HTMLParser):
    """Collects tags, and tags that were not closed in order."""

    VOID = frozenset(["meta", "link", "img", "input", "br", "line", "rect", "hr"])

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.bad: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.bad.append(tag)


@pytest.mark.drill(3)
def test_a_spec_that_was_changed_back_has_its_own_report_and_not_that_of_the_other_one(
    synthetic_build: Build, run_stage: Run
) -> None:
    """Its record was still there, so the page stayed that of the spec between: other gates, and another build's id."""
    run_stage(synthetic_build, "shard")
    gates = synthetic_build.spec.publish.model_copy(update={"min_samples": 7})
    changed = replace(
        synthetic_build,
        spec=synthetic_build.spec.model_copy(update={"publish": gates}),
        fingerprints={**synthetic_build.fingerprints, "report": "f" * 64},
        build_id="another",
    )
    for build in (synthetic_build, changed, synthetic_build):
        run_stage(build, "report")
        written = json.loads((Path(build.out) / "report/report.json").read_bytes())
        assert written["build"]["id"] == build.build_id
    run_stage(synthetic_build, "report")
    assert json.loads((Path(build.out) / "report/report.json").read_bytes()) == written, "it is there, and stays"


def test_the_page_loads_nothing_and_is_well_formed(written: tuple[str, dict[str, Any]]) -> None:
    html, _ = written
    page = _Page(html)
    assert (page.bad, page.open) == ([], [])
    assert len(html.encode()) < 5_000_000
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert attributes.get("src", "data:").startswith("data:"), tag
        if tag == "img":
            assert attributes["alt"]
        assert tag != "svg" or attributes["aria-label"]
    assert "@import" not in html
    assert not re.search(r"url\(", html)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_an_empty_build_still_has_a_report(tmp_path: Path, synthetic: Any, run_stage: Run, monkeypatch: Any) -> None:
    monkeypatch.setattr(synthetic, "items", lambda: ())
    build, _ = synthetic.make(tmp_path)
    run_stage(build, "shard")
    run_stage(build, "report")
    html = (Path(build.out) / "report/index.html").read_text("utf-8")
    page = _Page(html)
    assert (page.bad, page.open) == ([], [])
    assert json.loads((Path(build.out) / "report/report.json").read_bytes())["totals"]["kept"] == 0


EVIL = "<script>alert(1)</script>\"onerror='alert(2)' {{ 7 * 7 }} \u202egpj.exe\x1b]0;x\x07 -->]]></style>"


def test_what_pages_say_neither_runs_nor_turns_the_page(synthetic_build: Build) -> None:
    """Every text, URL and piece of evidence of the report is hostile at once."""
    made = page.make_report(synthetic_build)

    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        if key in ("url", "page_url", "image_url"):
            return "javascript:alert(3)//" + EVIL
        return EVIL if key in ("text", "evidence", "description", "licence", "contact", "host") else value

    poisoned = poison(made)
    poisoned["build"]["name"], poisoned["words"] = EVIL, [{"name": EVIL, "count": 1}]
    html = page.render(poisoned, STAGES)
    parsed = _Page(html)
    assert parsed.bad == []
    assert sum(tag == "script" for tag, _ in parsed.tags) == 1, "our own"
    assert not [attrs for _, attrs in parsed.tags if any(name.startswith("on") for name in attrs)]
    links = [attrs.get("href", "") for _, attrs in parsed.tags] + [attrs.get("src", "") for _, attrs in parsed.tags]
    into_the_studio = re.compile(r"/(#id=[0-9a-f]{32})?")  # ours, hidden unless the studio serves the page
    outward = [link for link in links if link and not into_the_studio.fullmatch(link)]
    assert not [link for link in outward if not link.startswith(("http://", "https://", "#", "data:image/"))]
    assert "{{ 7 * 7 }}" in html
    assert not {"\u202e", "\x1b"} & set(html)
    assert html.count(r"\u202egpj.exe\x1b]0;x\x07") > 3


def test_templates_are_compiled_once_for_stages_of_the_same_names() -> None:
    assert page.environment(STAGES) is page.environment(dict(STAGES))
    other = {"fetch": STAGES["fetch"]}
    assert page.environment(other) is not page.environment(STAGES)
    says = "{{ 'fetch' | zh }} {{ 'admit' | zh }}"
    assert page.environment(STAGES).from_string(says).render() == "下载 准入"
    assert page.environment(other).from_string(says).render() == "下载 admit"


def test_a_report_reads_the_records_of_each_stage_once(
    synthetic_build: Build, run_stage: Run, monkeypatch: Any
) -> None:
    from collections import Counter

    from pipeline.files.folder import Folder

    run_stage(synthetic_build, "shard")
    read, asked = Folder.read, Counter[str]()

    def counted(self: Folder, name: str) -> bytes:
        asked[self.at(name)] += "_records" in self.url
        return read(self, name)

    monkeypatch.setattr(Folder, "read", counted)
    page.make_report(synthetic_build)
    assert len(+asked) > 10
    assert [name for name, count in asked.items() if count > 1] == []
