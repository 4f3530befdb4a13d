"""Commands of `wenlan-data` for datasets that are there: verify, diff, forget, gc, regions, export."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

from data_specs.build import SpecError
from pipeline.commands.terminal import Commands, command, console, show, table_of


def add_upkeep(commands: Commands) -> None:
    """Add these commands to a parser's subcommands."""
    _add_verify(commands)
    _add_diff(commands)
    _add_forget(commands)
    _add_gc(commands)
    _add_regions(commands)
    _add_export(commands)


def _add_verify(commands: Commands) -> None:
    verify = command(commands, "verify", _verify, "check a dataset against its manifest")
    verify.add_argument("build", metavar="BUILD", help="a build's folder or its shards folder")
    verify.add_argument("--quick", action="store_true", help="checksums only")
    verify.add_argument(
        "--store", default="", metavar="DIR", help="whose takedowns must not be inside (default: the build's)"
    )


def _verify(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.publish.verify import verify

    folder = args.build
    faults = verify(folder, quick=args.quick, store=args.store)
    for fault in faults:
        console.print(f"[red]{fault}[/red]" if console.is_terminal else fault, soft_wrap=True)
    console.print(f"{folder}: {f'{len(faults)} faults' if faults else 'is what its manifest says'}", soft_wrap=True)
    return {"ok": not faults, "faults": faults}


def _add_diff(commands: Commands) -> None:
    diff = command(commands, "diff", _diff, "say how two published builds differ")
    diff.add_argument("a", metavar="A")
    diff.add_argument("b", metavar="B")


def _diff(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.report.diff import diff

    found = diff(args.a, args.b)
    say = functools.partial(console.print, soft_wrap=True, markup=False)
    for side in ("a", "b"):
        one = found[side]
        say(f"{side.upper()} {one['build_id']}, revision {one['revision']}: {one['samples']:,} samples")
    counts = {"added": found["added"], "removed": found["removed"]}
    counts |= {f"other {aspect}": keys for aspect, keys in found["changed"].items()}
    for name, keys in counts.items():
        some = " ".join(keys["keys"][:3])
        say(f"{name}: {keys['count']:,}{f' ({some} ...)' if some else ''}")
    say(f"shards: {', '.join(f'{len(names):,} {what}' for what, names in found['shards'].items())}")
    for row in found["reasons"][:10]:
        if row["before"] != row["now"]:
            say(f"  {row['name']}: {row['before']:,} -> {row['now']:,}")
    for change in found["spec"]:
        say(f"  spec {change['path']}: {change['before']!r} -> {change['now']!r}")
    return found


def _add_forget(commands: Commands) -> None:
    forget = command(commands, "forget", _forget, "take something out of builds and STORE, and never let it in again")
    forget.add_argument("builds", nargs="*", metavar="BUILD", help="beside those that STORE knows to be published")
    forget.add_argument("--store", required=True, metavar="DIR")
    for name, meta, help in (
        ("--url", "U", "address of an image or of a page"),
        ("--domain", "D", "host name, and all below it"),
        ("--sha256", "H", "of a picture's bytes as fetched"),
        ("--like", "FILE", "a picture: what looks like it"),
    ):
        forget.add_argument(name, action="append", default=[], metavar=meta, help=f"{help}; may be repeated")
    forget.add_argument(
        "--distance", type=int, metavar="BITS", help="of 64, up to which a picture is the same (0 to 16)"
    )
    forget.add_argument("--exact", action="store_true", help="the addresses and bytes named, not what looks the same")
    forget.add_argument("--dry-run", action="store_true", help="say what would go")


def _forget(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.files.folder import Folder
    from pipeline.store import build_json
    from pipeline.store.store import Store
    from pipeline.takedown import forget

    if args.distance is not None and not 0 <= args.distance <= 16:
        raise SpecError([f"--distance {args.distance}: 0 to 16 bits of 64"])
    store = Store(Folder(args.store).url)
    places = [Folder(build).url for build in args.builds]
    places += [known["out"] for known in store.registered() if Folder(known["out"]).exists("build.json")]
    builds = [build_json.reopen(place) for place in dict.fromkeys(places)]
    for build in builds:
        if build.store.url != store.url:
            raise SpecError([f"{build.out}: its STORE is {build.store.url}, not {store.url}"])
    more = {} if args.distance is None else {"distance": args.distance}
    pictures = [Path(path) for path in args.like]
    request = forget.Request(args.url, args.domain, args.sha256, pictures, exact=args.exact, **more)
    answer = forget.forget(store, builds, request, args.dry_run)
    verb = "would lose" if args.dry_run else "lost"
    for one in answer["builds"]:
        counts = ", ".join(f"{len(one['samples']) if n == 'samples' else one[n]:,} {n}" for n in forget.COUNTED)
        revision = "" if one.get("revision") is None else f"; revision {one['revision']}"
        console.print(
            f"{one['out']}: {verb} {counts}; shards {' '.join(one['shards']) or 'none'}{revision}", soft_wrap=True
        )
        for sample in one["samples"] if args.dry_run else ():
            console.print(f"  {sample['shard']} {sample['key']} {sample['image_url']}", soft_wrap=True, markup=False)
    if not builds:
        console.print(
            "no build is known; what was named is refused from now on" if not args.dry_run else "no build is known"
        )
    return answer


def _add_gc(commands: Commands) -> None:
    gc = command(commands, "gc", _gc, "delete what nothing needs any more")
    gc.add_argument("--store", required=True, metavar="DIR")
    gc.add_argument(
        "--keep", type=int, default=0, metavar="N", help="builds of each dataset to keep whole (default: all)"
    )
    gc.add_argument("--dry-run", action="store_true", help="say what would go")


def _gc(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.files.folder import Folder
    from pipeline.store.store import Store
    from pipeline.takedown import garbage

    if args.keep < 0:
        raise SpecError([f"--keep {args.keep}: a number of builds, 0 for all of them"])
    store = Store(Folder(args.store).url)
    answer = garbage.collect(store, args.keep, args.dry_run)
    for what in answer["deleted"]:
        console.print(
            f"{'would delete' if args.dry_run else 'deleted'} {what['what']}: {what['place']}", soft_wrap=True
        )
    console.print(f"{answer['bytes']:,} bytes {'would be freed' if args.dry_run else 'freed'}")
    return answer


def _add_regions(commands: Commands) -> None:
    regions = command(commands, "regions", _regions, "say what the region cache holds, or remove detectors from it")
    regions.add_argument("action", choices=["stats", "prune"])
    regions.add_argument("--store", required=True, metavar="DIR")
    regions.add_argument("--detector", action="append", default=[], metavar="ID", help="prune this one")
    regions.add_argument("--before", default="", metavar="DATE", help="prune those not written since, e.g. 2026-01-31")
    regions.add_argument("--dry-run", action="store_true", help="only say what prune would remove")


def _regions(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.files.folder import Folder
    from pipeline.store import regions
    from pipeline.store.store import Store

    store = Store(Folder(args.store).url)
    store.check()
    if args.action == "prune" and not args.detector and not args.before:
        raise SpecError(["regions prune: say which: --detector ID, or --before DATE"])
    found = (
        regions.stats(store)
        if args.action == "stats"
        else regions.prune(store, args.detector, _date(args.before), args.dry_run)
    )
    title = {"stats": "region cache", "prune": "would be removed" if args.dry_run else "removed"}[args.action]
    table = table_of(title, "detector", "images", "regions", "an image", "commits", "MB", "written")
    for e in found:
        each = f"{e['regions'] / max(e['images'], 1):.1f}"
        counts = (f"{e['images']:,}", f"{e['regions']:,}", each, f"{e['commits']:,}", f"{e['bytes'] / 1e6:,.1f}")
        table.add_row(e["detector"], *counts, e["written"])
    show(table)
    return {"detectors": found, "removed": args.action == "prune" and not args.dry_run}


def _date(text: str) -> str:
    """A date or time as the region cache writes it. Raises SpecError."""
    import datetime

    try:
        when = datetime.datetime.fromisoformat(text) if text else None
    except ValueError:
        raise SpecError([f"--before {text}: is no date such as 2026-01-31"]) from None
    if when is None:
        return ""
    utc = datetime.timezone.utc
    return (when.replace(tzinfo=utc) if when.tzinfo is None else when.astimezone(utc)).isoformat(timespec="seconds")


def _add_export(commands: Commands) -> None:
    export = command(commands, "export", _export, "write a dataset in another format")
    export.add_argument("build", metavar="BUILD", help="a build's folder or its shards folder")
    export.add_argument("--to", required=True, choices=["brivl-jsonl"])
    export.add_argument("--out", default="", metavar="DIR", help="default: BUILD/brivl-jsonl")
    export.add_argument("--detector", default="", metavar="ID", help="whose boxes (default: the dataset's first)")


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.files.folder import Folder
    from pipeline.publish.export import to_brivl_jsonl

    folder = Folder(args.build)
    shards = folder / "shards" if (folder / "shards").names() else folder
    out = Path(args.out or folder.at("brivl-jsonl"))
    rows = to_brivl_jsonl(shards, out, args.detector)
    console.print(f"{out}: {', '.join(f'{n:,} {split}' for split, n in rows.items())}", soft_wrap=True)
    return {"out": str(out), "rows": rows}
