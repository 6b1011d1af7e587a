"""What ``tpi inspect --memory`` shows: the memory plan of one rank, made as the rank itself makes it.

Imports what the rank's verb imports and opens its tokenizer, so that this process is as large as that rank's; KV cache,
activations and window are only counted. Main thread.
"""

import importlib
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tpi.cli.figures import size
from tpi.cluster.control.messages import Plan
from tpi.cluster.epoch.cells import most_cells, n_cells_of
from tpi.cluster.epoch.footprint import Claim, chunk_tokens, needs_of, piece_sizes
from tpi.cluster.epoch.host import piece_bytes_of
from tpi.cluster.epoch.planning import FIRST_EPOCH, MAX_SAMPLED, kv_type_of
from tpi.cluster.epoch.rankplan import rank_model, rank_settings
from tpi.cluster.transfer.stock import find_repacker
from tpi.config import AUTO, DEFAULT_CHUNK_TOKENS, ContextSize, Resources
from tpi.errors import MemoryBudgetError
from tpi.gguf.reader import Gguf
from tpi.hub.reader import path_of
from tpi.model.partition import Partition
from tpi.model.spec import ModelSpec
from tpi.native.allocator import give_back_freed
from tpi.native.libraries import load_ggml
from tpi.observe import resident_bytes
from tpi.planner.memory import MemoryPlan, Needs, minimum_bytes, plan_memory
from tpi.runtime.passes import TILED_TOKENS
from tpi.runtime.rankmodel import RankModel
from tpi.runtime.workspace import Workspace
from tpi.weights.stored import StoredWeights, lies_in_gguf, stored_from_gguf
from tpi.weights.streaming.pins import PieceSizes


@dataclass(frozen=True)
class RankOfModel:
    """A rank of a partition. ``gguf`` None: only its shard is at hand."""

    spec: ModelSpec
    partition: Partition
    rank: int
    gguf: Gguf | None


@dataclass(frozen=True)
class MemoryQuestion:
    """Whose memory, and with what; ``resources`` have a limit."""

    of: RankOfModel
    resources: Resources
    context: ContextSize
    kv_type: str
    cache: Path


def memory_facts(question: MemoryQuestion) -> dict[str, Any]:
    """The plan, by names as they are shown, in bytes. Where the limit is too small, the plan for the minimum, and what
    the rank would say under ``refused``.

    Raises:
        UsageError: the model has no such context or KV cache.
        ModelFileError, UnsupportedModelError: the model has no tokenizer that can be used.
    """
    resources, limit = question.resources, question.resources.memory_bytes
    assert limit is not None
    with ExitStack() as stack:
        tokenizer_bytes = _become(question.of, stack)
        plan = _plan(question)
        model = rank_model(plan)
        whole = _whole(question.of, model)
        repacker = find_repacker(model, resources, question.cache)
        if repacker is not None:
            stack.enter_context(repacker)
        pieces = piece_bytes_of(model, None if repacker else whole)
        process_bytes, settings = resident_bytes(), rank_settings(plan, resources.n_threads)
        claim = Claim(model, pieces, process_bytes, limit, resources.window_bytes)
        if question.context == AUTO:
            n_cells = most_cells([claim], settings, n_cells_of(None, plan.spec), repacker)
            settings = replace(settings, n_cells=n_cells, max_tokens=min(settings.max_tokens, n_cells))
        settings = replace(settings, max_tokens=chunk_tokens([claim], settings, repacker))

        def needs_with(max_tokens: int) -> Needs:
            with Workspace(model, replace(settings, max_tokens=max_tokens), repacker) as workspace:
                return needs_of(workspace, process_bytes - tokenizer_bytes, tokenizer_bytes)

        needs, least = needs_with(settings.max_tokens), needs_with(min(settings.max_tokens, TILED_TOKENS))
    sizes = piece_sizes(model, pieces)
    largest = sizes.minimum_bytes
    refused = ""
    try:
        memory = plan_memory(needs, largest, sum(pieces), limit, resources.window_bytes)
    except MemoryBudgetError as error:
        refused = str(error)
        memory = plan_memory(needs, largest, sum(pieces), None, largest)
    facts = {
        "rank": plan.rank,
        "ranks": plan.partition.n_ranks,
        "cells": settings.n_cells,
        "kv_type": plan.kv_type,
        "chunk_tokens": settings.max_tokens,
        "threads": settings.n_threads,
        "limit_bytes": limit,
        "minimum_bytes": minimum_bytes(least, largest),
        **_plan_facts(memory),
        **_window_facts(model, sizes, memory.window_bytes),
    }
    return {**facts, "refused": refused} if refused else facts


def _become(of: RankOfModel, stack: ExitStack) -> int:
    """Loads what the rank's verb loads; returns what tokenizer and template take."""
    is_master = of.rank == 0
    importlib.import_module("tpi.cli.serve" if is_master else "tpi.cli.join")
    load_ggml()
    if is_master:
        authority = importlib.import_module("tpi.cluster.pairing.authority")
        with tempfile.TemporaryDirectory() as folder:
            authority.Authority.open(Path(folder), "nobody").server_context()
    give_back_freed()
    before = resident_bytes()
    if is_master and of.gguf is not None:
        language = importlib.import_module("tpi.engine.language")
        stack.enter_context(language.Language(path_of(of.gguf)))
    give_back_freed()
    return max(0, resident_bytes() - before)


def _plan(question: MemoryQuestion) -> Plan:
    of, spec = question.of, question.of.spec
    n_cells = n_cells_of(question.context, spec)
    return Plan(
        epoch=FIRST_EPOCH,
        rank=of.rank,
        spec=spec,
        partition=of.partition,
        n_cells=n_cells,
        max_tokens=min(DEFAULT_CHUNK_TOKENS, n_cells),
        max_sampled=MAX_SAMPLED,
        payload="f16",
        kv_type=kv_type_of(question.kv_type.upper(), spec),
        n_parts=2 if of.partition.n_ranks > 1 else 1,
    )


def _whole(of: RankOfModel, model: RankModel) -> StoredWeights | None:
    """A master that is alone reads the model's own files."""
    if of.gguf is None or model.partition.n_ranks > 1 or not lies_in_gguf(of.gguf, model.pieces):
        return None
    return stored_from_gguf(of.gguf, model.pieces)


def _plan_facts(memory: MemoryPlan) -> dict[str, Any]:
    needs = memory.needs
    return {
        "total_bytes": memory.total_bytes,
        "process_bytes": needs.process_bytes,
        "tokenizer_bytes": needs.tokenizer_bytes,
        "growth_bytes": needs.growth_bytes,
        "kv_cache_bytes": needs.kv_bytes,
        "states_bytes": needs.states_bytes,
        "graphs_bytes": needs.graphs_bytes,
        "activations_bytes": needs.activations_bytes,
        "links_bytes": needs.links_bytes,
        "logits_bytes": needs.logits_bytes,
    }


def _window_facts(model: RankModel, sizes: PieceSizes, window_bytes: int) -> dict[str, Any]:
    pins, pieces = sizes.plan(window_bytes), sizes.sizes
    streamed = [size for index, size in enumerate(pieces) if index not in pins.pinned | sizes.on_demand]
    head = [piece.index for piece in model.pieces if piece.block == len(model.blocks) - 1]
    return {
        "arena_bytes": window_bytes - pins.pinned_bytes - pins.pool_bytes,
        "experts_bytes": pins.pool_bytes,
        "slots": pins.n_slots,
        "experts": len(sizes.on_demand),
        "pins_bytes": pins.pinned_bytes,
        "weights_bytes": sum(pieces),
        "pieces": len(pieces),
        "largest_piece_bytes": max(pieces, default=0),
        "pinned_pieces": len(pins.pinned),
        "streamed_bytes": sum(streamed),
        "head_bytes": sum(pieces[index] for index in head),
        "head_pinned_bytes": sum(pieces[index] for index in head if index in pins.pinned),
    }


_PARTS = {
    "process": "interpreter, libraries, the model's description",
    "tokenizer": "tokenizer and chat template",
    "growth": "code, stacks and graphs as they are first used",
    "kv_cache": "{kv_type}, {cells} cells",
    "states": "recurrent: the latest, the one before, and some to go back to",
    "graphs": "intermediates and work buffer, passes of {chunk_tokens} tokens, threads: {threads}",
    "activations": "residual stream, sums, mask",
    "links": "frames and payloads",
    "logits": "of the head's rows, and put together",
    "arena": "weights that pass through: {streamed} of {weights} per pass",
    "experts": "places for experts, which are read when they are chosen: {slots} for {experts}",
    "pins": "weights that stay: {pinned_pieces} of {pieces} pieces, {head_pinned} of the head's {head}",
    "total": "when all cells are written and the window is full",
    "limit": "as asked for",
    "minimum": "with an arena for the largest piece, {largest_piece}",
}


_SOMETIMES = ("states", "experts")
"""Not of every model."""


def memory_lines(facts: dict[str, Any]) -> list[str]:
    """The plan as a table."""
    sizes = {name.removesuffix("_bytes"): size(value) for name, value in facts.items() if name.endswith("_bytes")}
    parts = {name: what for name, what in _PARTS.items() if name not in _SOMETIMES or facts[f"{name}_bytes"]}
    rows = [(name, facts[f"{name}_bytes"], what.format(**{**sizes, **facts})) for name, what in parts.items()]
    lines = [f"memory of rank {facts['rank']} of {facts['ranks']}, whose weights are {sizes['weights']}:"]
    return lines + [f"  {name.replace('_', ' '):<11}{_mb(n_bytes):>10}  {what}" for name, n_bytes, what in rows]


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"
