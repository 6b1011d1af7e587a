"""``tpi run``: answers one prompt or chats, on this device alone or with more processes on it."""

from dataclasses import replace
from typing import Annotated

import typer

from tpi.cli import answers, options
from tpi.cli.display import open_display
from tpi.cli.environment import find_folders
from tpi.cli.models import find_model
from tpi.cli.mpirun import begin_mpi
from tpi.cli.session import open_local
from tpi.cli.terminal import ChatInput, can_chat, read_prompt
from tpi.config import MAX_RANKS, MasterSettings
from tpi.engine.turns import Thinking

_FREE_PART = 0.75


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, a model hub's folder, or `demo`.")],
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPT|-]", help="What to answer; - reads it from standard input; without it: a chat."
        ),
    ] = None,
    max_tokens: answers.MaxTokens = answers.GENERATION.max_tokens,
    temperature: answers.Temperature = None,
    top_p: answers.TopP = None,
    top_k: answers.TopK = None,
    min_p: answers.MinP = None,
    repetition_penalty: answers.RepetitionPenalty = None,
    seed: answers.Seed = None,
    stop: answers.Stop = None,
    raw: answers.Raw = False,
    context: options.Context = None,
    threads: options.Threads = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="What each process may use in all. [default: 3/4 of what is free]"),
    ] = None,
    window: options.Window = None,
    local_devices: Annotated[
        int, typer.Option(min=1, max=MAX_RANKS, help="Work as so many devices, each a process with its own slices.")
    ] = 1,
    shares: options.Shares = None,
    layout: options.Layout = None,
    wire: options.Wire = "f16",
    allreduce: options.Allreduce = None,
    kv_type: options.KvType = "F16",
    quant: options.Quant = None,
    reproducible: options.Reproducible = False,
    pin: options.Pin = None,
    no_repack: options.NoRepack = False,
    trace: options.Trace = None,
    stats: answers.Stats = True,
    json_schema: answers.JsonSchema = None,
    grammar: answers.GrammarFile = None,
    think: answers.Think = None,
    thinking_budget: answers.ThinkingBudget = None,
) -> None:
    """Answer PROMPT, or chat when there is none and this is a terminal.

    The answer goes to standard output, everything else to standard error. Under `mpiexec -n N` the N processes are the
    devices, and MPI carries their sums.
    """
    with begin_mpi(local_devices, allreduce) as mpi:
        n_ranks, n_here = (local_devices, local_devices) if mpi is None else (mpi.n_processes, mpi.n_here)
        resources = options.read_resources(memory, window, threads, n_here, _FREE_PART, not no_repack)
        if mpi is not None and not mpi.is_master:
            mpi.work(find_folders(), resources)
            return
        display, file, system = open_display(), find_model(model), options.read_pinned(pin, raw=raw)
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
        manner = replace(
            answers.read_manner(sampling, max_tokens, stop, raw, stats),
            grammar=answers.read_grammar(json_schema, grammar),
            thinking=Thinking(think, budget_tokens=thinking_budget),
            system=system,
        )
        settings = MasterSettings(
            model=file,
            folders=find_folders(),
            resources=resources,
            n_workers=n_ranks - 1,
            shares=options.read_shares(shares, n_ranks),
            context=options.read_context(context),
            layout=layout,
            wire=wire.lower(),
            allreduce=allreduce,
            kv_type=kv_type.upper(),
            quant=quant,
            is_reproducible=reproducible,
            pins=bool(system),
            trace=trace,
            name="local-0",
        )
        if prompt == "-" or (prompt is None and not can_chat()):
            prompt = read_prompt()
        open_talk = open_local if mpi is None else mpi.open
        with open_talk(settings, manner, display) as talk:
            if prompt is None:
                talk.chat(ChatInput().read_line)
            else:
                talk.answer_once(prompt)
