"""Checkpoints that are written while training goes on, and copies that outlive the machine."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from training.data.tokenizer import load_tokenizer
from training.errors import RunError
from training.moco import BriVL
from training.outputs import checkpoint
from training.outputs.checkpoint import RunState, latest, open_checkpoint
from training.outputs.saver import Saver, fetch, fetch_best, local_checkpoint
from training.resolve import resolve
from training.run.optimizer import build_optimizer


def state(step: int) -> RunState:
    return RunState(step, 8 * step, 0, ("c" * 64,), ("grid",), "grid")


def saver(run: Path, *settings: str) -> tuple[Saver, BriVL, torch.optim.AdamW]:
    config = resolve("tiny", ["moco.queue_size=10", *settings])
    model = BriVL(config)
    return Saver(run, config, load_tokenizer("gb2312")), model, build_optimizer(model, config.optim)


def test_what_is_written_is_the_model_as_it_was_when_it_was_asked_for(tmp_path: Path) -> None:
    writing, model, optimizer = saver(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with writing:
        writing.save(model, optimizer, state(4))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
            model.text_queue.keys_KD.add_(1)
    other = BriVL(open_checkpoint(tmp_path).config)
    open_checkpoint(tmp_path).load_training(other, build_optimizer(other, open_checkpoint(tmp_path).config.optim))
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@pytest.mark.slow
def test_the_best_is_kept_and_named_beside_the_newest(tmp_path: Path) -> None:
    writing, model, optimizer = saver(tmp_path, "run.keep_last=1")
    with writing:
        for step in (2, 4, 6):
            writing.save(model, optimizer, state(step), best=step == 2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*")) == ["step-00000002", "step-00000006"]
    assert open_checkpoint(tmp_path / "checkpoints" / "best").state().step == 2
    assert open_checkpoint(tmp_path).state().step == 6


def test_what_fails_in_the_background_is_raised_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    writing, model, optimizer = saver(tmp_path)
    with writing:
        writing.save(model, optimizer, state(1))
        with pytest.raises(OSError, match="No space left"):
            writing.wait()


def test_what_fails_in_the_last_save_is_raised_where_the_run_ends_or_said_beside_why_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> Path:
        raise RunError("runs/1", "cannot be written (No space left on device)")

    monkeypatch.setattr(checkpoint, "write", full)
    writing, model, optimizer = saver(tmp_path)
    with pytest.raises(RunError, match="No space left"), writing:
        writing.save(model, optimizer, state(1))
    writing, model, optimizer = saver(tmp_path)

    def interrupted() -> None:
        with writing:
            writing.save(model, optimizer, state(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "the last checkpoint was not saved: runs/1: cannot be written (No space left on device)" in caplog.text


def test_what_a_killed_run_had_moved_aside_is_deleted_where_another_is_in_its_place(tmp_path: Path) -> None:
    writing, model, optimizer = saver(tmp_path)
    with writing:
        writing.save(model, optimizer, state(4))
    there = tmp_path / "checkpoints"
    for name in ("step-00000004", "step-00000008"):  # of the second there is no other
        shutil.copytree(there / "step-00000004", there / f".{name}.before")
    saver(tmp_path)
    assert sorted(path.name for path in there.iterdir()) == [".step-00000008.before", "step-00000004"]


@pytest.mark.slow
def test_a_run_whose_folder_is_gone_goes_on_from_the_mirror(tmp_path: Path) -> None:
    mirror = "memory://mirror-of-a-run"
    writing, model, optimizer = saver(tmp_path / "run", f"run.mirror={mirror}", "run.keep_last=1")
    with writing:
        for step in (2, 4):
            writing.save(model, optimizer, state(step))
    fetch(tmp_path / "elsewhere", mirror)
    assert open_checkpoint(tmp_path / "elsewhere").state().step == 4
    other = BriVL(resolve("tiny", ["moco.queue_size=10"]))
    open_checkpoint(tmp_path / "elsewhere").load_towers(other)  # every sha256 is that of the index
    names = [p.name for p in (tmp_path / "elsewhere" / "checkpoints").iterdir()]
    assert names == ["step-00000004"]
    for name in ("step-00000002", "step-00000004"):  # of keep_last=1 the first is gone there too
        fetch(tmp_path / name, mirror, name)
        assert [p.name for p in tmp_path.glob(f"{name}/checkpoints/*")] == ([] if name.endswith("2") else [name])
    fetch(tmp_path / "run", mirror)  # nothing newer there
    assert latest(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "step-00000004"


def test_the_best_of_a_mirror_outlives_the_run_s_folder(tmp_path: Path) -> None:
    mirror, again = tmp_path / "mirror", tmp_path / "again"
    settings = f"run.mirror={mirror}", "run.keep_last=1"
    writing, model, optimizer = saver(tmp_path / "run", *settings)
    with writing:
        for step in (2, 4):
            writing.save(model, optimizer, replace(state(step), best=0.5, best_step=2), best=step == 2)
    fetch(again, str(mirror))
    fetch_best(again, str(mirror))
    writing, model, optimizer = saver(again, *settings)
    with writing:
        writing.save(model, optimizer, replace(state(6), best=0.5, best_step=2))
    names = ["step-00000002", "step-00000006"]
    assert sorted(p.name for p in mirror.iterdir()) == names
    assert sorted(p.name for p in (again / "checkpoints").glob("step-*")) == names
    assert open_checkpoint(again / "checkpoints" / "best").state().step == 2


def test_only_the_best_that_is_kept_is_fetched(tmp_path: Path) -> None:
    mirror = str(tmp_path / "mirror")
    for name, keep, of_state in (("none", "true", state(4)), ("off", "false", replace(state(4), best_step=2))):
        writing, model, optimizer = saver(tmp_path / name, f"run.mirror={mirror}", f"run.keep_best={keep}")
        with writing:
            writing.save(model, optimizer, replace(of_state, step=2))
            writing.save(model, optimizer, of_state)
        again = tmp_path / f"{name}-again"
        fetch_best(again, mirror)  # there is no run to know its best of
        fetch(again, mirror)
        fetch_best(again, mirror)
        assert [p.name for p in (again / "checkpoints").iterdir()] == ["step-00000004"]


def test_a_copy_without_its_index_is_not_fetched(tmp_path: Path) -> None:
    writing, model, optimizer = saver(tmp_path / "run", f"run.mirror={tmp_path / 'mirror'}")
    with writing:
        for step in (2, 4):
            writing.save(model, optimizer, state(step))
    (tmp_path / "mirror" / "step-00000004" / "checkpoint.json").unlink()
    fetch(tmp_path / "elsewhere", str(tmp_path / "mirror"))
    assert open_checkpoint(tmp_path / "elsewhere").state().step == 2


@pytest.mark.parametrize(("answer", "said"), [(None, "Connect call failed"), (403, "403")])
def test_a_url_that_does_not_answer_is_one_line_that_names_it(answer: int | None, said: str) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if answer:
                self.send_error(answer)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    url = f"http://127.0.0.1:{server.server_port}/run"
    if answer is None:
        server.server_close()
    else:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(RunError, match=rf"^{url}: cannot be read \(.*{said}"), local_checkpoint(url):
            pass
    finally:
        if answer is not None:
            server.shutdown()
            server.server_close()
