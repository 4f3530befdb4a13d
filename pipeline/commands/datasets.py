"""Commands of `wenlan-data` that work on published datasets: publish, verify, diff, export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_specs.errors import SpecError
from data_specs.names import MANIFEST, SPLITS
from pipeline import exports
from pipeline.commands import builds
from pipeline.commands.generations import show_diff
from pipeline.commands.terminal import Commands, command, console, say
from pipeline.errors import GateError, NothingNew


def add_publish(commands: Commands) -> None:
    publish = command(
        commands,
        "publish",
        _publish,
        "check the gates and publish a build as a dataset",
        "wenlan-data publish builds/1",
        "wenlan-data publish builds/1 --accept max_drift --because 'a new site, looked at by Li'",
    )
    publish.add_argument("build", metavar="BUILD", help="a build's folder")
    publish.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="GATE",
        help="publish even if this gate fails; may be repeated",
    )
    publish.add_argument("--because", default="", metavar="TEXT", help="reason for --accept, recorded in the manifest")


def _publish(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import opening
    from pipeline.cluster import joined
    from pipeline.publish import release
    from pipeline.report import gates
    from pipeline.stages import STAGES
    from pipeline.store import approval

    gates.check_acceptance(STAGES, args.accept, args.because)  # bad usage, whatever BUILD is
    build = opening.reopen(args.build)
    build.store.must_exist()
    word = approval.latest_word(build)
    if word is not None:
        say(f"{build.build_id} was {word.line()}")
    try:
        with joined():
            manifest = release.publish(build, accept=args.accept, because=args.because, approved=True)
    except NothingNew as e:
        say(f"not published: {e.message}")
        return {"build_id": build.build_id, "published": False, "nothing_new": True, **builds.left_out(build)}
    except GateError:
        builds.honour_opt_outs(build)
        raise
    samples = sum(manifest.samples.values())
    say(f"published: {build.shards.at(MANIFEST)}, revision {manifest.revision}, {samples} samples")
    return {"build_id": manifest.build_id, **builds.published(build, manifest)}


def add_verify(commands: Commands) -> None:
    verify = command(
        commands,
        "verify",
        _verify,
        "check a dataset against its manifest",
        "wenlan-data verify builds/1",
        "wenlan-data verify store/datasets/my-first/latest.json --quick",
    )
    verify.add_argument("build", metavar="BUILD", help="folder of a build or of its shards, or manifest of a release")
    verify.add_argument("--quick", action="store_true", help="check checksums only")
    verify.add_argument(
        "--store",
        default="",
        metavar="DIR",
        help="STORE with the takedowns to check against (default: that of the build or release)",
    )


def _verify(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.publish.verify import verify
    from pipeline.store.dataset import Dataset

    faults = verify(args.build, quick=args.quick, store=args.store)
    for fault in faults:
        say(fault, style="red" if console.is_terminal else "")
    store = args.store or Dataset.open(args.build).store
    if not store:
        say("takedowns were not checked: a copy does not know its STORE; give --store DIR")
    say(f"{args.build}: {f'{len(faults)} faults' if faults else 'matches its manifest'}")
    return {"ok": not faults, "faults": faults, "takedowns_checked": bool(store)}


def add_diff(commands: Commands) -> None:
    diff = command(
        commands,
        "diff",
        _diff,
        "compare two published builds or two releases",
        "wenlan-data diff builds/1 builds/2",
        "wenlan-data diff store/datasets/my-first/000001.json store/datasets/my-first/000002.json",
    )
    diff.add_argument("a", metavar="A", help="folder of a build or of its shards, or manifest of a release")
    diff.add_argument("b", metavar="B", help="the build or release to compare it with")


def _diff(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.report.diff import diff

    return show_diff(diff(args.a, args.b))


def add_export(commands: Commands) -> None:
    export = command(
        commands,
        "export",
        _export,
        "export a dataset in the format of another tool",
        "wenlan-data export builds/1 --to brivl-jsonl",
        "wenlan-data export store/datasets/my-first/latest.json --to hf --out hf",
    )
    export.epilog = "formats:\n" + "\n".join(f"  {name:15}{title}" for name, title in exports.titles().items())
    export.add_argument("build", metavar="BUILD", help="folder of a build or of its shards, or manifest of a release")
    export.add_argument("--to", required=True, choices=exports.names(), metavar="FORMAT", help="a format below")
    export.add_argument("--out", default="", metavar="DIR", help="new folder (default: BUILD/FORMAT)")
    export.add_argument("--split", action="append", default=[], choices=SPLITS, help="only this split; may be repeated")
    export.add_argument(
        "--detector", default="", metavar="ID", help="detector of the boxes (default: the dataset's first)"
    )
    export.add_argument(
        "--store", default="", metavar="DIR", help="STORE with the takedowns to leave out (default: the dataset's)"
    )


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.store.dataset import Dataset

    out = Path(args.out) if args.out else _default_out(args.build, args.to)
    if "://" in args.out:
        raise SpecError([f"--out {args.out}: must be a local folder; export there, then copy it"])
    rows = exports.export(Dataset.open(args.build), args.to, out, args.split, args.detector, args.store)
    say(f"{out}: {', '.join(f'{n:,} {split}' for split, n in rows.items())}")
    return {"out": str(out), "rows": rows}


def _default_out(place: str, to: str) -> Path:
    """Returns the default folder of an export, in the build's or the dataset's. Raises SpecError if that is remote or a
    file."""
    from pipeline.files.folder import Folder

    folder = Folder(place)
    if not folder.is_local or folder.url.endswith(".json"):
        raise SpecError([f"export {place}: --out DIR is required"])
    above = Path(folder.url).parent
    in_build = folder.url.endswith("/shards") and (above / "build.json").is_file()  # where a takedown looks
    return (above if in_build else Path(folder.url)) / to
