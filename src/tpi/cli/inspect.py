"""``tpi inspect``: what a GGUF or shard file holds; with ``--verify``, whether it is intact."""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from tpi.cli import options
from tpi.cli.cuts import cut_facts, cut_lines
from tpi.cli.display import open_display
from tpi.cli.environment import find_folders
from tpi.cli.figures import part, size
from tpi.cli.memorytable import MemoryQuestion, RankOfModel, memory_facts, memory_lines
from tpi.cli.models import find_digest, find_model
from tpi.config import MAX_RANKS, parse_shares
from tpi.errors import MemoryBudgetError, ModelFileError, TpiError, UsageError
from tpi.gguf.types import TYPES_BY_ID
from tpi.hub.reader import read_model
from tpi.model.architectures import blocks_of, model_of, read_spec
from tpi.model.blocks import Block
from tpi.model.partition import divide
from tpi.model.spec import ModelSpec
from tpi.model.states import KvState
from tpi.runtime.ggml.quantize import quantized
from tpi.weights.shards.shard import open_shard
from tpi.weights.shards.shard import verify as verify_shard
from tpi.weights.shards.shard_format import MAGIC

Facts = dict[str, Any]


def command(
    name: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A GGUF file, a model hub's folder, a shard file, or `demo`."),
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Compare a shard's data with its checksums.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Show what a rank would use so much memory for.")
    ] = None,
    ranks: Annotated[int | None, typer.Option(min=1, max=MAX_RANKS, help="Of how many ranks. [default: 1]")] = None,
    rank: Annotated[int | None, typer.Option(min=0, max=MAX_RANKS - 1, help="Which of them. [default: 0]")] = None,
    shares: options.Shares = None,
    window: options.Window = None,
    context: options.Context = None,
    kv_type: options.KvType = "F16",
    threads: options.Threads = None,
    quant: options.Quant = None,
    no_repack: options.NoRepack = False,
) -> None:
    """Show what FILE holds: a model's dimensions, data types, blocks and units; a shard's model, rank and pieces.

    With --verify, reads a shard's data and fails if any of it differs from its checksum. GGUF files have none: their
    headers and sizes are checked always.

    With --ranks or --shares, shows instead how a model is cut among so many ranks, and how much several of them hold.

    With --quant, shows a model as it is quantised when its slices are cut.

    With --memory, shows instead what the rank of a shard, or rank --rank of --ranks that share a GGUF model, will use
    its memory for, and the least that would do. Fails if that is more than --memory.
    """
    file = find_model(name)
    is_shard = _starts_like_shard(file)
    if is_shard and quant is not None:
        raise UsageError("--quant is for models: what a shard has is cut already")
    asked = _Asked(file, ranks, rank, shares, quant)
    if memory is not None:
        resources = options.read_resources(memory, window, threads, repack=not no_repack)
        chosen = _rank_of_shard(asked) if is_shard else _rank_of_model(asked)
        _show_memory(
            MemoryQuestion(chosen, resources, options.read_context(context), kv_type, find_folders().cache), json
        )
        return
    if any(option is not None for option in (rank, window, context, threads)):
        raise UsageError("--rank, --window, --context and --threads need --memory SIZE")
    if ranks is not None or shares is not None:
        _show_cuts(asked, is_shard, json)
        return
    facts = _shard_facts(file) if is_shard else _model_facts(file, quant)
    if verify:
        facts["verified"] = _verify(file) if is_shard else "headers and sizes; model files have no checksums"
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode() + "\n")
    else:
        print("\n".join(_lines(facts)))


@dataclass(frozen=True)
class _Asked:
    """Whose part of what is to be shown, by the options' names."""

    file: Path
    ranks: int | None
    rank: int | None
    shares: str | None
    quant: str | None


def _rank_of_shard(asked: _Asked) -> RankOfModel:
    if (asked.ranks, asked.rank, asked.shares) != (None, None, None):
        raise UsageError("--ranks, --rank and --shares are for GGUF files: a shard is of one rank")
    header = open_shard(asked.file).header
    return RankOfModel(header.spec, header.partition, header.rank, None)


def _rank_of_model(asked: _Asked) -> RankOfModel:
    gguf, shares = quantized(read_model(asked.file), asked.quant), asked.shares
    spec = read_spec(gguf, digest="")
    n_ranks = asked.ranks or (len(parse_shares(shares)) if shares else 1)
    weights = options.read_shares(shares, n_ranks) or (1.0,) * n_ranks
    if (asked.rank or 0) >= n_ranks:
        raise UsageError(f"--rank {asked.rank}: {n_ranks} ranks go from 0 to {n_ranks - 1}")
    return RankOfModel(spec, divide(blocks_of(spec), weights), asked.rank or 0, gguf)


def _show_memory(question: MemoryQuestion, json: bool) -> None:
    facts = memory_facts(question)
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode() + "\n")
    else:
        print("\n".join(memory_lines(facts)))
    if "refused" in facts:
        raise MemoryBudgetError(facts["refused"])


def _show_cuts(asked: _Asked, is_shard: bool, json: bool) -> None:
    if is_shard:
        raise UsageError("--ranks and --shares are for GGUF files: a shard is of one rank")
    chosen = _rank_of_model(asked)
    facts = cut_facts(blocks_of(chosen.spec), chosen.partition)
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode() + "\n")
    else:
        print("\n".join(cut_lines(facts)))


def _starts_like_shard(file: Path) -> bool:
    if file.is_dir():
        return False
    try:
        with file.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ModelFileError(f"cannot read {file}: {error.strerror}") from error


def _verify(file: Path) -> str:
    display = open_display()
    try:
        verify_shard(open_shard(file), lambda done, total: display.progress(f"checking {file.name}", done, total))
    finally:
        display.settle()
    return "all checksums fit"


def _model_facts(file: Path, quant: str | None) -> Facts:
    gguf = quantized(read_model(file), quant)
    types = Counter[str]()
    for tensor in gguf.tensors.values():
        types[tensor.type.name] += tensor.n_bytes
    facts: Facts = {
        "kind": "folder of a model hub" if file.is_dir() else "GGUF model",
        "files": [str(path) for path in gguf.paths],
        "bytes": sum(types.values()),
        "tensors": len(gguf.tensors),
        "types": dict(types.most_common()),
    }
    try:
        spec = read_spec(gguf, digest="")
        digest = find_digest(gguf, find_folders().cache, open_display())
    except TpiError as error:
        # Still worth a look: what is it, then?
        return {**facts, "architecture": gguf.metadata.get("general.architecture"), "cannot be computed": str(error)}
    blocks = blocks_of(spec)
    named = msgspec.structs.replace(spec, digest=digest)
    return {**facts, **_spec_facts(named), "blocks": len(blocks), "units": _units(blocks)}


def _spec_facts(spec: ModelSpec) -> Facts:
    return {
        "architecture": spec.architecture,
        "name": spec.name,
        "digest": spec.digest,
        **({"quantised to": spec.quant} if spec.quant else {}),
        "layers": spec.n_layers,
        "embedding": spec.n_embd,
        **_block_facts(blocks_of(spec)),
        "vocabulary": spec.n_vocab,
        "context trained": spec.n_context_train,
        **({"other rotary factors beyond": n_short} if (n_short := model_of(spec).inputs.short_context) else {}),
        **({"left out": list(remarks)} if (remarks := model_of(spec).remarks) else {}),
    }


def _block_facts(blocks: Sequence[Block]) -> Facts:
    """What the layers have; a list where they differ."""
    states = [(block.measures[0].total, block.state) for block in blocks if isinstance(block.state, KvState)]
    experts = [block.experts for block in blocks if block.experts is not None]
    found = {
        "heads": [n_heads for n_heads, _ in states],
        "KV heads": [n_heads // state.group for n_heads, state in states],
        "head size": [state.head_dim for _, state in states],
        "window": [state.window for _, state in states if state.window],
        "FFN size": [m.total for block in blocks for m in block.measures if m.name == "columns"],
        "experts": [entry.n for entry in experts],
        "experts per token": [entry.n_used for entry in experts],
        "expert size": [entry.width for entry in experts],
    }
    return {name: values[0] if len(set(values)) == 1 else values for name, values in found.items() if values}


def _units(blocks: Iterable[Block]) -> dict[str, list[str]]:
    """For every kind of block, into how many units of which size it can be cut; layers may differ by their types."""
    found: dict[str, list[str]] = {}
    for block in blocks:
        text = " and ".join(f"{measure.n_units} of {measure.unit} {measure.name}" for measure in block.measures)
        texts = found.setdefault(block.name, [])
        if text not in texts:
            texts.append(text)
    return found


def _shard_facts(file: Path) -> Facts:
    shard = open_shard(file)
    header = shard.header
    parts = [p for piece in shard.pieces for p in piece.parts]
    types = Counter[str]()
    for p in parts:
        types[TYPES_BY_ID[p.type_id].name] += p.n_bytes
    weights = sum(piece.n_bytes for piece in shard.pieces)
    whole = sum(slot.tensor.n_bytes for slot in _slots(header.spec))
    held = {piece.block for piece in shard.pieces}
    return {
        "kind": "shard",
        "files": [str(file)],
        "rank": header.rank,
        "ranks": header.partition.n_ranks,
        "bytes": weights,
        "share": weights / whole if whole else 0.0,
        "file bytes": shard.n_bytes,
        "pieces": len(shard.pieces),
        "largest piece": max((piece.n_bytes for piece in shard.pieces), default=0),
        "blocks held": f"{len(held)} of {len(header.partition.shares)}",
        "types": dict(types.most_common()),
        **_spec_facts(header.spec),
    }


def _slots(spec: ModelSpec) -> list[Any]:
    return [slot for block in blocks_of(spec) for slot in block.slots]


def _lines(facts: Mapping[str, Any]) -> list[str]:
    width = max(map(len, facts))
    return [f"{name.ljust(width)}  {_text(name, value)}" for name, value in facts.items()]


def _text(name: str, value: Any) -> str:
    if name == "share":
        return part(value)
    if name in ("bytes", "file bytes", "largest piece"):
        return f"{size(value)} ({value:,})"
    if name == "types":
        return ", ".join(f"{type_name} {size(n_bytes)}" for type_name, n_bytes in value.items())
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_text('', entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
