"""observe: log lines with their context. tests/dags/test_ray_jobs.py shows that counters reach Prometheus."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipeline.processes import observe
from tests.places import ROOT

SAY = """
import logging
from pipeline.processes import observe
from tests.places import ROOT
observe.log_as(observe.form())
log = logging.getLogger("wenlan")
with observe.about(build_id="b-1"):
    with observe.about(stage="fetch", partition="00001"):
        log.info("partition done", extra={"seconds": 1.5, "path": __import__("pathlib").Path("/x")})
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("图 %s", "broke")
logging.getLogger("other").warning("of a library")
observe.count("wenlan_partitions")
"""


def _said(form: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SAY], cwd=ROOT, env={"WENLAN_LOG": form}, capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


@pytest.mark.slow
def test_lines_for_machines_are_objects_that_name_build_and_stage():
    done, broke, other = map(json.loads, _said("json"))
    assert done.pop("time").endswith("Z")
    assert done == {
        "level": "info",
        "message": "partition done",
        "build_id": "b-1",
        "stage": "fetch",
        "partition": "00001",
        "seconds": 1.5,
        "path": "/x",
    }
    assert (broke["message"], broke["build_id"]) == ("图 broke", "b-1")
    assert "ZeroDivisionError" in broke["error"]
    assert "stage" not in broke
    assert (other["level"], other["message"]) == ("warning", "of a library")


@pytest.mark.slow
def test_lines_for_people_are_warnings_only():
    lines = _said("text")
    assert [lines[0], lines[-1]] == ["ERROR wenlan: 图 broke", "WARNING other: of a library"]
    assert not any("partition done" in line for line in lines)


def test_an_unknown_counter_is_a_fault_of_ours_only_where_it_would_count(monkeypatch):
    observe.count("nobody_knows")  # no Ray runs: nothing to count into
    monkeypatch.setitem(sys.modules, "ray", type("Ray", (), {"is_initialized": staticmethod(lambda: True)}))
    with pytest.raises(KeyError):
        observe.count("nobody_knows")


def test_metric_names_are_what_prometheus_takes():
    for name in observe.METRICS:
        assert name.startswith("wenlan_")
        assert observe.exported(name).isidentifier()


FORGE = """
import logging
from pipeline.processes import observe
observe.log_as(observe.form())
evil = chr(27) + "[2J" + chr(0x202e) + "x" + chr(10) + "ERROR wenlan: forged" + chr(0x9b) + "m"
logging.getLogger("wenlan").warning("page %s", evil)
try:
    raise ValueError(evil)
except ValueError:
    logging.getLogger("wenlan").exception("page")
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["text", "json"])
def test_no_page_can_forge_a_log_line_or_command_a_terminal(form):
    done = subprocess.run(
        [sys.executable, "-c", FORGE], cwd=ROOT, env={"WENLAN_LOG": form}, capture_output=True, text=True, check=True
    )
    lines = done.stderr.removesuffix("\n").split("\n")
    if form == "json":
        assert [json.loads(line)["level"] for line in lines] == ["warning", "error"]
    else:
        assert [line for line in lines if not line.startswith("  ")] == [
            r"WARNING wenlan: page \x1b[2J\u202ex",
            "ERROR wenlan: page",
        ]
        assert lines[1] == r"  ERROR wenlan: forged\x9bm"
    assert not {"\x1b", "\u202e", "\x9b"} & set(done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_that_a_library_words_wrongly_does_not_end_the_work(form):
    code = (
        "import logging; from pipeline.processes import observe; observe.log_as(observe.form()); "
        "logging.getLogger('library').warning('%d pictures', 'seven'); print('went on')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"WENLAN_LOG": form}, capture_output=True, text=True
    )
    assert done.stdout == "went on\n", done.stderr
    assert "Message: '%d pictures'" in done.stderr, "who wrote it is told"
