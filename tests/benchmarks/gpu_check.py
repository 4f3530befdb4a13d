"""What holds on this machine's GPUs, in at most 30 minutes: `make gpu-check` writes one JSON file and one page.

Each check says what was asked and what was seen, and ends as passed, failed (with the reason) or "not run", with what
it lacks. Each is a process of its own with a limit, so that a crash, a full memory or a missing package costs one line
and not the run. Without a GPU the checks that need none run, in a few minutes. The last lines count the checks by how
they ended and say what to do next.

Limits: checks run on the first card, two ranks on the first two, with random weights and pixels.

    python -m tests.benchmarks.gpu_check [--out FOLDER] [CHECK ...]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import LARGE, MAIN, ROOT, program

NEGATIVES = (1024, 4096, 16384, 65536)
H100 = 0.4 * 989  # TFLOP a second in bf16

LOOPBACK = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
"""Environment of ranks that meet on this machine."""

STATES = {"passed": "通过", "failed": "未通过", "not run": "未运行"}
HEADS = ("check", "检查"), ("asked", "要求"), ("result", "结果"), ("seen", "所见"), ("time", "用时")


@dataclass(frozen=True)
class Check:
    """A check: what it asks; `run`, which returns the figures seen, in at most `minutes`, on so many GPUs."""

    asked: str
    run: Callable[[], dict[str, Any]]
    minutes: float = 5
    cards: int = 0


def bench(name: str, *words: str) -> dict[str, Any]:
    """Figures of a benchmark; those that miss their bar fail the check."""
    done = subprocess.run(program(name, *(words or ("--quick",))), capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if not lines or not lines[-1].startswith("{"):
        raise RuntimeError("; ".join([line for line in done.stderr.splitlines() if line[:1].strip()][-3:]))
    figures = json.loads(lines[-1])["figures"]
    missed = [f"{n} is {f['value']} {f['unit']}, bar {f['bar']}" for n, f in figures.items() if not f["holds"]]
    assert not missed, "; ".join(missed)
    return {n: f"{f['value']} {f['unit']}" for n, f in figures.items()}


def losses(recipe: str, sides: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Of each side, a device and a precision, from the same weights: the loss before and after a step, and its time."""
    import torch

    from tests.benchmarks.step_sides import OurStep, config_of

    off = ("image.dropout=0", "text.dropout=0", "text.backbone_dropout=0")
    first, seen = dict[str, Any](), dict[str, Any]()
    for side, (device, precision) in sides.items():
        step = OurStep(config_of(recipe, *off, f"run.precision={precision}"), 4, device)
        first = first or {name: tensor.cpu().clone() for name, tensor in step.model.state_dict().items()}
        step.model.load_state_dict(first)
        for when in ("before", "after"):
            with torch.no_grad(), step.autocast():
                seen[f"{side}, loss {when}"] = float(step.model(step.batch).loss)
            seen[f"{side}, seconds"] = timed(step)
    return seen


def timed(work: Callable[[], object]) -> float:
    import torch

    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return round(time.perf_counter() - begun, 3)


def bf16_on_cpu() -> dict[str, Any]:
    return alike(losses("starter", {"cpu": ("cpu", "fp32"), "bf16": ("cpu", "bf16")}), bf16=0.02)


def step_on_gpu() -> dict[str, Any]:
    sides = {"cpu": ("cpu", "fp32"), "gpu": ("cuda", "fp32"), "bf16": ("cuda", "bf16")}
    return alike(losses(MAIN, sides), gpu=1e-3, bf16=0.02)


def alike(seen: dict[str, Any], **within: float) -> dict[str, Any]:
    """The losses, each within its share of those of the CPU; after a step five times as much."""
    for side, share in within.items():
        for when, times in (("before", 1), ("after", 5)):
            ours, theirs = seen[f"{side}, loss {when}"], seen[f"cpu, loss {when}"]
            assert abs(ours - theirs) <= times * share * abs(theirs), f"{side}, loss {when}: {ours} beside {theirs}"
    return seen


def two_gloo_ranks() -> dict[str, Any]:
    """The ranks of tests/training/method: seven objectives, three of them in micro-batches."""
    import torch

    ranks = ROOT / "tests" / "training" / "method" / "ranks.py"
    with tempfile.TemporaryDirectory(prefix="wenlan-check-") as folder:
        subprocess.run([sys.executable, str(ranks), folder, "2"], env=os.environ | LOOPBACK, check=True)
        one, two = (torch.load(Path(folder, f"{world}-0.pt"), weights_only=True) for world in (1, 2))
    off = {name: float((one[name] - two[name]).abs().max()) for name in one if name.endswith("/losses")}
    assert max(off.values()) < 1e-9, off
    return {"runs": len(off), "largest difference": f"{max(off.values()):.1e}"}


def rank(kind: str) -> None:
    """One of two ranks that torchrun started: a process group by the function that `fit` uses, and three steps."""
    from training.device import prepare_device
    from training.run.launch import ending_with_parent, process_group

    device = prepare_device(kind)
    with ending_with_parent(), process_group(device):
        # A function of its own, as in `fit`: DDP must be gone before its process group. As the group's last owner it
        # holds the GIL while it waits for Gloo's thread, which waits for the GIL: one start of three hung.
        _three_steps(str(device))


def _three_steps(device: str) -> None:
    import torch

    from tests.benchmarks.step_sides import OurStep, config_of
    from training.method import distributed
    from training.run.gradient_exchange import GradientExchange
    from training.run.step import backward

    step = OurStep(config_of("tiny"), 8, device)
    exchange, first = GradientExchange(step.model), 4 * distributed.rank()
    for number in range(3):
        share = step.batch.rows(first, first + 4)
        step.model.after_step(backward(step.model, [share], 4, step.autocast, exchange), number)
        step.optimizer.step()
        exchange.clear(step.optimizer)
    ours, theirs = distributed.gather(torch.stack([p.double().sum() for p in step.model.parameters()])[None])
    assert torch.equal(ours, theirs), "the ranks' weights differ after three steps"
    assert distributed.gather_objects(first) == [0, 4], "objects do not reach the other rank"


def two_ranks(kind: str = "cuda") -> dict[str, Any]:
    from training.run.launch import backends

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "tests.benchmarks.gpu_check", "--rank", kind]
    done = subprocess.run(command, env=os.environ | LOOPBACK, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-400:]
    return {"backends": backends(kind == "cuda"), "steps": 3, "weights": "equal on both ranks"}


def negatives_rehearsed() -> dict[str, Any]:
    """The paper's claim as an analysis: bytes of fake tensors, and the work at 40% of an H100's peak."""
    from tests.benchmarks.rehearsal import negatives_of

    seen = dict[str, Any]()
    for number, queue, work, whole, cached, works in negatives_of(MAIN, NEGATIVES, 256):
        times = f"{work / H100:.2f} s; {works / H100:.2f} s, GradCache up to {4 / 3 * works / H100:.2f} s"
        seen[f"{number:,}"] = f"queue {queue:.1f}, in-batch {whole:.1f}, GradCache {cached:.1f} GiB a rank; {times}"
        assert max(queue / whole, work / works) < 1, f"a queue saves no memory or no time at {number:,}: {seen}"
    return seen


def negatives_measured() -> dict[str, Any]:
    """The same on one card: peak memory and seconds of a step, in batches of 32."""
    import torch

    from tests.benchmarks.step_sides import config_of, random_batch
    from training.moco import BriVL
    from training.run.step import backward

    bf16 = partial(torch.autocast, "cuda", torch.bfloat16)

    def measure(objective: str, keys: int, micros: int, pairs: int) -> str:
        settings = "run.precision=bf16", f"moco.objective={objective}", f"moco.queue_size={keys}"
        model = BriVL(config_of(MAIN, *settings), load_weights=False).cuda().train()
        batches = [random_batch(config_of(MAIN), pairs, seed).to(torch.device("cuda")) for seed in range(micros)]
        torch.cuda.reset_peak_memory_stats()
        seconds = min(timed(lambda: backward(model, batches, pairs * micros, bf16)) for _ in range(2))
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB, {seconds:.2f} s"

    seen = dict[str, Any]()
    for keys in NEGATIVES[:3]:
        ways = {"queue": ("moco", 1, 32), "in-batch": ("clip", 1, keys), "GradCache": ("clip", keys // 32, 32)}
        for name, (objective, micros, pairs) in ways.items():
            torch.cuda.empty_cache()
            try:
                seen[f"{keys:,} {name}"] = measure(objective, keys, micros, pairs)
            except torch.cuda.OutOfMemoryError:
                seen[f"{keys:,} {name}"] = "does not fit"
    return seen


def samples_and_mfu() -> dict[str, Any]:
    seen = bench("bench_step", "--gpu")
    best = max([float(v.split()[0]) for n, v in seen.items() if n.startswith(LARGE) and n.endswith("_mfu")], default=0)
    assert best >= 0.4, f"{LARGE}: {best:.2f} of the peak; {seen}"
    return seen


def compiled() -> dict[str, Any]:
    from tests.benchmarks.step_sides import OurStep, config_of

    plain, other = (OurStep(config_of(MAIN, "run.precision=bf16"), 32, "cuda") for _ in range(2))
    other.model.compile_towers()
    times = {name: [timed(step) for _ in range(6)] for name, step in (("plain", plain), ("compiled", other))}
    return {f"{name}, step of 32": f"{min(seconds)} s" for name, seconds in times.items()}


def embedding() -> dict[str, Any]:
    from tests.benchmarks.step_sides import OurStep, config_of

    step = OurStep(config_of(MAIN, "run.precision=bf16"), 128, "cuda")
    ways = {"pictures": step.model.encode_image, "texts": step.model.encode_text}
    with step.autocast():
        return {n: f"{128 / min(timed(lambda e=e: e(step.batch)) for _ in range(5)):.0f}/s" for n, e in ways.items()}


def jpegs_on_gpu() -> dict[str, Any]:
    import torch
    from torchvision.io import decode_jpeg, encode_jpeg

    picture = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8).repeat_interleave(10, 1).repeat_interleave(10, 2)
    coded = [encode_jpeg(picture)] * 64
    seen, decoded = dict[str, Any](), dict[str, Any]()
    for device in ("cpu", "cuda"):
        decode = lambda device=device: decoded.update({device: decode_jpeg(coded, device=device)})  # noqa: E731
        seen[device] = f"{64 / max(min(timed(decode) for _ in range(3)), 1e-3):.0f} pictures/s"
    off = (decoded["cuda"][0].cpu().float() - decoded["cpu"][0].float()).abs().mean()
    assert off < 2, f"the two decoders differ by {off:.2f} of 255 on average"
    return seen | {"mean difference": f"{off:.2f} of 255"}


def onnx_session(gpu: bool = True) -> dict[str, Any]:
    """A session as the pipeline starts it; its features of two pictures are those of the CPU."""
    import numpy as np

    from data_specs.search.onnx_file import start_session
    from tests.towered import SIDE, image_tower

    graph = image_tower().SerializeToString()
    pictures = np.random.default_rng(0).random((2, 3, SIDE, SIDE), np.float32)
    session = start_session(graph, gpu=gpu)
    ours, theirs = (one.run(None, {"image": pictures})[0] for one in (session, start_session(graph)))
    assert np.abs(ours - theirs).max() < 1e-3, f"features differ by {np.abs(ours - theirs).max():.1e}"
    return {"providers": ", ".join(session.get_providers())}


def scoring(gpus: float = 1, pairs: int = 2_000, *, small: bool = False) -> dict[str, Any]:
    """The pass `curate.score` in one process, which decodes and holds both sessions: towers of Chinese-CLIP's shape."""
    from tests.benchmarks.scored_pairs import score_rate

    return {"pairs": f"{score_rate(gpus, pairs, small):.0f}/s"}


def data_wait(device: str = "cuda", recipe: str = MAIN, samples: int = 4_096, most: float = 0.1) -> dict[str, Any]:
    """`fit --dry-run` on shards of JPEGs of 256 px: the share of a step for which it waits for the loader."""
    from tests.benchmarks.bench_loader import make_shards
    from tests.benchmarks.step_sides import config_of
    from training.run.dry_run import dry_run

    config = config_of(recipe, "run.precision=bf16", "run.batch_size=64", f"run.device={device}")
    with tempfile.TemporaryDirectory(prefix="wenlan-check-") as folder:
        make_shards(Path(folder), samples)
        found = dry_run(config, [f"{folder}/manifest.json"], cache=Path(folder, "cache"))
    waits, workers = found["waiting_for_data"], config.data.num_workers
    advice = "set a larger data.num_workers, or data.decoder=device"
    assert waits <= most, f"{waits:.0%} of a step waits for data, with {workers} workers; {advice}"
    return {"waiting for data": f"{waits:.0%}", "samples": f"{found['samples_per_second']:.0f}/s", "workers": workers}


CHECKS = {
    "bf16 on the CPU": Check("recipe starter: loss in bf16 within 2% of fp32's", bf16_on_cpu),
    "two gloo ranks": Check("each objective: losses within 1e-9 of one rank's", two_gloo_ranks, 6),
    "negatives, rehearsed": Check("a queue takes less memory and time than a batch: 1k to 65k", negatives_rehearsed, 8),
    "model actors": Check("a model's process always has work", lambda: bench("bench_model_actors"), 4),
    "loader": Check("samples a second beside webdataset's", lambda: bench("bench_loader")),
    "step on the GPU": Check("loss as the CPU's: fp32 within 1e-3, bf16 2%", step_on_gpu, cards=1),
    "samples/s and MFU": Check(f"{LARGE} at 40% of the peak; field: 11 to 21%", samples_and_mfu, 10, cards=1),
    "negatives, measured": Check("memory and seconds of a step: queue, in-batch", negatives_measured, 6, cards=1),
    "torch.compile": Check("a compiled step runs; its seconds beside a plain one's", compiled, 6, cards=1),
    "data wait": Check("at most a tenth of a step waits for the loader", data_wait, cards=1),
    "embedding": Check("pictures and texts a second", embedding, cards=1),
    "scoring": Check("pairs a second through the pipeline's towers", scoring, cards=1),
    "nvJPEG": Check("pictures a second; pixels as the CPU's", jpegs_on_gpu, cards=1),
    "ONNX session": Check("the pipeline's sessions start on CUDA; features as the CPU's", onnx_session, cards=1),
    "two NCCL ranks": Check("equal weights after three steps, objects over gloo", two_ranks, cards=2),
}


def outcome(check: Check) -> dict[str, Any]:
    """A check's verdict, from the process that runs it."""
    import torch

    if torch.cuda.device_count() < check.cards:
        reason = f"{check.cards} GPU(s) needed, torch {torch.__version__} sees {torch.cuda.device_count()}"
        return {"state": "not run", "reason": reason}
    try:
        return {"state": "passed", "seen": check.run()}
    except BaseException as e:
        return {"state": "failed", "reason": f"{type(e).__name__}: {e}"[:500]}


def checked(name: str, left: float) -> dict[str, Any]:
    """A check in a process of its own, within its limit and what is `left` of the run's, in seconds."""
    limit, begun = min(60 * CHECKS[name].minutes, left), time.monotonic()
    command = [sys.executable, "-m", "tests.benchmarks.gpu_check", "--one", name]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            printed, said = process.communicate(timeout=max(limit, 1))
            ended = f"{process.returncode}: {(said.strip().splitlines() or ['no output'])[-1][:300]}"
            found = json.loads((printed.splitlines() or [json.dumps({"state": "failed", "reason": ended})])[-1])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            found = {"state": "failed", "reason": f"stopped after {limit:.0f} s"}
    return {"check": name, "asked": CHECKS[name].asked, **found, "seconds": round(time.monotonic() - begun, 1)}


def devices() -> list[str]:
    import torch

    there = [f"cpu: {os.cpu_count()} cores, {platform.machine()}"]
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        there.append(f"cuda:{number}: {about.name}, {about.total_memory / 2**30:.0f} GiB")
    return there


def closing(checks: list[dict[str, Any]]) -> list[str]:
    """How the checks ended, and what to do next."""
    import torch

    ended = {state: [one["check"] for one in checks if one["state"] == state] for state in STATES}
    lines = [", ".join(f"{len(names)} {state}" for state, names in ended.items())]
    again = "python -m tests.benchmarks.gpu_check"
    if ended["failed"]:
        lines.append(f"next: mend what failed, then {again} {shlex.join(ended['failed'])}")
    if ended["not run"]:
        need = min(CHECKS[name].cards for name in ended["not run"])
        build = "" if torch.version.cuda else f", and torch's build for CUDA in place of {torch.__version__}"
        lines.append(f"next: on a machine with {need} GPU(s) or more{build}: {again} {shlex.join(ended['not run'])}")
    return lines


PAGE = """{% macro t(words) %}<span data-zh="{{ words[1] }}">{{ words[0] }}</span>{% endmacro %}
<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>wenlan · GPU check</title>
<style>{% include "eval.css" %} td { vertical-align: top }</style></head>
<body><header><div class="wrap"><div class="titles"><p class="eyebrow">wenlan</p>
<h1>{{ t(("GPU check", "GPU 检查")) }}</h1>
{% for line in devices + closing %}<p class="muted small">{{ line }}</p>{% endfor %}</div><div class="switches">
<button type="button" id="language" aria-label="中文 / English">中文</button>
<button type="button" id="theme">{{ t(("Dark / light", "深色 / 浅色")) }}</button></div></div></header>
<main id="main" class="wrap"><table><thead><tr>
{% for head in heads %}<th>{{ t(head) }}</th>{% endfor %}</tr></thead><tbody>
{% for c in checks %}<tr><td>{{ c.check }}</td><td>{{ c.asked }}</td><td>{{ t((c.state, states[c.state])) }}</td><td>
{% for name, value in c.get("seen", {}).items() %}{{ name }}: {{ value }}<br>{% endfor %}{{ c.reason }}</td>
<td>{{ c.seconds }} s</td></tr>{% endfor %}</tbody></table></main><script>{% include "eval.js" %}</script></body></html>
"""


def write(out: Path, report: dict[str, Any]) -> None:
    import jinja2

    from training.evaluation import page

    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu-check.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    kit = jinja2.FileSystemLoader(Path(page.__file__).with_name("templates"))
    template = jinja2.Environment(loader=kit, autoescape=True).from_string(PAGE)
    (out / "gpu-check.html").write_text(template.render(**report, states=STATES, heads=HEADS), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"default: all of {', '.join(CHECKS)}")
    parser.add_argument("--out", type=Path, default=Path("demo/gpu-check"))
    parser.add_argument("--one", choices=CHECKS, help=argparse.SUPPRESS)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rank:
        rank(asked.rank)
        return 0
    if asked.one:
        print(json.dumps(outcome(CHECKS[asked.one])))
        return 0
    end, report = time.monotonic() + 60 * 30, {"devices": devices(), "checks": list[dict[str, Any]](), "closing": []}
    for name in asked.checks or CHECKS:
        found = checked(name, end - time.monotonic())
        report["checks"].append(found)
        report["closing"] = closing(report["checks"])
        write(asked.out, report)
        seen = found.get("reason") or "; ".join(f"{n}: {v}" for n, v in found["seen"].items())
        print(f"{name:22} {found['state']:14} {found['seconds']:6.1f} s  {seen}", flush=True)
    print(*report["closing"], f"written: {asked.out}/gpu-check.json, {asked.out}/gpu-check.html", sep="\n")
    return int(any(found["state"] == "failed" for found in report["checks"]))


if __name__ == "__main__":
    sys.exit(main())
