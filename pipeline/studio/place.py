"""Place that the studio opens: a build, a release of several builds, or all builds of a folder.

A place says in both languages what it cannot show, and why: a build that runs or was stopped, stages that have not run,
what `gc` deleted of an old build, missing builds of a release, a takedown that was interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from dataclasses import dataclass
from typing import Any

from data_specs.errors import WenlanError
from data_specs.shard import ContractError
from pipeline.errors import SourceError, StoreError
from pipeline.files.folder import Folder
from pipeline.report import dataset, drift, gallery, state
from pipeline.store import approval, build_json
from pipeline.store.build import Build, Stages
from pipeline.store.frames import Frames
from pipeline.store.takedowns import UNFINISHED

Values = dict[str, Any]

JUDGED = 12
"""Newest builds of a place whose gates are shown: each costs the reading of a report."""


@dataclass(frozen=True)
class Place:
    """kind: "build", "release" or "folder". baseline: the build that candidates are new against; None for none."""

    frames: Frames
    kind: str
    baseline: Build | None = None

    @property
    def build(self) -> Build | None:
        return self.frames.builds[0] if self.kind == "build" else None

    @property
    def store(self) -> str:
        """The STORE of its builds; "" for none or several."""
        stores = {build.store.url for build in self.frames.builds}
        if not stores and self.frames.dataset is not None:
            return self.frames.dataset.store
        return stores.pop() if len(stores) == 1 else ""


def open_place(place: str, stages: Stages, baseline: str = "", folder: bool = False) -> Place:
    """Open a build's folder, a release, or (`folder`) all builds in a folder.

    baseline: a build's folder; by default the newest earlier build of the release that the build is compared with.
    Raises ContractError, StoreError or SourceError for anything else.
    """
    named = build_json.reopen(baseline, stages) if baseline else None
    if folder:
        return Place(_builds_in(place, stages), "folder", named)
    frames = Frames.open(place, stages)
    kind = "build" if Folder(place).exists(build_json.NAME) and len(frames.builds) == 1 else "release"
    if named is None and kind == "build":
        named = _baseline(frames.builds[0], stages)
    return Place(frames, kind, named)


def _builds_in(place: str, stages: Stages) -> Frames:
    folder, builds, absent = Folder(place), list[Build](), dict[str, str]()
    for name in folder.names():
        if not name.startswith(".") and folder.exists(f"{name}/{build_json.NAME}"):
            try:
                builds.append(build_json.reopen(folder.at(name), stages))
            except (StoreError, ContractError) as e:
                absent[name] = str(e)
    if not builds:
        raise SourceError(folder.url, "contains no build")
    builds.sort(key=lambda build: (build.snapshot, build.build_id))
    return Frames(folder.url, tuple(builds), (), absent)


def _baseline(build: Build, stages: Stages) -> Build | None:
    """The newest build of an earlier snapshot in the release that a build is compared with, if it is there."""
    with contextlib.suppress(WenlanError, ContractError, OSError):
        before = dataset.earlier_release(build)
        for part in reversed(before.parts if before is not None else ()):
            if part.out and part.snapshot < build.snapshot and Folder(part.out).exists(build_json.NAME):
                earlier = build_json.reopen(part.out, stages)
                if earlier.build_id == part.build_id:
                    return earlier
    return None


def describe(place: Place) -> Values:
    """Returns a place's description: title, builds with their state, notices."""
    frames = place.frames
    return {
        "kind": place.kind,
        "place": frames.place,
        "name": _name(frames),
        "title": _title(place),
        "detectors": list(frames.detectors),
        "baseline": place.baseline.build_id if place.baseline is not None else "",
        "builds": [_describe_build(build, number < JUDGED) for number, build in enumerate(reversed(frames.builds))],
        "notices": notices(place),
        "report": place.build is not None and place.build.folder.exists("report/index.html"),
    }


def _title(place: Place) -> Values:
    if place.kind == "folder":
        builds = len(place.frames.builds)
        return {"en": f"{builds} builds", "zh": f"{builds} 个构建"}
    if place.kind == "index":
        return {"en": "search index", "zh": "搜索索引"}
    en, zh = gallery.title(place.frames)
    return {"en": en, "zh": zh}


def _name(frames: Frames) -> str:
    names = {build.spec.name for build in frames.builds}
    if frames.dataset is not None and frames.dataset.manifest.dataset:
        names.add(frames.dataset.manifest.dataset)
    return ", ".join(sorted(names)) or frames.place.rstrip("/").rpartition("/")[2]


def _describe_build(build: Build, judged: bool) -> Values:
    """One build: whether it is published or waits, and (`judged`) what its gates say by its report."""
    figures, word = drift.read(build.out, build.build_id) if judged else None, approval.latest_word(build)
    own: Values = {
        "id": build.build_id,
        "out": build.out,
        "snapshot": build.snapshot,
        "licence": build.spec.licence,
        "manual": build.spec.publish.approve == "manual",
        "word": {} if word is None else dataclasses.asdict(word),
        "history": [dataclasses.asdict(own) for own in approval.history(build)],
        "verdict": "",
        "gates": [],
    }
    if figures is not None:
        with contextlib.suppress(WenlanError, ContractError, KeyError):
            own["verdict"] = state.present_state(build, figures).verdict
            own["gates"] = [{n: gate[n] for n in ("name", "says", "holds")} for gate in figures["gates"]]
    elif state.manifest_of(build) is not None:
        own["verdict"] = "published"
    return own


def notices(place: Place) -> list[Values]:
    """Returns notices of items that are not shown, with the reason, in English and Chinese."""
    found: list[Values] = []
    frames = place.frames
    for build in frames.builds:
        found += _progress_notice(build)
        if build.folder.exists(UNFINISHED):
            found.append(notice(
                "takedown", f"{build.build_id}: a takedown was interrupted; run the same command again to finish it.",
                f"{build.build_id}：下架操作曾中断；请再次运行相同的命令以完成。"))  # fmt: skip
    for table, (en, zh) in _TABLES.items():
        for build_id, why in frames.missing_reasons(table).items():
            if build_id not in frames.absent and "is not finished" not in why:
                found.append(notice("gone", f"{build_id}: {en}: {why}.", f"{build_id}：{zh}（{why}）。"))
    for build_id, why in frames.absent.items():
        found.append(notice("absent", f"{build_id} is missing; only its samples are shown: {why}.",
                            f"{build_id} 不在手边，仅显示其样本（{why}）。"))  # fmt: skip
    return found


_TABLES = {
    "decisions": ("some dropped candidates cannot be shown", "部分被丢弃的内容无法显示"),
    "candidates": ("texts other than the primary one no longer exist", "主文本以外的文本已不可用"),
    "measures": ("sizes of dropped pictures no longer exist", "被丢弃图片的尺寸已不可用"),
}


def notice(kind: str, en: str, zh: str) -> Values:
    return {"kind": kind, "en": en, "zh": zh}


def _progress_notice(build: Build) -> list[Values]:
    """Returns a notice of a build's progress, unless all of its stages are done."""
    if not build_json.read(build.folder).get("running") and state.manifest_of(build) is not None:
        return []
    status = build_json.status(build)
    done = [name for name, stage in status["stages"].items() if stage["state"] == "done"]
    names, running = list(status["stages"]), status["running"]
    undone = names[names.index(done[-1]) + 1 :] if done else names  # what gc deleted of an old build was done
    if running and status["alive"] is not False:
        share = "" if running.get("share") is None else f" ({running['share']:.0%})"
        return [notice("running", f"{build.build_id} is being built: stage {running['name']}{share} is running. What "
                       "is shown was decided by the stages before it.",
                       f"{build.build_id} 正在构建：{running['name']} 阶段正在运行{share}。"
                       "此处显示之前各阶段的决定。")]  # fmt: skip
    if not undone:
        return []
    todo = f"wenlan-data build SPEC --out {shlex.quote(build.out)}"
    return [notice("unfinished", f"{build.build_id} is not finished: stage {undone[0]} has not "
                   f"{'run' if done else 'begun'} yet. To resume: {todo}",
                   f"{build.build_id} 尚未完成：{undone[0]} 阶段还没有运行。继续：{todo}")]  # fmt: skip
