"""The model "experts and a window": what GGUF calls "gpt-oss".

Attention has biases and sinks, and in every other layer, the first among them, a window; every layer has experts.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trained.parts import CONTEXT, VOCABULARY, Experts, Norm, angles, linear, rotate


@dataclass(frozen=True)
class Shape:
    """The dimensions of the network."""

    architecture: str = "gpt-oss"
    n_layers: int = 4
    n_embd: int = 192
    n_heads: int = 6
    n_kv_heads: int = 2
    head_dim: int = 32
    window: int = 32
    n_experts: int = 8
    n_used: int = 2
    expert_width: int = 64
    epsilon: float = 1e-5


def swiglu_oai(gate: Tensor, up: Tensor) -> Tensor:
    """The gated activation of gpt-oss: both sides limited, the gate's sigmoid steeper, one added to the other side."""
    gate = gate.clamp(max=7.0)
    return gate * torch.sigmoid(1.702 * gate) * (up.clamp(-7.0, 7.0) + 1)


class Layer(nn.Module):  # type: ignore[misc]
    """Attention and experts, each with a norm before and a residual around it."""

    def __init__(self, shape: Shape, is_windowed: bool) -> None:
        super().__init__()
        self.shape, self.is_windowed = shape, is_windowed
        width = shape.n_heads * shape.head_dim
        self.attn_norm = Norm(shape.n_embd, shape.epsilon)
        self.attn_q = linear(shape.n_embd, width, bias=True)
        self.attn_k = linear(shape.n_embd, shape.n_kv_heads * shape.head_dim, bias=True)
        self.attn_v = linear(shape.n_embd, shape.n_kv_heads * shape.head_dim, bias=True)
        self.attn_output = linear(width, shape.n_embd, bias=True, std=0.3 * width**-0.5)
        self.attn_sinks = nn.Parameter(torch.zeros(shape.n_heads))
        self.post_attention_norm = Norm(shape.n_embd, shape.epsilon)
        self.ffn = Experts(shape.n_embd, shape.n_experts, shape.n_used, shape.expert_width, swiglu_oai, bias=True)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        x = x + self._attend(self.attn_norm(x), turn)
        return x + self.ffn(self.post_attention_norm(x))

    def _attend(self, x: Tensor, turn: Tensor) -> Tensor:
        shape, (batch, length, _) = self.shape, x.shape
        q, k, v = (
            matrix(x).view(batch, length, -1, shape.head_dim).transpose(1, 2)
            for matrix in (self.attn_q, self.attn_k, self.attn_v)
        )
        q, k = rotate(q, turn) * shape.head_dim**-0.5, rotate(k, turn)
        # the sink is the score of one more key, whose value is 0: q gets a channel of 1 that only this key answers
        q = F.pad(q, (0, 1), value=1.0)
        sinks = F.pad(self.attn_sinks.view(1, -1, 1, 1), (shape.head_dim, 0)).expand(batch, -1, 1, -1)
        group = shape.n_heads // shape.n_kv_heads
        k = torch.cat((F.pad(k, (0, 1)).repeat_interleave(group, dim=1), sinks), dim=2)
        v = F.pad(v, (0, 0, 0, 1)).repeat_interleave(group, dim=1)
        at = torch.arange(length)
        distance = at[:, None] - at
        seen = (distance >= 0) & (distance < (shape.window if self.is_windowed else CONTEXT))
        unseen = F.pad(torch.zeros(length, length).masked_fill(~seen, -torch.inf), (0, 1))
        mixed = torch.softmax(q @ k.transpose(2, 3) + unseen, dim=-1) @ v
        return self.attn_output(mixed.transpose(1, 2).reshape(batch, length, -1))


class Windowed(nn.Module):  # type: ignore[misc]
    """The whole network; ``forward`` gives the last hidden states, ``logits`` turns chosen ones into scores."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(VOCABULARY, shape.n_embd)
        nn.init.normal_(self.token_embd.weight, std=0.5)
        self.blk = nn.ModuleList(Layer(shape, number % 2 == 0) for number in range(shape.n_layers))
        self.output_norm = Norm(shape.n_embd, shape.epsilon)
        self.output = linear(shape.n_embd, VOCABULARY, std=0.02)
        self.register_buffer("turn", angles(shape.head_dim), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states [batch, position, channel] of tokens [batch, position]; each row starts at position 0."""
        assert tokens.shape[1] <= CONTEXT
        x = self.token_embd(tokens)
        for layer in self.blk:
            x = layer(x, self.turn[: tokens.shape[1]])
        return self.output_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., vocabulary]."""
        return F.linear(hidden, self.output.weight)
