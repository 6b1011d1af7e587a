"""``tpi serve``: the master of a cluster of real devices; answers prompts of its own terminal or standard input."""

import sys
from typing import Annotated

import typer

from tpi.cli import answers, options
from tpi.cli.display import Display, open_display
from tpi.cli.environment import find_folders
from tpi.cli.models import find_model
from tpi.cli.session import open_served
from tpi.cli.terminal import ChatInput, can_chat
from tpi.cluster.master import Master
from tpi.config import DEFAULT_PORT, MAX_RANKS, MasterSettings
from tpi.engine.settings import SamplingSettings


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file (the first of a split one), or `demo`.")],
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
    no_repack: options.NoRepack = False,
    trace: options.Trace = None,
    max_tokens: answers.MaxTokens = answers.GENERATION.max_tokens,
    temperature: answers.Temperature = answers.SAMPLING.temperature,
    top_p: answers.TopP = answers.SAMPLING.top_p,
    top_k: answers.TopK = answers.SAMPLING.top_k,
    min_p: answers.MinP = answers.SAMPLING.min_p,
    repetition_penalty: answers.RepetitionPenalty = answers.SAMPLING.repetition_penalty,
    seed: answers.Seed = None,
    stop: answers.Stop = None,
    raw: answers.Raw = False,
    stats: answers.Stats = True,
) -> None:
    """Be the master of a cluster.

    Prints the command that the other devices join with, waits for --workers of them, gives each its slices of the
    model, and answers prompts: as a chat on a terminal, otherwise every line of standard input for itself, until it
    ends.
    """
    sampling = SamplingSettings(temperature, top_k, top_p, min_p, repetition_penalty, seed=seed)
    manner = answers.read_manner(sampling, max_tokens, stop, raw, stats)
    options.refuse_mpi(allreduce)
    settings = MasterSettings(
        model=find_model(model),
        folders=find_folders(),
        resources=options.read_resources(memory, window, threads, repack=not no_repack),
        n_workers=workers,
        wait_s=wait,
        shares=options.read_shares(shares, workers + 1),
        context=context,
        layout=layout,
        wire=wire.lower(),
        allreduce=allreduce,
        kv_type=kv_type.upper(),
        trace=trace,
        bind=bind,
        port=port,
        name=options.device_name(name),
    )
    display = open_display()
    with open_served(settings, manner, display, lambda master: _announce(master, workers, display)) as talk:
        if can_chat():
            talk.chat(ChatInput().read_line)
        else:
            talk.answer_lines(sys.stdin)


def _announce(master: Master, n_workers: int, display: Display) -> None:
    where = ", ".join(str(address) for address in master.addresses)
    display.note(f"listening at {where}")
    if n_workers:
        others = "the other device" if n_workers == 1 else f"each of the {n_workers} other devices"
        display.note(f"On {others}, run this (the key admits devices: give it to nobody else):\n")
        display.note(f"    tpi join {master.join_key}\n")
