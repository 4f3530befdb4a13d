"""What decides about workers of Ray before and after there are any; training on workers, and embedding on actors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from training import cli
from training.errors import ConfigError
from training.resolve import resolve
from training.run.launch import Leave

pytest.importorskip("ray.train")

from data_specs.search.folder import read_index
from data_specs.shard import ContractError
from training.run.ray_job import Preemption, embed_on_ray, fit_on_ray, parse_workers
from training.use.indexing import Inputs, embed_index


@pytest.mark.parametrize(("text", "found"), [("4", (4, 4)), ("2:8", (2, 8)), ("1:1", (1, 1))])
def test_workers_are_a_number_or_a_range(text: str, found: tuple[int, int]) -> None:
    assert parse_workers(text) == found


@pytest.mark.parametrize("text", ["", "two", "0", "3:2", "2:", "-1:4", "1:2:3"])
def test_what_is_neither_is_bad_usage(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--workers: "):
        parse_workers(text)


def test_a_batch_that_some_number_of_workers_cannot_share_is_refused_before_any_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run.batch_size: 8 cannot be shared by 3 of 1:4 workers"):
        fit_on_ray(resolve("tiny"), ["x"], tmp_path, (1, 4))


def test_an_announcement_that_a_node_will_go_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.train

    announced: list[str | None] = [None, "node 1", "node 1", "node 2"]
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: announced.pop(0), raising=False)
    leave_signal = Preemption(every=2)
    answers = [leave_signal() for _ in range(8)]
    assert answers == [Leave.NO, Leave.NO, Leave.NO, Leave.SAVE, Leave.NO, Leave.NO, Leave.NO, Leave.SAVE]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """An embedded Ray of three CPUs, whose workers import this checkout."""
    import ray

    from data_specs.loopback import on_loopback

    root = str(Path(__file__).parents[3])
    with on_loopback():
        ray.init("local", num_cpus=3, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": root}})
    yield ray
    ray.shutdown()


# --- training


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own, of what of it Ray Train still uses
def test_training_on_ray_workers_is_the_same_loop_and_gives_the_same_errors(
    cluster: Any, make_shards: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest, out = make_shards(train=(16,)), tmp_path / "run"
    fit = ["fit", "--recipe", "tiny", "--data", str(manifest), "--workers", "2", "--set", "run.epochs=1", "--json"]
    assert cli.main([*fit, "--out", str(out)]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (result["world_size"], result["steps"]) == (2, 2)
    (manifest.parent / "train-000000.tar").write_bytes(b"")
    assert cli.main([*fit, "--out", f"{out}-2"]) == 1
    printed = capfd.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["ok"] is False
    lines = [line for line in printed.err.splitlines() if "train-000000.tar: 0 bytes, the manifest says" in line]
    assert any(line.startswith(f"wenlan-train: {manifest.parent}") for line in lines)  # ours, without Ray's traceback


# --- embedding


def vectors_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "img_emb").iterdir()}


@pytest.mark.slow
def test_an_embedding_on_two_actors_leaves_what_one_process_leaves(
    cluster: Any, checkpoint_with_moved_keys: Path, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    manifest = make_shards(train=(9, 7), val=(3,), damage={4: b"\xff\xd8junk"})
    inputs, told = Inputs(data=(str(manifest),), cache=str(tmp_path / "cache")), list[int]()
    alone = embed_index(checkpoint_with_moved_keys, inputs, tmp_path / "alone", rows=3)
    run = embed_on_ray(2)

    def counted(job: Any, folder: Path, about: Any, tasks: Sequence[Any], done: Callable[[int], None]) -> int:
        return run(job, folder, about, tasks, lambda rows: (told.append(rows), done(rows))[1])  # type: ignore[func-returns-value]

    on_ray = embed_index(checkpoint_with_moved_keys, inputs, tmp_path / "ray", rows=3, run=counted)
    assert {**on_ray, "out": ""} == {**alone, "out": ""}
    assert (on_ray["rows"], on_ray["unreadable"], sum(told)) == (18, 1, 19)
    assert vectors_of(tmp_path / "ray") == vectors_of(tmp_path / "alone")
    assert read_index(tmp_path / "ray") == read_index(tmp_path / "alone")


@pytest.mark.slow
def test_what_a_lost_actor_had_not_committed_goes_to_another(
    cluster: Any,
    checkpoint_with_moved_keys: Path,
    make_shards: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from training.run import ray_job

    flag = tmp_path / "died"

    class Dying(ray_job._Embedding):
        def embed(self, tasks: Sequence[Any]) -> int:
            try:
                flag.touch(exist_ok=False)
            except FileExistsError:
                return super().embed(tasks)
            super().embed(tasks[:1])
            os._exit(1)

    monkeypatch.setattr(ray_job, "_Embedding", Dying)
    manifest = make_shards(train=(12,))
    inputs = Inputs(data=(str(manifest),), cache=str(tmp_path / "cache"))
    written = embed_index(checkpoint_with_moved_keys, inputs, tmp_path / "i", rows=2, run=embed_on_ray(1))
    assert (written["rows"], written["parts"], flag.exists()) == (12, 6, True)


@pytest.mark.slow
def test_an_error_of_ours_on_an_actor_is_the_same_line_here(
    cluster: Any, checkpoint_with_moved_keys: Path, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    manifest = make_shards(train=(4,))
    tar = manifest.parent / "train-000000.tar"
    whole = tar.read_bytes()

    def cut(job: Any, folder: Path, about: Any, tasks: Sequence[Any], done: Callable[[int], None]) -> int:
        tar.write_bytes(whole[:2048])
        return embed_on_ray(1)(job, folder, about, tasks, done)

    inputs = Inputs(data=(str(manifest),), cache=str(tmp_path / "cache"))
    with pytest.raises(ContractError, match=r"^[^\n]*train-000000.tar: [^\n]*$"):
        embed_index(checkpoint_with_moved_keys, inputs, tmp_path / "i", run=cut)
