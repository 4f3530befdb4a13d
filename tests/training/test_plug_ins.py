"""Encoders and objectives of other packages: those of the guide train, are evaluated and exported as written there."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_specs.search.folder import IndexFault
from data_specs.search.queries import TextQuery
from tests.places import ROOT
from tests.training.conftest import MakeShards, moved_checkpoint
from training import cli
from training.data.tokenizer import load_tokenizer
from training.encoders import build_tower
from training.errors import CheckpointError, ConfigError
from training.objectives import objective_of
from training.outputs.checkpoint import open_checkpoint
from training.resolve import resolve

PATCHES = """
from torch import nn

from training.towers.layers import Pixels, unit
from training.towers.tower import Tower


class Prefix(Pixels):
    def forward(self, batch):
        return self.pixels(batch)


class Trunk(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patches = nn.Conv2d(3, config.moco.feature_dim, 16, 16)

    def forward(self, pixels_B3HW, batch):
        return unit(self.patches(pixels_B3HW).flatten(2).mean(2))


def encoder(config, load_weights):
    return Tower("image", Prefix((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), Trunk(config))
"""
BLOCKS = re.compile(r"in `(acme/\w+\.py)`:\n\n```python\n(.*?)```", re.DOTALL)


def install(site: Path, name: str, points: str) -> None:
    """The metadata of a package with entry points, as those of an editable installation: no files are listed."""
    about = site / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[wenlan]\n{points}", encoding="utf-8")


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the package of the guide, which this process can import."""
    files = dict(BLOCKS.findall((ROOT / "training" / "README.md").read_text("utf-8")))
    assert sorted(files) == ["acme/bag.py", "acme/margin.py", "acme/words.py"]
    files["acme/patches.py"] = PATCHES
    for name, code in files.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
    points = "patches = acme.patches:encoder", "margin = acme.margin", "bytes = acme.words:Bytes"
    install(tmp_path / "site", "acme", "\n".join(points))
    (tmp_path / "site" / "acme-1.0.dist-info" / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


@pytest.mark.slow
def test_the_loss_the_encoders_and_the_tokenizer_of_another_package_train_and_are_exported(
    acme: Path, make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = str(make_shards(train=(20, 12), val=(8,))), str(tmp_path / "run")
    own = [
        "moco.objective=margin",
        'moco.objective_options={"margin": 0.3}',
        "image.encoder=patches",
        "text.encoder=acme.bag",
        "data.tokenizer=bytes",
        "run.epochs=5",
        "run.batch_size=8",
        "optim.lr=0.003",
    ]
    settings = [word for setting in own for word in ("--set", setting)]
    assert cli.main(["fit", "--recipe", "tiny", "--data", data, "--out", run, "--json", *settings]) == 0
    assert open_checkpoint(Path(run)).config.data.tokenizer == "acme.words:Bytes"
    losses = [json.loads(line)["loss"] for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert cli.main(["export", run, "--to", "safetensors", "--out", str(tmp_path / "brivl.safetensors")]) == 0
    (acme / "acme" / "words.py").write_text("class Bytes:\n    vocabulary = ('a',)\n    encode = None\n")
    del sys.modules["acme.words"]
    importlib.invalidate_caches()
    with pytest.raises(CheckpointError, match=r"acme.words:Bytes has another vocabulary now"):
        open_checkpoint(Path(run))
    capsys.readouterr()
    sys.path.remove(str(acme))
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    assert cli.main(["eval", run, "--data", data, "--task", "retrieval"]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        "wenlan-train: data.tokenizer: 'acme.words:Bytes' is in no installed package; install the one that has it"
    )


@pytest.mark.drill(6)
@pytest.mark.usefixtures("acme")
def test_towers_and_a_tokenizer_of_another_package_become_onnx(tmp_path: Path) -> None:
    own = ("image.encoder=patches", "text.encoder=acme.bag", "data.tokenizer=acme.words:Bytes")
    run = moved_checkpoint(tmp_path / "run", *own, tokenizer="acme.words:Bytes")
    assert cli.main(["export", str(run), "--to", "onnx", "--out", str(tmp_path / "brivl.onnx")]) == 0
    with pytest.raises(IndexFault, match=r"its tokenizer is acme.words:Bytes, code of another package; give the check"):
        TextQuery.open(tmp_path / "brivl.text.onnx")


@pytest.mark.parametrize(("key", "name", "said"), [
    ("moco.objective", "mocow", "unknown objective 'mocow'; available: albef, clip, moco, siglip, or a module of"),
    ("moco.objective", "acme.gone", "'acme.gone' cannot be imported"),
    ("moco.objective", "numpy.linalg", "numpy.linalg has no function build"),
    ("moco.objective", "patches", "patches does not take its arguments and options: missing a required argument"),
    ("moco.objective", "twice", "several packages declare 'twice' (acme.bag, acme.margin); name one of these"),
    ("moco.objective", "os.path", "'os.path' is in no installed package"),
    ("data.tokenizer", "acme.words:Word", "'acme.words:Word' cannot be imported"),
    ("data.tokenizer", "numpy:zeros", "numpy:zeros is not a class with"),
    ("text.encoder", "char", "unknown encoder 'char'; available: bert_text, char_text"),
    ("text.encoder", "", "'' is in no installed package"),
])  # fmt: skip
def test_a_name_that_leads_nowhere_is_one_line(acme: Path, key: str, name: str, said: str) -> None:
    install(acme, "other", "twice = acme.bag\n")
    install(acme, "another", "twice = acme.margin\n")
    config = resolve("tiny", [f"{key}={name}"])
    load: dict[str, Callable[[], object]] = {
        "data.tokenizer": lambda: load_tokenizer(name),
        "moco.objective": lambda: objective_of(config.moco),
        "text.encoder": lambda: build_tower("text", config, load_weights=False),
    }
    with pytest.raises(ConfigError) as failed:
        load[key]()
    assert str(failed.value).startswith(f"{key}: {said}")


def test_an_entry_point_needs_no_list_of_files_and_its_options_are_checked(acme: Path) -> None:
    (acme / "acme-1.0.dist-info" / "RECORD").unlink()
    config = resolve("tiny", ["image.encoder=patches", "text.encoder=acme.bag", "moco.objective=margin"])
    assert build_tower("image", config, load_weights=False).modality == "image"
    with pytest.raises(ConfigError, match=r"'acme\.bag' is in no installed package"):
        build_tower("text", config, load_weights=False)
    assert not objective_of(config.moco).has_keys
    for objective in ("margin", "clip"):
        options = [f"moco.objective={objective}", 'moco.objective_options={"marign": 0.3}']
        with pytest.raises(ConfigError, match=rf"^moco.objective: {objective} does not take .* argument 'marign'"):
            objective_of(resolve("tiny", options).moco)


def test_a_file_in_the_working_folder_is_no_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of a stranger may come with it."""
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"'evil\.x' is in no installed package"):
        build_tower("text", resolve("tiny", ["text.encoder=evil.x"]), load_weights=False)
