"""Output about a build that begins a generation: its inputs, and the difference between two datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.commands.terminal import say, show, table_of

if TYPE_CHECKING:
    from pipeline.store.build import Build

EXAMPLES = """\
A changed spec applies to new data only. To apply it to the whole dataset, rebuild the dataset:

  wenlan-data plan SPEC --generation new --store STORE
  wenlan-data build SPEC --generation new --store STORE --out builds/rebuilt

This reads the stored captures of all builds in the latest release, the current tables and folders, and the images in
STORE. No requests go to sites. Samples of the same pictures keep their keys and splits. A diff is shown at the end.
Builds of the previous generation are kept; wenlan-data release rollback restores them.
"""


def show_made_from(build: Build) -> dict[str, Any]:
    """Show what a build that begins a generation reads; returns the same for --json."""
    from pipeline.sources import sources_of
    from pipeline.sources.site import Site
    from pipeline.stages.crawl import stored_captures

    title = f"generation {build.generation} of {build.spec.name}: stored captures to read"
    table = table_of(title, "site", "snapshot", "pages", "MB", "folder")
    rows: list[dict[str, Any]] = []
    sites = [source.name for source in sources_of(build.spec) if isinstance(source, Site)]
    for site in sites:
        for stage, record, snapshot in stored_captures(build, site):
            size = sum(ref.bytes for suffix, ref in record.files.items() if suffix.endswith("warc.gz"))
            row = {"site": site, "snapshot": snapshot, "pages": record.counts["kept"], "bytes": size}
            rows.append({**row, "folder": stage.folder.url})
            table.add_row(site, snapshot, f"{row['pages']:,}", f"{size / 1e6:,.1f}", stage.folder.url)
    show(table)
    for site in sorted(set(sites) - {row["site"] for row in rows}):
        say(f"{site}: no stored captures; the next build that crawls will visit it")
    builds = [own.build_id for own in build.made_from]
    say(f"made from {', '.join(builds)}")
    say(f"other sources are read again, images come from {build.store.url}/fetched; no requests to sites")
    return {"made_from": builds, "captures": rows}


def show_change(build: Build) -> dict[str, Any] | None:
    """Show how the release with which a build began its generation differs from the one before it.

    None where one of both is no longer there.
    """
    from pipeline.report.diff import diff
    from pipeline.store.releases import file_name

    releases = build.store.releases(build.spec.name)
    numbers = releases.numbers()
    for number in reversed(numbers):
        if [own.build_id for own in releases.read(number).builds] == [build.build_id] and number - 1 in numbers:
            return show_diff(diff(*(releases.folder.at(file_name(n)) for n in (number - 1, number))))
    return None


def show_diff(answer: dict[str, Any]) -> dict[str, Any]:
    """Show how two datasets differ, and return the same."""
    from pipeline.rows.decisions import DropReason

    for side in ("a", "b"):
        one = answer[side]
        gone = f", {one['taken_down']:,} of them taken down since" if one["taken_down"] else ""
        say(f"{side.upper()} {one['build_id']}, revision {one['revision']}: {one['samples']:,} samples{gone}")
    keys_of = {"added": answer["added"], "removed": answer["removed"]}
    keys_of |= {f"other {aspect}": keys for aspect, keys in answer["changed"].items()}
    for name, keys in keys_of.items():
        some = " ".join(keys["keys"][:3])
        say(f"{name}: {keys['count']:,}{f' ({some} ...)' if some else ''}")
    known = sum(row["now"] for row in answer["reasons"] if row["name"] == DropReason.KNOWN.value)
    if known:
        whole = "to compare whole datasets: wenlan-data release diff NAME --store STORE"
        say(f"B leaves out {known:,} candidates whose images its dataset already had; {whole}")
    say(f"shards: {', '.join(f'{len(names):,} {what}' for what, names in answer['shards'].items())}")
    for row in answer["reasons"][:10]:
        if row["before"] != row["now"]:
            say(f"  {row['name']}: {row['before']:,} -> {row['now']:,}")
    for change in answer["spec"]:
        say(f"  spec {change['path']}: {change['before']!r} -> {change['now']!r}")
    return answer
