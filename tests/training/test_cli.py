from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from training import cli
from training.resolve import resolve

MakeShards = Callable[..., Path]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def trained(shards_of_module: MakeShards, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run of one step, the manifest of its data, and what the command printed. Read it only."""
    manifest = shards_of_module(train=(16,), val=(14,))
    folder = tmp_path_factory.mktemp("trained")
    fit = ["fit", "--recipe", "tiny", "--data", str(manifest), "--out", str(folder / "run"), "--json"]
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        assert cli.main([*fit, "--set", "run.epochs=0.5", "--cache", str(folder / "cache")]) == 0
    return folder / "run", manifest, stdout.getvalue()


@pytest.mark.slow
def test_fit_eval_and_embed(
    trained: tuple[Path, Path, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, manifest, printed = trained
    assert json.loads(printed)["steps"] == 1
    assert len(printed.splitlines()) == 1
    code, stdout, stderr = run(
        capsys, "eval", str(out), "--data", str(manifest.parent), "--task", "retrieval", "--json"
    )
    assert code == 0
    result = json.loads(stdout.splitlines()[-1])
    assert (result["samples"], result["split"]) == (14, "val")
    assert result["i2t"]["chance_r1"] == pytest.approx(1 / 14)
    assert "chance" in stderr

    (tmp_path / "texts.txt").write_text("红色\u2028小船\n山水\n", encoding="utf-8")
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "a.jpg")
    for arguments, tensor, rows in (
        (("--texts", str(tmp_path / "texts.txt")), "text_features", 2),
        (("--images", str(tmp_path / "a.jpg"), str(tmp_path / "a.jpg")), "image_features", 2),
        (("--data", str(manifest)), "text_features", 14),
    ):
        file = tmp_path / "features.safetensors"
        code, stdout, stderr = run(capsys, "embed", str(out), *arguments, "--out", str(file), "--json")
        assert code == 0, stderr
        features = load_file(file)[tensor]
        assert features.shape == (rows, 32)
        assert features.norm(dim=1).tolist() == pytest.approx([1.0] * rows, abs=1e-5)
        assert json.loads(stdout.splitlines()[-1])["rows"] == rows
    both = ("--images", str(tmp_path / "a.jpg"), "--texts", str(tmp_path / "texts.txt"))
    code, stdout, stderr = run(capsys, "embed", str(out), *both, "--out", str(tmp_path / "both.safetensors"), "--json")
    assert json.loads(stdout)["features"] == {"image_features": 1, "text_features": 2}
    assert "1 image features, 2 text features of width 32 in " in stderr


@pytest.mark.drill(2)
def test_a_checkpoint_trained_with_a_detector_is_evaluated_on_plain_tars_by_an_option_and_without_its_queues(
    shards_of_module: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, out = (
        shards_of_module(train=(16,), val=(14,), detector="yolo", name="with-regions"),
        str(tmp_path / "run"),
    )
    fit = ("fit", "--recipe", "tiny", "--data", str(manifest), "--out", out, "--set", "run.epochs=0.5")
    assert run(capsys, *fit)[0] == 0
    [checkpoint] = (tmp_path / "run" / "checkpoints").iterdir()
    for name in ("queues", "key_towers", "optimizer"):
        (checkpoint / f"{name}.safetensors").unlink()
    tars = ("eval", out, "--task", "retrieval", "--json", "--data", str(manifest.parent / "val-*.tar"))
    code, _, stderr = run(capsys, *tars)
    assert (code, "does not contain regions of 'yolo'; use --detector grid" in stderr) == (1, True)
    code, stdout, stderr = run(capsys, *tars, "--detector", "grid")
    assert (code, json.loads(stdout)["detector"], json.loads(stdout)["samples"]) == (0, "grid", 14)
    assert "regions come from 'grid'; the checkpoint was trained with those of 'yolo'" in stderr
    features = ("embed", *tars[1:2], "--data", tars[-1], "--out", str(tmp_path / "f"), "--detector", "grid")
    assert run(capsys, *features)[0] == 0
    code, stdout, _ = run(capsys, *tars[:-1], str(manifest))
    assert (code, json.loads(stdout)["detector"]) == (0, "yolo")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("--recipe", "tinny"), 2, "recipe tinny: unknown; did you mean tiny?"),
        (("--recipe", "tiny", "--set", "moco.queue_sise=3"), 2, "did you mean queue_size?"),
        (("--recipe", "tiny", "--set", "run.device=quantum"), 2, "run.device: 'quantum'"),
        (
            ("--recipe", "tiny", "--set", "data.decoder=device", "--set", "run.device=cpu"),
            2,
            "data.decoder: 'device' decodes on a GPU",
        ),
        (("--recipe", "tiny", "--set", "text.vocab_size=100"), 2, "text.vocab_size: 100 is below"),
        (("--recipe", "tiny", "--set", "data.detector=rcnn"), 1, "no regions of detector 'rcnn'"),
        (("--recipe", "tiny", "--init", "no-such-folder"), 1, "no-such-folder: not a wenlan checkpoint"),
    ],
)
def test_bad_usage_and_bad_data_are_one_line_and_an_exit_code(
    make_shards: MakeShards,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    line: str,
) -> None:
    manifest = make_shards(train=(8,))
    found, stdout, stderr = run(capsys, "fit", *arguments, "--data", str(manifest), "--out", str(tmp_path / "run"))
    assert found == code
    assert not stdout
    (error,) = [line for line in stderr.splitlines() if not line.startswith("no detector regions: ")]
    assert error.startswith("wenlan-train: ")
    assert line in error


def test_a_cut_tar_ends_with_exit_1_and_its_name(
    make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = make_shards(train=(8,))
    tar = manifest.parent / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    code, _, stderr = run(capsys, "fit", "--recipe", "tiny", "--data", str(manifest), "--out", str(tmp_path / "run"))
    assert code == 1
    assert stderr.splitlines() == [line for line in stderr.splitlines() if "train-000000.tar: 5000 bytes" in line]


@pytest.mark.slow
def test_an_image_that_is_none_is_named(
    trained: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"")
    out = str(tmp_path / "f.safetensors")
    code, _, stderr = run(capsys, "embed", str(trained[0]), "--images", str(tmp_path / "bad.jpg"), "--out", out)
    assert (code, "bad.jpg: empty file" in stderr) == (1, True)


@pytest.mark.parametrize(
    ("words", "made", "said"),
    [
        (("fit", "--recipe", "tiny", "--data", "d", "--out", "OUT"), "", "before the first checkpoint"),
        (("fit", "--recipe", "tiny", "--data", "d", "--out", "OUT"), "checkpoints/step-00000002", "from the last"),
        (("embed", "c", "--texts", "t", "--index", "OUT"), "", "interrupted; run the same command to resume\n"),
        (("search", "OUT", "--text", "x"), "", "interrupted\n"),
    ],
)
def test_an_interrupted_command_says_what_is_left_of_it(
    words: tuple[str, ...],
    made: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / made).mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(cli, "_fetched_checkpoints", interrupted)
    code, out, err = run(capsys, *(str(tmp_path) if word == "OUT" else word for word in words), "--json")
    assert (code, json.loads(out)["code"]) == (130, 130)
    assert said in err


@pytest.mark.slow
def test_a_run_without_a_name_gets_a_new_folder(
    make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit = ("fit", "--recipe", "tiny", "--set", "run.epochs=0.5", "--json", "--data")
    manifest = str(make_shards(train=(16,)))
    for out in ("runs/tiny-1", "runs/tiny-2"):
        code, stdout, stderr = run(capsys, *fit, manifest)
        assert (code, json.loads(stdout)["out"]) == (0, out), stderr
        assert f"the same command with --out {out}" in stderr
    assert run(capsys, *fit, str(tmp_path / "nothing"))[0] == 1
    assert sorted(path.name for path in Path("runs").iterdir()) == ["tiny-1", "tiny-2"], "nothing was begun"
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, stderr = run(capsys, *fit, manifest)
    assert (code, "--out: several processes need a shared folder; name it" in stderr) == (2, True)


def test_own_pairs_are_what_the_default_recipe_is_for() -> None:
    arguments = cli._parser().parse_args(["fit", "--data", "builds/1"])
    config = resolve(arguments.recipe)
    assert (config.recipe, config.image.weights) == ("starter", "package")


def test_commands_that_do_not_exist_are_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["praise"]) == 2
    printed = capsys.readouterr()
    assert "invalid choice: 'praise'" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["praise", "--json"], 2, "invalid choice: 'praise'"),
        (["fit", "--json"], 2, "the following arguments are required: --data"),
        (["fit", "--recipe", "tinny", "--data", "x", "--out", "y", "--json"], 2, "recipe tinny: unknown"),
        (["eval", "missing", "--data", "x", "--task", "retrieval", "--json"], 1, "missing"),
    ],
)
def test_programs_get_one_object_whatever_happens(
    words: list[str], code: int, error: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(words) == code
    printed = capsys.readouterr()
    [line] = printed.out.splitlines()
    answer = json.loads(line)
    assert (answer["ok"], answer["code"]) == (False, code)
    assert error in answer["error"]
    assert error in printed.err
    monkeypatch.setenv("RANK", "1")
    assert cli.main(words) == code
    assert capsys.readouterr().out == "", "the first rank answers"


def test_a_foreign_package_of_our_name_stops_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "check_ownership", lambda: "the import name 'training' is also provided by x")
    code, _, stderr = run(capsys, "eval", "x", "--data", "x", "--task", "retrieval")
    assert code == 2
    assert "also provided by x" in stderr


def test_an_error_is_one_line_whatever_a_file_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    name = "no\x1b[2J\nwenlan-train: done\u202e"
    assert cli.main(["eval", name, "--data", "x.tar", "--task", "retrieval", "--json"]) == 1
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert not {"\x1b", "\u202e"} & set(out + err)
    assert json.loads(out)["ok"] is False


@pytest.mark.slow
def test_fine_tuning_begins_from_a_checkpoint_and_keeps_its_towers(
    trained: tuple[Path, Path, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, manifest, _ = trained
    fit = ("fit", "--recipe", "finetune_captions", "--data", str(manifest), "--out", str(tmp_path / "run"))
    code, _, stderr = run(capsys, *fit)
    line = "wenlan-train: recipe finetune_captions: fine-tunes a checkpoint; give it with --init\n"
    assert (code, stderr) == (2, line)
    settings = ("run.epochs=0.5", "run.eval_epochs=0", "run.patience=0", "image.frozen=true", "run.tracker=none")
    code, stdout, stderr = run(
        capsys, *fit, "--init", str(out), "--json", *(part for s in settings for part in ("--set", s))
    )
    assert code == 0, stderr
    assert json.loads(stdout.splitlines()[-1])["steps"] == 1
    saved = json.loads((tmp_path / "run" / "config.json").read_bytes())
    assert (saved["recipe"], saved["image"]["width"], saved["image"]["frozen"]) == ("finetune_captions", 32, True)


@pytest.mark.slow
def test_a_captioner_is_trained_by_keys_of_its_own(
    trained: tuple[Path, Path, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, manifest, _ = trained
    fit = ("fit-captioner", str(out), "--data", str(manifest), "--out", str(tmp_path / "run"), "--device", "cpu")
    code, _, stderr = run(capsys, *fit, "--set", "queue_size=3")
    assert code == 2
    assert stderr.startswith("wenlan-train: --set queue_size: unknown key; ")
    settings = (
        "width=16",
        "layers=1",
        "heads=2",
        "ffn=16",
        "epochs=0.5",
        "eval_epochs=0",
        "patience=0",
        "batch_size=8",
    )
    code, stdout, stderr = run(capsys, *fit, "--json", *(part for s in settings for part in ("--set", s)))
    assert code == 0, stderr
    result = json.loads(stdout.splitlines()[-1])
    assert (result["steps"], result["dev_cider"]) == (1, None)
    code, _, stderr = run(capsys, "eval", str(out), "--data", str(manifest), "--task", "captioning")
    assert code == 1
    assert "contains no captioner; train one with wenlan-train fit-captioner" in stderr
