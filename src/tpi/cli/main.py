"""The command ``tpi``: loads the module of the verb that was asked for, turns its end into an exit code.

Errors are one line on standard error. Exit codes: 0, 1 (an error), 2 (wrong usage), 70 (a defect of this program),
128 + signal. A verb's module is loaded when it is used and not before: a worker must stay small.
"""

import contextlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup

from tpi.cli.environment import find_mpi_place, is_debugging, keep_waiting_short
from tpi.cli.signals import Terminated, ended_by_signals
from tpi.errors import TpiError
from tpi.native.allocator import keep_allocator_small
from tpi.version import VERSION

_USAGE = 2
_DEFECT = 70


@dataclass(frozen=True)
class Verb:
    """A verb's module in this package, whose function ``command`` it is, and its line in the list of verbs."""

    module: str
    summary: str


VERBS = {
    "run": Verb("run", "Answer a prompt or chat, on this device or on several processes of it."),
    "serve": Verb("serve", "Be the master of a cluster: print the join command, wait for devices, answer prompts."),
    "join": Verb("join", "Be a worker of a cluster."),
    "status": Verb("status", "Show the devices of the cluster that runs here, and what each holds, reads and sends."),
    "shard": Verb("shard", "Cut a model into the devices' slices beforehand."),
    "shards": Verb("shards", "List what is kept of models on this disk, and make room."),
    "inspect": Verb("inspect", "Show what a model or shard file holds, and whether it is intact."),
    "devices": Verb("devices", "List the devices that may take part in this master's cluster."),
    "remove": Verb("remove", "Take a device's right to take part away."),
}


class VerbGroup(TyperGroup):
    """The list of verbs, none of them loaded before it is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        module = importlib.import_module(f"tpi.cli.{verb.module}")
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(cmd_name)(module.command)
        return typer.main.get_command(app)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tpi {VERSION}")
        raise typer.Exit


def _tpi(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and end."
    ),
) -> None:
    """Run large language models on several devices that are each too small for them."""


def _invoke(arguments: Sequence[str]) -> int:
    app = typer.Typer(cls=VerbGroup, add_completion=False, rich_markup_mode=None)
    app.callback(no_args_is_help=True)(_tpi)
    command = typer.main.get_command(app)
    try:
        # Not command.main(): that would swallow broken pipes and ends of input, ours and those of defects.
        with command.make_context("tpi", list(arguments)) as context:
            result = command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return result if isinstance(result, int) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line ``arguments`` (default: the process's); returns the exit code."""
    _replace_closed_streams()
    keep_allocator_small()
    keep_waiting_short()
    try:
        with ended_by_signals():
            code = _invoke(sys.argv[1:] if arguments is None else arguments)
            sys.stdout.flush()
            return code
    except TpiError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _explain_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return 128 + signal.SIGINT
    except Terminated as end:
        return end.exit_code
    except BrokenPipeError:  # who read our output has seen enough
        _discard_output()
        return 128 + getattr(signal, "SIGPIPE", 13)
    except OSError as error:  # the output's disk is full, no descriptors are left, ...
        _discard_output()
        if is_debugging():
            traceback.print_exc()
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)
    except Exception as error:
        if is_debugging():
            traceback.print_exc()
        return _fail(f"{_one_line(error)}: this is a defect of tpi; TPI_DEBUG=1 shows where, please report it", _DEFECT)


def _replace_closed_streams() -> None:
    """Python has None for standard streams that are closed; nothing is read there and what is written is lost."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - until the process ends


def _explain_usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the whole help
        print(error.format_message(), file=sys.stderr)
        return 2
    path = context.command_path if context is not None else "tpi"
    return _fail(f"{_one_line(error.format_message()).rstrip('.')}; see `{path} --help`", _USAGE)


def _fail(message: str, code: int) -> int:
    place = find_mpi_place()
    if code == _USAGE and place is not None and place.number_here > 0:  # the first one on this machine says the same
        return code
    with contextlib.suppress(OSError):
        print(f"tpi: {_one_line(message)}", file=sys.stderr, flush=True)
    return code


def _one_line(what: object) -> str:
    """Text without line breaks or what else moves a terminal's cursor; paths and peers' words may hold anything."""
    text = f"{type(what).__name__}: {what}" if isinstance(what, Exception) else str(what)
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def _discard_output() -> None:
    """So that the interpreter's last flush has somewhere to go."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
