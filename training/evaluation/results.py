"""A task's result: its head with the protocol, figures of queries seen and unseen in train, and the lines about them.

Figures of a dataset's split are given over all queries, over those whose image leader or text leader stands in train
(`seen`), and over the others (`unseen`), which is the headline. The candidates are the same each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_specs.shard import FEWEST_MEASURED
from training.evaluation.hits import Mask
from training.outputs.atomic_files import INDEX
from training.weights.load import Loaded

Result = dict[str, Any]

_COUNTS = ("samples", "n")
"""Names of the number of queries in figures: of retrieval, of a classification."""


def head(
    task: str, loaded: Loaded, protocol: Mapping[str, Any], candidates: str, towers: str, *, detector: str, corrupt: int
) -> Result:
    """The head of a result. protocol: its fields besides towers and checkpoint; `candidates` go into its line.

    The checkpoint in a protocol is the sha256 of its index, which names the sha256 of each of its files.
    """
    digest = checkpoint_digest(loaded)
    line = f"{protocol['data']}, {protocol['split']}: {candidates}; {protocol['hit']}; {towers} towers of {digest[:12]}"
    return {
        "task": task,
        "split": protocol["split"],
        "detector": detector,
        "checkpoint": str(loaded.checkpoint.folder),
        "corrupt": corrupt,
        "protocol": {**protocol, "towers": towers, "checkpoint": digest, "line": line},
        "headline": "all",
        "in_train": None,
        "seen": None,
        "unseen": None,
    }


def checkpoint_digest(loaded: Loaded) -> str:
    """sha256 of a checkpoint's index."""
    return hashlib.sha256((loaded.checkpoint.folder / INDEX).read_bytes()).hexdigest()


def by_seen(seen_N: Mask | None, figures: Callable[[Mask | None], dict[str, Any]]) -> Result:
    """Figures over all items and, if known, over those that occur in train and over the others."""
    values = figures(None)
    if seen_N is None:
        return values
    return {
        **values,
        "headline": "all" if seen_N.all() else "unseen",
        "in_train": {"either": int(seen_N.sum())},
        "seen": figures(seen_N),
        "unseen": figures(~seen_N),
    }


def shown_items(seen_N: Mask | None) -> Mask | None:
    """The items of the headline, of which examples are drawn."""
    return None if seen_N is None or seen_N.all() else ~seen_N


def parts(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, figures) of the parts that have a query: unseen, seen and all, as far as known; the headline first."""
    names = ["all", "seen in train"] if result["headline"] == "all" else ["unseen", "seen in train", "all"]
    of_parts = {"all": result, "seen in train": result["seen"], "unseen": result["unseen"]}
    return [(name, part) for name in names if (part := of_parts[name]) and any(part.get(n) for n in _COUNTS)]


def first_lines(result: Mapping[str, Any], what: str = "queries") -> list[str]:
    """The protocol; a note if it is unknown which of `what` occur in train; a warning about too few queries."""
    lines = [str(result["protocol"]["line"])]
    if result["in_train"] is None:
        lines.append(f"whether {what} occur in a train split is unknown: this data comes without one")
    for name, part in parts(result)[:1]:
        count = next(part[n] for n in _COUNTS if part.get(n))
        if count < FEWEST_MEASURED:
            lines.append(
                f"warning: the {name} figure is based on {count} queries; at least {FEWEST_MEASURED} are needed"
            )
    return lines


def share(value: float, interval: Sequence[float], chance: float | None = None) -> str:
    """A share with its interval, in percent."""
    text = f"{value:.1%} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return text if chance is None else f"{text} (chance {chance:.1%})"


def recalls(direction: Mapping[str, Any], ks: Sequence[int]) -> str:
    """Recalls, median rank and number of queries of one direction."""
    shares = [f"R@{k} {share(direction[f'r{k}'], direction[f'r{k}_interval'], direction[f'chance_r{k}'])}" for k in ks]
    return f"{', '.join(shares)}, median rank {direction['median_rank']:.0f} of {direction['queries']:,} queries"
