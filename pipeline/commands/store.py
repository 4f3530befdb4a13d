"""Commands of `wenlan-data` that maintain STORE and its builds: forget, gc, regions, store."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_specs.command.extras import require
from data_specs.errors import SpecError, WenlanError
from pipeline.commands.terminal import Commands, command, say, show, table_of

if TYPE_CHECKING:
    from pipeline.store.build import Build
    from pipeline.store.store import Store
    from pipeline.takedown.prove import Proof

MOST_BITS = 16
"""Largest --distance of `forget`: beyond it, pictures that have nothing in common would count as the same."""


def add_forget(commands: Commands) -> None:
    forget = command(
        commands,
        "forget",
        _forget,
        "remove content from builds and STORE, and reject it in future builds",
        "wenlan-data forget --store store --url https://cooking.example.org/images/1.jpg --dry-run",
        "wenlan-data forget --store store --domain example.org",
        "wenlan-data forget builds/1 --store store --like picture.jpg --distance 6",
        "wenlan-data forget index --store store",
        "wenlan-data forget --store store --prove picture.jpg",
    )
    forget.add_argument(
        "builds",
        nargs="*",
        metavar="BUILD",
        help="other builds to search too, besides those that STORE knows; or folders of search indexes",
    )
    _add_store(forget)
    forget.add_argument(
        "--index", action="append", default=[], metavar="DIR", help="search index to remove rows from; may be repeated"
    )
    for name, meta, help in (
        ("--item", "X", "an image (URL, file, key, ID or sha256) or the URL of a page, as in explain"),
        ("--url", "U", "URL of an image or a page"),
        ("--domain", "D", "host name, including its subdomains"),
        ("--sha256", "H", "sha256 of the image as fetched"),
        ("--like", "FILE", "a picture; images that look like it are removed"),
    ):
        forget.add_argument(name, action="append", default=[], metavar=meta, help=f"{help}; may be repeated")
    forget.add_argument(
        "--distance", type=int, metavar="BITS", help="bits of the 64-bit perceptual hash that may differ (0 to 16)"
    )
    forget.add_argument(
        "--exact", action="store_true", help="only images with these URLs or bytes, not those that look the same"
    )
    forget.add_argument(
        "--prove",
        action="append",
        default=[],
        metavar="X",
        help="only search for a URL, a file or a string in every byte of builds, STORE and indexes; may be repeated",
    )
    forget.add_argument("--missing-ok", action="store_true", help="exit with 0 even if a new takedown matches nothing")
    forget.add_argument("--dry-run", action="store_true", help="only show what would be removed")


def _forget(args: argparse.Namespace) -> dict[str, Any]:
    from data_specs.search.folder import read_index
    from pipeline.takedown import forget
    from pipeline.takedown.indexes import is_index

    if args.distance is not None and not 0 <= args.distance <= MOST_BITS:
        raise SpecError([f"--distance {args.distance}: must be 0 to {MOST_BITS} bits"])
    if args.distance is not None and args.exact:
        raise SpecError(["--distance cannot be used with --exact, which does not compare looks"])
    if args.prove:
        return _prove(args)
    store = _store(args)
    searched = [Path(place) for place in (*args.index, *filter(is_index, args.builds))]
    for folder in searched:
        read_index(folder, unfinished=True)  # before anything is taken down
    builds, faults = _builds(store, [place for place in args.builds if not is_index(place)])
    more = {} if args.distance is None else {"distance": args.distance}
    pictures = [Path(path) for path in args.like]
    files = [url for url in args.url if url.startswith("file://")]
    request = forget.Request(
        urls=[url for url in args.url if url not in files],
        items=[*args.item, *files],
        domains=args.domain,
        sha256s=args.sha256,
        pictures=pictures,
        exact=args.exact,
        **more,
    )
    try:
        answer = forget.forget(store, builds, request, args.dry_run, searched=searched, faults=faults)
    except WenlanError:  # what it names may be in one of those
        for line in faults:
            say(line)
        raise
    late = [build for build in _builds(store, [])[0] if build.out not in {build.out for build in builds}]
    if late and not args.dry_run:  # published meanwhile, before the takedown was noted in STORE
        after = forget.forget(store, late, forget.Request())
        answer |= {name: answer[name] + after[name] for name in ("builds", "matched", "faults")}
        answer["releases"] = after["releases"]
    answer["faults"] = list(dict.fromkeys(answer["faults"]))
    for affected in answer["builds"]:
        _show_affected(affected, forget.COUNTED, args.dry_run)
    for loss in answer["indexes"]:
        _show_loss(loss, args.dry_run)
    if any(affected["samples"] for affected in answer["builds"]):
        say(f"exports and copies elsewhere are not known; forget --store {args.store} --prove X DIR searches a folder")
    if not answer["matched"]:
        answer |= _nothing_matched(answer, args)
    return answer | _faults(answer)


MOST_SHOWN = 1_000
"""Findings of `forget --prove` in its answer; further ones are counted."""


def _prove(args: argparse.Namespace) -> dict[str, Any]:
    """Search for things that must be nowhere; fails if one is found, or a file could not be read."""
    from pipeline.files.folder import Folder
    from pipeline.takedown import prove

    if args.item or args.url or args.domain or args.sha256 or args.like or args.exact or args.dry_run:
        raise SpecError(["--prove only searches; run it without --item, --url and their like, after the takedown"])
    store, answers, ok = _store(args), dict[str, Any](), True
    known = {entry["out"]: bool(Folder(entry["out"]).names()) for entry in store.known_builds()}
    away = [f"{out}: not searched: {store.unreachable(out)}" for out, is_there in known.items() if not is_there]
    for what, sought in {what: prove.parse_target(what) for what in args.prove}.items():
        proof = prove.Proof(store, sought, _tell_progress)
        proof.walk([*filter(known.get, known), store.url, *args.builds, *args.index])
        for finding in proof.findings[:MOST_SHOWN]:
            say(finding.line())
        for finding in proof.expected:
            say(f"{finding.line()} (expected: {prove.EXPECTED})")
        faults = [*proof.faults, *away]
        for line in faults:
            say(line)
        count = f"{len(proof.findings):,} findings" if proof.findings else "nothing found"
        unread = f", {len(faults):,} files or builds could not be searched" if faults else ""
        say(f"{what}: {count} in {proof.files:,} files, {proof.size / 1e6:,.1f} MB{unread}")
        if proof.findings:
            say(
                f"wenlan-data forget --store {args.store} removes what a killed build holds of it, if it was taken down"
            )
        ok = ok and not proof.findings and not faults
        answers[what] = {
            "findings": len(proof.findings),
            "found": [finding.line() for finding in proof.findings[:MOST_SHOWN]],
            "expected": [finding.line() for finding in proof.expected],
            "faults": faults,
            "files": proof.files,
            "bytes": proof.size,
        }
    if ok:
        return {"proved": answers}
    error = "; ".join(
        f"{what}: {one['findings']:,} findings, {len(one['faults']):,} faults" for what, one in answers.items()
    )
    return {"proved": answers, "ok": False, "error": error, "code": 1}


def _tell_progress(proof: Proof) -> None:
    say(f"searched {proof.files:,} files, {proof.size / 1e6:,.1f} MB; {len(proof.findings):,} findings so far")


def _faults(answer: dict[str, Any]) -> dict[str, Any]:
    """Say what could not be done; the command fails then."""
    faults: list[str] = answer["faults"]
    for line in faults:
        say(line)
    return {"ok": False, "error": faults[0], "code": 1} if faults else {}


def _nothing_matched(answer: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Say that a takedown removed nothing; an error unless it was known before, or that was to be expected."""
    recorded = "the takedown is recorded, and future builds will refuse matching content"
    if args.dry_run:
        recorded = "nothing was changed"
    elif answer["known"]:
        recorded = "the takedown was already recorded"
    also = f" and {len(answer['indexes'])} indexes" if answer["indexes"] else ""
    line = f"no match in {len(answer['builds'])} builds{also}; {recorded}"
    say(line)
    return {} if answer["known"] or args.missing_ok else {"ok": False, "error": line, "code": 1}


def _builds(store: Store, places: list[str]) -> tuple[list[Build], list[str]]:
    """The builds in the folders named and those that STORE knows, each once; and a line for each of these that
    cannot be read. Raises SpecError for a folder of another STORE, and StoreError for one without a build."""
    from pipeline import opening
    from pipeline.files.folder import place_of
    from pipeline.stages import STAGES
    from pipeline.takedown import known_builds

    named = [opening.reopen(place) for place in places]
    for build in named:
        if place_of(build.store.url) != place_of(store.url):
            raise SpecError([f"{build.out}: belongs to STORE {build.store.url}, not {store.url}"])
    known, faults = known_builds.opened(store, STAGES)
    builds = {place_of(build.out): build for build in (*named, *known)}
    return list(builds.values()), [*faults, *known_builds.damaged_releases(store).values()]


def _show_affected(affected: dict[str, Any], counted: tuple[str, ...], dry_run: bool) -> None:
    """Print what a takedown removes from one build; a dry run names every sample."""
    counts = ", ".join(f"{len(affected[n]) if n == 'samples' else affected[n]:,} {n}" for n in counted)
    revision = "" if affected.get("revision") is None else f"; revision {affected['revision']}"
    verb = "would remove" if dry_run else "removed"
    say(f"{affected['out']}: {verb} {counts}; shards {' '.join(affected['shards']) or 'none'}{revision}")
    for name in affected["exports"]:
        say(f"{affected['out']}/{name}: {'would delete' if dry_run else 'deleted'} this export; export again")
    for name in affected["foreign"]:
        say(f"{affected['out']}/{name}: not part of the build, and not searched; delete it if it holds a copy")
    for sample in affected["samples"] if dry_run else ():
        say(f"  {sample['shard']} {sample['key']} {sample['image_url']}")


def _show_loss(loss: dict[str, Any], dry_run: bool) -> None:
    """Print what a takedown removes from one index."""
    verb = "would remove" if dry_run else "removed"
    revision = "" if dry_run else f"; revision {loss['revision']}"
    say(f"{loss['index']}: {verb} {loss['rows']:,} rows, and the texts of {loss['texts']:,} others{revision}")
    if loss["unseen"]:
        say(f"{loss['index']}: {loss['unseen']:,} pictures are unreadable and could not be compared by their looks")


def add_gc(commands: Commands) -> None:
    gc = command(
        commands,
        "gc",
        _gc,
        "delete files that are no longer needed",
        "wenlan-data gc --store store --dry-run",
        "wenlan-data gc --store store --keep 4 --keep-releases 26",
    )
    _add_store(gc)
    gc.add_argument(
        "--keep", type=int, default=0, metavar="N", help="how many builds of each dataset to keep whole (default: all)"
    )
    gc.add_argument(
        "--keep-releases",
        type=int,
        default=0,
        metavar="N",
        help="how many releases of each dataset to keep; shards not in them are deleted (default: all)",
    )
    gc.add_argument("--dry-run", action="store_true", help="only show what would be deleted")


def _gc(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.stages import STAGES
    from pipeline.takedown import garbage

    for option, number in (("--keep", args.keep), ("--keep-releases", args.keep_releases)):
        if number < 0:
            raise SpecError([f"{option} {number}: must be a number, or 0 for all"])
    answer = garbage.collect(_store(args), STAGES, args.keep, args.dry_run, args.keep_releases)
    for deletion in answer["deleted"]:
        say(f"{'would delete' if args.dry_run else 'deleted'} {deletion['what']}: {deletion['place']}")
    for line in answer["left"]:
        say(line)
    say(f"{answer['bytes']:,} bytes {'would be freed' if args.dry_run else 'freed'}")
    return answer | _faults(answer)


def add_regions(commands: Commands) -> None:
    regions = command(
        commands,
        "regions",
        _regions,
        "show the contents of the region cache, or remove detectors from it",
        "wenlan-data regions stats --store store",
        "wenlan-data regions prune --store store --before 2026-01-31 --dry-run",
    )
    regions.add_argument("action", choices=["stats", "prune"])
    _add_store(regions)
    regions.add_argument(
        "--detector", action="append", default=[], metavar="ID", help="prune this detector; may be repeated"
    )
    regions.add_argument(
        "--before", default="", metavar="DATE", help="prune detectors last written before this date, e.g. 2026-01-31"
    )
    regions.add_argument("--dry-run", action="store_true", help="only show what would be removed")


def _regions(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.store import region_cache

    if args.action == "prune" and not (args.detector or args.before):
        raise SpecError(["regions prune: --detector ID or --before DATE is required"])
    if args.action == "stats" and (args.detector or args.before or args.dry_run):
        raise SpecError(["regions stats: --detector, --before and --dry-run are for prune only"])
    before, store = _date(args.before), _store(args)
    store.check()
    if args.action == "stats":
        title, detectors = "region cache", region_cache.stats(store)
    else:
        title = "would be removed" if args.dry_run else "removed"
        detectors = region_cache.prune(store, args.detector, before, args.dry_run)
    table = table_of(title, "detector", "images", "regions", "per image", "commits", "MB", "written")
    for e in detectors:
        each = f"{e['regions'] / max(e['images'], 1):.1f}"
        counts = (f"{e['images']:,}", f"{e['regions']:,}", each, f"{e['commits']:,}", f"{e['bytes'] / 1e6:,.1f}")
        table.add_row(e["detector"], *counts, e["written"])
    show(table)
    return {"detectors": detectors, "removed": args.action == "prune" and not args.dry_run}


def add_store(commands: Commands) -> None:
    what = "report to STORE that builds were moved, or delete one"
    move, delete = (
        "wenlan-data store move builds /mnt/builds --store store",
        "wenlan-data store delete builds/1 --store store",
    )
    parser = commands.add_parser("store", help=what, description=what, examples=(move, delete))
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    what = "correct STORE and its releases after a build, or a folder of builds, was moved"
    moved = command(actions, "move", _move, what, move)
    moved.add_argument("old", metavar="OLD", help="the folder as STORE knows it")
    moved.add_argument("new", metavar="NEW", help="where it is now")
    what = "delete a build and its place in the dataset, or report that its folder was deleted"
    deleted = command(actions, "delete", _delete, what, delete)
    deleted.add_argument("build", metavar="BUILD", help="a build's folder, which may be gone")
    for action in (moved, deleted):
        _add_store(action)


def _move(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.takedown import places

    require("jinja2")  # which fills in the cards of releases
    answer = places.move(_store(args), args.old, args.new)
    for out in answer["builds"]:
        say(f"{out}: noted")
    for name, numbers in answer["releases"].items():
        if numbers:
            say(f"dataset {name}: corrected releases {', '.join(map(str, numbers))}")
    return answer


def _delete(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.stages import STAGES
    from pipeline.takedown import places

    require("jinja2")  # which fills in the card of a release, at the end
    deleted = places.delete(_store(args), STAGES, args.build)
    what = "deleted" if deleted["deleted"] else "was gone already; removed from STORE"
    say(f"{deleted['out']}: {what} ({deleted['build_id']})")
    return deleted


def _date(text: str) -> str:
    """A date or time as the region cache writes it (RFC 3339, UTC); "" for "". Raises SpecError."""
    if not text:
        return ""
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise SpecError([f"--before {text}: not a date such as 2026-01-31"]) from None
    utc = datetime.UTC
    return (when.replace(tzinfo=utc) if when.tzinfo is None else when.astimezone(utc)).isoformat(timespec="seconds")


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", required=True, metavar="DIR", help="STORE, shared by all builds")


def _store(args: argparse.Namespace) -> Store:
    """The STORE that a command looks after. Raises StoreError if missing."""
    from pipeline.files.folder import Folder
    from pipeline.store.store import Store

    store = Store(Folder(args.store).url)
    store.must_exist()
    return store
