"""``tpi join``: this device works in a cluster until its master ends. Imports nothing that only masters need.

Its own threads: with ``--while-stdin``, one that waits for the end of standard input and then ends the process.
"""

import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from tpi.cli import options
from tpi.cli.display import PlainDisplay
from tpi.cli.environment import JOIN_KEY, find_folders, join_key
from tpi.cli.models import find_model
from tpi.cli.terminal import MAX_LINE_BYTES, read_first_line
from tpi.cluster.worker import run_worker
from tpi.config import Folders, WorkerSettings
from tpi.errors import PairingError, UsageError
from tpi.runtime.ggml.probe import probe_kernels

_END_S = 3.0


def command(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY|-]", help="The join key; - reads it from standard input.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Read the join key from FILE.")] = None,
    master: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the master is, if the key's addresses do not fit.")
    ] = None,
    memory: options.Memory = None,
    window: options.Window = None,
    threads: options.Threads = None,
    shard: Annotated[Path | None, typer.Option(metavar="FILE", help="Use this shard, made by `tpi shard`.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Cut the slices from this copy of the model, or from `demo`.")
    ] = None,
    no_repack: options.NoRepack = False,
    name: options.Name = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port at which other workers call this device; 0: any.")
    ] = 0,
    while_stdin: Annotated[bool, typer.Option("--while-stdin", hidden=True)] = False,
    state: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Be a worker of a cluster: find the master, fetch this device's slices of the model, work until the master ends.

    The join key, which `tpi serve` prints on the master, comes as KEY, from standard input (-), from --key-file, or
    from the environment variable TPI_JOIN_KEY. The slices stay on this device's disk for the next time.
    """
    if shard is not None and model is not None:
        raise UsageError("--shard and --model exclude each other: a shard needs no model")
    folders = find_folders()
    settings = WorkerSettings(
        key=_find_key(key, key_file),
        folders=folders if state is None else Folders(state, folders.shards, folders.cache),
        resources=options.read_resources(memory, window, threads, repack=not no_repack),
        master=master,
        shard=shard,
        model=None if model is None else find_model(model),
        name=options.device_name(name),
        port=port,
    )
    if while_stdin:
        end_with_stdin()
    display = PlainDisplay()
    probe_kernels(folders.cache).require(())
    run_worker(settings, display.report)
    display.note("the master has ended the session")


def _find_key(argument: str | None, file: Path | None) -> str:
    """The join key's text, from the one place that has it."""
    if argument is not None and file is not None:
        raise UsageError("a join key and --key-file exclude each other")
    if file is not None:
        return _read_key_file(file)
    if argument is None:
        argument = join_key()
    elif argument == "-":
        argument = read_first_line()
        if not argument:
            raise UsageError("there is no join key on standard input: send one line with the key")
    if argument is None:
        raise UsageError(
            "there is no join key: copy it from `tpi serve` and give it as argument, on standard input (-), in a file "
            f"(--key-file FILE), or in the environment variable {JOIN_KEY}"
        )
    return argument


def _read_key_file(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_LINE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read --key-file {file}: {error.strerror}") from error
    if len(data) > MAX_LINE_BYTES:
        raise PairingError(f"--key-file {file} has more than {MAX_LINE_BYTES} bytes: no join key is so long")
    return data.decode("utf-8", "replace").strip()


def end_with_stdin(descriptor: int = 0) -> None:
    """From now on the process ends when its standard input does: who started it is gone, or wants it to end."""

    def watch() -> None:
        try:
            while os.read(descriptor, 4096):
                pass
        except OSError:
            pass
        # In the main thread, through its context managers; and if something holds that up, anyway.
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(_END_S)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="tpi-stdin", daemon=True).start()
