"""Training from shards on S3, with checkpoints copied there: a real server, by the command, one loss trace."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_specs.storage import store_lock
from tests.s3_server import Remote
from training import cli
from training.outputs.journal import read_metrics
from training.resolve import resolve
from training.run.train import fit as train_fit

MakeShards = Callable[..., Path]
StoppedAfter = Callable[[int], AbstractContextManager[None]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def train(*words: str, code: int = 0) -> dict[str, Any]:
    """A command of wenlan-train in this process: the object that it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        got = cli.main([*words, "--json"])
    assert got == code
    return dict(json.loads(out.getvalue().splitlines()[-1]))


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(out) if "loss" in line]


@pytest.mark.drill(40)
def test_a_run_from_s3_with_a_mirror_there_goes_on_elsewhere_as_if_nothing_had_been(
    remote: Remote, make_shards: MakeShards, tmp_path: Path, stopped_after: StoppedAfter
) -> None:
    shards = make_shards(train=(20, 12), val=(8,)).parent
    data, mirror = f"{remote.url}/shards", f"{remote.url}/runs/1"
    fsspec.filesystem("s3").put(f"{shards}/", f"{data}/", recursive=True)
    settings = ("run.epochs=2.5", "run.checkpoint_every=2", "run.keep_last=2")

    def fit(where: str, out: str, *more: str) -> dict[str, Any]:
        keys = [word for setting in (*settings, *more) for word in ("--set", setting)]
        return train("fit", "--recipe", "tiny", "--data", where, "--out", str(tmp_path / out), *keys)

    fit(str(shards), "disk")
    remote.proxy.fail("503", share=0.02)
    with stopped_after(5):
        asked = resolve("tiny", [*settings, f"run.mirror={mirror}"])
        train_fit(asked, [data], tmp_path / "first machine")
    result = fit(data, "second machine", f"run.mirror={mirror}")
    remote.proxy.heal()
    assert result["resumed_from"] == 4
    assert losses(tmp_path / "second machine") == losses(tmp_path / "disk")[4:], "the same, to the last bit"
    assert not [path for path in remote.proxy.lists("LIST ALL") if not path.startswith("data/runs/1/step-")]
    remote.proxy.requests.clear()
    for checkpoint in (mirror, f"{mirror}/step-00000010"):
        of_disk = train("eval", str(tmp_path / "disk"), "--data", str(shards), "--task", "retrieval")
        of_mirror = train("eval", checkpoint, "--data", data, "--task", "retrieval")
        for figures in (of_mirror, of_disk):
            del figures["protocol"], figures["checkpoint"]  # which say where it lies
        assert of_mirror == of_disk
    out = tmp_path / "features.safetensors"
    assert train("embed", mirror, "--data", data, "--split", "val", "--out", str(out))["rows"] == 8
    train("export", mirror, "--to", "safetensors", "--out", str(tmp_path / "towers.safetensors"))
    begun = fit(data, "third", f"run.mirror={remote.url}/runs/2")
    assert begun["resumed_from"] == 0


@pytest.mark.drill(30)
def test_two_runs_copy_to_one_mirror_one_after_the_other(
    remote: Remote, make_shards: MakeShards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirror, data = f"{remote.url}/runs/3", str(make_shards(train=(16,)))
    words = ["fit", "--recipe", "tiny", "--data", data, "--out", str(tmp_path / "1"), "--set", f"run.mirror={mirror}"]
    with store_lock.locked(f"{mirror}/_lock", 0.0):
        said = train(*words, "--set", "run.epochs=0.5", code=1)
    assert said["error"].startswith(f"{mirror}: another run is writing to it (its lock is held by process ")
    assert train(*words, "--set", "run.epochs=0.5")["steps"] == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["fit", "--recipe", "tiny", "--data", "d", "--out", "s3://bucket/run"],
            "--out: s3://bucket/run: must be on a local disk; give a path, and set run.mirror to this URL",
        ),
        (
            ["export", "run", "--to", "onnx", "--out", "s3://bucket/x.onnx"],
            "--out: s3://bucket/x.onnx: must be on a local disk; give a path, then copy it there",
        ),
        (
            ["import-brivl", "s3://bucket/x.pth", "--out", "run"],
            "file: s3://bucket/x.pth: must be on a local disk; copy it, and give its path",
        ),
    ],
)
def test_what_needs_a_disk_says_so(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(*words, code=2)["error"] == says
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_there_is_named(remote: Remote) -> None:
    said = train("eval", f"{remote.url}/nothing", "--data", "d", "--task", "retrieval", code=1)
    assert said["error"].startswith(f"{remote.url}/nothing: contains no checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--data", "run.mirror"])
def test_a_key_in_a_url_is_refused_and_repeated_nowhere(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keyed = "s3://AKIDEXAMPLE:wJalr/XUtnFEMI@bucket/x"
    given = {"--data": "d", "--out": "run", "--recipe": "tiny", option: keyed}
    words = [word for name, value in given.items() if name != "run.mirror" for word in (name, value)]
    words += ["--set", f"run.mirror={keyed}"] if option == "run.mirror" else []
    assert cli.main(["fit", *words, "--json"]) == 2
    said = "".join(capsys.readouterr())
    assert "contains credentials; remove them, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in said
    assert not [secret for secret in ("AKIDEXAMPLE", "XUtnFEMI", "wJalr") if secret in said]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Any:
    """The command line sets the trainer's logging up."""
    logger = logging.getLogger("training")
    before = list(logger.handlers), logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate, logger.level = before
