"""The command `studio`, as a process: what it prints, where it listens, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.store import build_json
from pipeline.store.build import Build
from tests.places import ROOT
from tests.processes import wait_until
from tests.stages import run_stage


@pytest.fixture
def noted(synthetic_build: Build) -> Build:
    build_json.note(synthetic_build)
    return synthetic_build


def started(*words: str) -> tuple[subprocess.Popen[str], str, str]:
    """(process, address, token) of a studio."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "studio", *words, "--no-browser", "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"(http://127\.0\.0\.1:\d+)/\?token=(\S+)", line):
            return process, found[1], found[2]
    raise AssertionError("it has not started")


@pytest.mark.slow
def test_it_listens_on_loopback_prints_its_link_and_ends_with_ctrl_c(noted: Build) -> None:
    process, base, token = started(noted.out, "--port", "0")
    try:
        asked = urllib.request.Request(f"{base}/api/about", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert json.loads(answer.read())["place"] == noted.out
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{base}/api/about", timeout=60)
        listening = [
            line for line in Path("/proc/net/tcp").read_text("utf-8").splitlines() if f":{int(base[17:]):04X} " in line
        ]
        assert all(line.split()[1].startswith("0100007F:") for line in listening if line.split()[3] == "0A")
    finally:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode in (0, 130), process.returncode
    assert out.count("\n") == 1, "one JSON object"


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(noted: Build, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["studio", noted.out, "--port", str(port), "--no-browser"]) == 1
    assert f"--port {port}: Address already in use; use --port 0 to choose a free one" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "give a BUILD or RELEASE, or --index DIR"),
        (["x", "--port", "70000"], 2, "--port 70000"),
        (["nowhere/at/all"], 1, "nowhere/at/all"),
        (["--index", "nowhere/at/all"], 1, "contains no build"),
        (["nowhere", "--index", "no/index"], 1, "not a search index"),
    ],
)
def test_bad_usage_is_one_line(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["studio", *words, "--no-browser"]) == code
    assert said in capsys.readouterr().err


@pytest.mark.drill(1)
def test_the_report_says_how_to_open_it(synthetic_build: Build) -> None:
    from pipeline.stages import report

    run_stage(synthetic_build, "shard")
    report.write(synthetic_build)
    html = (Path(synthetic_build.out) / "report/index.html").read_text("utf-8")
    assert f"wenlan-data studio {synthetic_build.out}" in html
    links: list[Any] = re.findall(r'<a class="studio" href="([^"]+)" hidden>', html)
    assert "/" in links
    assert any(link.startswith("/#id=") for link in links), "shown where the studio serves the page only"


@pytest.mark.drill(3)
def test_a_browser_that_is_waited_for_does_not_keep_the_page_from_answering(noted: Build, tmp_path: Path) -> None:
    """One on the terminal, such as w3m, ends when a person leaves it."""
    asked, script = tmp_path / "asked", tmp_path / "browser.py"
    visit = "urllib.request.urlopen(sys.argv[1]).read()"
    script.write_text(f"import sys, urllib.request\nopen({str(asked)!r}, 'w').write(sys.argv[1])\n{visit}\n", "utf-8")
    browser = f"{sys.executable} {script} %s"
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", "studio", noted.out, "--port", "0"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "BROWSER": browser},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        link = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+token=\S+", line)))
        try:
            with urllib.request.urlopen(link, timeout=60) as answer:
                assert answer.status == 200
            wait_until(lambda: asked.exists() and "token=" in asked.read_text("utf-8"), "the browser is started")
            assert link.partition("token=")[2] not in asked.read_text("utf-8"), "others see how a browser is started"
        finally:
            process.terminate()
