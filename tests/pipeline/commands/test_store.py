"""Commands on STORE where no build is needed: what they refuse, and what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli, opening
from pipeline.store.build import Build
from pipeline.store.store import Store


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["forget", "--url", "http://a.test/1.jpg", "--distance", "17"], "--distance 17: must be 0 to 16 bits"),
        (["gc", "--keep", "-1"], "--keep -1: must be a number, or 0 for all"),
        (["regions", "prune"], "regions prune: --detector ID or --before DATE is required"),
        (["regions", "prune", "--before", "May"], "--before May: not a date such as 2026-01-31"),
    ],
)
def test_bad_usage_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert cli.main([*words, "--store", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines() == [f"wenlan-data: {said}"]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A STORE, with nothing in it."""
    Store(str(tmp_path / "store")).check()
    return tmp_path / "store"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["forget", "--url", "http://a.test/1.jpg"],
        ["gc"],
        ["regions", "stats"],
        ["regions", "prune", "--before", "2026-01-31"],
    ],
)
@pytest.mark.parametrize("place", ["", "stor"])
def test_a_store_that_is_none_is_refused_and_none_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], place: str
) -> None:
    wrong = tmp_path / place
    assert cli.main([*words, "--store", str(wrong), "--json"]) == 1
    printed = capsys.readouterr()
    line = f"{wrong}: not a STORE (no store.json); check the address: a build creates its STORE"
    assert printed.err.splitlines() == [f"wenlan-data: {line}"]
    assert json.loads(printed.out) == {"ok": False, "error": line, "code": 1}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_takedown_that_matches_nothing_fails_once_and_is_kept_for_future_builds(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def forget(*more: str, url: str = "http://a.test/1.jpg") -> tuple[int, str, dict[str, Any]]:
        code = cli.main(["forget", "--store", str(store), "--url", url, "--json", *more])
        printed = capsys.readouterr()
        return code, printed.err, json.loads(printed.out.splitlines()[-1])

    code, said, answer = forget("--dry-run")
    assert (code, said) == (1, "no match in 0 builds; nothing was changed\n")
    assert (answer["ok"], answer["matched"], answer["known"], answer["code"]) == (False, 0, False, 1)
    assert list(store.rglob("forgotten/*.json")) == []
    code, said, answer = forget()
    line = "no match in 0 builds; the takedown is recorded, and future builds will refuse matching content"
    assert (code, said, answer["error"], answer["matched"]) == (1, f"{line}\n", line, 0)
    assert len(list(store.rglob("forgotten/*.json"))) == 1
    code, said, answer = forget()
    assert (code, said) == (0, "no match in 0 builds; the takedown was already recorded\n")
    assert (answer["ok"], answer["known"]) == (True, True)
    code, _, answer = forget("--missing-ok", url="http://a.test/2.jpg")
    assert (code, answer["ok"], answer["known"]) == (0, True, False)
    assert len(list(store.rglob("forgotten/*.json"))) == 2


@pytest.mark.slow
def test_a_build_is_not_published_into_a_store_that_is_gone(
    synthetic_build: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(opening, "reopen", lambda out: synthetic_build)
    assert cli.main(["publish", synthetic_build.out]) == 1
    assert "not a STORE (no store.json)" in capsys.readouterr().err
    assert not Path(synthetic_build.store.url).exists()


def test_an_empty_store_has_nothing_to_free_and_no_regions(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path = store
    assert cli.main(["gc", "--store", str(tmp_path), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["deleted"] == []
    assert printed.err == "0 bytes freed\n"
    assert cli.main(["regions", "stats", "--store", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "detectors": [], "removed": False}
