"""What both networks have in PyTorch: norms, rotary positions, and experts chosen by a router.

Training only. Weights are stored as [output, input]; hidden states are [batch, position, channel].
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, CONTEXT = 2048, 1024
"""Those of the demo model, whose tokenizer and conversations are used."""
ROPE_BASE = 10000.0
APART = 0.5
"""How far apart a router's scores should be where the choice ends, in standard deviations of the token's scores."""

Activation = Callable[[Tensor, Tensor], Tensor]
"""What becomes of gate and up."""


class Norm(nn.Module):  # type: ignore[misc]
    """Root-mean-square normalisation of the last dimension with a learned gain."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.epsilon)


def angles(n_channels: int) -> Tensor:
    """How far each pair of channels turns at each position: [position, n_channels/2]."""
    frequencies = ROPE_BASE ** (-torch.arange(0, n_channels, 2).float() / n_channels)
    return torch.outer(torch.arange(CONTEXT).float(), frequencies)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turns the channel pairs (0, n/2), (1, n/2 + 1), … of the first n channels of [batch, head, position, channel].

    ``turn`` is [position, n/2]; channels from n on stay as they are.
    """
    half = turn.shape[-1]
    cos, sin = turn.cos(), turn.sin()
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, first * sin + second * cos, rest), dim=-1)


def linear(n_in: int, n_out: int, bias: bool = False, std: float | None = None) -> nn.Linear:
    """A matrix with that standard deviation (by default one that keeps the size of what comes in), biases zero."""
    made = nn.Linear(n_in, n_out, bias=bias)
    nn.init.normal_(made.weight, std=n_in**-0.5 if std is None else std)
    if bias:
        nn.init.zeros_(made.bias)
    return made


class Experts(nn.Module):  # type: ignore[misc]
    """Several feed-forward parts, of which a router takes some for every token.

    After a pass, ``balance`` is how unevenly the experts were used (1 is even), ``used`` the part of each, and
    ``closeness`` how near the last one taken and the first one left were (0 where all are ``APART``).
    """

    balance: Tensor
    used: Tensor
    closeness: Tensor

    def __init__(
        self, n_embd: int, n_experts: int, n_used: int, width: int, activation: Activation, bias: bool
    ) -> None:
        super().__init__()
        self.n_used, self.activation = n_used, activation
        self.gate_inp = linear(n_embd, n_experts, bias)
        self.gate_up_exps = nn.Parameter(torch.randn(n_experts, 2 * width, n_embd) * n_embd**-0.5)
        self.down_exps = nn.Parameter(torch.randn(n_experts, n_embd, width) * 0.3 * width**-0.5)
        self.gate_up_bias = nn.Parameter(torch.zeros(n_experts, 2 * width)) if bias else None
        self.down_bias = nn.Parameter(torch.zeros(n_experts, n_embd)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        scores = self.gate_inp(rows)
        best, chosen = scores.topk(self.n_used + 1)
        self.closeness = F.relu(APART - (best[:, -2] - best[:, -1]) / scores.std(-1)).mean()
        chosen = chosen[:, :-1]
        shares = best[:, :-1].softmax(-1).flatten()
        order = chosen.flatten().argsort()
        counts = torch.bincount(chosen.flatten(), minlength=scores.shape[1])
        self.used = counts / order.numel()
        self.balance = len(counts) * (self.used * scores.softmax(-1).mean(0)).sum()
        source = order // self.n_used
        parts = [self._one(number, part) for number, part in enumerate(rows[source].split(counts.tolist()))]
        weighted = torch.cat(parts) * shares[order, None]
        return torch.zeros_like(rows).index_add(0, source, weighted).view_as(x)

    def _one(self, number: int, x: Tensor) -> Tensor:
        bias = None if self.gate_up_bias is None else self.gate_up_bias[number]
        gate, up = F.linear(x, self.gate_up_exps[number], bias).chunk(2, dim=-1)
        bias = None if self.down_bias is None else self.down_bias[number]
        return F.linear(self.activation(gate, up), self.down_exps[number], bias)
