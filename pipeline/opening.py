"""Opens a build's folder, in whichever state `wenlan-data build` finds it.

    | the folder holds                                            | opened as                                    |
    |-------------------------------------------------------------|----------------------------------------------|
    | this build, published, its input deleted by `gc --keep`      | as it began: there is nothing to do it from  |
    | this build, published, nothing changed since                | as it is                                     |
    | this build, published, changed by takedowns alone           | as takedowns left it                         |
    | anything else                                               | a build to run, against what STORE holds now |

A trial (`open_trial`) is a build of another spec on a finished one, in a scratch folder.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from data_specs.build import BuildSpec, SpecError
from pipeline import plugins
from pipeline.errors import StageError, StoreError
from pipeline.files.folder import Folder
from pipeline.sources import sources_of
from pipeline.stages import STAGES
from pipeline.store import build_json
from pipeline.store.build import Build, Earlier, Stages, sha256_of
from pipeline.store.identities import Identities
from pipeline.store.partitions import reading
from pipeline.store.store import Store


def open_build(
    spec: BuildSpec,
    out: str,
    store: str = "",
    snapshot: str = "",
    stages: Stages = STAGES,
    new_generation: bool = False,
) -> Build:
    """A build with its fingerprints computed. Touches nothing on disk.

    store: by default that of the folder's build, or a new one in the folder.
    snapshot: the id of what is crawled; a build goes on with its own, a new one takes the day and time (UTC).
    stages: what it consists of.
    new_generation: make the whole dataset again, from what its newest release was made from. A build that has begun a
    generation goes on with it in any case, and any other build continues that of the newest release.

    Raises SpecError, SourceError (a source that cannot be read at all) and StoreError.
    """
    plugins.check(spec)
    folder = Folder(out)
    known = build_json.read(folder)
    shared = Store(Folder(store).url if store else _default_store(folder, known))
    generation, made_from = _generation(spec.name, shared, folder, known, new_generation)
    snapshot = _snapshot_id(snapshot, spec, known, generation if made_from else 0)
    build = Build(
        spec=spec,
        out=folder.url,
        store=shared,
        build_id=_build_id(spec, snapshot, generation),
        snapshot=snapshot,
        generation=generation,
        made_from=made_from,
        stages=stages,
    )
    return _find_published(build, known) or _add_fingerprints(
        replace(build, identities=Identities(shared).before(build))
    )


def reopen(out: str) -> Build:
    """Opens the existing build of a folder, with its original spec. Raises StoreError for a folder without one."""
    return build_json.reopen(out, STAGES)


def _default_store(folder: Folder, known: Mapping[str, Any]) -> str:
    """The STORE of a build whose command names none: the one that it began with; of a new build that in its folder.

    Another one would not know of it: a takedown there would leave it out.
    """
    return build_json.store_of(folder, known) if known.get("store") else folder.at("store")


def _snapshot_id(named: str, spec: BuildSpec, known: Mapping[str, Any], begins: int) -> str:
    """The id of what is crawled: the one named, the folder's own, or the time, which no other build of the day has.

    begins: generation that the build begins, or 0. Raises SpecError for an id that file names cannot hold.
    """
    own = known.get("snapshot") if known.get("name") == spec.name else ""
    snapshot: str = named or own or datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d-%H%M%S")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", snapshot):
        raise SpecError([f"--snapshot {snapshot}: use letters, digits and . _ - only (for file names)"])
    if begins and not snapshot.endswith(f"-g{begins}"):  # that of a build which crawls is never in its place
        return f"{snapshot}-g{begins}"
    return snapshot


@dataclass(frozen=True)
class _PublishedBuild:
    """A published build in its folder. was: with what it read of STORE. same: nothing that it reads has been published
    since."""

    was: Build
    known: Mapping[str, Any]
    same: bool


def _find_published(build: Build, known: Mapping[str, Any]) -> Build | None:
    """The build of the folder if it is this one, published, and has nothing to do; the table of the module."""
    identities = Identities(build.store)
    was = replace(build, **build_json.reads_of(known))
    was = replace(was, build_id=_build_id(build.spec, build.snapshot, was.generation))
    if known.get("build_id") != was.build_id or not identities.of(was.build_id):
        return None
    # what others have published since is not a reason to do it again, as long as nothing else has changed
    same = identities.is_released(was) or set(identities.before(was)) <= set(was.identities)
    found = _PublishedBuild(was, known, same)
    return next((opened for state in (_if_expired, _if_unchanged, _if_taken_down) if (opened := state(found))), None)


def _if_expired(found: _PublishedBuild) -> Build | None:
    """The build as it began, where `gc` has deleted what its shards were made from."""
    noted = build_json.fingerprints_of(found.known)
    begun = replace(found.was, fingerprints=_add_fingerprints(found.was).fingerprints | noted)
    return begun if begun.expired else None  # a takedown may have changed the other passes since


def _if_unchanged(found: _PublishedBuild) -> Build | None:
    build = _add_fingerprints(found.was)
    return build if found.same and build.stage("dedup").finished() else None


def _if_taken_down(found: _PublishedBuild) -> Build | None:
    """The build as takedowns have left it, if nothing else has changed since it began, and no other one is due.

    Its passes have the fingerprints that they began with: what was taken down is out of their files.
    """
    done = found.known.get("taken_down")
    if not found.same or not done or done["carried_out"] != found.was.store.forgotten_revision():
        return None
    began = replace(found.was, forgotten=done["forgotten_revision"], identities=tuple(done["identities"]))
    left = replace(_add_fingerprints(began), identities=found.was.identities)
    return left if left.stage("shard").finished() else None


def _build_id(spec: BuildSpec, snapshot: str, generation: int) -> str:
    """A build's id: unlike that of a build of the same snapshot in another generation."""
    suffix = f"-g{generation}" if generation > 1 and not snapshot.endswith(f"-g{generation}") else ""
    return f"{spec.name}-{snapshot}-{spec.digest[:8]}{suffix}"


def _generation(
    dataset: str, store: Store, folder: Folder, known: Mapping[str, Any], begins: bool
) -> tuple[int, tuple[Earlier, ...]]:
    """The generation of the build in a folder, and the builds it makes again if it begins one. Raises StoreError."""
    releases = store.releases(dataset)
    current = releases.latest().current
    begun = build_json.reads_of(known)["made_from"]
    if not begins and not begun:
        return current.generation if current is not None else 1, ()
    if known and not begun:
        what = f"contains build {known['build_id']} of generation {known.get('generation', 1)}"
        raise StoreError(folder.url, f"{what}; a new generation needs another folder")
    if current is None:
        raise StoreError(store.url, f"dataset {dataset} is not published yet; build without it first")
    if begun and not {own.build_id for own in begun} & {own.build_id for own in current.builds}:
        return known["generation"], begun  # published, or the dataset is of another generation now: `publish` says so
    generation = known["generation"] if begun else releases.last_generation() + 1
    identities = Identities(store)
    builds = releases.read().builds
    return generation, tuple(Earlier(b.build_id, b.snapshot, b.out, identities.of(b.build_id)) for b in builds)


def open_trial(spec: BuildSpec, on: Build, out: str) -> Build:
    """A trial of a spec: the build `on` as this spec would have made it, in a scratch folder, up to what would be
    packed.

    Passes whose part of the spec is the same are those of `on`; the others run in `out`, without a request to any site.
    Touches nothing on disk. Raises SpecError where the spec asks for other pages or images, and StageError where `on`
    is not finished.
    """
    plugins.check(spec)
    changed = [name for name in ("egress", "fetch", "seed") if getattr(spec, name) != getattr(on.spec, name)]
    if [own.identity() for own in sources_of(spec)] != [own.identity() for own in sources_of(on.spec)]:
        changed.insert(0, "sources")
    if changed:
        raise SpecError([f"{name}: differs from {on.build_id}; try cannot crawl or fetch" for name in changed])
    trial = replace(on, spec=spec, out=Folder(out).url, on=on)
    names, theirs_all = _passes_until(trial), _passes_until(on)
    lasting = [name for name in theirs_all if not on.passes[name].working]
    unfinished = [name for name in lasting if name not in on.fingerprints or not on.stage(name).finished()]
    if unfinished:
        raise StageError(unfinished[0], f"not finished in {on.out}; run wenlan-data build first")
    on = replace(on, fingerprints={name: on.fingerprints[name] for name in theirs_all})
    of_sources = {name: on.fingerprints[name] for name in names if name.partition(".")[0] in ("crawl", "extract")}
    mine, theirs = dict(of_sources), dict(of_sources)  # of sources as they were
    for name in (name for name in theirs_all if name not in theirs):
        theirs[name] = _fingerprint(name, replace(on, fingerprints=theirs))
    for name in (name for name in names if name not in mine):
        mine[name] = _fingerprint(name, replace(trial, fingerprints=mine, on=None))
    same = {name for name in names if mine[name] == theirs.get(name)}
    fingerprints = {name: on.fingerprints[name] if name in same else mine[name] for name in names}
    return replace(trial, fingerprints=fingerprints, on=on)


COMPARED = "curate"
"""The last stage of a trial: what it keeps would be packed."""


def _passes_until(build: Build) -> list[str]:
    """Names of a build's passes up to stage COMPARED."""
    stages = list(build.stages)
    return [name for name, own in build.passes.items() if stages.index(own.stage) <= stages.index(COMPARED)]


def _add_fingerprints(build: Build) -> Build:
    for name in build.passes:
        build = replace(build, fingerprints={**build.fingerprints, name: _fingerprint(name, build)})
    return build


def _fingerprint(name: str, build: Build) -> str:
    """Fingerprint of a pass in a build that has those of what it reads."""
    own, reads = build.passes[name], build.reads(name)
    with reading(name, reads):
        token = own.token(build)
    return sha256_of([name, own.version, token, {other: build.fingerprints[other] for other in reads}])
