"""The command `serve`."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.commands.options import add_json, path
from training.errors import ConfigError

if TYPE_CHECKING:
    from training.outputs.checkpoint import Checkpoint
    from training.serve.options import Options
    from training.serve.towers import Towers

LOG = logging.getLogger("training")

_TOKEN = "WENLAN_TOKEN"
_BUILD_TIME = re.compile(r"(-\d{4}-\d\d-\d\d(-\d+)?)?-[0-9a-f]{8}(-g\d+)?(?=,|$)")
"""The end of a build's id, behind its dataset's name."""


def add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve a checkpoint over HTTP: embeddings, search, and a web page",
        description="Serves WenLan's released API, OpenAI's /v1/embeddings, clip-retrieval's /knn-service, and a "
        "page at /. SIGTERM stops it after the requests in flight. Pictures are sent as bytes or data URIs; no URL is "
        "ever fetched. Needs the extra serve.",
        examples=[
            "wenlan-train serve runs/1 --data builds/1",
            "wenlan-train serve runs/1 --index photos=indexes/photos --port 8080 --token-file token.txt",
        ],
    )
    serve.add_argument("checkpoint", type=path, metavar="CHECKPOINT", help="a checkpoint, or a run's folder")
    serve.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="DATA",
        help="manifests or tars to search; samples missing from the run's index are embedded first",
    )
    serve.add_argument(
        "--index",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="an index made by embed --index; may be given several times",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine)")
    serve.add_argument("--port", type=int, default=8000, help="port (default 8000; 0 for any free one)")
    serve.add_argument(
        "--token-file",
        type=path,
        metavar="FILE",
        help=f"file with the token that every request must send as Bearer token (default: the variable {_TOKEN})",
    )
    serve.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="also accept this Host header")
    serve.add_argument("--insecure", action="store_true", help="allow access from a network without a token")
    serve.add_argument(
        "--model-name", default="", metavar="NAME", help="name in /v1/models (default: the run's folder)"
    )
    serve.add_argument("--engine", default="auto", choices=["auto", "onnx", "torch"], help="runtime of the towers")
    serve.add_argument("--device", default="auto", help="device of the engine torch: auto (default), cpu or cuda")
    serve.add_argument(
        "--detector",
        default="",
        metavar="NAME",
        help="for pictures without boxes: grid, a detector, or a spec (.yaml) of it (default: the checkpoint's)",
    )
    serve.add_argument(
        "--replicas", type=int, metavar="N", help="replicas of the towers on Ray Serve, here or at RAY_ADDRESS"
    )
    serve.add_argument("--batch", type=int, default=16, metavar="N", help="most inputs computed at once (default 16)")
    serve.add_argument("--gather-ms", type=float, default=50.0, metavar="MS", help="wait for a batch to fill")
    serve.add_argument(
        "--request-s", type=float, default=60.0, metavar="S", help="time limit of an answer (default 60)"
    )
    serve.add_argument("--health-s", type=float, default=10.0, metavar="S", help="time limit of a probe (default 10)")
    serve.add_argument("--per-minute", type=int, metavar="N", help="requests per client (default: unlimited)")
    serve.add_argument("--body-mb", type=int, default=32, metavar="MB", help="largest request body (default 32)")
    serve.add_argument("--max-pixels", type=int, default=50_000_000, metavar="N", help="largest picture")
    add_json(serve)
    serve.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> dict[str, Any]:
    token = _token(arguments.token_file)
    hosts = _hosts(arguments, token)
    import fastapi  # noqa: F401  which is missing where the extra is

    from data_specs.storage.object_store import limit_attempts
    from training.outputs.checkpoint import TOWERS, open_checkpoint
    from training.serve.app import application, with_request_limits
    from training.serve.galleries import Galleries, open_collections
    from training.serve.options import Options
    from training.serve.server import accept, listen, run
    from training.serve.service import Service
    from training.serve.towers import boxes_by
    from training.use.detector import ProcessLocalDetector, choose_detector

    options = Options(
        batch=_positive("--batch", arguments.batch),
        gather_ms=arguments.gather_ms,
        request_s=_positive("--request-s", arguments.request_s),
        health_s=_positive("--health-s", arguments.health_s),
        per_minute=None if arguments.per_minute is None else _positive("--per-minute", arguments.per_minute),
        body_mb=_positive("--body-mb", arguments.body_mb),
        pixels=_positive("--max-pixels", arguments.max_pixels),
    )
    with listen(arguments.host, arguments.port) as bound:
        checkpoint = open_checkpoint(arguments.checkpoint, TOWERS)
        of_data = [_embed_data(checkpoint, arguments)] if arguments.data else []
        given = open_collections([*of_data, *arguments.index], checkpoint)
        limit_attempts()  # of what lies on an object store, from here on pictures alone
        name, port = arguments.model_name or _run_folder(arguments.checkpoint).name, bound.getsockname()[1]
        detector, regions = choose_detector(checkpoint.detector, arguments.detector, None)
        boxes_of = None if detector is None else boxes_by(ProcessLocalDetector(detector))
        LOG.info("boxes for pictures without any: %s", regions)
        with _towers(checkpoint, arguments, options) as (towers, threads):
            service = Service(name, checkpoint, towers, options, threads, boxes_of)
            app = with_request_limits(application(service, Galleries(service, given)), service, token, hosts)
            accept(bound, options)  # who follows the address before the server answers waits
            LOG.info("%s on http://%s:%d (Ctrl-C stops it)", name, arguments.host, port)
            run(app, bound, options)
    return {"checkpoint": str(checkpoint.folder), "port": port}


def _embed_data(checkpoint: Checkpoint, arguments: argparse.Namespace) -> str:
    """`--index` argument for the index of `--data` in the run's folder, which it brings up to date.

    Each input has a folder of its own, and so has each state of the towers: vectors of two cannot be compared.
    """
    from data_specs.search.folder import read_index
    from training.use.indexing import Inputs, embed_index

    data = [name if "://" in name else str(Path(name).resolve()) for name in arguments.data]
    digest = hashlib.sha256("\n".join([checkpoint.towers, arguments.detector, *data]).encode()).hexdigest()
    folder = _run_folder(arguments.checkpoint) / f"index-{digest[:8]}"
    LOG.info("%s: index of %s", folder, " ".join(arguments.data))
    embed_index(
        checkpoint.folder, Inputs(data=tuple(data)), folder, detector=arguments.detector, device=arguments.device
    )
    name = re.sub(r"[\s/\\?#%=]+", "-", _BUILD_TIME.sub("", read_index(folder).about.name))
    return f"{name[:80]}={folder}"


@contextlib.contextmanager
def _towers(checkpoint: Checkpoint, arguments: argparse.Namespace, options: Options) -> Iterator[tuple[Towers, int]]:
    """The towers, and how many threads may call them."""
    engine, device, count = arguments.engine, arguments.device, arguments.replicas
    if count is None:
        from training.serve.towers import open_towers

        yield open_towers(checkpoint, engine, device), 1
        return
    from training.serve.replicas import replicas

    with replicas(checkpoint.folder, engine, device, _positive("--replicas", count), options.request_s) as towers:
        yield towers, count


def _token(file: Path | None) -> str | None:
    """The token of a file or the environment. Raises ConfigError for one that is not a token."""
    where = str(file) if file else _TOKEN
    text = file.read_text(encoding="utf-8", errors="replace").strip() if file else os.environ.get(_TOKEN, "").strip()
    if not text and file is None:
        return None
    if len(text) < 16 or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(where, "a token is one line of at least 16 ASCII characters without spaces")
    return text


def _hosts(arguments: argparse.Namespace, token: str | None) -> tuple[str, ...]:
    """Names that the Host header may have. Raises ConfigError for a network without a token."""
    from data_specs.web.http_app import LOOPBACK, is_loopback

    named: tuple[str, ...] = tuple(arguments.allow_host)
    if is_loopback(arguments.host):
        return (*LOOPBACK, *named)
    if token is None and not arguments.insecure:
        problem = f"{arguments.host} is open to the network; give --token-file, or --insecure to serve everyone"
        raise ConfigError("--host", problem)
    return named or ("*",)


def _run_folder(checkpoint: Path) -> Path:
    """A run's folder, also of one of its checkpoints."""
    folder = checkpoint.resolve()
    return folder.parent.parent if folder.parent.name == "checkpoints" else folder


def _positive(option: str, number: Any) -> Any:
    if not number > 0:  # nor is NaN
        raise ConfigError(option, f"{number} is out of range; it must be above 0")
    return number
