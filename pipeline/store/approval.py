"""Approvals and refusals of a build with `publish.approve: manual`: by whom and why.

Kept in build.json under `approvals`, oldest first; the last word counts. A word is about the shards as they were: once
the build is made again by another spec, or from other input, it no longer counts (`of`, the fingerprint of stage
`shard`). What a takedown removes changes nothing of it.

Limits: a name is as it was typed, not a proof of identity. MOST words are kept.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from data_specs.build import SpecError
from pipeline.errors import StoreError
from pipeline.store import build_json
from pipeline.store.build import Build

Verdict = Literal["approved", "refused"]

MOST = 50
LONGEST = 500
"""Characters of a name or a reason."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word. at: RFC 3339, UTC. of: the fingerprint of the shards that it is about."""

    verdict: Verdict
    name: str
    because: str
    at: str
    of: str

    def line(self) -> str:
        """For people: `refused by Li on 2026-01-31: too many logos`."""
        return f"{self.verdict} by {self.name} on {self.at[:10]}: {self.because}"


def latest_word(build: Build) -> Word | None:
    """Returns the word that counts for a build as it is; None without one."""
    words = history(build)
    return words[-1] if words and words[-1].of == build.fingerprints.get("shard") else None


def history(build: Build) -> list[Word]:
    """All words about what this folder held, oldest first. Raises StoreError if they are damaged."""
    try:
        return [Word(**raw) for raw in build_json.read(build.folder).get("approvals", ())]
    except TypeError:
        raise StoreError(build.folder.at(build_json.NAME), "its approvals cannot be read by this wenlan") from None


def say(build: Build, verdict: str, name: str, because: str) -> Word:
    """Note a word about a finished build.

    Raises SpecError if it may not be said (the spec does not ask for approval, the shards are not finished, no name, no
    reason for a refusal), and StoreError if another command is at work in the folder.
    """
    name, because = " ".join(name.split()), " ".join(because.split())
    if verdict not in get_args(Verdict):
        raise SpecError([f"verdict {verdict}: expected one of {', '.join(get_args(Verdict))}"])
    if build.spec.publish.approve != "manual":
        raise SpecError(["the spec does not require approval (publish.approve: manual)"])
    if "shard" not in build.fingerprints or not build.stage("shard").finished():
        raise SpecError(["the build is not finished: its shards are missing"])
    if not name or not because:
        raise SpecError(["a name and a reason are required; both are recorded in build.json"])
    if max(len(name), len(because)) > LONGEST:
        raise SpecError([f"the name and the reason may have at most {LONGEST} characters"])
    word = Word("approved" if verdict == "approved" else "refused", name, because, build_json.now(),
                build.fingerprints["shard"])  # fmt: skip
    with build_json.sole_owner(build):
        words = [*history(build), word][-MOST:]
        known = build_json.read(build.folder)
        build.folder.write_json(build_json.NAME, {**known, "approvals": [dataclasses.asdict(own) for own in words]})
    return word
