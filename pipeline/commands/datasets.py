"""Commands of `wenlan-data` that work on published datasets: publish, verify, diff, export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands import builds
from pipeline.commands.generations import show_diff
from pipeline.commands.terminal import Commands, command, console, say
from pipeline.errors import NothingNew


def add_publish(commands: Commands) -> None:
    publish = command(commands, "publish", _publish, "check the gates and publish a build as a dataset")
    publish.add_argument("build", metavar="BUILD")
    publish.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="GATE",
        help="publish although this gate fails; may be repeated",
    )
    publish.add_argument(
        "--because", default="", metavar="TEXT", help="the reason for --accept, recorded in the manifest"
    )


def _publish(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import run
    from pipeline.cluster import joined
    from pipeline.publish import release
    from pipeline.report import gates
    from pipeline.stages import STAGES

    gates.check_acceptance(STAGES, args.accept, args.because)  # bad usage, whatever BUILD is
    build = run.reopen(args.build)
    build.store.must_exist()
    try:
        with joined():
            manifest = release.publish(build, accept=args.accept, because=args.because, approved=True)
    except NothingNew as e:
        say(f"not published: {e.message}")
        return {"build_id": build.build_id, "published": False, "nothing_new": True, **builds.left_out(build)}
    lost = builds.left_out(build)
    path = build.shards.at("manifest.json")
    say(f"published: {path}, revision {manifest.revision}, {sum(manifest.samples.values())} samples")
    answer = {"build_id": manifest.build_id, "published": True, "revision": manifest.revision}
    return {**answer, **lost, "samples": manifest.samples, "manifest": path, **builds.released(build)}


def add_verify(commands: Commands) -> None:
    verify = command(commands, "verify", _verify, "check a dataset against its manifest")
    verify.add_argument("build", metavar="BUILD", help="a build's folder or its shards folder, or a release")
    verify.add_argument("--quick", action="store_true", help="checksums only")
    verify.add_argument(
        "--store", default="", metavar="DIR", help="STORE whose takedowns must not be inside (default: the build's)"
    )


def _verify(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.publish.verify import verify

    faults = verify(args.build, quick=args.quick, store=args.store)
    for fault in faults:
        console.print(fault, style="red" if console.is_terminal else None, soft_wrap=True, markup=False)
    say(f"{args.build}: {f'{len(faults)} faults' if faults else 'matches its manifest'}")
    return {"ok": not faults, "faults": faults}


def add_diff(commands: Commands) -> None:
    diff = command(commands, "diff", _diff, "show how two published builds, or two releases, differ")
    diff.add_argument("a", metavar="A")
    diff.add_argument("b", metavar="B")


def _diff(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.report.diff import diff

    return show_diff(diff(args.a, args.b))


def add_export(commands: Commands) -> None:
    export = command(commands, "export", _export, "write a dataset in another format")
    export.add_argument("build", metavar="BUILD", help="a build's folder or its shards folder, or a release")
    export.add_argument("--to", required=True, choices=["brivl-jsonl"])
    export.add_argument("--out", default="", metavar="DIR", help="default: BUILD/brivl-jsonl")
    export.add_argument(
        "--detector", default="", metavar="ID", help="detector of the boxes (default: the dataset's first)"
    )


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.files.folder import Folder
    from pipeline.publish.export import to_brivl_jsonl
    from pipeline.store.dataset import Dataset

    out = Path(args.out or Folder(args.build).at("brivl-jsonl"))
    rows = to_brivl_jsonl(Dataset.open(args.build), out, args.detector)
    say(f"{out}: {', '.join(f'{n:,} {split}' for split, n in rows.items())}")
    return {"out": str(out), "rows": rows}
