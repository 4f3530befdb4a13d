"""Records of a study in one small file, from which its page is made again without training.

    {"plan", "version", "training", "packages", "galleries": [[name, pictures, names]],
     "families": {gallery: [style: [family]]}, "tried": [[arm, setting, dev]], "trials": [...],
     "datasets": {name: {content_digest, ...}}, "pairs": [...]}

`families` numbers the family of each name (split.py), in the order of the hits. Hits are kept at the lengths that are
compared, so a study of 25 runs is about a hundred kB. `pairs` are the runs on datasets of pairs (regions.py, real.py).

Limits: seconds and milliseconds are those of the machine that trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tests.benchmarks.study.arms import Setting
from tests.benchmarks.study.corpus import Corpus
from tests.benchmarks.study.regions import Run, run_of
from tests.benchmarks.study.results import BUDGETS, Families, Figures, gather
from tests.benchmarks.study.runs import PLANS, VERSION, Plan, Study, load_corpus, tarballs_of
from tests.benchmarks.study.sections import Datasets
from tests.benchmarks.study.split import family
from tests.benchmarks.study.trial import REPORTED, Point, Trial, dev
from training.errors import InputError

A = TypeVar("A", Trial, Run)

COMMITTED = Path(__file__).with_name("records.json")
"""Records that the repository has."""


@dataclass(frozen=True)
class Records:
    """What the page is made of. `galleries`: (name, pictures, names) of each style; `tried`: (arm, setting, figure on
    dev) of each run that chose a setting."""

    plan: Plan
    training: int
    packages: tuple[str, ...]
    galleries: tuple[tuple[str, int, int], ...]
    families: Families
    tried: tuple[tuple[str, Setting, float], ...]
    trials: tuple[Trial, ...]
    datasets: Datasets
    pairs: tuple[Run, ...]

    def figures(self) -> dict[str, Figures]:
        """Figures of the arms that have runs, by name."""
        return gather(self.plan.arms, lambda arm: [trial for trial in self.trials if trial.arm == arm.name])


def collect(study: Study) -> Records:
    """Records of the runs that are done. Raises InputError where the study has no features yet."""
    corpus = load_corpus(study.out, study.weights, study.plan.styles)
    tried = []
    for arm in study.plan.arms:
        for task in study.choice(arm)[2]:
            trial = study.trial(task)
            if trial is not None and (row := (task.arm.name, task.setting, dev(trial.points[-1]))) not in tried:
                tried.append(row)
    pairs = tuple(run for job in study.region_jobs() if (run := job.record()) is not None)
    return Records(
        study.plan,
        len(corpus.select("train", "train")),
        tuple(sorted(path.name for path in tarballs_of(study.out).values())),
        tuple((g.name, len(s.pictures), len(s.emoji_M)) for g in corpus.galleries for s in g.by_style()),
        _families(corpus),
        tuple(tried),
        tuple(trial for arm in study.plan.arms for trial in study.trials(arm)),
        {s.name: s.facts() for s in study.sources() if any(run.source == s.name for run in pairs)},
        pairs,
    )


def add(own: Records, path: Path) -> None:
    """Add runs to the records of a file; a run that was done again replaces its record. Raises InputError where they
    were not made of the same packages, galleries and datasets, or differ in the setting of an arm."""
    known = load(path)
    datasets = {**known.datasets, **own.datasets}
    if _made_of(known) != _made_of(own) or datasets != {**own.datasets, **known.datasets}:
        raise InputError(str(path), "not added: its runs have other packages, galleries, datasets or sizes")
    joined = replace(
        own,
        tried=tuple((*run, dev) for run, dev in {(a, s): dev for a, s, dev in (*known.tried, *own.tried)}.items()),
        trials=_joined((*known.trials, *own.trials), lambda t: (t.arm,), lambda t: (t.setting, t.samples), path),
        datasets=datasets,
        pairs=_joined((*known.pairs, *own.pairs), lambda r: (r.source, r.arm, r.sight), _length_of, path),
    )
    save(joined, path)


def _made_of(records: Records) -> tuple[object, ...]:
    return records.plan.name, records.training, records.packages, records.galleries, records.families


def _length_of(run: Run) -> object:
    return run.temperature, run.rate, run.samples


def _joined(
    runs: Sequence[A], name: Callable[[A], tuple[str, ...]], setting: Callable[[A], object], path: Path
) -> tuple[A, ...]:
    """Runs by name and seed, the last of each. Raises InputError where those of one name differ in their setting."""
    by_name: dict[tuple[str, ...], dict[int, A]] = {}
    for run in runs:
        by_name.setdefault(name(run), {})[run.seed] = run
    for of, by_seed in by_name.items():
        if len(set(map(setting, by_seed.values()))) > 1:
            raise InputError(str(path), f"not added: its runs of {' '.join(of)} have another setting; do all seeds")
    return tuple(run for by_seed in by_name.values() for _, run in sorted(by_seed.items()))


def _families(corpus: Corpus) -> dict[str, list[list[int]]]:
    number: dict[str, int] = {}
    found: dict[str, list[list[int]]] = {}
    for gallery in corpus.galleries:
        if gallery.name in REPORTED:
            for style in gallery.by_style():
                names = [family(corpus.emoji[e].code) for e in style.emoji_M]
                found.setdefault(gallery.name, []).append([number.setdefault(name, len(number)) for name in names])
    return found


def save(records: Records, path: Path) -> None:
    """Write records, one line for each run."""
    figures = records.figures()
    lengths = {f.samples for f in figures.values()}
    head = {
        "plan": records.plan.name,
        "version": VERSION,
        "training": records.training,
        "packages": records.packages,
        "galleries": records.galleries,
        "families": records.families,
        "tried": [[arm, asdict(setting), round(figure, 5)] for arm, setting, figure in records.tried],
        "datasets": records.datasets,
    }
    runs = []
    for f in figures.values():
        kept = {f.chosen(budget, n) for budget in BUDGETS for n in lengths if n <= f.samples}
        runs += [_line(_compact(trial, kept)) for trial in f.trials]
    lines = [f"{json.dumps(key)}: {_line(value)}" for key, value in head.items()]
    pairs = [_line(_rounded(asdict(run))) for run in records.pairs]
    lines += [f'"{key}": [\n' + ",\n".join(rows) + "\n]" for key, rows in (("trials", runs), ("pairs", pairs))]
    new = path.with_name(f".{path.name}.new")
    new.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
    new.replace(path)


def load(path: Path) -> Records:
    """Records of a file. Raises InputError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["version"] != VERSION:
            raise InputError(
                str(path), f"has runs of version {values['version']} of the study, not {VERSION}; do all again"
            )
        return Records(
            PLANS[values["plan"]],
            values["training"],
            tuple(values["packages"]),
            tuple((name, pictures, names) for name, pictures, names in values["galleries"]),
            values["families"],
            tuple((arm, Setting(**setting), figure) for arm, setting, figure in values["tried"]),
            tuple(map(_whole, values["trials"])),
            values["datasets"],
            tuple(map(run_of, values["pairs"])),
        )
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(str(path), f"does not hold the records of a study ({e!r})") from None


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return round(value, 5) if isinstance(value, float) else value


def _compact(trial: Trial, kept: set[int]) -> dict[str, Any]:
    points = [
        [
            p.samples,
            round(p.seconds, 1),
            round(p.loss, 4),
            {g: [round(p.i2t[g], 5), round(p.t2i[g], 5)] for g in p.i2t if _shown(g, p)},
            p.hits if p.samples in kept else {},
        ]
        for p in trial.points
    ]
    return {**trial.to_json(), "step_ms": round(trial.step_ms, 2), "points": points}


def _shown(gallery: str, point: Point) -> bool:
    """Whether a figure is kept: the smaller galleries stand in for those on which an arm was not measured."""
    large = gallery.removesuffix("_small")
    return large == gallery or large == "style" or large not in point.i2t


def _whole(values: Mapping[str, Any]) -> Trial:
    points = [
        asdict(Point(n, seconds, loss, {g: v[0] for g, v in r1.items()}, {g: v[1] for g, v in r1.items()}, hits))
        for n, seconds, loss, r1, hits in values["points"]
    ]
    return Trial.of_json({**values, "points": points})


def records_of(study: Study) -> Records:
    """The study's own records, with those of the repository of other datasets of pairs; where it has none of its own,
    those of the repository. Raises InputError where they are of another plan."""
    known = load(COMMITTED)
    if not (study.folder / "trials").is_dir():
        if (name := known.plan.name) != study.plan.name:
            raise InputError(str(study.folder), f"has no runs, and the repository has those of {name!r} alone")
        return replace(known, plan=study.plan)
    own = collect(study)
    others = tuple(run for run in known.pairs if run.source not in own.datasets)
    return replace(own, datasets={**known.datasets, **own.datasets}, pairs=(*own.pairs, *others))
