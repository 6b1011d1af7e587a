"""Whether a plan that came over a link can be followed. No I/O; any thread."""

from pathlib import Path

from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.cluster.control.messages import Plan
from tpi.cluster.mesh.frames import check_capacity
from tpi.cluster.mesh.passframes import pass_capacity
from tpi.errors import ModelFileError, ProtocolError, UnsupportedModelError
from tpi.gguf.types import TYPES_BY_NAME
from tpi.model.architectures import blocks_of, check_spec, inputs_of
from tpi.model.partition import is_whole
from tpi.model.spec import ModelSpec
from tpi.model.states import KvState
from tpi.runtime.ggml.numbers import INT8_BLOCK_VALUES

KV_TYPES = ("F16", "Q8_0", "Q4_0")
"""Types of the KV cache, by their GGUF names."""


def check_kv_type(name: str, spec: ModelSpec) -> None:
    """Refuses what the KV cache cannot be made of.

    Raises:
        ValueError: an unknown type, or one whose blocks do not divide this model's heads.
    """
    if name not in KV_TYPES:
        raise ValueError(f"a KV cache of type {name}; there are {', '.join(KV_TYPES)}")
    for dim in {dim for block in blocks_of(spec) if isinstance(block.state, KvState) for dim in block.state.dims}:
        if dim % TYPES_BY_NAME[name].block_elements:
            raise ValueError(f"a KV cache of type {name} needs heads of whole blocks, this model's have {dim}")


def check_payload(name: str, spec: ModelSpec) -> None:
    """Refuses a payload format that sums of this model cannot travel in.

    Raises:
        ValueError: there is no such format, or its blocks do not divide the residual stream.
    """
    names = ", ".join(entry.value for entry in PayloadFormat)
    if name not in {entry.value for entry in PayloadFormat}:
        raise ValueError(f"a payload of {name}; there are {names}")
    if name == PayloadFormat.INT8.value and spec.n_embd % INT8_BLOCK_VALUES:
        raise ValueError(f"int8 needs a width of whole blocks of {INT8_BLOCK_VALUES}, this model has {spec.n_embd}")


def check_plan(plan: Plan) -> None:
    """Refuses a plan whose parts do not fit each other.

    Raises:
        ProtocolError: no rank could follow it.
    """
    try:
        check_spec(plan.spec, Path("the plan"))
        is_complete = is_whole(blocks_of(plan.spec), plan.partition)
        check_payload(plan.payload, plan.spec)
        check_kv_type(plan.kv_type, plan.spec)
        width = plan.spec.n_embd + inputs_of(plan.spec).n_looked_up
        check_capacity(pass_capacity(plan.max_tokens, plan.n_cells, width))
    except (ProtocolError, ModelFileError, UnsupportedModelError, ValueError, LookupError, ArithmeticError) as error:
        raise ProtocolError(f"the master's plan cannot be used: {error}") from error
    if not is_complete or plan.rank >= plan.partition.n_ranks:
        raise ProtocolError(
            f"the master's plan cannot be used: its {plan.partition.n_ranks} ranks do not hold every block once, or "
            f"rank {plan.rank} is not among them"
        )
