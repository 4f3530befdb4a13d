"""build.json: a build's identity and progress. Written by the running build, read by everyone else.

It holds the spec (without the user names and passwords of its URLs, its digest as with them), what was read of STORE,
the versions of the tools, the counts, time and cost of each pass and each stage, the pass that runs, and who approved
or refused it. What a dataset is made of lies in the records of the passes; nothing here decides what is done again.

Limits: one process writes it, and holds the lock BUILD/_lock. Whether that of an object store is held by a process that
lives is known on its own machine only; elsewhere a stage whose build was killed is still shown as running.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_specs.build import BuildSpec
from data_specs.shard import MANIFEST, ContractError, parse_manifest, resolve_place
from data_specs.spec_file import describe
from data_specs.storage.store_lock import is_held
from data_specs.storage.whole_files import is_locked
from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.processes import pulse
from pipeline.store.build import Build, Earlier, Stages
from pipeline.store.commits import Record
from pipeline.store.partitions import StageDir
from pipeline.store.progress import Figures, Ran, counts_of, figures
from pipeline.store.store import Store
from pipeline.urls import without_userinfo


@dataclass(frozen=True, slots=True)
class Cost:
    """Summed cost of partitions, whenever they ran. seconds: summed over the workers that ran them.
    peak_bytes: the most memory of a worker."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0  # of models, times the share of a GPU that each had
    bytes: int = 0  # of the files that were written
    peak_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            round(self.seconds + other.seconds, 3),
            round(self.cpu_seconds + other.cpu_seconds, 3),
            round(self.gpu_seconds + other.gpu_seconds, 3),
            self.bytes + other.bytes,
            max(self.peak_bytes, other.peak_bytes),
        )

    @staticmethod
    def of(records: Iterable[Record]) -> Cost:
        """The cost of committed partitions."""
        each = (
            Cost(r.seconds, r.cpu_seconds, r.gpu_seconds, sum(f.bytes for f in r.files.values()), r.peak_bytes)
            for r in records
        )
        return sum(each, Cost())


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a pass or a stage in this run, with what all its partitions counted (seen, kept, dropped and more) and
    cost."""

    name: str
    skipped: bool
    partitions: int
    ran: int
    seconds: float
    funnel: dict[str, int]
    cost: Cost

    @staticmethod
    def of(name: str, records: Iterable[Record], ran: int = -1, seconds: float = 0.0) -> Result:
        """The result of a pass from its records. ran: partitions that this run has done; -1 for a finished pass."""
        partitions, counts, cost = 0, Counter[str](), Cost()
        for record in records:
            partitions, cost = partitions + 1, cost + Cost.of([record])
            counts.update(record.counts)
        return Result(name, ran < 0, partitions, max(ran, 0), round(seconds, 2), dict(counts), cost)

    @staticmethod
    def of_stage(name: str, passes: Sequence[Result]) -> Result:
        """The result of a stage from those of its passes, at least one: the last one, which decides, has its counts."""
        return Result(
            name,
            all(own.skipped for own in passes),
            sum(own.partitions for own in passes),
            sum(own.ran for own in passes),
            round(sum(own.seconds for own in passes), 2),
            passes[-1].funnel,
            sum((own.cost for own in passes), Cost()),
        )

    def noted(self) -> dict[str, Any]:
        """The figures as build.json has them."""
        return {
            "partitions": self.partitions,
            "funnel": self.funnel,
            "seconds": self.seconds,
            "cost": dataclasses.asdict(self.cost),
        }


@dataclass(frozen=True, slots=True)
class Running:
    """The running pass. since: when it began (RFC 3339, UTC). committed_before: partitions committed by then."""

    name: str
    fingerprint: str
    since: str
    committed_before: int
    partitions: int


NAME = "build.json"

NO_RECORD = "not the record of a build"

VERSION = 2
"""Raised when what a build leaves on disk changes its meaning."""


def read(folder: Folder) -> dict[str, Any]:
    """The content of build.json in a build's folder; empty without one. Raises StoreError if it is not an object."""
    known: Any = folder.find_json(NAME, {})
    if not isinstance(known, dict):
        raise StoreError(folder.at(NAME), NO_RECORD)
    if known and known.get("version") != VERSION:
        raise StoreError(folder.at(NAME), "created by another version of wenlan; build into another --out")
    return known


def reopen(out: str, stages: Stages) -> Build:
    """The build that was begun in a folder, with the spec it was begun with. Raises StoreError if missing."""
    folder = Folder(out)
    known = read(folder)
    if not known and not folder.exists(NAME):
        raise StoreError(folder.url, "not a build (no build.json)")
    try:
        spec = BuildSpec.model_validate(known["spec"])
        if spec.digest != known.get("spec_digest", spec.digest):  # passwords were cut from it
            spec = spec.with_digest(known["spec_digest"])
    except ValidationError as e:
        fault = describe(e, BuildSpec)[0]
        raise StoreError(folder.at(NAME), f"contains a spec that this wenlan cannot read ({fault})") from None
    except KeyError:
        raise StoreError(folder.at(NAME), NO_RECORD) from None
    try:
        store = Store(store_of(folder, known))
        build = Build(spec, folder.url, store, known["build_id"], known["snapshot"], stages=stages)
        return replace(build, **reads_of(known), fingerprints=fingerprints_of(known))
    except (AttributeError, KeyError, TypeError):
        raise StoreError(folder.at(NAME), NO_RECORD) from None


def store_of(folder: Folder, known: Mapping[str, Any]) -> str:
    """The STORE of the build in a folder, from its build.json: beside it if both were moved, else where it was.

    Raises KeyError where none is noted.
    """
    noted: str = known["store"]
    beside = resolve_place(known.get("store_from_here", ""), folder.url)
    return beside if beside and beside != noted and Folder(beside).exists("store.json") else noted


def _store_from(build: Build) -> str:
    """The path from a build's folder to its STORE, if the build lies below the folder in which STORE lies; else ""."""
    noted, name = build.store.relative_place(build.out), build.store.url.rpartition("/")[2]
    if noted.startswith("/") or "://" in noted:
        return ""
    return "../" * len([part for part in noted.split("/") if part != "."]) + name


def relocate(folder: Folder, moved: Callable[[str], str], store: str = "") -> None:
    """Correct where other builds lie, in a build's folder. moved: where a path or URL lies now. store: its STORE."""
    known = read(folder)
    made_from = [{**own, "out": moved(own["out"])} for own in known.get("made_from", ())]
    now = known | ({"made_from": made_from} if made_from else {}) | ({"store": store} if store else {})
    if now != known:
        folder.write_json(NAME, now)


def as_it_lies(build: Build) -> Build:
    """A reopened build with the passes that build.json no longer names, since it was begun again and has not come to
    them.

    They are what it was before, a published dataset among them: for commands that remove something from all that is
    there.
    """
    there, names = dict(build.fingerprints), [own.name for own in build.all_passes()]
    for name in (name for name in build.passes if name not in there):
        if finished := build.stage_at(name, "").finished_at():
            there[name] = finished
    return replace(build, fingerprints={name: there[name] for name in names if name in there})


def fingerprints_of(known: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprints by pass, from build.json."""
    return {name: own["fingerprint"] for name, own in known["passes"].items()}


def is_noted(build: Build, name: str) -> bool:
    """True if build.json says that a pass is done."""
    return fingerprints_of(read(build.folder)).get(name) == build.fingerprints[name]


def reads_of(known: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a Build that say what it reads of its dataset, from build.json."""
    return {
        "identities": tuple(known.get("identities", ())),
        "generation": known.get("generation", 1),
        "made_from": tuple(Earlier(**earlier) for earlier in known.get("made_from", ())),
    }


def note(build: Build, *results: Result, running: Running | None = None) -> None:
    """Writes build.json: the results of passes, or which pass runs now. What it holds already is not written again.

    Passes of other fingerprints are left out, so that a reopened build never mixes old results with new ones.
    """
    folder = build.folder
    known = read(folder)
    passes = {n: own for n, own in known.get("passes", {}).items() if own["fingerprint"] == build.fingerprints.get(n)}
    for result in results:
        before = passes.get(result.name, {}) if result.skipped else {}  # when it ran
        if before and not result.partitions:
            continue  # a working pass, whose records are deleted
        seconds = before.get("seconds", 0.0) if result.skipped else result.seconds
        fingerprint = build.fingerprints[result.name]
        passes[result.name] = {"fingerprint": fingerprint, **result.noted(), "seconds": seconds}
    passes = {name: passes[name] for name in build.passes if name in passes}  # in the order they run in
    noted = {
        "version": VERSION,
        "build_id": build.build_id,
        "name": build.spec.name,
        "snapshot": build.snapshot,
        "spec_digest": build.spec.digest,
        "spec": _without_passwords(build.spec.model_dump(mode="json")),
        "store": build.store.url,
        "store_from_here": _store_from(build),
        "identities": list(build.identities),
        "identity_revision": build.identity_revision,
        "generation": build.generation,
        **({"made_from": [dataclasses.asdict(own) for own in build.made_from]} if build.made_from else {}),
        "forgotten_revision": build.forgotten_revision,
        **({"taken_down": known["taken_down"]} if build.forgotten and "taken_down" in known else {}),
        "versions": _versions(),
        "stages": _by_stage(build, passes),
        "passes": passes,
        "cost": dataclasses.asdict(sum((Cost(**own["cost"]) for own in passes.values()), Cost())),
        "running": None if running is None else dataclasses.asdict(running),
        **{name: known[name] for name in ("approvals",) if known.get(name)},  # what people said (`approval`)
    }
    if noted != known:
        folder.write_json(NAME, noted)


def _by_stage(build: Build, passes: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of the stages all of whose passes are noted: their passes together, counts of the last one."""
    stages = dict[str, Any]()
    for name, stage in build.stages.items():
        own = [own.name for own in stage.passes if own.name in build.passes]
        if not own or not set(own) <= passes.keys():
            continue
        results = [
            Result(each, False, noted["partitions"], 0, noted["seconds"], noted["funnel"], Cost(**noted["cost"]))
            for each, noted in ((each, passes[each]) for each in own)
        ]
        fingerprint = passes[own[-1]]["fingerprint"]
        stages[name] = {"fingerprint": fingerprint, **Result.of_stage(name, results).noted()}
    return stages


@functools.cache
def _versions() -> dict[str, str]:
    """Versions of the tools. Cached: each is parsed from the metadata of its package, and build.json is noted often."""
    return {name: importlib.metadata.version(name) for name in ("wenlan", "ray", "img2dataset", "pyarrow")}


def _without_passwords(value: Any) -> Any:
    """A JSON value with the user names and passwords cut from every URL in it."""
    if isinstance(value, str):
        return without_userinfo(value)
    if isinstance(value, dict):
        return {key: _without_passwords(inner) for key, inner in value.items()}
    return [_without_passwords(inner) for inner in value] if isinstance(value, list) else value


def note_counts(build: Build, name: str) -> None:
    """Notes what the records of a pass count now, if build.json names the pass: a takedown has changed them."""
    known = read(build.folder)
    if name in known.get("passes", {}):
        known["passes"][name]["funnel"] = dict(counts_of(build.stage(name).records()))
        build.folder.write_json(NAME, {**known, "stages": _by_stage(build, known["passes"])})


def note_takedown(build: Build, names: Sequence[str], revision: str) -> None:
    """Note up to which takedowns all was removed from a build, and what it began with: as it is, it is still that.

    names: of the identities that it reads, which a takedown may have rewritten. revision: digest of the takedowns
    that were carried out; STORE may have got more meanwhile.
    """
    known = read(build.folder)
    if "forgotten_revision" not in known:
        return
    began = known.get("taken_down") or {name: known[name] for name in ("forgotten_revision", "identities")}
    done = {**began, "carried_out": revision}
    if (after := {**known, "identities": list(names), "taken_down": done}) != known:
        build.folder.write_json(NAME, after)


def status(build: Build) -> dict[str, Any]:
    """Status of a build: every stage with its state, what runs right now, and whether it is published.

    A stage is "done", "expired" (done, and deleted by `gc`), "running", "stopped" (partly done, and no process goes on)
    or "to do". `alive`: whether a process builds there; None where that cannot be known. `damaged`: what is wrong with
    a manifest that cannot be read, and what to do; "" for one that can, or is not there.
    """
    known, expired, (published, damaged) = read(build.folder), build.expired, _published(build)
    running, alive = known.get("running"), _is_owned(build)
    stages: dict[str, Any] = {}
    for name, stage in build.stages.items():
        own = [each.name for each in stage.passes if each.name in build.passes]
        if not own:
            continue
        noted = [each for each in own if each in known["passes"]]
        committed = sum(len(build.stage_at(each, known["passes"][each]["fingerprint"]).partitions()) for each in noted)
        stages[name] = {"state": "to do", "committed": committed, "partitions": None, **known["stages"].get(name, {})}
        if noted == own and build.stage(name).finished():  # what its working passes wrote may be deleted
            stages[name] |= {"state": "done", "committed": stages[name]["partitions"]}
        elif noted:
            stages[name]["state"] = "expired" if expired and stage.expires else "stopped"
    if running:
        directory = build.stage_at(running["name"], running["fingerprint"])
        so_far = _figures(build, directory, Running(**running), alive)
        state = "stopped" if alive is False else "running"
        stage_name = running["name"].partition(".")[0]
        stages[stage_name] = {**stages[stage_name], "state": state, "committed": so_far.committed, **running}
        figures_of_pass = dataclasses.asdict(so_far)
        running = {**running, **figures_of_pass, "partitions": running["partitions"], "line": so_far.line()}
    return {
        "build_id": known["build_id"],
        "snapshot": known["snapshot"],
        "alive": alive,
        "running": running,
        "stages": stages,
        "cost": known.get("cost"),
        "published": published,
        "damaged": damaged,
    }


def _published(build: Build) -> tuple[bool, str]:
    """(True if a manifest can be read, what is wrong with one that cannot, and what to do about it)."""
    path, data = build.shards.at(MANIFEST), build.shards.find(MANIFEST)
    if data is None:
        return False, ""
    try:
        parse_manifest(data, path)
    except ContractError as e:
        return False, damaged(e, build.out)
    return True, ""


def damaged(fault: ContractError, out: str) -> str:
    """The line about the manifest of the build in a folder, which cannot be read: `publish` makes it again."""
    return f"{fault}; if it is damaged, delete it and run wenlan-data publish {shlex.quote(out)}"


def now() -> str:
    """This moment, RFC 3339, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")


def _figures(build: Build, directory: StageDir, running: Running, alive: bool | None) -> Figures:
    """Figures of the running pass; for a build that was killed, without what its last pulses said."""
    so_far = Result.of(running.name, directory.records())
    since = datetime.datetime.fromisoformat(running.since)
    seconds = max(0.0, (datetime.datetime.now(datetime.UTC) - since).total_seconds())  # the clock may be set
    ran = Ran(0 if alive is False else so_far.partitions - running.committed_before, seconds)
    beats = [] if alive is False else pulse.beats(directory.folder)
    own = build.passes[running.name]
    return figures(own, running.partitions, so_far.partitions, so_far.funnel, beats, ran)


@contextlib.contextmanager
def sole_owner(build: Build) -> Iterator[None]:
    """Only one build at a time writes a folder. Raises StoreError if another one does, or the folder cannot be locked.

    At once on a disk; on an object store as soon as it is known that the other lives (`data_specs.storage.store_lock`).
    """

    def fault(held: str) -> StoreError:
        by = "" if build.folder.is_local else f": the lock {held}"
        return StoreError(build.out, f"another wenlan-data is running here{by}")

    with build.folder.locked(0.5 if build.folder.is_local else 0.0, fault):  # `status` holds it for a moment
        yield


def _is_owned(build: Build) -> bool | None:
    """True if a process builds in the folder right now; None where that cannot be known."""
    if not build.folder.is_local:
        return is_held(build.folder.at("_lock"))
    path = Path(build.folder.at("_lock"))
    if not path.exists():
        return False
    with path.open() as f:
        return is_locked(f)
