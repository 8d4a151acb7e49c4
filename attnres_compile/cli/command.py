"""What every command line of the project shares: a parser, verbs, exit codes, and errors in one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from attnres_compile.cli.progress import progress_bar
from attnres_kernels.errors import AttnResError, section_of

PASSED, FAILED = 0, 1
"""Exit codes; an error of the user or of the machine is FAILED too."""


class CommandParser(argparse.ArgumentParser):
    """Exits with 1 on a usage error: argparse's 2 means "partly rewritten" here."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(FAILED, f"{self.prog}: error: {message}\n")


def add_verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], help_text: str) -> Any:
    """A parser of one verb, which knows ``--traceback`` and ``--quiet``.

    Args:
        verbs: what ``add_subparsers`` returned.
        name: of the verb.
        run: gets the parsed arguments and returns the exit code.
        help_text: of the verb, in one line.
    """
    parser = verbs.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, which only a terminal shows anyway")
    parser.set_defaults(run=run, verb=parser.prog)
    return parser


def add_output(parser: Any) -> None:
    """``-o FILE``."""
    parser.add_argument("-o", "--output", metavar="FILE", help="write there instead of to standard output")


def run_command(parser: argparse.ArgumentParser, words: Sequence[str], name: str) -> int:
    """Run one command line and return its exit code.

    An error of ours is one line on standard error, unless ``--traceback`` asks for all of it.

    Args:
        parser: with verbs made by ``add_verb``.
        words: of the command line, behind the name.
        name: of the command; ``arguments.command`` holds it and the words.
    """
    arguments = parser.parse_args(list(words))
    arguments.command = [*name.split(), *words]
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        with progress_bar(" ".join([arguments.verb, *_subject(arguments)]), arguments.quiet):
            return run(arguments)
    except BrokenPipeError:
        # The reader of a pipe, say `head`, has closed it; what it wanted it has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PASSED
    except Exception as error:
        own = own_error(error)
        if own is None or arguments.traceback:
            raise
        print(f"{parser.prog}: error: {' '.join(own.message.split())} (see {section_of(type(own))})", file=sys.stderr)
        return FAILED


def _subject(arguments: argparse.Namespace) -> list[str]:
    """The model or the file that a verb is about, for the bar."""
    named = getattr(arguments, "model", None) or getattr(arguments, "file", None)
    return [] if named is None else [named]


def own_error(error: BaseException) -> AttnResError | None:
    """The error of ours that ``error`` is, or that the compiler wrapped in it; else None."""
    if isinstance(error, AttnResError):
        return error
    inner = getattr(error, "inner_exception", None) or error.__cause__
    return None if inner is None else own_error(inner)
