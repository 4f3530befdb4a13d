"""`wenlan-data studio`: a local web page to browse all candidates of a build and to sign it off."""

from __future__ import annotations

import argparse
import contextlib
import errno
import socket
import threading
import webbrowser
from typing import Any

from data_specs.errors import SpecError
from pipeline.commands.terminal import Commands, command, say

PORT = 8765
"""Default port; another one if that is taken."""


AFTER_S = 2.0
"""Seconds after which it prepares what needs a join, if nothing is prepared yet."""


def add_studio(commands: Commands) -> None:
    studio = command(
        commands,
        "studio",
        _studio,
        "browse all candidates of a build, kept or dropped; approve the build, or take samples down",
        "wenlan-data studio builds/1",
        "wenlan-data studio store/datasets/my-first/latest.json --no-browser",
        "wenlan-data studio --index builds",
    )
    studio.add_argument("place", nargs="?", default="", metavar="BUILD|RELEASE", help="folder of a build, or a release")
    studio.add_argument(
        "--index",
        default="",
        metavar="DIR",
        help="with BUILD: its search index (default: BUILD/index); without: a search index, or a folder of builds",
    )
    studio.add_argument(
        "--baseline",
        default="",
        metavar="BUILD",
        help="build to compare with, to mark new candidates (default: the baseline of the report)",
    )
    studio.add_argument(
        "--port", type=int, default=None, metavar="N", help=f"port on 127.0.0.1 (default: {PORT}, or a free one)"
    )
    studio.add_argument("--no-browser", action="store_true", help="print the link without opening a browser")


def _studio(args: argparse.Namespace) -> dict[str, Any]:
    from data_specs.command.extras import require
    from data_specs.web.http_app import new_token
    from pipeline.files.folder import Folder
    from pipeline.stages import STAGES

    for package in ("duckdb", "fastapi", "uvicorn"):
        require(package)
    from pipeline.studio.server import Studio, serve

    if not args.place and not args.index:
        raise SpecError(["studio: give a BUILD or RELEASE, or --index DIR"])
    if args.port is not None and not 0 <= args.port < 1 << 16:
        raise SpecError([f"--port {args.port}: must be 0 to 65535; 0 chooses a free one"])
    alone = "" if args.place or not args.index else args.index
    folder = bool(alone) and not Folder(alone).exists("index.json")
    where, index = (args.place, args.index) if args.place else (alone, "") if folder else ("", alone)
    with contextlib.closing(_bound(args.port)) as sock:
        studio = Studio(where, STAGES, baseline=args.baseline, index=index, folder=folder)
        with contextlib.closing(studio):
            token, once = new_token(), new_token()
            link = f"http://127.0.0.1:{sock.getsockname()[1]}/?token="
            say(f"studio of {where or index}: {link}{token}")
            say("only this machine can open it, and only with this link; press Ctrl-C to stop")
            studio.start(AFTER_S)
            if not args.no_browser:  # one on the terminal is waited for until a person leaves it
                threading.Thread(target=webbrowser.open, args=(f"{link}{once}",), daemon=True).start()
            serve(studio, sock, token, [] if args.no_browser else [once])
    return {"place": where or index}


def _bound(port: int | None) -> socket.socket:
    """A socket on loopback. Raises OSError where the port that was asked for is taken."""
    for number in [PORT, 0] if port is None else [port]:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", number))
        except OSError as e:
            sock.close()
            if port is None and number:
                continue
            hint = f"{e.strerror}; use --port 0 to choose a free one" if e.errno == errno.EADDRINUSE else e.strerror
            raise OSError(e.errno, hint, f"--port {number}") from None
        sock.listen(128)  # who follows the link before the server answers waits, and is not refused
        return sock
    raise AssertionError("port 0 is always free")
