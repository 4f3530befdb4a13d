"""`wenlan-data init`: writes the spec of a new dataset, from its input or from answers on a terminal.

It guesses what it can see (`pipeline.commands.guesses`), says what it guessed and why, and asks on a terminal for the
rest. The spec is checked before it is written.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from data_specs.errors import SpecError
from data_specs.names import NAME, SOURCE_KINDS
from pipeline.commands.terminal import Commands, command, console, say

UNKNOWN = "not stated"
"""Contact of a spec whose build sends no request, if none was given."""


def add_init(commands: Commands) -> None:
    init = command(
        commands,
        "init",
        _init,
        "inspect the input and write the spec of a new dataset",
        "wenlan-data init --from photos/",
        "wenlan-data init --from table.parquet shards/*.tar --contact https://example.org/our-crawler",
        "wenlan-data init --from https://news.example.org/ --contact crawler@example.org --out news.yaml",
    )
    init.add_argument(
        "--from",
        dest="inputs",
        nargs="+",
        action="extend",
        default=[],
        metavar="INPUT",
        help="folders of pictures with captions, tables (.parquet .csv .tsv .jsonl) of image URLs or posts, tars "
        "(webdataset), WARC and WACZ files, URLs of web sites (pages of one host become one source)",
    )
    init.add_argument("--name", default="", help="name of the dataset (default: from the first input)")
    init.add_argument("--contact", default="", help="URL or e-mail address for site owners, needed to use the web")
    init.add_argument("--licence", default="", metavar="TEXT", help="terms of use of the dataset, for its card")
    init.add_argument("--description", default="", metavar="TEXT", help="description of the dataset, for its card")
    init.add_argument("--source-kind", choices=SOURCE_KINDS, help="kind of source (default: guessed)")
    init.add_argument("--out", default="", metavar="FILE", help="spec to write (default: NAME.yaml)")
    init.add_argument("--all", action="store_true", help="also write every other option, as a comment with its meaning")
    init.add_argument("--force", action="store_true", help="overwrite an existing file")


def _init(args: argparse.Namespace) -> dict[str, Any]:
    import dataclasses

    from pipeline.commands.drafts import draft, spec_text
    from pipeline.commands.guesses import look

    asking = console.is_terminal and sys.stdin.isatty()
    inputs = args.inputs
    if asking and not inputs:
        answer = _asked("Input: folder, table, tars, WARC files or URL")
        try:
            inputs = shlex.split(answer)
        except ValueError as e:
            raise SpecError([f"init: {answer}: {e}"]) from None
    if not inputs:
        raise SpecError(["init: --from INPUT is required, for example: wenlan-data init --from photos/"])
    sources = look(inputs)
    if args.source_kind:
        sources = [dataclasses.replace(source, source_kind=args.source_kind) for source in sources]
    name = _dataset_name(args.name or (_asked("Name of the dataset", sources[0].name) if asking else sources[0].name))
    out = Path(args.out or f"{name}.yaml")
    if out.exists() and not args.force:
        raise SpecError([f"{out}: already exists; use --force to overwrite it, or --out FILE for another name"])
    web = any(source.asks and not source.archived for source in sources)
    contact = args.contact or (_asked("Contact for site owners (URL or e-mail address)") if asking and web else "")
    if not contact and web:
        raise SpecError(["init: --contact is required, since a build sends requests to sites: a URL or e-mail address"])
    licence = args.licence or (_asked("Licence of the dataset", "") if asking else "")
    told = draft(
        sources, out.parent, name=name, contact=contact or UNKNOWN, licence=licence, description=args.description
    )
    _write(out, spec_text(told, args.all))
    for source in sources:
        say(f"source {source.name}, kind {source.kind}")
        for why in source.why:
            say(f"  {why}")
    for own in (own for own in told.filters if own.doubtful):
        say(f"warning: filter {own.name}: {own.why}; remove it from the spec to keep them")
    say(f"written: {out}")
    shell = shlex.quote(str(out))
    say(f"next: wenlan-data plan {shell}")
    say(f"then: wenlan-data build {shell} --out builds/{name} --store store")
    guessed = [{"kind": s.kind, "name": s.name, "source_kind": s.source_kind, "why": list(s.why)} for s in sources]
    return {"spec": str(out), "name": name, "sources": guessed, "next": ["wenlan-data", "plan", str(out)]}


def _asked(question: str, default: str | None = None) -> str:
    """The answer to a question on the terminal, asked again while it is empty, without a default."""
    from rich.prompt import Prompt

    try:
        while True:
            answer = Prompt.ask(question, console=console, default=default, show_default=bool(default)) or ""
            if answer.strip() or default is not None:
                return answer.strip()
    except EOFError:
        raise SpecError([f"init: no answer to: {question}; for the options see wenlan-data init --help"]) from None


def _dataset_name(name: str) -> str:
    if not re.fullmatch(NAME, name):
        raise SpecError([f"--name {name}: use lower-case letters, digits, - and _ only (for file names)"])
    return name


def _write(out: Path, text: str) -> None:
    """Write a spec that a build accepts. Raises SpecError for one that it would not, and leaves no file then."""
    from pipeline import plugins

    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        plugins.load(part)
        part.replace(out)
    except OSError as e:
        raise SpecError([f"{out}: cannot be written: {e.strerror}"]) from None
    except SpecError as e:
        raise SpecError([problem.replace(str(part), str(out), 1) for problem in e.problems]) from None
    finally:
        part.unlink(missing_ok=True)
