"""``tpi serve``: the master of a cluster of real devices; answers prompts of its own terminal or standard input."""

import contextlib
import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tpi.cli import answers, options
from tpi.cli.display import Display, open_display
from tpi.cli.environment import find_folders
from tpi.cli.models import find_model, model_name
from tpi.cli.secretfile import keep_from_log
from tpi.cli.session import open_served
from tpi.cli.terminal import ChatInput, can_chat
from tpi.cluster.master import Master
from tpi.config import DEFAULT_API_PORT, DEFAULT_PARALLEL, DEFAULT_PORT, MAX_PARALLEL, MAX_RANKS, MasterSettings
from tpi.errors import UsageError


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, a model hub's folder, or `demo`.")],
    workers: Annotated[int, typer.Option(min=0, max=MAX_RANKS - 1, help="Wait for so many other devices.")] = 1,
    wait: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Give up after so long. [default: never]")
    ] = None,
    shares: options.Shares = None,
    memory: options.Memory = None,
    window: options.Window = None,
    context: options.Context = None,
    threads: options.Threads = None,
    bind: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen at.")] = MasterSettings.bind,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen at; 0: any.")] = DEFAULT_PORT,
    name: options.Name = None,
    layout: options.Layout = None,
    wire: options.Wire = "f16",
    allreduce: options.Allreduce = None,
    kv_type: options.KvType = "F16",
    quant: options.Quant = None,
    reproducible: options.Reproducible = False,
    pin: options.Pin = None,
    no_repack: options.NoRepack = False,
    trace: options.Trace = None,
    api: Annotated[
        bool,
        typer.Option(
            "--api/--no-api", help="Answer the APIs of OpenAI, Ollama, Anthropic and llama.cpp beside the terminal."
        ),
    ] = True,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where the API listens; one that others reach demands a key.")
    ] = "127.0.0.1",
    api_port: Annotated[int, typer.Option(min=0, max=65535, help="The API's port; 0: any.")] = DEFAULT_API_PORT,
    api_key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="What callers of the API must show; repeatable.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keys of callers, one a line, each after a name if you like.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Speak HTTPS, with this certificate and its chain (PEM).")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate's key. [default: it is in --tls-cert]")
    ] = None,
    access_log: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A line per request, without what was said; - for standard error. [default: - without a chat]",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="A page that may ask the API, * for all; repeatable.")
    ] = None,
    ollama_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="A second port, for tools that look for Ollama at 11434.")
    ] = None,
    slot_folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where callers of the API may save what is kept of a slot's text."),
    ] = None,
    any_model: Annotated[bool, typer.Option("--any-model", help="Take any model's name in requests.")] = False,
    parallel: Annotated[
        int, typer.Option(min=1, max=MAX_PARALLEL, help="So many answers at once, which share the context's cells.")
    ] = DEFAULT_PARALLEL,
    max_tokens: answers.MaxTokens = answers.GENERATION.max_tokens,
    temperature: answers.Temperature = None,
    top_p: answers.TopP = None,
    top_k: answers.TopK = None,
    min_p: answers.MinP = None,
    repetition_penalty: answers.RepetitionPenalty = None,
    seed: answers.Seed = None,
    stop: answers.Stop = None,
    raw: answers.Raw = False,
    stats: answers.Stats = True,
) -> None:
    """Be the master of a cluster.

    Prints the command that the other devices join with, waits for --workers of them, gives each its slices of the
    model, and answers: a chat on its terminal, if it has one, and the API beside it, until it is told to end. With
    --no-api and without a terminal it answers every line of standard input for itself, until that ends. Keys are shown
    on a terminal only: a log names the file, of yours alone, that holds them.
    """
    if slot_folder is not None and not api:
        raise UsageError(f"--slot-folder {slot_folder} is of no use with --no-api: nobody could ask for a save")
    display, file, system = open_display(), find_model(model), options.read_pinned(pin, raw=raw and not api)
    sampling = answers.read_sampling(
        file,
        display,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    manner = replace(answers.read_manner(sampling, max_tokens, stop, raw, stats), system=system)
    options.refuse_mpi(allreduce)
    settings = MasterSettings(
        model=file,
        folders=find_folders(),
        resources=options.read_resources(memory, window, threads, repack=not no_repack),
        n_workers=workers,
        wait_s=wait,
        shares=options.read_shares(shares, workers + 1),
        context=options.read_context(context),
        n_parallel=parallel if api else 1,
        layout=layout,
        wire=wire.lower(),
        allreduce=allreduce,
        kv_type=kv_type.upper(),
        quant=quant,
        is_reproducible=reproducible,
        pins=bool(system),
        trace=trace,
        bind=bind,
        port=port,
        name=options.device_name(name),
        slot_folder=None if slot_folder is None else options.own_folder(slot_folder, "--slot-folder"),
    )

    def announce(master: Master) -> None:
        _announce(master, workers, settings.folders.state, display)

    if not api:
        with open_served(settings, manner, display, announce) as talk:
            if can_chat():
                talk.chat(ChatInput().read_line)
            else:
                talk.answer_lines(sys.stdin)
        return
    service = importlib.import_module("tpi.cli.service")  # a web server, which nobody else needs
    if tls_key is not None and tls_cert is None:
        raise UsageError(f"--tls-key {tls_key} is of no use alone: add its certificate with --tls-cert")
    log = access_log or (None if can_chat() else "-")
    asked = service.ApiOptions(
        host=host,
        port=api_port,
        state=settings.folders.state,
        model=model_name(settings.model),
        keys=service.gather_keys(api_key or (), api_key_file),
        cors_origins=tuple(cors or ()),
        takes_any_name=any_model,
        ollama_port=ollama_port,
        access_log=Path(log) if log is not None else None,
        certificate=tls_cert,
        certificate_key=tls_key,
        slot_folder=settings.slot_folder,
    )
    with (
        contextlib.closing(service.Api(asked, sampling, display)) as opened,
        open_served(settings, manner, display, announce, opened.open) as talk,
    ):
        if can_chat():
            talk.chat(ChatInput().read_line)
        else:
            opened.wait()


def _announce(master: Master, n_workers: int, state: Path, display: Display) -> None:
    where = ", ".join(str(address) for address in master.addresses)
    display.note(f"listening at {where}")
    if not n_workers:
        return
    others = "the other device" if n_workers == 1 else f"each of the {n_workers} other devices"
    if (file := keep_from_log("join-key", master.join_key, state)) is not None:
        display.note(f"the join key is in {file} (it admits devices: give it to nobody else)")
        display.note(f"Copy that file to {others}, and run this there:\n")
        display.note(f"    tpi join --key-file {file.name}\n")
    else:
        display.note(f"On {others}, run this (the key admits devices: give it to nobody else):\n")
        display.note(f"    tpi join {master.join_key}\n")
