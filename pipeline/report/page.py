"""The quality report of a build: BUILD/report/index.html and report.json, which the stage `report` writes.

index.html is a single file that loads nothing (its content security policy forbids the network), so that it can be
mailed and archived. report.json holds the same figures for programs. Both are views of SECTIONS: each section has its
keys of report.json and its fragment of the page. Figures are SQL over the tables of the build (`pipeline.store.sql`).
The frame of the page and the macros that sections share are in templates/.

A data owner reads it before `publish`. So the gates of the spec are shown with their figures, and whatever does not add
up is shown first.

Limits: the page shows a sample of pictures, at most `report.pictures` of the spec, and stays below 5 MB.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_specs.command.printable import printable, printable_json
from pipeline.report import drift, state
from pipeline.report.section import Material, Values, compute, merge
from pipeline.report.sections import SECTIONS
from pipeline.report.sections import state as state_section
from pipeline.report.translations import en, evidence_zh, zh
from pipeline.store.build import Build, Stages
from pipeline.store.commits import FileRef
from pipeline.store.partitions import remembering
from pipeline.store.progress import size_of
from pipeline.store.sql import Tables
from pipeline.urls import place, shown


def make_report(build: Build, baseline: Values | None = None) -> Values:
    """The whole report as JSON values: the figures of every section, and which build they are of.

    baseline: report.json of a build to compare with, by default the last one of the dataset. The `picture` of a row is
    a data: URI, which index.html shows and report.json leaves out.
    """
    head = {"report_version": drift.REPORT_VERSION, "build": _build(build)}
    with remembering(), Tables.of(build) as tables:
        return merge([head, compute(SECTIONS, Material(build, tables, baseline))])


def rows(report: Any) -> Iterator[Values]:
    """The rows of all candidates that a report shows, in whichever section, of earlier builds too; some twice."""
    if isinstance(report, list):
        for inner in report:
            yield from rows(inner)
    elif isinstance(report, dict) and "fetch_id" in report:
        yield report
    elif isinstance(report, dict):
        yield from rows(list(report.values()))


def render(report: Values, stages: Stages) -> str:
    """index.html from what `make_report` returned; `stages` of the build, for their Chinese names."""
    templates = environment(stages)
    parts = [(section, _fragment(templates, section.html).render(**report)) for section in SECTIONS]
    return str(templates.get_template("report.html").render(**report, parts=parts))


def update_state(build: Build) -> None:
    """Update the state of the build in a written report, if it has changed.

    Replaces the part of the page between two marks and the key `state` of report.json, the page first: if this is
    killed in between, the next call finds the old key and does both again. Does nothing for a build without a report.
    """
    report = drift.read(build.out, build.build_id)
    if report is None or "report" not in build.fingerprints:
        return
    stage, now = build.stage("report"), state.present_state(build, report).model_dump(mode="json")
    if report["state"] == now or not stage.partitions():
        return
    report["state"] = now
    html = stage.folder.read("index.html").decode()
    texts = {"html": shown(_with_new_state(html, report, build.stages)), "json": as_json(report)}
    [partition] = stage.partitions()
    record = stage.record(partition)
    files = dict(record.files)
    for suffix, text in texts.items():
        name, data = record.files[suffix].name, text.encode()
        stage.folder.write(name, data)
        files[suffix] = FileRef(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    stage.write_record(record.model_copy(update={"files": files}))


def _with_new_state(html: str, report: Values, stages: Stages) -> str:
    """Returns a page with the present state in place of the earlier one."""
    before, _, rest = html.partition(state_section.START)
    _, _, after = rest.partition(state_section.END)
    part: str = _fragment(environment(stages), state_section.HTML.rstrip()).render(**report)
    return before + part + after


def as_json(report: Values) -> str:
    return printable_json(shown(json.dumps(report, ensure_ascii=False, indent=1, sort_keys=True))) + "\n"


def harmless(value: Any) -> Any:
    """A value as a template prints it: text of the web without what would turn the order of the page's own text.

    HTML of ours, which is Markup, stays as it is. The engine escapes what this returns.
    """
    return printable(value) if type(value) is str else value


def environment(stages: Stages) -> Any:
    """The templates beside this file, and the macros of macros.html as globals of every template and fragment.

    Everything that came from the web is escaped by the engine (`harmless` before it). stages: for their Chinese names.
    The same object for the same names: to compile all templates costs more than to fill them in.
    """
    return _environment(tuple((name, stage.zh) for name, stage in stages.items()))


@functools.lru_cache(maxsize=200)
def _fragment(templates: Any, html: str) -> Any:
    # a fragment says itself which white space is around it, so unlike a whole page it keeps its last line break
    return templates.overlay(keep_trailing_newline=True).from_string(html)


@functools.lru_cache(maxsize=4)
def _environment(names: tuple[tuple[str, str], ...]) -> Any:
    """The environment of stages of these names, each with its Chinese name."""
    import jinja2
    from markupsafe import Markup

    of_stages = dict(names)
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        finalize=harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.tests["starts"] = str.startswith
    templates.filters |= {
        "n": lambda value: f"{value:,}",
        "share": _share,
        "size": lambda count: size_of(count).replace(" ", "\N{NO-BREAK SPACE}"),
        "moment": _moment,
        "code": lambda name: Markup("<code>{}</code>").format(name),
        "en": en,
        "zh": lambda name: of_stages[name] if name in of_stages else zh(name, {}),
        "evidence_zh": evidence_zh,
        "number": lambda value: f"{value:,.6g}" if value < 1_000_000 else f"{value:,.0f}",
        "place": place,
        "quoted": shlex.quote,
    }
    macros = vars(templates.get_template("macros.html").module)
    templates.globals |= {name: macro for name, macro in macros.items() if not name.startswith("_")}
    return templates


def _share(part: int, whole: int) -> str:
    """A share as `12.3%`, or `–` if `whole` is 0. Rounding never makes 0% of some or 100% of not all."""
    if not whole:
        return "–"
    if 0 < part < whole:
        return f"{min(max(100 * part / whole, 0.1), 99.9):.1f}%"
    return "100%" if part else "0%"


def _moment(time: str) -> str:
    """A moment in RFC 3339 as people read it: to the minute, UTC."""
    return f"{time[:10]} {time[11:16]} UTC" if time else "–"


def _build(build: Build) -> Values:
    spec = build.spec
    return {
        "id": build.build_id,
        "name": spec.name,
        "description": spec.description,
        "snapshot": build.snapshot,
        "spec_digest": spec.digest,
        "licence": spec.licence,
        "contact": spec.contact,
        "wenlan": importlib.metadata.version("wenlan"),
    }
