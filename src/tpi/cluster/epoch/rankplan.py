"""What a plan says of one rank: the model as it holds it, and how large its passes are. Takes no memory."""

from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.cluster.control.messages import Plan
from tpi.gguf.types import TYPES_BY_NAME
from tpi.model.architectures import model_of
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.weights.layout import lay_out

_WIRE_BYTES = {PayloadFormat.F32: 4.0, PayloadFormat.F16: 2.0, PayloadFormat.INT8: 34 / 32}


def rank_model(plan: Plan) -> RankModel:
    """What the plan's rank holds."""
    model = model_of(plan.spec)
    pieces = lay_out(model.blocks, plan.partition, plan.rank)
    return RankModel(plan.spec, model.blocks, plan.partition, plan.rank, pieces, model.inputs)


def widest_sum(plan: Plan) -> int:
    """Values of a row of the widest sum."""
    return rank_model(plan).max_sum_width


def rank_settings(plan: Plan, n_threads: int) -> RankSettings:
    """What the plan says about every rank's workspace."""
    return RankSettings(
        plan.max_tokens,
        plan.n_cells,
        n_threads,
        TYPES_BY_NAME[plan.kv_type],
        plan.max_sampled,
        plan.n_parts,
        _WIRE_BYTES[PayloadFormat(plan.payload)],
        n_sequences=plan.n_sequences,
        n_kept_states=plan.n_kept_states,
        is_reproducible=plan.is_reproducible,
    )
