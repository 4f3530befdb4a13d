"""A section of the quality report: one part of the page with its figures, its fragment and its words.

Each file of `pipeline/report/sections/` is one section: `SECTION = Section(...)`. Its figures are queries over the
tables of the build (`pipeline.store.sql`), which `Material` holds. `pipeline.report.page` asks the objects for the keys
of report.json and for the parts of index.html.
"""

from __future__ import annotations

import functools
import graphlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.processes import pulse
from pipeline.report import dataset, pictures, sample_sheet
from pipeline.report.funnel import Funnel, count
from pipeline.report.hidden_content import make_refused, without_hidden
from pipeline.store.build import Build
from pipeline.store.sql import Tables
from pipeline.store.takedowns import Takedowns

Values = dict[str, Any]
"""Keys of report.json with their values, plain JSON."""


@dataclass(frozen=True)
class Material:
    """Input of the sections of one report. What several of them need is read once, when first asked for.

    named_baseline: report.json of a build to compare with, if a person names one.
    """

    build: Build
    tables: Tables
    named_baseline: Values | None = None

    @functools.cached_property
    def before(self) -> dataset.EarlierRelease | None:
        """The release that the build is compared with; None for the first build of a dataset."""
        return dataset.earlier_release(self.build)

    @functools.cached_property
    def baseline(self) -> Values | None:
        """report.json of the build to compare with; None if missing."""
        if self.named_baseline is not None or self.before is None:
            return self.named_baseline
        return self.before.earlier_report(self.build.snapshot)

    @functools.cached_property
    def funnels(self) -> tuple[Funnel, Funnel]:
        """(candidates, captures)."""
        return count(self.build, self.tables)

    @property
    def candidates(self) -> Funnel:
        return self.funnels[0]

    @property
    def captures(self) -> Funnel:
        return self.funnels[1]

    @functools.cached_property
    def takedowns(self) -> Takedowns:
        """Takedowns, none of which may be shown. Makes the views of what may be shown (`make_refused`)."""
        takedowns = self.build.store.takedowns()
        make_refused(self.tables, takedowns)
        return takedowns

    @functools.cached_property
    def chosen_rows(self) -> sample_sheet.Choice:
        """The rows of the decisions that the page shows, with their pictures and boxes.

        One choice for all sections, since one budget of bytes covers all pictures of the page.
        """
        choice = sample_sheet.choose(self.build, self.tables, self.takedowns)
        pictures.add_pictures(self.build, self.tables, choice.rows(), self.takedowns, choice.earlier_images)
        pictures.add_boxes(self.build, self.tables, choice.rows())
        return choice

    def without_hidden(self, rows: Iterable[Values]) -> list[Values]:
        """Returns the rows about candidates, of this build or of others, that may be shown."""
        takedowns = self.takedowns  # which makes the table `refused`
        return without_hidden(self.tables, takedowns, rows)

    def judged_pairs(self, view: str, where: str, order: str, limit: int, *columns: str) -> list[Values]:
        """Returns the first pairs of a view of judged pairs that may be shown, as in report.json, with more columns.

        Of equal ones those with the smallest ids.
        """
        rows = self.tables.rows(
            "SELECT candidate_id AS id, fetch_id, source, page_url, image_url AS url, substr(text, 1, 200) AS text, "
            f"'curate' AS stage, '' AS duplicate_of, kept, {', '.join(columns)} FROM {view} WHERE {where} "
            f"ORDER BY {order}, candidate_id LIMIT {limit}"
        )
        rounded = ({n: round(v, 4) if isinstance(v, float) else v for n, v in row.items()} for row in rows)
        return self.without_hidden(rounded)

    def add_pictures(
        self, rows: Iterable[Values], budget: int, side: int, foreign: dict[str, bytes] | None = None
    ) -> None:
        """Set the `picture` of rows that a section shows beside the sheet, within a budget of bytes of its own."""
        rows = list(rows)
        if self.build.spec.report.pictures:
            pictures.add_pictures(
                self.build, self.tables, rows, self.takedowns, foreign or {}, budget=budget, side=side
            )
        else:
            for row in rows:
                row |= {"picture": "", "boxes": {}}


@dataclass(frozen=True)
class Section:
    """One section of the report.

    name: as its file and its anchor on the page (`#name`) are called.
    html: Jinja fragment. It sees every key of report.json by its name, the macros of templates/macros.html and the
    filters of `pipeline.report.page.environment`. White space of the page is that of the fragment: a long line is cut
    inside of `{{ }}`, or where `-` or `{#--#}` takes the cut out again. A fragment that renders to white space only is
    left out of the page and of its navigation.
    figures(material, inputs): its keys of report.json, which no other section has. Its second argument holds the keys
    of the sections named next, and no others.
    inputs: names of sections whose figures it computes from, wherever they are on the page.
    title, title_zh: its link in the page's navigation, English and Chinese; "" for a section that has none.
    folded: whether the page shows its title alone until someone opens it.
    """

    name: str
    html: str
    figures: Callable[[Material, Values], Values]
    inputs: tuple[str, ...] = ()
    title: str = ""
    title_zh: str = ""
    folded: bool = False


def compute(sections: Iterable[Section], material: Material) -> Values:
    """The figures of all sections, each computed after its inputs."""
    by_name = {section.name: section for section in sections}
    computed: dict[str, Values] = {}
    pulse.expect(len(by_name))
    for name in graphlib.TopologicalSorter({s.name: s.inputs for s in by_name.values()}).static_order():
        section = by_name[name]
        pulse.advance()
        computed[name] = section.figures(material, merge(computed[other] for other in section.inputs))
    return merge(computed.values())


def merge(parts: Iterable[Values]) -> Values:
    """All of the parts' keys together; that each is in one part only is an invariant of the report."""
    values: Values = {}
    for part in parts:
        assert not values.keys() & part.keys(), f"more than one section has {values.keys() & part.keys()}"
        values |= part
    return values


def judges_limit(judge: str, option: str, value: float, at: list[float], dropped: int) -> Values:
    """The limit of a judge as the macro `histogram` draws it, in bins from the left."""
    return {"filter": judge, "option": option, "value": value, "at": at, "dropped": dropped}
