"""The steps of experts: which ones every row chooses, and what becomes of what they made.

Between the choice and its use the graph is interrupted: the caller reads what was chosen, computes the experts, and
writes choice and outputs to where the second half reads them.
"""

from dataclasses import dataclass
from math import inf

from tpi.model.blocks import Experts
from tpi.runtime.ggml.binding import Tensor
from tpi.runtime.ggml.nodes import NodeBuilder

_LEAST_WEIGHTS = 2.0**-14
"""No sum of weights is divided by less: the smallest normal number of 16 bits."""


@dataclass(frozen=True)
class Choice:
    """Where a graph is interrupted: after so many nodes, with the choice in ``ids`` i32 [n_tokens, n_used], whose rows
    lie further apart, by ``scores`` f32 [n_tokens, n_experts], and what experts compute in ``rows`` f32 [n_tokens,
    n_embd]."""

    n_nodes: int
    ids: int
    scores: int
    rows: int


class ExpertSteps(NodeBuilder):
    """See ``NodeBuilder``."""

    choice: Choice | None = None

    def softmax(self, x: int) -> int:
        return self._append(self._base.ggml_soft_max(self._context, x))

    def best_groups(self, scores: int, n_groups: int, n_used: int) -> int:
        base, context = self._base, self._context
        n_experts, n_tokens = self._extents(scores)[:2]
        n_each = n_experts // n_groups
        groups = base.ggml_reshape_3d(context, scores, n_each, n_groups, n_tokens)
        best = self._append(base.ggml_argsort_top_k(context, groups, 2))
        single = base.ggml_reshape_4d(context, groups, 1, n_each, n_groups, n_tokens)
        two = self._append(base.ggml_get_rows(context, single, best))
        sums = self._append(base.ggml_sum_rows(context, base.ggml_reshape_3d(context, two, 2, n_groups, n_tokens)))
        sums = base.ggml_reshape_2d(context, sums, n_groups, n_tokens)
        chosen = self._append(base.ggml_argsort_top_k(context, sums, n_used))
        kept = self._append(base.ggml_get_rows(context, groups, chosen))
        nothing = self._append(base.ggml_fill(context, groups, -inf))
        masked = self._append(base.ggml_set_rows(context, nothing, kept, chosen))
        return int(base.ggml_reshape_2d(context, masked, n_experts, n_tokens))

    def choose(self, scores: int, x: int) -> None:
        ids = self._append(self._base.ggml_argsort_top_k(self._context, scores, self._experts().n_used))
        for tensor in (Tensor.from_address(ids).view_src, scores, x):
            self._base.ggml_set_output(Tensor.from_address(tensor).view_src or tensor)
        self.choice = Choice(self.n_nodes, ids, scores, x)

    def chosen_weights(self, weights: int) -> int:
        n_experts, n_tokens = self._extents(weights)[:2]
        single = self._base.ggml_reshape_3d(self._context, weights, 1, n_experts, n_tokens)
        picked = self._append(self._base.ggml_get_rows(self._context, single, self._chosen()))
        return int(self._base.ggml_reshape_2d(self._context, picked, self._experts().n_used, n_tokens))

    def normalised(self, weights: int) -> int:
        total = self._append(self._base.ggml_sum_rows(self._context, weights))
        total = self._append(self._base.ggml_clamp(self._context, total, _LEAST_WEIGHTS, inf))
        return self._append(self._base.ggml_div(self._context, weights, total))

    def expert_outputs(self) -> int:
        return self._inputs.outputs(self._experts().n_used)

    def plus_chosen(self, outputs: int, role: str) -> int:
        return self._append(self._base.ggml_add_id(self._context, outputs, self._sole(role), self._chosen()))

    def weighted_sum(self, outputs: int, weights: int) -> int:
        base, context, n_tokens = self._base, self._context, self._shape.n_tokens
        each = base.ggml_reshape_3d(context, weights, 1, self._experts().n_used, n_tokens)
        weighted = self.multiply(outputs, each)
        tensor, result = Tensor.from_address(weighted), 0
        for number in range(self._experts().n_used):
            one = base.ggml_view_2d(context, weighted, tensor.ne[0], n_tokens, tensor.nb[2], number * tensor.nb[1])
            result = self.add(result, one) if result else one
        return self._contiguous(result)

    def _experts(self) -> Experts:
        assert self._held.experts is not None
        return self._held.experts

    def _chosen(self) -> int:
        return self._inputs.chosen(self._experts().n_used)
