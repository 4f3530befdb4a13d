"""Devices, and the C library's allocator."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from training.device import device_of, prepare_device
from training.errors import ConfigError

FAULTS_OF_A_LARGE_BLOCK = """
import ctypes, resource
from training.device import keep_memory
told = keep_memory()
size = 64 << 20
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(told, faults[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize(("setting", "told"), [({}, True), ({"MALLOC_ARENA_MAX": "8"}, False)])
@pytest.mark.drill(5)
def test_freed_memory_is_kept_unless_the_environment_says_what_to_do(setting: dict[str, str], told: bool) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | setting
    program = [sys.executable, "-c", FAULTS_OF_A_LARGE_BLOCK]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    said, faults = done.stdout.split()
    assert said == str(told)
    assert (int(faults) < 8) == told  # 64 MiB mapped anew take at least 32 faults, even in pages of 2 MiB


def test_a_gpu_computes_float32_in_full_and_torch_can_still_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("training.device.device_of", torch.device)
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [of.allow_tf32 for of in flags]
    try:
        for of in flags:
            of.allow_tf32 = True
        assert prepare_device("cuda").type == "cuda"
        # Both raise after a setting by torch's newer `fp32_precision`; inductor's max-autotune reads them.
        assert [of.allow_tf32 for of in flags] == [False, False]
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        for of, allowed in zip(flags, before, strict=True):
            of.allow_tf32 = allowed


def test_the_device_is_this_processs_or_is_named_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto").type == "cpu"
    asked: list[torch.device] = []
    monkeypatch.setattr(torch, "empty", lambda size, device: asked.append(device))
    monkeypatch.setenv("LOCAL_RANK", "3")
    for available, name in ((True, "auto"), (False, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert device_of(name) == torch.device("cuda:3")
    assert asked == [torch.device("cuda:3")] * 2
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"^run.device: 'quantum': "):
        device_of("quantum")
