"""Records of a study in one small file, from which its page is made again without training.

    {"plan", "training", "packages", "galleries": [[name, pictures, names]], "families": {gallery: [style: [family]]},
     "tried": [[arm, setting, dev]], "trials": [...]}

`families` numbers the family of each name (split.py), in the order of the hits. Hits are kept at the lengths that are
compared, so a study of 25 runs is about a hundred kB.

Limits: seconds and milliseconds are those of the machine that trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.study.arms import Setting
from tests.benchmarks.study.corpus import Corpus
from tests.benchmarks.study.results import BUDGETS, Families, Figures, gather
from tests.benchmarks.study.runs import PLANS, Plan, Study, load_corpus, tarballs_of
from tests.benchmarks.study.split import family
from tests.benchmarks.study.trial import REPORTED, Point, Trial, dev
from training.errors import InputError

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
    trials: Mapping[str, Sequence[Trial]]

    def figures(self) -> dict[str, Figures]:
        """Figures of the arms that have runs, by name."""
        return gather(self.plan.arms, lambda arm: list(self.trials.get(arm.name, ())))


def collect(study: Study) -> Records:
    """Records of the runs that are done. Raises InputError where the study has no features yet."""
    corpus = load_corpus(study.out, study.weights, study.plan.styles)
    tried = []
    for arm in study.plan.arms:
        for task in study.tried(arm):
            trial = study.trial(task)
            if trial is not None and (row := (task.arm.name, task.setting, dev(trial.points[-1]))) not in tried:
                tried.append(row)
    return Records(
        study.plan,
        len(corpus.select("train", "train")),
        tuple(sorted(path.name for path in tarballs_of(study.out).values())),
        tuple((g.name, len(s.pictures), len(s.emoji_M)) for g in corpus.galleries for s in g.by_style()),
        _families(corpus),
        tuple(tried),
        {arm.name: study.trials(arm) for arm in study.plan.arms},
    )


def add(study: Study, path: Path) -> None:
    """Add the runs of a study to the records of a file; a run that was done again replaces its record. Raises
    InputError where they were not made of the same packages and galleries, or differ in the setting of an arm."""
    known, own = load(path), collect(study)
    if _made_of(known) != _made_of(own):
        raise InputError(str(path), "not added: its runs have other packages, galleries or sizes")
    trials = {}
    for arm in {**known.trials, **own.trials}:
        by_seed = {t.seed: t for records in (known, own) for t in records.trials.get(arm, ())}
        trials[arm] = [by_seed[seed] for seed in sorted(by_seed)]
        if len({(t.setting, t.samples) for t in trials[arm]}) > 1:
            raise InputError(str(path), f"not added: its runs of {arm} have another setting; do all seeds again")
    tried = {(arm, setting): figure for records in (known, own) for arm, setting, figure in records.tried}
    save(replace(own, tried=tuple((*run, figure) for run, figure in tried.items()), trials=trials), path)


def _made_of(records: Records) -> tuple[object, ...]:
    return records.plan.name, records.training, records.packages, records.galleries, records.families


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
        "training": records.training,
        "packages": records.packages,
        "galleries": records.galleries,
        "families": records.families,
        "tried": [[arm, asdict(setting), round(figure, 5)] for arm, setting, figure in records.tried],
    }
    lines = [f"{json.dumps(key)}: {_line(value)}" for key, value in head.items()]
    runs = []
    for f in figures.values():
        kept = {f.chosen(budget, n) for budget in BUDGETS for n in lengths if n <= f.samples}
        runs += [_line(_compact(trial, kept)) for trial in f.trials]
    lines.append('"trials": [\n' + ",\n".join(runs) + "\n]")
    new = path.with_name(f".{path.name}.new")
    new.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
    new.replace(path)


def load(path: Path) -> Records:
    """Records of a file. Raises InputError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        trials: dict[str, list[Trial]] = {}
        for trial in map(_whole, values["trials"]):
            trials.setdefault(trial.arm, []).append(trial)
        return Records(
            PLANS[values["plan"]],
            values["training"],
            tuple(values["packages"]),
            tuple((name, pictures, names) for name, pictures, names in values["galleries"]),
            values["families"],
            tuple((arm, Setting(**setting), figure) for arm, setting, figure in values["tried"]),
            trials,
        )
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(str(path), f"does not hold the records of a study ({e!r})") from None


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


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
    """The study's own records; those of the repository where it has none of its own."""
    if (study.folder / "trials").is_dir():
        return collect(study)
    records = load(COMMITTED)
    if records.plan.name != study.plan.name:
        raise InputError(str(study.folder), f"has no runs, and the repository has those of {records.plan.name!r} alone")
    return replace(records, plan=study.plan)
