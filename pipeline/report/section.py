"""A section of the quality report: one part of the page with its figures, and all that is known of it.

Each file of `pipeline/report/sections/` ends with one `Section`; `pipeline.report.sections.SECTIONS` is the order.
`pipeline.report.page` asks the objects for the keys of report.json and for the parts of index.html, so a section is
added by one file and one line.
"""

from __future__ import annotations

import functools
import graphlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline import pulse
from pipeline.report import dataset, pictures
from pipeline.report.funnel import Funnel, read_funnels
from pipeline.report.tally import Tally, tallied
from pipeline.store.build import Build
from pipeline.store.takedowns import Takedowns

Values = dict[str, Any]
"""Keys of report.json with their values, plain JSON."""


@dataclass(frozen=True)
class Material:
    """What the sections of one report are made from. What several of them need is read once, when first asked for.

    named: report.json of a build to compare with, if a person names one.
    """

    build: Build
    named: Values | None = None

    @functools.cached_property
    def before(self) -> dataset.Before | None:
        """The release that the build is compared with; None for the first build of a dataset."""
        return dataset.before(self.build)

    @functools.cached_property
    def baseline(self) -> Values | None:
        """report.json of the build to compare with; None if there is none."""
        if self.named is not None or self.before is None:
            return self.named
        return self.before.last(self.build.snapshot)

    @functools.cached_property
    def funnels(self) -> tuple[Funnel, Funnel]:
        """(candidates, captures)."""
        return read_funnels(self.build)

    @property
    def candidates(self) -> Funnel:
        return self.funnels[0]

    @property
    def captures(self) -> Funnel:
        return self.funnels[1]

    @functools.cached_property
    def takedowns(self) -> Takedowns:
        """What must not be shown."""
        return self.build.store.takedowns()

    @functools.cached_property
    def tally(self) -> Tally:
        """All that is counted over all rows."""
        return tallied(self.build, self.takedowns)

    @functools.cached_property
    def shown(self) -> pictures.Choice:
        """The rows of the decisions that the page shows, with their pictures and boxes.

        One choice for all sections, since one budget of bytes covers all pictures of the page.
        """
        choice = pictures.choose(self.build, self.takedowns, self.tally.fates)
        pictures.add_pictures(self.build, choice.rows(), self.takedowns, choice.elsewhere)
        pictures.add_boxes(self.build, choice.rows(), choice.shards)
        return choice


@dataclass(frozen=True)
class Section:
    """One section of the report.

    name: as its file and its anchor on the page (`#name`) are called.
    html: Jinja fragment. It sees every key of report.json by its name, the macros of templates/macros.html and the
    filters of `pipeline.report.page.environment`. White space of the page is that of the fragment: a long line is cut
    inside of `{{ }}`, or where `-` or `{#--#}` takes the cut out again. A fragment that renders to white space only is
    no part of the page and has no link.
    figures(material, inputs): its keys of report.json, which no other section has, read file by file, so that memory
    does not grow with the dataset. Its second argument holds the keys of the sections named next, and no others.
    inputs: names of sections whose figures it computes from, wherever they are on the page.
    title, title_zh: its link in the page's navigation, English and Chinese; "" for a section that has none.
    """

    name: str
    html: str
    figures: Callable[[Material, Values], Values]
    inputs: tuple[str, ...] = ()
    title: str = ""
    title_zh: str = ""


def compute(sections: Iterable[Section], material: Material) -> Values:
    """The figures of all sections, each computed after its inputs."""
    named = {section.name: section for section in sections}
    computed: dict[str, Values] = {}
    pulse.expect(len(named))
    for name in graphlib.TopologicalSorter({s.name: s.inputs for s in named.values()}).static_order():
        section = named[name]
        pulse.advance()
        computed[name] = section.figures(material, merged(computed[other] for other in section.inputs))
    return merged(computed.values())


def merged(parts: Iterable[Values]) -> Values:
    """All of the parts' keys together; that each is in one part only is an invariant of the report."""
    together: Values = {}
    for part in parts:
        assert not together.keys() & part.keys(), f"more than one section has {together.keys() & part.keys()}"
        together |= part
    return together
