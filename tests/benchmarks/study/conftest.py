"""A small study: emoji with real codes, names of three characters, and features in which an emoji can be recognised."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.training.conftest import write_shards

if TYPE_CHECKING:
    from tests.benchmarks.study.corpus import Corpus
    from tests.benchmarks.study.runs import Plan, Study
    from tests.benchmarks.study.scenes import Source

COUNT = 48
_CHARACTERS = "红橙黄绿青蓝紫黑白灰大小高低远近山水云雨风雪花鸟鱼虫"
_PARTS = {"noto": "train", "twemoji": "train", "emojione": "dev", "fluent-emoji-flat": "val"}
_SETS = ("noto", "openmoji", "twemoji", "fluent-emoji-flat", "emojione")


def _codes() -> list[str]:
    return [f"{0x1F400 + i:x}" for i in range(COUNT)]


def _names() -> list[str]:
    rng = np.random.default_rng(3)
    return ["".join(rng.choice(list(_CHARACTERS), 3, replace=False)) for _ in range(COUNT)]


def tarball(folder: Path, name: str, members: Mapping[str, Any]) -> Path:
    """A tarball as npm packs it, of JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for member, value in members.items():
            data = json.dumps(value).encode()
            info = tarfile.TarInfo(f"package/{member}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def packages(folder: Path) -> dict[str, Path]:
    """Packages of names and drawings; each emoji is a disc of its own colour, each style a shape around it."""
    entries = [
        {"hexcode": code.upper(), "label": name, "tags": ["动物", name[0]], "order": i, "group": 3}
        for i, (code, name) in enumerate(zip(_codes(), _names(), strict=True))
    ]
    made = {"emojibase-data": tarball(folder, "emojibase-data", {"zh/data.json": entries})}
    for number, style in enumerate(_SETS):
        icons = {}
        for code in _codes():
            red, green, blue = hashlib.sha256(code.encode()).digest()[:3]
            body = f'<circle cx="8" cy="8" r="{4 + number % 3}" fill="rgb({red},{green},{blue})"/>'
            icons[f"icon-{code}"] = {"body": body}
        made[f"@iconify-json/{style}"] = tarball(
            folder,
            f"iconify-json-{style}",
            {
                "icons.json": {"icons": icons, "width": 16, "height": 16},
                "chars.json": {code: f"icon-{code}" for code in _codes()},
            },
        )
    return made


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of a study whose packages and features are there. Features: the emoji's own vector, and the style's noise."""
    from tests.benchmarks.study import features
    from tests.benchmarks.study.drawings import STYLES

    out = tmp_path_factory.mktemp("study")
    tarballs = packages(out / "packages")
    (out / "packages.json").write_text(json.dumps({name: path.name for name, path in tarballs.items()}))
    weights = out / "weights.pth"
    weights.write_bytes(b"")
    rng = np.random.default_rng(0)
    own = rng.normal(size=(COUNT, features.REGIONS, features.CHANNELS))
    (out / "features").mkdir()
    for style in STYLES:
        stem = style.package.rpartition("/")[2]
        if stem in _PARTS:
            regions = (own + 0.7 * rng.normal(size=own.shape)).astype(np.float16)
            np.save(out / "features" / f"{stem}.regions.npy", regions)
            record = {"key": features.key_of(style, tarballs, weights), "codes": _codes()}
            (out / "features" / f"{stem}.json").write_text(json.dumps(record))
    return out


def plan(*arms: str, seeds: tuple[int, ...] = (0, 1), samples: int = 320, **changes: Any) -> Plan:
    """A plan of a few arms, by name, and a few steps."""
    from dataclasses import replace

    from tests.benchmarks.study.arms import ARMS, chosen
    from tests.benchmarks.study.drawings import STYLES
    from tests.benchmarks.study.runs import Plan

    styles = tuple(s for s in STYLES if s.package.rpartition("/")[2] in _PARTS)
    base = Plan("test", tuple(chosen(arms, ARMS)), samples, seeds, 0, photos=0, scenes=0, styles=styles)
    return replace(base, **changes)


@pytest.fixture
def make_study(study_folder: Path, tmp_path: Path) -> Any:
    """A function: names of arms (and changes of the plan) to a study in a folder of the test, features shared."""
    from tests.benchmarks.study.runs import Study

    def make(*arms: str, name: str = "out", **changes: Any) -> Study:
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        for entry in ("packages", "features", "packages.json"):
            if not (out / entry).exists():
                (out / entry).symlink_to(study_folder / entry)
        return Study(plan(*arms, **changes), out, study_folder / "weights.pth")

    return make


@pytest.fixture(scope="session")
def corpus(study_folder: Path) -> Corpus:
    """The pictures and texts of the small study."""
    from tests.benchmarks.study.runs import load_corpus

    return load_corpus(study_folder, study_folder / "weights.pth", plan("moco").styles)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the backbone."""
    import torch
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    model = mobilenet_v2(weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 2.5)  # without it a random network's map is all but zero
    path = tmp_path_factory.mktemp("weights") / "mobilenet.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A small dataset of the second question."""
    from tests.benchmarks.study.scenes import Source

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    manifest = write_shards(tmp_path, train=(24,), dev=(8,), val=(8,), detector="grid-1")
    return Source("howtocook", manifest)
