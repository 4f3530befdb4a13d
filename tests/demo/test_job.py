"""job: the steps of the demo, with stand-ins for the command lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.demo import job as demo
from tests.demo.packages import DemoError


def _fake_program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes the place of the environment's bin folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.chdir(tmp_path)
    return folder


def test_step_passes_output_through_and_takes_the_last_line(commands: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _fake_program(commands, "wenlan-data", 'echo "args $*"; echo "on stderr" >&2; echo \'{"samples": 7}\'\n')
    step = demo._step("build", ["wenlan-data", "build", "x y.yaml"])
    assert step.result == {"samples": 7}
    out, err = capfd.readouterr()
    assert out == "args build x y.yaml --json\n"
    assert "== build: wenlan-data build 'x y.yaml'" in err
    assert "on stderr" in err


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo '{}'; exit 3\n", "build failed with exit status 3"),
        ("echo done\n", "its last line is not the JSON object"),
    ],
)
def test_step_that_fails_is_one_sentence(commands: Path, script: str, message: str) -> None:
    _fake_program(commands, "wenlan-data", script)
    with pytest.raises(DemoError, match=message):
        demo._step("build", ["wenlan-data", "build"])


def test_training_is_skipped_until_dataset_or_command_changes(commands: Path, tmp_path: Path) -> None:
    _fake_program(
        commands,
        "wenlan-train",
        f'echo "$1" >> {tmp_path}/calls; mkdir -p demo/run; : > demo/run/$1.$$; echo "{{\\"did\\": \\"$1\\"}}"\n',
    )
    manifest = tmp_path / demo.MANIFEST
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"content_digest": "a"}')
    first = demo._train(demo.RUN, [])
    second = demo._train(demo.RUN, [])
    assert [step.skipped for step in (*first, *second)] == [False, False, True, True]
    assert second[1].result == {"did": "eval"}
    assert (tmp_path / "calls").read_text().split() == ["fit", "eval"]
    old = sorted(demo.RUN.glob("fit.*"))
    manifest.write_text('{"content_digest": "b"}')
    assert not demo._train(demo.RUN, [])[0].skipped
    assert not any(path.exists() for path in old), "a run on another dataset is not gone on with"


def test_the_headline_is_the_recall_of_unseen_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    def part(r1: float, samples: int) -> dict[str, object]:
        direction = {"r1": r1, "r5": 0.4, "r10": 0.5, "chance_r1": 0.02, "chance_r5": 0.1, "chance_r10": 0.2}
        return {"samples": samples, "i2t": direction, "t2i": direction}

    apart = {"seen": part(0.4, 25), "unseen": part(0.1, 51), "in_train": {"images": 0, "texts": 25, "either": 25}}
    demo._print_recall([{**part(0.2, 76), **apart}])
    out = capsys.readouterr().out
    title = "Recall on the val split: 51 pairs unseen in train (25 more share a text or picture with it)"
    assert out.splitlines()[0] == title, "on one line, however narrow the table is"
    (line,) = [line for line in out.splitlines() if "image -> text @1 " in line]
    assert line.replace("│", " ").split()[4:] == ["10.0%", "2.0%", "5.0", "40.0%", "20.0%"]
    demo._print_recall([{**part(0.2, 76), **apart, "seen": {"samples": 0}}])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "image -> text @1 " in line]
    assert line.replace("│", " ").split()[4:] == ["10.0%", "2.0%", "5.0", "20.0%"]


def test_report_shows_funnel_steps_and_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    stages = {"crawl": {"funnel": {"pages": 3}}, "admit": {"funnel": {"seen": 1200, "kept": 1000, "dropped": 200}}}
    demo.BUILD.mkdir(parents=True)
    (demo.BUILD / "build.json").write_text(json.dumps({"stages": stages}))
    direction = {f"{name}{k}": 0.5 for k in (1, 5, 10) for name in ("r", "chance_r")}
    steps = [
        demo.Step("build", 61.24, 3 << 30, {}),
        demo.Step("fit", 0, 0, {}, skipped=True),
        demo.Step("eval", 2.0, 1 << 29, {"i2t": direction, "t2i": direction}),
    ]
    demo._report(steps)
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["admit", "1,200", "1,000", "200"] in lines
    assert ["build", "61.2", "s", "3.00", "GiB"] in lines
    assert ["fit", "done", "before", "-"] in lines
    assert ["report", "demo/build/report/index.html"] in lines
    assert ["checkpoint", "demo/run"] in lines
