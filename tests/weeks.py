"""A dataset that grows by the week: builds of a folder of pictures, by the real stages, without Ray or a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_specs.build import BuildSpec
from pipeline import opening
from pipeline.store.build import Build
from tests.stages import run_noted

WORDS = ("红色的花", "海边的日落", "一只小猫在睡觉", "番茄炒蛋的做法", "北京故宫的角楼", "山上的雪和云", "老式蒸汽火车")


@dataclass(frozen=True)
class Weeks:
    """Makes builds of the dataset `weekly` below a folder. encode(format, seed, size): a picture, distinct by seed.

    until: the last stage of each build; a report takes as long as all stages before it.
    made: first builds in this folder by what they were made from, each with a copy of the folder: one that is asked for
    again is copied back.
    """

    folder: Path
    encode: Callable[[str, int, tuple[int, int]], bytes]
    until: str = "shard"
    made: dict[str, tuple[Build, Path]] = field(default_factory=dict)

    @property
    def store(self) -> str:
        return str(self.folder / "store")

    def spec(self, pictures: Sequence[int], **options: Any) -> BuildSpec:
        """The spec of a build of these pictures, by number; a picture keeps its bytes, its address and its text."""
        place = self.folder / f"pictures-{'-'.join(map(str, pictures))[:40]}-{len(pictures)}"
        fresh = not place.exists()  # files that are written again have another time, and count as changed
        place.mkdir(exist_ok=True)
        for number in pictures if fresh else ():
            (place / f"{number:03d}.jpg").write_bytes(self.encode("jpeg", number, (260, 220)))
            (place / f"{number:03d}.txt").write_text(f"{WORDS[number % len(WORDS)]}，第{number}幅", "utf-8")
        source = {"kind": "folder", "name": "album", "source_kind": "library", "path": str(place)}
        return BuildSpec.model_validate(
            {
                "name": "weekly",
                "contact": "owner@example.org",
                "sources": [source],
                "filters": [{"name": "text_length", "min_chars": 2}],
                "shards": {"samples_per_shard": 10, "dev_share": 0.1, "val_share": 0.1},
                **options,
            }
        )

    def open(self, snapshot: str, pictures: Sequence[int], **options: Any) -> Build:
        """The build of a week, as the command `build` opens it."""
        return opening.open_build(self.spec(pictures, **options), str(self.folder / snapshot), self.store, snapshot)

    def build(self, snapshot: str, pictures: Sequence[int], **options: Any) -> Build:
        """The build of a week, run up to `until`."""
        if any(self.folder.iterdir()):
            return self.finish(self.open(snapshot, pictures, **options))
        key = json.dumps([snapshot, [*pictures], self.until, options], sort_keys=True)
        if key in self.made:
            shutil.copytree(self.made[key][1], self.folder, dirs_exist_ok=True)
        else:
            build = self.finish(self.open(snapshot, pictures, **options))
            self.made[key] = build, self.folder.with_name(f"{self.folder.name}-{len(self.made)}")
            shutil.copytree(self.folder, self.made[key][1])
        return replace(self.made[key][0])

    def build_again(self, snapshot: str, spec: BuildSpec) -> Build:
        """The build of a week by a spec whose pictures were changed since."""
        return self.finish(opening.open_build(spec, str(self.folder / snapshot), self.store, snapshot))

    def finish(self, build: Build) -> Build:
        names = [*build.stages]
        run_noted(build, *names[: names.index(self.until) + 1])
        return build
