"""A trial: what another spec would have made of a build, without a request to anybody, and apart from it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import run
from pipeline.cluster import Cluster
from pipeline.report import trial
from pipeline.stages import STAGES
from tests.browser import CHROMIUM, Page, visit
from tests.growing_site import Weeks, picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIDES = {"name": "image_sides", "min_side": 64}


@pytest.fixture(scope="module")
def built(serve_for_module: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weeks]:
    """One build, whose filter leaves out the pictures with short texts, before any of them is fetched."""
    folder = tmp_path_factory.mktemp("weeks")
    (folder / "now").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Cluster", lambda *_: Cluster(here=True))  # the stages in this process: no Ray is started
        own = Weeks(serve_for_module({}), folder / "now")
        own.show("/a.html", {f"{n}withalongname": picture(n, 100 + 50 * n) for n in range(5)})
        own.show("/b.html", {"5": picture(5), "6": picture(6)})
        own.build("1", filters=[{"name": "text_length", "min_chars": 12}, SIDES])
        own.keep()
        yield own


@pytest.fixture
def weeks(built: Weeks) -> Weeks:
    built.restore()
    return built


def tried(weeks: Weeks, *more: str, code: int = 0, **spec: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"filters": [{"name": "text_length", "min_chars": 12}, SIDES], **spec}
    return weeks.command("try", str(weeks.spec(**options)), "--on", str(weeks.folder / "1"), *more, code=code)


def files(folder: Path, but: tuple[str, ...] = ()) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in but
    }


def kept(answer: dict[str, Any], when: str) -> dict[str, int]:
    return {row["stage"]: row[when]["kept"] for row in answer["stages"]}


@pytest.mark.drill(10)
def test_an_image_filter_is_tried_in_pictures_and_changes_nothing(weeks: Weeks) -> None:
    build, asked = files(weeks.folder / "1"), len(weeks.web.asked)
    store = files(weeks.folder / "store", ("features",))
    sides = [{"name": "text_length", "min_chars": 12}, {"name": "image_sides", "min_side": 160}]
    answer = tried(weeks, "--out", str(weeks.folder / "trial"), filters=sides)
    assert files(weeks.folder / "1") == build
    assert files(weeks.folder / "store", ("features",)) == store
    assert len(weeks.web.asked) == asked
    [change] = answer["spec"]
    assert (change["path"], change["before"], change["now"]) == ("filters[1].min_side", 64, 160)
    removed = answer["went_out"]
    assert removed["count"] == answer["kept"]["before"] - answer["kept"]["after"] > 0
    assert removed["reasons"] == [{"stage": "filter", "reason": "image_too_small", "count": removed["count"]}]
    assert answer["came_in"]["count"] == answer["not_stored"]["count"] == 0
    assert [row["stage"] for row in answer["stages"] if row["ran"]] == ["filter", "dedup"]
    page = Path(answer["page"]).read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == removed["count"]
    assert not (weeks.folder / "trial" / "build.json").exists(), "nobody goes on with it as a build"
    assert f"removed: {removed['count']}" in answer["said"]


@pytest.mark.drill(10)
def test_what_a_text_filter_lets_in_is_shown_as_far_as_it_was_fetched(weeks: Weeks) -> None:
    """Pictures that another build has fetched are in STORE; of the others only the texts are known."""
    short = [{"name": "text_length", "min_chars": 2}, SIDES]
    before = tried(weeks, filters=short)
    assert before["came_in"]["count"] == 0
    missing = before["not_stored"]
    assert missing["count"] == missing["images"] > 0
    assert kept(before, "after")["admit"] == kept(before, "before")["admit"] + missing["count"]
    assert kept(before, "after")["fetch"] == kept(before, "before")["fetch"]

    other = ["--store", weeks.store.url, "--out", str(weeks.folder / "other")]
    weeks.command("build", str(weeks.spec(name="another", filters=short)), *other)
    asked = len(weeks.web.asked)
    answer = tried(weeks, filters=short)
    assert len(weeks.web.asked) == asked
    assert answer["not_stored"]["count"] == 0
    came = answer["came_in"]
    assert came["count"] == missing["count"]
    assert {(r["stage"], r["reason"]) for r in came["reasons"]} == {("admit", "text_too_short")}
    assert Path(answer["page"]).read_text(encoding="utf-8").count("data:image/jpeg;base64,") == came["count"]
    assert answer["kept"]["after"] == answer["kept"]["before"] + came["count"]


def test_a_trial_keeps_what_a_build_of_that_spec_keeps(weeks: Weeks) -> None:
    """The oracle is the build itself: the same spec as another dataset, over the same site."""
    short = [{"name": "text_length", "min_chars": 2}, {"name": "image_sides", "min_side": 160}]
    where = ["--store", weeks.store.url, "--out", str(weeks.folder / "built")]
    built = weeks.command("build", str(weeks.spec(name="another", filters=short)), *where)
    answer = tried(weeks, filters=short)
    funnel = {stage["name"]: stage["funnel"] for stage in built["stages"]}
    for row in answer["stages"]:
        if row["stage"] != "curate":  # which has nothing to do
            assert row["after"]["kept"] == funnel[row["stage"]]["kept"], row["stage"]
    assert answer["kept"]["after"] == sum(built["samples"].values())


def test_the_same_spec_changes_nothing_and_runs_nothing(weeks: Weeks) -> None:
    answer = tried(weeks)
    assert not any(row["ran"] for row in answer["stages"])
    assert answer["came_in"]["count"] == answer["went_out"]["count"] == 0
    assert kept(answer, "before") == kept(answer, "after")


def test_what_would_crawl_or_fetch_is_refused_in_one_line(weeks: Weeks) -> None:
    said = tried(weeks, code=2, fetch={"images_per_partition": 3, "threads": 2, "max_wait_s": 1})["said"]
    assert said.splitlines() == [said.strip()]
    assert "fetch: differs from growing-" in said
    assert "try cannot crawl or fetch" in said
    assert "not empty, or inside the build" in tried(weeks, "--out", str(weeks.folder / "1" / "x"), code=2)["said"]


@pytest.mark.drill(10)
def test_a_trial_that_fails_leaves_nothing_and_may_be_run_again(
    weeks: Weeks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    tried(weeks, code=2, fetch={"images_per_partition": 3, "threads": 2, "max_wait_s": 1})
    out = ("--out", str(weeks.folder / "trial"))
    sides = [{"name": "text_length", "min_chars": 12}, {"name": "image_sides", "min_side": 160}]
    with monkeypatch.context() as patch:
        patch.setattr(trial, "compare", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        for more in ((), out):
            assert "run the same command again" in tried(weeks, *more, code=130, filters=sides)["said"]
    assert list((tmp_path / "temporary").iterdir()) == []
    assert tried(weeks, *out, filters=sides)["went_out"]["count"] > 0


@pytest.mark.drill(10)
def test_an_unpublished_build_can_be_tried_and_an_unfinished_one_cannot(weeks: Weeks) -> None:
    for until, code in (("filter", 1), ("report", 0)):
        place = ["--store", weeks.store.url, "--out", str(weeks.folder / "2"), "--snapshot", "2", "--until", until]
        weeks.command("build", str(weeks.spec()), *place)
        said = weeks.command("try", str(weeks.spec()), "--on", str(weeks.folder / "2"), code=code)["said"]
        assert ("not finished in" in said) == bool(code)


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
@pytest.mark.drill(2)
def test_the_page_loads_nothing_and_has_no_fault(weeks: Weeks, tmp_path: Path) -> None:
    sides = [{"name": "text_length", "min_chars": 2}, {"name": "image_sides", "min_side": 160}]
    path = Path(tried(weeks, filters=sides)["page"])

    async def look(page: Page) -> tuple[list[str], int, str]:
        await page.open(path)
        await page.run("document.getElementById('language').click()")
        shown = await page.run("document.querySelectorAll('.sample img').length")
        return page.faults(path), shown, await page.run("document.querySelector('h2').textContent")

    faults, shown, title = visit(look)
    assert faults == []
    assert shown > 0
    assert title == "两个漏斗"
    assert json.dumps(path.read_text(encoding="utf-8")).count("http-equiv") == 1


def test_the_page_shows_no_password_of_a_changed_option() -> None:
    nothing = {"count": 0, "images": 0, "reasons": [], "rows": []}
    change = {"path": "filters[0].lists.w", "before": "https://anna:geheim@lists.example.org/w.txt", "now": None}
    figures = {
        "build": {"id": "b", "name": "d", "snapshot": "1"}, "wenlan": "0", "spec": [change], "stages": [],
        "kept": {"before": 0, "after": 0}, "came_in": nothing, "went_out": nothing, "not_stored": nothing,
    }  # fmt: skip
    page = trial.render(figures, SimpleNamespace(stages=STAGES))  # type: ignore[arg-type]
    assert "https://lists.example.org/w.txt" in page
    assert "geheim" not in page
