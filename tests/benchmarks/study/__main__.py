"""`python -m tests.benchmarks.study`: do the runs of the study and make its page. What `make study` runs.

    run [--plan quick|hour] [--minutes M]    go on where the last run ended, then make the page
    page [--plan ...]                             make the page from the records that are there, or the repository's
    record [--plan ...]                           add the records of the runs to the repository's

Limits: works in the current folder, which must be the root of a checkout (the demo's command fetches the packages).
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from training.errors import TrainingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status. An error is one line on stderr and status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.study", description="the study of the method's claim"
    )
    parser.add_argument("command", choices=["run", "page", "record"])
    parser.add_argument("--plan", choices=["quick", "hour"], default="hour", help="form of the study")
    parser.add_argument("--out", type=Path, default=Path("demo/study"), help="where all of it is kept")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, of one thread each")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="from now on; no run is started that would end later"
    )
    parser.add_argument("--arms", default="", help="only these arms, by name, with commas")
    parser.add_argument("--seeds", type=int, default=0, help="only so many seeds")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("wenlan").setLevel(logging.INFO)
    try:
        return _run(options)
    except TrainingError as e:
        sys.stderr.write(f"wenlan study: {e}\n")
        return 1
    except KeyboardInterrupt:
        os._exit(130)  # at once: the workers end with this process, and what they had not finished is done again


def _run(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from tests.benchmarks.study.arms import chosen
    from tests.benchmarks.study.page import write_page
    from tests.benchmarks.study.records import COMMITTED, add, collect
    from tests.benchmarks.study.runs import PLANS, Study, go_on, prepare

    began = time.monotonic()
    plan = PLANS[options.plan]
    whole = Study(plan, options.out)
    if options.arms:
        try:
            plan = replace(plan, arms=tuple(chosen(options.arms.split(","), plan.arms)))
        except KeyError as e:
            sys.stderr.write(f"wenlan study: {e.args[0]}\n")
            return 2
    if options.seeds:
        plan = replace(plan, seeds=plan.seeds[: options.seeds])
    study = Study(plan, options.out)
    if options.command == "record":
        add(collect(whole), COMMITTED)
        return 0
    if options.command == "run":
        prepare(study, options.jobs)
        left = options.minutes - (time.monotonic() - began) / 60
        if not go_on(study, options.jobs, left, lambda: write_page(whole)):
            sys.stderr.write("wenlan study: the time is over; the same command goes on with the runs that are left\n")
    sys.stderr.write(f"wenlan study: the page is {write_page(whole)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
