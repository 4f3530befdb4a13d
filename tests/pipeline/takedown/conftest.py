"""What tests of takedowns share: published builds of several datasets in one STORE, of which some cannot be read."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from data_specs.build import BuildSpec
from pipeline import cli, opening
from pipeline.publish import release
from pipeline.stages import STAGES
from pipeline.store.build import Build
from pipeline.store.store import Store
from tests.parks import PAGES, page, picture
from tests.stages import run_noted
from tests.weeks import Weeks

NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")

TAKEN = "folder:///album/001.jpg"
"""A picture that each build has a sample of."""


@dataclass(frozen=True)
class Published:
    """Builds that were published, each the only one of its dataset, and the command line over their STORE."""

    store: Store
    builds: tuple[Build, ...]
    capsys: pytest.CaptureFixture[str]

    @property
    def outs(self) -> tuple[Path, ...]:
        return tuple(Path(build.out) for build in self.builds)

    def run(self, *words: str) -> tuple[int, list[str], dict[str, Any]]:
        """A command with --store and --json: exit code, lines of stderr, answer."""
        self.capsys.readouterr()
        code = cli.main([words[0], "--store", self.store.url, *words[1:], "--json"])
        printed = self.capsys.readouterr()
        return code, printed.err.splitlines(), json.loads(printed.out)

    def forget(self, *more: str) -> tuple[int, list[str], dict[str, Any]]:
        """The takedown of TAKEN."""
        return self.run("forget", "--exact", "--url", TAKEN, *more)


@pytest.fixture(scope="session")
def _restored(tmp_path_factory: pytest.TempPathFactory, synthetic: ModuleType) -> Callable[[int], list[Build]]:
    """Puts so many published builds of the same six pictures in one folder; each number of them is made once."""
    folder = tmp_path_factory.mktemp("published") / "now"
    weeks, builds = Weeks(folder, synthetic.encode), list[Build]()

    def restored(count: int) -> list[Build]:
        shutil.rmtree(folder, ignore_errors=True)
        made = folder.with_name(f"made-{count}")
        if made.exists():
            shutil.copytree(made, folder, symlinks=True)
        elif not count:
            folder.mkdir()
        else:
            restored(count - 1)
            build = weeks.build(f"2026-01-0{count}", range(6), name=NAMES[count - 1])
            release.publish(build)
            builds.append(build)
            shutil.copytree(folder, made, symlinks=True)
        return builds[:count]

    return restored


@pytest.fixture
def published_builds(
    _restored: Callable[[int], list[Build]], capsys: pytest.CaptureFixture[str]
) -> Callable[[int], Published]:
    """published_builds(2): as many builds as they were published, all that STORE knows."""

    def make(count: int) -> Published:
        builds = _restored(count)
        return Published(builds[0].store, tuple(builds), capsys)

    return make


@functools.cache
def _pages() -> dict[str, Any]:
    links = "".join(f"<a href='/{n}.html'>第{n}个页面</a>" for n in range(PAGES))
    pages: dict[str, Any] = {"/": f"<html><body><p>公园的图片都在这里了</p>{links}</body></html>".encode()}
    for n in range(PAGES):
        pages |= {f"/{n}.html": page(n), f"/{n}.jpg": (200, {"Content-Type": "image/jpeg"}, picture(n))}
    return pages


@dataclass(frozen=True)
class Park:
    """A site of six pages with a picture each, and builds of it below a folder.

    made: first builds of the site as it is at first, by what they were made from, each with a copy of the folder.
    """

    site: Any
    folder: Path
    made: dict[tuple[object, ...], tuple[Build, Path]] = field(default_factory=dict)

    def begin(self) -> None:
        """The site as it is at first, and no builds."""
        self.site.pages = dict(_pages())
        self.site.asked.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def week(self, snapshot: str, until: str = "shard", recheck_every: int = 0, **options: Any) -> Build:
        """The build of that day, not published. until: "" for one that has not run."""
        key = snapshot, until, recheck_every, *options.items()
        first = until and self.site.pages == _pages() and not any(self.folder.iterdir())
        if first and key in self.made:
            build, copy = self.made[key]
            shutil.copytree(copy, self.folder, dirs_exist_ok=True)
            return replace(build)
        source = {"kind": "site", "name": "park", "source_kind": "news", "start": [self.site.url()], **options}
        spec = {"name": "parks", "contact": "mailto:a@b.c", "sources": [source], "filters": []}
        spec |= {"egress": {"allow": [self.site.host], "delay_s": 0}, "fetch": {"recheck_every": recheck_every}}
        build = opening.open_build(
            BuildSpec.model_validate(spec), str(self.folder / snapshot), str(self.folder / "store"), snapshot
        )
        if until:
            run_noted(build, *list(STAGES)[: list(STAGES).index(until) + 1])
        if first:
            self.made[key] = build, self.folder.with_name(f"first-{len(self.made)}")
            shutil.copytree(self.folder, self.made[key][1])
        return replace(build)


@pytest.fixture(scope="session")
def _park(serve_for_session: Any, tmp_path_factory: pytest.TempPathFactory) -> Park:
    return Park(serve_for_session(), tmp_path_factory.mktemp("park") / "now")


@pytest.fixture
def site(_park: Park) -> Any:
    """The site, as it is at first."""
    _park.begin()
    return _park.site


@pytest.fixture
def week(_park: Park, site: Any) -> Callable[..., Build]:
    """week("2026-11-01", vanished="drop"): Park.week, in a folder that is empty at first."""
    return _park.week
