"""`wenlan-data release`: the releases of a dataset, listed, shown, compared, rolled back and copied."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from data_specs.command.extras import require
from data_specs.errors import SpecError
from pipeline.commands.generations import show_diff
from pipeline.commands.terminal import Commands, command, say, show, table_of

if TYPE_CHECKING:
    from data_specs.shard import Manifest
    from pipeline.store.releases import Releases
    from pipeline.store.store import Store


_LIST = ("wenlan-data release list --store store", "wenlan-data release list my-first --store store --json")
_SHOW = (
    "wenlan-data release show my-first --store store",
    "wenlan-data release show my-first 3 --store store --urls train",
)
_DIFF = (
    "wenlan-data release diff my-first --store store",
    "wenlan-data release diff my-first 2 5 --store store",
)
_BACK = ("wenlan-data release rollback my-first 3 --store store",)
_COPY = (
    "wenlan-data release copy my-first --store store --out usb/my-first",
    "wenlan-data release copy my-first 3 --store store --out usb/my-first-3",
)


def add_release(commands: Commands) -> None:
    what = "list, show, compare, roll back or copy the releases of a dataset"
    whole = ("wenlan-data release list --store store", "wenlan-data release show my-first --store store")
    parser = commands.add_parser("release", help=what, description=what, examples=whole)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listed = command(actions, "list", _list, "list the releases of a dataset, or of all datasets of STORE", *_LIST)
    listed.add_argument("dataset", nargs="?", default="", metavar="NAME", help="name of the dataset (default: all)")
    shown = command(actions, "show", _show, "show the builds of a release (default: the latest)", *_SHOW)
    what = "compare two releases (default: the latest with the one before)"
    diff = command(actions, "diff", _diff, what, *_DIFF)
    back = command(actions, "rollback", _rollback, "publish a new release with the builds of an earlier one", *_BACK)
    copied = command(actions, "copy", _copy, "copy a release into one self-contained folder", *_COPY)
    for named in (shown, diff, back, copied):
        named.add_argument("dataset", metavar="NAME", help="name of the dataset")
    for one in (shown, copied):
        one.add_argument("number", nargs="?", type=int, default=0, metavar="N", help="its number (default: latest)")
    shown.add_argument("--urls", default="", metavar="SPLIT", help="print the paths of the tars of a split")
    diff.add_argument("a", nargs="?", type=int, default=0, metavar="A", help="number of the earlier release")
    diff.add_argument("b", nargs="?", type=int, default=0, metavar="B", help="number of the later release")
    back.add_argument("number", type=int, metavar="N", help="number of the release to go back to")
    copied.add_argument("--out", required=True, metavar="DIR", help="new folder")
    for each in (listed, shown, diff, back, copied):
        each.add_argument("--store", required=True, metavar="DIR", help="STORE, shared by all builds")


def _list(args: argparse.Namespace) -> dict[str, Any]:
    store = _store(args)
    releases = [_releases(store, args.dataset)] if args.dataset else store.datasets()
    answer = {own.dataset: [_summary(own.read(number)) for number in own.numbers()] for own in releases}
    for own in releases:
        table = table_of(own.dataset, "release", "generation", "builds", "samples", "created", "content digest")
        for row in answer[own.dataset]:
            counts = [str(row["generation"]), str(len(row["builds"])), f"{sum(row['samples'].values()):,}"]
            table.add_row(str(row["release"]), *counts, row["created_at"], row["content_digest"][:16])
        show(table)
        if own.latest().withdrawn:
            say(f"{own.dataset} is withdrawn: {own.latest().withdrawn}")
    if not releases:
        say(f"{store.url} contains no dataset yet")
    return {"datasets": answer}


def _show(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.publish import dataset

    store = _store(args)
    releases = _releases(store, args.dataset)
    manifest = releases.read(args.number)
    if args.urls:
        return {"urls": _urls(releases, manifest, args.urls)}
    table = table_of(manifest.build_id, "build", "snapshot", "revision", "samples", "folder of the shards")
    for build in manifest.builds:
        row = [build.build_id, build.snapshot, str(build.revision), f"{sum(build.samples.values()):,}", build.folder]
        table.add_row(*row)
    show(table)
    away = dataset.unreachable(store, manifest.builds)
    for line in away.values():
        say(line)
    say(f"splits: {', '.join(f'{name} {n:,}' for name, n in manifest.samples.items())}")
    say(f"detectors: {', '.join(manifest.detectors) or 'none'}; content digest {manifest.content_digest}")
    return {**_summary(manifest), "unreachable": list(away.values())}


def _urls(releases: Releases, manifest: Manifest, split: str) -> list[str]:
    """Returns locations of a split's tars; printed one per line, for any reader that takes a list of tars."""
    from data_specs.shard import SPLITS

    if split not in SPLITS:
        raise SpecError([f"--urls {split}: no such split; expected one of {', '.join(SPLITS)}"])
    shards = [shard for shard in manifest.shards if shard.split == split]
    urls = [f"{manifest.folder_of(shard, releases.folder.url)}/{shard.tar.path}" for shard in shards]
    for url in urls:
        print(url)  # noqa: T201
    return urls


def _diff(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.report.diff import diff
    from pipeline.store.releases import file_name

    releases = _releases(_store(args), args.dataset)
    newest = releases.read(args.b).release
    earlier = args.a or newest - 1
    if earlier < 1:
        raise SpecError([f"{args.dataset}: has only one release, so there is nothing to compare"])
    releases.read(earlier)  # says so if there is none
    return show_diff(diff(*(releases.folder.at(file_name(number)) for number in (earlier, newest))))


def _rollback(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.publish import dataset

    require("jinja2")  # which fills in the card of a release, at the end
    if args.number < 1:
        raise SpecError([f"{args.number}: not the number of a release; they start at 1"])
    store = _store(args)
    manifest = dataset.rollback(store, _releases(store, args.dataset).dataset, args.number)
    samples = sum(manifest.samples.values())
    say(f"release {manifest.release} of {args.dataset} restores release {args.number}: {samples:,} samples")
    return _summary(manifest)


def _copy(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.publish import dataset

    require("jinja2")  # which fills in the card of a release, at the end
    store = _store(args)
    manifest = dataset.copy(store, _releases(store, args.dataset).dataset, args.out, args.number)
    say(f"{args.out}: release {manifest.release} of {args.dataset}, {sum(manifest.samples.values()):,} samples")
    return {**_summary(manifest), "out": args.out}


def _summary(manifest: Manifest) -> dict[str, Any]:
    """A release for --json: all but the files of its shards."""
    return {**manifest.model_dump(mode="json", exclude={"shards"}), "shards": len(manifest.shards)}


def _releases(store: Store, dataset: str) -> Releases:
    """The releases of a dataset of STORE. Raises SpecError if it has none."""
    releases = store.releases(dataset)
    if releases.latest().current is None:
        known = ", ".join(own.dataset for own in store.datasets()) or "none"
        raise SpecError([f"{dataset}: no such dataset in {store.url}; datasets: {known}"])
    return releases


def _store(args: argparse.Namespace) -> Store:
    from pipeline.files.folder import Folder
    from pipeline.store.store import Store

    store = Store(Folder(args.store).url)
    if not store.version():
        raise SpecError([f"--store {args.store}: not a STORE"])
    return store
