"""Help of both command lines: colours and examples, --version, and shell completion.

argparse declares the commands, rich-argparse colours their help on a terminal, and argcomplete completes words in
a shell; DECISIONS.md says why not another library.
"""

from __future__ import annotations

import argparse
import difflib
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich_argparse import RawDescriptionRichHelpFormatter

from data_specs.command.ownership import DISTRIBUTION

Completer = Callable[..., Iterable[str]]
"""Called by argcomplete with prefix, action, parser and parsed_args; returns the words that may stand there."""


class UsageError(Exception):
    """Arguments that argparse refused, after printing the usage to stderr. `str(e)` is argparse's error line."""


class HelpFormatter(RawDescriptionRichHelpFormatter):
    """Colours on a terminal; descriptions and examples as they are written, and square brackets as plain text."""

    group_name_formatter = str  # "options:", as argparse has it
    highlights = [*RawDescriptionRichHelpFormatter.highlights, r"(?m)^(?P<groups>examples:)$"]  # noqa: RUF012
    text_markup = False
    help_markup = False


class Parser(argparse.ArgumentParser):
    """An argparse parser, with its subparsers, that shows examples and raises UsageError instead of ending the process.

    examples: whole command lines, shown at the end of the help; a test parses each of them.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_help(self) -> str:
        text, self.epilog = self.epilog, "\n".join(self._epilog()) or None
        try:
            return super().format_help()
        finally:
            self.epilog = text

    def _epilog(self) -> list[str]:
        told = [self.epilog.rstrip(), ""] if self.epilog else []
        return [*told, "examples:", *(f"  {line}" for line in self.examples)] if self.examples else told

    def error(self, message: str) -> NoReturn:
        self.formatter_class = argparse.HelpFormatter  # colours follow stdout, and this goes to stderr
        self.print_usage(sys.stderr)
        raise UsageError(f"{self.prog}: error: {message}{_suggestion(message)}")


_CHOICES = re.compile(r"invalid choice: '(.*?)' \(choose from (.*)\)")


def _suggestion(message: str) -> str:
    """`; did you mean plan?` behind argparse's line about an unknown word, where a choice is similar."""
    wrong = _CHOICES.search(message)
    known = re.findall(r"[\w-]+", wrong[2]) if wrong else []
    near = difflib.get_close_matches(wrong[1], known, n=1) if wrong else []
    return f"; did you mean {near[0]}?" if near else ""


class VersionAction(argparse.Action):
    """--version: prints the versions of wenlan, Python, and Ray and torch where they are installed."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str = "show versions and exit") -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(f"{versions()}\n")
        parser.exit()


def versions() -> str:
    """Returns installed versions from package metadata, without imports."""
    parts = [f"Python {platform.python_version()}"]
    parts += [f"{name} {version}" for name in ("ray", "torch") if (version := _version(name))]
    return f"{DISTRIBUTION} {_version(DISTRIBUTION) or '(not installed)'} ({', '.join(parts)})"


def _version(distribution: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell's completion request and exit; return at once without a request."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def completed_by(action: argparse.Action, completer: Completer) -> None:
    """Let a shell complete an argument from the words that `completer` returns; without one it offers files."""
    action.completer = completer  # type: ignore[attr-defined]  # where argcomplete looks for it


def plugin_files(folder: Path) -> list[str]:
    """Names of the plug-ins whose files lie in a folder, sorted: a completion imports none of them."""
    return sorted(path.stem for path in folder.glob("[!_]*.py"))


def files_like(prefix: str, suffixes: tuple[str, ...]) -> list[str]:
    """Files with one of the suffixes, and folders, whose path begins with `prefix`."""
    from argcomplete.completers import FilesCompleter

    return list(FilesCompleter(suffixes)(prefix))
