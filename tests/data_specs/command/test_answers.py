"""What a command leaves on stdout, and what it says where nobody reads that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from data_specs.command import answers


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_left_is_no_fault(unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pipeline", "schema"]
    done = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": unbuffered}
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (answers.READER_LEFT, b"")


def test_another_broken_pipe_is_a_fault() -> None:
    read, write = os.pipe()
    code = "from data_specs.command import answers; print(answers.has_reader_left(BrokenPipeError()))"
    subprocess.run([sys.executable, "-c", code], stdout=write, check=True)
    os.close(write)
    assert os.read(read, 10) == b"False\n"
    os.close(read)
