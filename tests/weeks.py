"""A dataset that grows by the week: builds of a folder of pictures, by the real stages, without Ray or a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_specs.build import BuildSpec
from pipeline import opening
from pipeline.store.build import Build
from tests.stages import run_noted

WORDS = ("红色的花", "海边的日落", "一只小猫在睡觉", "番茄炒蛋的做法", "北京故宫的角楼", "山上的雪和云", "老式蒸汽火车")


@dataclass(frozen=True)
class Weeks:
    """Makes builds of the dataset `weekly` below a folder. encode(format, seed, size): a picture, distinct by seed."""

    folder: Path
    encode: Callable[[str, int, tuple[int, int]], bytes]

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
        """The build of a week, run up to its report."""
        return self.finish(self.open(snapshot, pictures, **options))

    def build_again(self, snapshot: str, spec: BuildSpec) -> Build:
        """The build of a week by a spec whose pictures were changed since."""
        return self.finish(opening.open_build(spec, str(self.folder / snapshot), self.store, snapshot))

    @staticmethod
    def finish(build: Build, **changes: Any) -> Build:
        build = replace(build, **changes)
        run_noted(build, *build.stages)
        return build
