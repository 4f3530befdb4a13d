"""`wenlan-train serve` under 16 concurrent clients beside its towers alone; then clients that mean ill.

The towers alone compute ready inputs in batches of 16, in this process, by the same engine. The server is a process of
its own, and gets JPEGs of 640 x 480 pixels and Chinese sentences, one in each request, over connections that stay open.
Both take turns, on the same cores: what the server and the clients cost is the difference. The towers are those of the
paper (brivl_b5_base, random weights, since features of any weights cost the same), in --quick those of recipe starter.

The hostile part sends 10,000 malformed requests (hostile_clients.py; 300 in --quick) to a server of a tiny model.
Memory is the process's resident set after a fifth of them, and at the end.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import ROOT, Figure, at_least, at_most, quick, report, told

CLIENTS, BATCH = 16, 16
SENTENCE = "清晨的山谷里飘着薄雾，远处有几座白墙黛瓦的老房子，第{}张"


@dataclass(frozen=True)
class Measured:
    """Inputs per second, and each request's seconds."""

    rate: float
    seconds: tuple[float, ...]

    def percentile(self, share: float) -> float:
        """Milliseconds."""
        return statistics.quantiles(self.seconds, n=100)[round(share * 100) - 1] * 1000


# --- servers


def checkpoint_of(recipe: str, folder: Path, boxes: str = "") -> Path:
    """A checkpoint of random weights, trained with boxes of a detector."""
    import torch

    from tests.checkpoints import save
    from training.data.tokenizer import load_tokenizer
    from training.moco import BriVL
    from training.outputs.checkpoint import RunState
    from training.resolve import resolve
    from training.run.optimizer import build_optimizer

    torch.manual_seed(0)
    config = resolve(recipe, ["image.weights=", "text.weights=", "moco.objective=clip"])
    model = BriVL(config, load_weights=False)
    tokenizer, state = load_tokenizer(config.data.tokenizer), RunState(1, 8, 0, (), (), boxes)
    return save(folder, model, build_optimizer(model, config.optim), config, tokenizer, state, 1)


@contextlib.contextmanager
def serving(checkpoint: Path, *words: str) -> Iterator[tuple[str, int]]:
    """(host:port, process id) of `wenlan-train serve`."""
    command = [sys.executable, "-m", "training", "serve", str(checkpoint), "--port", "0", *words]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address = ""
        for line in process.stderr:
            told(f"    {line.rstrip()}")
            if " on http://" in line:
                address = line.split(" on http://")[1].split()[0]
            if "the towers answer" in line:
                break
        assert address, "the server did not begin"
        yield address, process.pid
    finally:
        process.terminate()
        process.communicate()


# --- clients

Request = tuple[str, str, bytes, dict[str, str]]
"""Method, path, body and headers."""


def under_load(address: str, requests: Sequence[Request], clients: int = CLIENTS) -> Measured:
    """All requests, by so many clients at once."""
    todo: queue.SimpleQueue[Request] = queue.SimpleQueue()
    for request in requests:
        todo.put(request)
    seconds: list[float] = []
    faults: list[str] = []

    def client() -> None:
        connection = http.client.HTTPConnection(address, timeout=600)
        while True:
            try:
                method, path, body, headers = todo.get_nowait()
            except queue.Empty:
                return connection.close()
            began = time.perf_counter()
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            seconds.append(time.perf_counter() - began)
            if answer.status != 200:
                faults.append(f"{answer.status} {content[:200]!r}")

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    assert not faults, faults[:3]
    return Measured(len(requests) / took, tuple(seconds))


def photo(number: int) -> bytes:
    """A JPEG of 640 x 480, of noise that is smooth as a photo's."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize((640, 480), Image.Resampling.BICUBIC).save(out, "JPEG", quality=88)
    return out.getvalue()


def picture_requests(count: int) -> list[Request]:
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    bodies = [head + photo(n) + b"\r\n--x--\r\n" for n in range(min(count, 32))]
    kind = {"content-type": "multipart/form-data; boundary=x"}
    return [("POST", "/image_query", bodies[n % len(bodies)], kind) for n in range(count)]


def text_requests(count: int) -> list[Request]:
    bodies = ({"input": [SENTENCE.format(n)], "encoding_format": "base64"} for n in range(count))
    kind = {"content-type": "application/json"}
    return [("POST", "/v1/embeddings", json.dumps(body).encode(), kind) for body in bodies]


# --- the figures


def beside_the_towers(checkpoint: Path, pictures: int, texts: int, rounds: int, bar: float) -> dict[str, Figure]:
    """Throughput of the server as a share of its towers'."""
    from training.outputs.checkpoint import TOWERS, open_checkpoint
    from training.serve.towers import InputReader, open_towers

    opened = open_checkpoint(checkpoint, TOWERS)
    towers, reader = open_towers(opened, "auto", "cpu"), InputReader(opened, 50_000_000)
    ready_pictures = [reader.picture(photo(n)) for n in range(BATCH)]
    ready_texts = [reader.tokens(SENTENCE.format(n)) for n in range(BATCH)]

    def alone(encode: Callable[[Any], object], inputs: Any, count: int) -> float:
        began = time.perf_counter()
        for _ in range(max(1, count // BATCH)):
            encode(inputs)
        return max(1, count // BATCH) * BATCH / (time.perf_counter() - began)

    figures: dict[str, Figure] = {}
    with serving(checkpoint) as (address, _):
        for what, count, requests, encode, inputs in (
            ("images", pictures, picture_requests(pictures), towers.encode_images, ready_pictures),
            ("texts", texts, text_requests(texts), towers.encode_texts, ready_texts),
        ):
            served, own = [], []
            under_load(address, requests[: 2 * BATCH])
            alone(encode, inputs, BATCH)
            for turn in range(rounds):
                served.append(under_load(address, requests))
                own.append(alone(encode, inputs, count))
                told(f"{what} {turn + 1} of {rounds}: {served[-1].rate:.1f}/s, alone {own[-1]:.1f}/s")
            share = statistics.median(s.rate / o for s, o in zip(served, own, strict=True))
            every = Measured(0, tuple(second for one in served for second in one.seconds))
            single = under_load(address, requests[: max(8, count // 16)], clients=1)
            p50, p99 = every.percentile(0.5), every.percentile(0.99)
            told(f"{what}: 16 clients p50 {p50:.0f} ms, p99 {p99:.0f} ms")
            told(f"{what}: one client {single.rate:.1f}/s, p50 {single.percentile(0.5):.1f} ms")
            figures[f"serve_{what}_of_towers"] = at_least(share, bar, "x")
            batch_ms = 1000 * BATCH / statistics.median(own)
            figures[f"serve_{what}_p99_over_batch"] = at_most(p99 / batch_ms, 4 if bar >= 0.9 else 20, "x")
    return figures


def hostile(folder: Path, count: int) -> dict[str, Figure]:
    """What malformed requests do to a server."""
    import httpx

    from tests.benchmarks.hostile_clients import Outcome, attack

    def resident_mb() -> float:
        return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024

    def health() -> int:
        return httpx.get(f"http://{address}/health", timeout=60).status_code

    checkpoint, outcome, unwell = checkpoint_of("tiny", folder), Outcome(), 0
    with serving(checkpoint, "--max-pixels", "30000000", "--engine", "torch") as (address, pid):
        part = max(1, count // 10)
        before = 0.0
        for turn in range(10):
            outcome.add(attack(f"http://{address}", part, seed=turn))
            unwell += health() != 200
            before = resident_mb() if turn == 1 else before
            told(f"{outcome.requests:,} requests, {resident_mb():.0f} MB")
        after = resident_mb()
        ok = httpx.get(f"http://{address}/text_query", params={"text": "山水"}, timeout=60).status_code == 200
    told(f"statuses: {dict(sorted(outcome.statuses.items()))}")
    for fault in outcome.faults[:20]:
        told(f"    {fault}")
    return {
        "hostile_requests": at_least(outcome.requests, count, "requests"),
        "hostile_faults": at_most(len(outcome.faults), 0, "answers"),
        "hostile_unwell": at_most(unwell + (not ok), 0, "times"),
        "hostile_memory_growth": at_most(after / before, 1.5 if count < 1_000 else 1.15, "x"),
    }


def main() -> int:
    small = quick(__doc__)
    recipe, counts = ("starter", (64, 320, 1, 0.4)) if small else ("brivl_b5_base", (64, 320, 3, 0.9))
    with tempfile.TemporaryDirectory(prefix="wenlan-bench-") as name:
        folder = Path(name)
        figures = beside_the_towers(checkpoint_of(recipe, folder / "towers"), *counts)
        figures |= hostile(folder / "hostile", 300 if small else 10_000)
    return report(figures)


if __name__ == "__main__":
    sys.exit(main())
